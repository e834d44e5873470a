"""No write leaves a work folder by a link, and nothing there is waited for that never ends."""

import contextlib
import json
import os
import socket

import pytest

from cse_jax import workdir
from cse_jax.atlas import survivors
from cse_jax.language.spaces import BOX
from cse_jax.loss_table import table
from cse_jax.workdir import WorkdirError
from detectors.training.log import TrainingLog

_PART = "process0-batches-000000001-000000001.parquet"
IRREGULAR = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": os.mkdir,
    "socket": lambda path: _socket(path),
}


def _socket(path):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


@pytest.fixture
def outside(tmp_path):
    """A file of the user's that is no part of the work folder."""
    path = tmp_path / "outside" / "precious"
    path.parent.mkdir()
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


def describe(folder):
    workdir.write_description(folder, {"config": {"a": 1}, "versions": {}, "device": ""})


def a_log(folder):
    log = TrainingLog(folder, steps=10, epoch_steps=5, batch_size=1)
    for step in (1, 2):
        log.progress(step, {"loss": 1.0, "learning_rate": 0.1, "data_seconds": 0.0})


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("config.json", describe),
        ("versions.json", describe),
        (".config.json.tmp", describe),
        ("log.jsonl", a_log),
        ("table.parquet", lambda folder: table.save(table.LossTable((1,), []), folder / "table.parquet")),
        (_PART, lambda folder: survivors._write(folder, _PART, [], {})),
    ],
)
def test_a_link_is_replaced_and_not_followed(folder, outside, name, write):
    (folder / name).symlink_to(outside)
    write(folder)
    for path in folder.iterdir():
        assert not path.is_symlink() or path.name == ".config.json.tmp"


def test_what_a_link_would_make_is_not_made(folder, tmp_path):
    """Where nothing is at its other end."""
    (folder / "log.jsonl").symlink_to(tmp_path / "new")
    with pytest.raises(WorkdirError, match="log.jsonl is a link or no regular file; remove it"):
        a_log(folder)
    assert not (tmp_path / "new").exists()


def test_a_lock_that_is_a_link_is_refused(folder, outside):
    (folder / ".lock").symlink_to(outside)
    with pytest.raises(WorkdirError, match=r"\.lock is a link"), workdir.opened(folder):
        pass


@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_file_is_refused_at_once(folder, kind):
    def opened():
        with workdir.opened(folder):
            pass

    def screened():
        survivors.Survivors(folder, BOX, {"seed": 0})

    readers = {
        ".lock": opened,
        "config.json": lambda: workdir.check_same_config(folder, {"a": 1}, remedy=""),
        "settings.json": screened,
        "log.jsonl": lambda: a_log(folder),
        "table.parquet": lambda: table.read(folder / "table.parquet"),
    }
    for name, read in readers.items():
        IRREGULAR[kind](folder / name)
        with pytest.raises((workdir.UserError, OSError), match=name):
            read()
        os.rmdir(folder / name) if kind == "folder" else os.unlink(folder / name)
    screened()
    IRREGULAR[kind](folder / _PART)
    with pytest.raises(survivors.SurvivorsError, match="no regular file; remove it"):
        screened()


@pytest.mark.parametrize("content", ["", "{", json.dumps([1])])
def test_damaged_settings_of_a_screening_are_named(folder, content):
    (folder / "settings.json").write_text(content)
    with pytest.raises(survivors.SurvivorsError, match="settings.json is damaged.*another folder"):
        survivors.Survivors(folder, BOX, {"seed": 0})
