"""Checkpoints survive kills, full disks and flipped bits: what is there is whole, or is called damaged."""

import concurrent.futures
import gc
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from detectors import checkpoint

TREE = {"a": np.arange(5_000.0), "b": np.ones(3, np.float32), "c": np.int32(7)}


def test_checkpoints_may_be_saved_from_threads_and_after_a_kill(tmp_path):
    """Orbax's own saves fail about once in six when two run at once; a killed one leaves its temporary folder."""
    tree = {"a": np.arange(50_000.0), "b": np.ones(3)}
    (tmp_path / ".left.new.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    names = ["left", *(f"c{k}" for k in range(23))]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: checkpoint.save(tmp_path / name, tree), names))
    for name in names:
        jax.tree.map(np.testing.assert_array_equal, checkpoint.restore(tmp_path / name, tree), tree)


SAVES_FOR_EVER = """
import pathlib, sys
import numpy as np
from detectors import checkpoint
number = 0
while True:
    tree = {"a": np.full(2_000_000, number, np.float32), "number": np.int32(number)}
    checkpoint.save(pathlib.Path(sys.argv[1]), tree)
    print(number, flush=True)
    number += 1
"""


@pytest.mark.slow
def test_a_kill_leaves_the_last_checkpoint_or_the_one_before(tmp_path):
    like = {"a": np.zeros(2_000_000, np.float32), "number": np.int32(0)}
    for attempt in range(4):
        path = tmp_path / f"state{attempt}"
        process = subprocess.Popen(
            [sys.executable, "-c", SAVES_FOR_EVER, path], stdout=subprocess.PIPE, text=True, cwd=pathlib.Path.cwd(),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        with process, process.stdout:
            for _ in range(2):
                finished = int(process.stdout.readline())
            time.sleep(random.Random(attempt).uniform(0.0, 0.15))
            process.send_signal(signal.SIGKILL)
            finished = max([finished, *map(int, process.stdout.read().split())])
        assert checkpoint.exists(path)
        found = checkpoint.restore(path, like)
        assert int(found["number"]) in (finished, finished + 1)
        assert (found["a"] == found["number"]).all()


@pytest.mark.parametrize("ready", [True, False])
def test_a_replacement_that_was_cut_off_is_ended(tmp_path, ready):
    """Between its two steps: the old one is out of the way, and the new one, if it is ready, not yet in its place."""
    path = tmp_path / "state"
    checkpoint.save(path, TREE)
    os.replace(path, tmp_path / ".state.old")
    if ready:
        checkpoint.save(tmp_path / "other", TREE | {"c": np.int32(8)})
        os.replace(tmp_path / "other", tmp_path / ".state.new")
    assert checkpoint.exists(path)
    assert int(checkpoint.restore(path, TREE)["c"]) == (8 if ready else 7)
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "state"
    checkpoint.save(path, TREE)

    class Full:
        @staticmethod
        def save(*_, **__):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(checkpoint.CheckpointError, match="No space left.*make room"):
        patched.setattr(checkpoint, "_orbax", lambda: Full)
        checkpoint.save(path, TREE | {"c": np.int32(8)})
    assert int(checkpoint.restore(path, TREE)["c"]) == 7


def test_a_full_memory_is_no_fault_of_the_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "state", TREE)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(checkpoint, "_call", full)
    with pytest.raises(MemoryError):
        checkpoint.restore(tmp_path / "state", TREE)
    with pytest.raises(MemoryError):
        checkpoint.save(tmp_path / "state", TREE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax, about damaged files
def test_no_flipped_bit_changes_a_number_silently(tmp_path):
    """One in every file and at random places: the numbers are the same, or the checkpoint is called damaged."""
    path = tmp_path / "state"
    checkpoint.save(path, TREE)
    files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
    rng, damaged = random.Random(0), 0
    for file in [*files, *rng.choices(files, weights=[f.stat().st_size for f in files], k=20)]:
        content = file.read_bytes()
        place = rng.randrange(len(content))
        file.write_bytes(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
        try:
            restored = checkpoint.restore(path, TREE)
            assert all(np.array_equal(restored[name], TREE[name]) for name in TREE), file
        except checkpoint.CheckpointError:
            damaged += 1
        file.write_bytes(content)
    assert damaged > 10
    assert np.array_equal(checkpoint.restore(path, TREE)["a"], TREE["a"])
    gc.collect()  # what Orbax has left behind complains here
