"""What trainings begin with; that they do is tested with their trainer (test_trainer)."""

import concurrent.futures
import threading

import jax.numpy as jnp
import pytest
from flax import nnx

from cse_jax.search.trainer import Stopped
from detectors.training.starts import Starts
from detectors.training.step import JittedDetector

NEVER = threading.Event()
MODEL = (nnx.State({"kernel": nnx.Param(jnp.ones(2))}), nnx.State({"mean": nnx.BatchStat(jnp.zeros(1))}))


def starts(folder, own=True):
    """Of a search with the seed 0, as another process would have them too."""
    compiled = JittedDetector(*[None] * len(JittedDetector._fields))  # of which a start's file needs nothing
    return Starts(compiled, shared=True, seed=0, own=own, is_output=lambda path: False, folder=folder)


def test_only_final_trainings_have_a_start_of_their_own(tmp_path):
    assert [starts(tmp_path).of(purpose, 3) for purpose in ("probe", "overfit", "proxy", "final")] == [0, 0, 0, 3]
    assert starts(tmp_path, own=False).of("final", 3) == 0


def test_a_start_is_made_once_whoever_wants_it(tmp_path):
    both, made = threading.Barrier(2), []

    def make(found):
        both.wait()
        with found.making(1, NEVER) as missing:
            if missing:
                made.append(found)
                found.save(1, MODEL)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(make, [starts(tmp_path), starts(tmp_path)]))
    assert len(made) == 1 and [path.name for path in tmp_path.iterdir()] == ["features-seed1"]
    with starts(tmp_path).making(0, NEVER) as missing:
        assert missing, "that of another seed is another one"


def test_who_waits_for_a_start_can_be_stopped(tmp_path):
    stop = threading.Event()
    stop.set()
    with (
        starts(tmp_path).making(1, NEVER),
        pytest.raises(Stopped, match="while it waited for its start"),
        starts(tmp_path).making(1, stop),
    ):
        pass
    with starts(tmp_path).making(1, stop) as missing:
        assert missing, "nobody holds it any more"


def test_a_start_that_cannot_be_made_is_not_tried_again(tmp_path):
    found = starts(tmp_path)
    assert not found.failure(1)
    found.fail(1, "it diverged")
    with found.making(1, NEVER) as missing:
        assert not missing
    assert found.failure(1) == "it diverged" and not found.failure(0)
