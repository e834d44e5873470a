"""The ledger as a file: what was lost, damaged, or can't be written is said, and nothing of it passes silently."""

import contextlib
import math
import os
import pathlib
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from ledgers import with_a_loss

from cse_jax.search import ledger, ledger_reader
from cse_jax.search.ledger import Ledger, LedgerError
from cse_jax.search.ledger_reader import LedgerReader, read_hall_of_fame
from cse_jax.search.trainer import ProcessLost

NAME = "ledger.sqlite"
TRAINING = {"purpose": "proxy", "cls": "x", "box": "i", "cls_weight": 1, "box_weight": 0.1, "seed": 0, "steps": 9}
TRAINING |= {"ap": 0.25, "failure": "", "metrics": {"ap50": 0.5}, "seconds": 1.5}
ROW = {"branch": "box", "formula": "1 - i / u", "flipped": True, "nodes": 5, "copies": 1, "duplicates": 0}
ROW |= {"reason": "", "simulation": 1, "probe": None, "overfit": math.nan, "proxy": np.float64(0.3), "weight": -0.0}
ROW |= {"curve": "[]", "aps": "[]", "seed": 0, "seconds": 0.1}
FAME = [f"loss {number}" for number in (3, 1, 2)]


def rows(count):
    for number in range(count):
        texts = {"authors": f"loss {number}", "fingerprint": f"{number:032x}"}
        yield ROW | texts | {"generation": 0, "number": number, "stage": "proxy" if number < 4 else "distinct"}


def filled(folder):
    """A ledger as a search leaves it."""
    with Ledger(folder / NAME, identity={"config": 1}) as made:
        for number in range(40):
            made.record_training(TRAINING | {"key": f"training {number}"})
        made.record_generation("box", 0, rows(100), {"generated": 100}, {"fingerprints": ["a", "b"]})
        made.record_hall_of_fame("box", FAME)
    (folder / "config.json").write_text("{}")
    return folder / NAME


def content(path):
    """What a search and an export read."""
    with Ledger(path, identity={"config": 1}) as opened:
        found = [opened.training(f"training {number}") for number in range(40)], opened.generation("box", 0)
    return *found, read_hall_of_fame(path)


def test_what_is_read_is_what_was_written(tmp_path):
    trainings, generation, fame = content(filled(tmp_path))
    assert trainings == [TRAINING | {"key": f"training {number}"} for number in range(40)]
    assert generation == ({"generated": 100}, {"fingerprints": ["a", "b"]})
    assert [row["authors"] for row in fame["box"]] == FAME
    assert (fame["box"][0]["simulation"], fame["box"][0]["overfit"], fame["box"][0]["flipped"]) == (1.0, None, 1)


# Settings


def identity(*, device="1 x cpu (cpu)", **search):
    return {"config": {"search": {"seed": 0, "workers": 2} | search, "data": {"workers": 0}}, "device": device}


def begun(path, **made_with):
    with Ledger(path, identity=identity(**made_with)) as made:
        made.record_training(TRAINING | {"key": "a"})


def test_settings_that_change_no_result_may_change(tmp_path):
    begun(tmp_path / NAME)
    with Ledger(tmp_path / NAME, identity=identity(workers=8, time_limit=9.0)) as opened:
        assert opened.training("a") and not opened.former_devices
    with pytest.raises(LedgerError, match=r"other settings \(config.search.seed: 0 -> 1\)"):
        Ledger(tmp_path / NAME, identity=identity(seed=1, workers=8))


def test_a_ledger_without_results_forgets_whose_trainings_ended_the_process(tmp_path):
    """Once it takes other settings, and not before: three such ends of the same training are its failure."""
    for config, before in ((1, 0), (1, 1), (2, 0)):
        with Ledger(tmp_path / NAME, identity={"config": config}) as made:
            assert made.attempts().get("a", 0) == before
            with contextlib.suppress(ProcessLost), made.attempt(["a"]):
                raise ProcessLost("process 1 has ended")


def test_another_device_must_be_allowed(tmp_path):
    begun(tmp_path / NAME)
    other = identity(device="1 x H100 (gpu)")
    with pytest.raises(LedgerError, match="change of device can be allowed"):
        Ledger(tmp_path / NAME, identity=other)
    with pytest.raises(LedgerError, match="seed: 0 -> 1.*device: "):
        Ledger(tmp_path / NAME, identity=identity(device="1 x H100 (gpu)", seed=1), allow_device_change=True)
    for allowed in (True, False, True):  # it is the ledger's own device from then on
        with Ledger(tmp_path / NAME, identity=other, allow_device_change=allowed) as opened:
            assert opened.training("a") and opened.former_devices == ["1 x cpu (cpu)"]


