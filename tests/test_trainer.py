"""One training for a purpose of the search: splits, interruption, divergence."""

import threading

import jax
import numpy as np
import pytest

import cse_jax
from cse_jax import spaces, zoo
from cse_jax.trials import LossPair, Stopped, TrainingDiverged
from detectors import checkpoint
from detectors.data.datasets import DataConfig, open_dataset
from detectors.data.digit_scenes import DigitScenesConfig
from detectors.models import build_detector
from detectors.models.fcos import fcos_tiny
from detectors.run_config import training_in_seconds
from detectors.trainer import DetectorTrainer, ScheduleConfig
from detectors.training import compile_detector

DEFAULT = LossPair(zoo.default(spaces.BINARY_CLASS), zoo.default(spaces.BOX))
NEVER = threading.Event()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    scenes = DigitScenesConfig(train_images=60, select_images=10, test_images=12)
    return open_dataset(DataConfig(digit_scenes=scenes, data_dir=str(tmp_path_factory.mktemp("data"))))


@pytest.fixture(scope="module")
def compiled():
    config = fcos_tiny(10)
    return compile_detector(build_detector(config)[1], training_in_seconds(0.003, warmup_steps=2))


def make(compiled, data, folder, **schedule):
    lengths = ScheduleConfig(**(dict(verify=4, proxy=6, final=12) | schedule))
    return DetectorTrainer(compiled, data, lengths, batch_size=8, flip=0.0, seed=0, checkpoints=folder)


def final_model(folder, compiled):
    (path,) = (p for p in folder.iterdir() if p.name.startswith("final-"))
    state = compiled.init(0)
    return checkpoint.restore(path, (state.params, state.rest))


def test_an_interrupted_training_goes_on_bit_for_bit(compiled, data, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = make(compiled, data, whole).train(DEFAULT, purpose="final", seed=1, stop=NEVER)

    stop, taken = threading.Event(), []

    def step(*arguments):
        taken.append(1)
        if len(taken) == 8:
            stop.set()
        return compiled.step(*arguments)

    trainer = make(compiled._replace(step=step), data, broken, save_every=5)
    with pytest.raises(Stopped, match="stopped at step 8"):
        trainer.train(DEFAULT, purpose="final", seed=1, stop=stop)
    assert [p.suffix for p in broken.iterdir()] == [".partial"]
    assert trainer.train(DEFAULT, purpose="final", seed=1, stop=NEVER) == expected
    assert len(taken) == 8 + (12 - 5), "the second attempt must begin at the checkpoint"
    assert not [p for p in broken.iterdir() if p.suffix == ".partial"]
    jax.tree.map(np.testing.assert_array_equal, final_model(broken, compiled), final_model(whole, compiled))


def test_purposes_have_their_own_splits(compiled, data, tmp_path):
    trainer = make(compiled, data, tmp_path)
    seen = {}

    def watch(purpose):
        batches = []

        def predict(state, image, size):
            batches.append(len(image))
            return compiled.predict(state, image, size)

        trainer._compiled = compiled._replace(predict=predict)
        ap, metrics = trainer.train(DEFAULT, purpose=purpose, seed=0, stop=NEVER)
        seen[purpose] = len(batches)
        return ap, metrics

    for purpose in ("verify", "proxy", "final"):
        ap, metrics = watch(purpose)
        assert 0.0 <= ap <= 1.0 and ("checkpoint" in metrics) == (purpose == "final")
    assert seen == {"verify": 2, "proxy": 2, "final": 2}  # 10, 10 and 12 images in batches of 8
    train, evaluate = trainer._splits["verify"]
    assert train is evaluate and len(train) == 10
    assert trainer._splits["proxy"][1] is data.select and trainer._splits["final"][1] is data.test


def test_a_divergence_names_the_step_and_the_parts(compiled, data, tmp_path):
    bad = LossPair(DEFAULT.cls, cse_jax.parse("log(1 - 2) + i", spaces.BOX))
    with pytest.raises(TrainingDiverged, match=r"not finite at step 1: box nan, .*loss nan"):
        make(compiled, data, tmp_path).train(bad, purpose="proxy", seed=0, stop=NEVER)