# Lost


@pytest.mark.parametrize("how", ["emptied", "deleted", "never checkpointed", "only a write-ahead log"])
def test_a_lost_ledger_does_not_start_over(tmp_path, how):
    path = filled(tmp_path)
    path.unlink()
    if how == "emptied":
        path.touch()
    elif how == "never checkpointed":  # as a killed search of earlier versions left it, but for the write-ahead log
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("pragma journal_mode=wal")
    elif how == "only a write-ahead log":
        (tmp_path / "config.json").unlink()
        (tmp_path / f"{NAME}-wal").write_bytes(bytes(100))
    for open_again in (content, content, read_hall_of_fame):
        if open_again is content or path.exists():
            with pytest.raises(LedgerError, match=rf"{NAME} is (empty|missing), but .*Put the ledger back.*start over"):
                open_again(path)


def test_what_was_recorded_is_soon_in_the_ledger_itself(tmp_path, monkeypatch):
    """So that a lost write-ahead log, or a copy without it, lacks no more than a second of it."""
    assert ledger.MOVED_SECONDS <= 1.0
    monkeypatch.setattr(ledger, "MOVED_SECONDS", 0.0)
    with Ledger(tmp_path / NAME, identity={"config": 1}) as made:
        made.record_training(TRAINING | {"key": "a"})
        made.sync()
        (tmp_path / "copy").mkdir()
        shutil.copy(tmp_path / NAME, tmp_path / "copy")
    with Ledger(tmp_path / "copy" / NAME, identity={"config": 1}) as copy:
        assert copy.training("a") == TRAINING | {"key": "a"}


def test_an_interrupt_leaves_no_transaction_open(tmp_path):
    """What has ended by then is recorded while the search shuts down."""

    def interrupted():
        yield next(rows(1))
        raise KeyboardInterrupt

    with Ledger(tmp_path / NAME, identity={}) as made:
        with pytest.raises(KeyboardInterrupt):
            made.record_generation("box", 0, interrupted(), {}, {})
        made.record_training(TRAINING | {"key": "a"})
    with Ledger(tmp_path / NAME, identity={}) as made:
        assert made.training("a") and made.generation("box", 0) is None
        made.record_generation("box", 0, rows(1), {}, {})


# Damaged


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 200, 4096])
def test_damage_never_passes(tmp_path, size):
    """Single bits or whole pages: a training is right or missing, which repeats it, or the ledger is called damaged."""
    path = filled(tmp_path)
    whole, before, rng, damaged = path.read_bytes(), content(path), random.Random(size), 0
    for _ in range(80):
        place = rng.randrange(len(whole) // size) * size
        broken = bytes([whole[place] ^ (1 << rng.randrange(8))]) if size == 1 else rng.randbytes(size)
        path.write_bytes(whole[:place] + broken + whole[place + size :])
        try:
            trainings, *rest = content(path)
            assert rest == list(before[1:])
            assert all(found in (None, expected) for found, expected in zip(trainings, before[0], strict=True))
        except LedgerError:
            damaged += 1
    assert damaged > 8


def test_a_changed_number_is_named_with_the_remedy(tmp_path, path=None):
    path = path or filled(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("update candidates set weight = 2.0 where authors = 'loss 3'")
    with pytest.raises(LedgerError, match=f"{NAME} is damaged.*a row of candidates.*back from a copy.*recover"):
        read_hall_of_fame(path)


def test_a_member_of_the_hall_of_fame_that_is_gone_is_missed(tmp_path):
    path = filled(tmp_path)
    for change in ("delete from candidates where authors = 'loss 1'", "delete from hall_of_fame where rank = 0"):
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute(change)
        with pytest.raises(LedgerError, match="what box has at rank 1 is missing"):
            read_hall_of_fame(path)


# Where it lies


@pytest.mark.parametrize("name", ["a#b", "a?mode=memory", "100%41", "two words", "lr=0.1", "ü"])
def test_any_name_of_a_folder_will_do(tmp_path, name, monkeypatch):
    (tmp_path / name).mkdir()
    assert list(content(filled(tmp_path / name))[2]) == ["box"]
    monkeypatch.chdir(tmp_path)
    assert list(read_hall_of_fame(pathlib.Path(name) / NAME)) == ["box"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


READ = """
import os, pathlib, sys
from cse_jax.search import ledger, ledger_reader
if os.geteuid() == 0:  # whom permissions don't stop
    os.setgid(65534)
    os.setuid(65534)
try:
    print(len(ledger_reader.read_hall_of_fame(pathlib.Path(sys.argv[1]))["box"]))
except ledger.LedgerError as error:
    print(error)
"""


@pytest.fixture
def open_folder():
    """One that other users reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name)
        path.chmod(0o755)
        yield path
        for folder in path.iterdir():
            folder.chmod(0o755)


def test_a_ledger_is_read_where_nothing_can_be_written(open_folder):
    closed, cut_off = open_folder / "closed", open_folder / "cut_off"
    closed.mkdir()
    cut_off.mkdir()
    filled(closed)
    with contextlib.closing(sqlite3.connect(filled(cut_off))) as db, db:
        db.execute("delete from hall_of_fame")
        db.commit()
        whole = {path: path.read_bytes() for path in cut_off.iterdir() if not path.name.endswith("-shm")}
    for path, found in whole.items():
        path.write_bytes(found)
    said = []
    for folder in (closed, cut_off):
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
        command = [sys.executable, "-c", READ, str(folder / NAME)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        said.append(done.stdout.strip() or done.stderr)
    assert said[0] == str(len(FAME))
    assert f"{NAME}-wal" in said[1] and "Copy the folder to where you can write" in said[1]


@pytest.mark.parametrize("name", [NAME, f"{NAME}-wal", f"{NAME}-shm"])
def test_a_ledger_that_is_a_link_or_no_file_is_refused(tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for make in (os.mkfifo, lambda path: path.symlink_to(elsewhere / "new"), os.mkdir):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder / name)
        with pytest.raises(LedgerError, match=f"{name} is a link or no regular file"):
            Ledger(folder / NAME, identity={})
    assert not list(elsewhere.iterdir())


# Of the format before


def test_a_ledger_of_the_format_before_is_read_and_upgraded(tmp_path):
    path = filled(tmp_path)
    before = content(path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for table in ("candidates", "trainings", "generations", "hall_of_fame"):
            db.execute(f"alter table {table} drop column checksum")
        db.execute("drop table attempts")
        db.execute("drop index finished")
        db.execute("create index by_stage on candidates (branch, stage)")
        db.execute("update meta set value = '4' where key = 'format'")
    assert read_hall_of_fame(path) == before[2]
    with pytest.raises(LedgerError, match="other settings"):
        Ledger(path, identity={"config": 2})
    assert asked(path, "select value from meta where key = 'format'") == "4", "what was refused is as it was"
    assert content(path) == before
    with LedgerReader(path) as upgraded:
        assert len(upgraded.candidates(limit=200)) == 100, "what explore.py lists is whole, too"
    assert asked(path, "select value from meta where key = 'format'") == "5"
    assert "index finished" in asked(path, "select group_concat(lower(sql)) from sqlite_master where type = 'index'")
    test_a_changed_number_is_named_with_the_remedy(tmp_path, path)


def asked(path, query):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchone()[0]


def test_a_generation_that_is_forgotten_leaves_a_whole_ledger(tmp_path):
    folder = with_a_loss(tmp_path / "run")
    with Ledger(folder / "ledger.sqlite", identity={}) as opened:
        opened.forget_generation("box", 1)
        assert opened.generation("box", 1) is None
    assert read_hall_of_fame(folder / "ledger.sqlite") == {}


def test_the_proposals_of_what_is_forgotten_are_kept(tmp_path):
    with Ledger(tmp_path / NAME, identity={"seeds": 1}) as made:
        for number, proposed in enumerate((["a"], [], ["b", "a"])):
            result = {"proposed": dict.fromkeys(proposed, "said")} if proposed else {}
            made.record_generation("box", number, [], {}, result)
        assert made.proposed("box") == []
        made.forget_generation("box", 2)
        assert made.proposed("box") == ["b", "a"] and made.proposed("cls") == []
    with Ledger(tmp_path / NAME, identity={"seeds": 2}, extendable={"seeds": False}) as made:
        assert made.generation("box", 0) is None and made.proposed("box") == ["b", "a"]
        assert list(made.changed) == ["seeds"]


def test_the_hall_of_fame_is_found_by_an_index(tmp_path, monkeypatch):
    """So that it does not matter how many candidates there are."""
    queries, path = [], filled(tmp_path)

    def traced(path):
        db = sqlite3.connect(path)
        db.set_trace_callback(queries.append)
        return db

    monkeypatch.setattr(ledger_reader, "open_to_read", traced)
    read_hall_of_fame(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        plans = [db.execute(f"explain query plan {query}").fetchall() for query in queries if "candidates" in query]
    assert len(plans) == 1 and "SEARCH found USING INDEX finished (branch=? AND authors=?)" in str(plans)
