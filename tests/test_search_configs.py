"""Each detector has a search config on digit scenes that runs, a few steps of it.

That of FCOS is the default one, which test_launch runs.
"""

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading

import pytest
from rich.console import Console
from scripts import ROOT
from test_configs import SEARCHES, read

import config_file
import cse_jax
import recorded
from benchmarks.smallest import FEATURES
from cse_jax import search
from cse_jax.errors import InputError
from cse_jax.language import spaces
from cse_jax.ranges import validate
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.pairs import read_pair
from detectors.data.layouts import DiskData
from detectors.losses import library_loss
from detectors.models import build_detector
from detectors.models.atss import ATSSConfig
from detectors.models.cascade_rcnn import CascadeRCNNConfig
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.models.mask_rcnn import MaskRCNNConfig
from detectors.training.schedule import ScheduleConfig
from detectors.training.search_trainer import task_of
from search_run import trainer_of

CONFIGS = {
    "atss": ATSSConfig,
    "faster_rcnn": FasterRCNNConfig,
    "cascade_rcnn": CascadeRCNNConfig,
    "mask_rcnn": MaskRCNNConfig,
}


def test_a_prior_needs_a_strategy_that_learns():
    config = read(ROOT / "configs/search/default.py").get_config()
    config.prior, config.search.regression.strategy = "fcos_digits", "random"
    with pytest.raises(InputError, match="prior='fcos_digits' needs the strategy 'surrogate', not 'random'"):
        validate(config)
    config.search.regression.generations = 0
    validate(config)


@pytest.mark.parametrize(
    "name",
    [
        "combinations:fcos",
        "combinations:faster_rcnn",
        "architectures:atss",
        "architectures:cascade_rcnn",
        "architectures:mask_rcnn",
        "data_sets:fcos",
        "data_sets:faster_rcnn",
        "loss_scale:fcos",
        "loss_scale:faster_rcnn",
    ],
)
def test_experiments_compare_pairs_of_their_detector(name):
    path, detector = name.split(":")
    module = read(ROOT / "configs/experiments" / f"{path}.py")
    config = module.get_config(detector)
    validate(config)
    task = task_of(build_detector(config.detector)[0])
    losses = [read_pair(text, task, library_loss)[1] for text in config.pairs]
    assert len({tuple(pair.key) for pair in [task.default, *losses]}) == len(losses) + 1
    assert (
        config.detector.classes == (3 if path == "data_sets" else 10)
        and detector in config.name
        and config.schedule.final
    )
    with pytest.raises(InputError, match="has no such table; use"):
        module.get_config("yolo")


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "configs/train").glob("*_r[0-9]*_*.py"))])
def test_every_training_of_full_size_has_a_table(name):
    config = config_file.load(f"{ROOT / 'configs/experiments/full_size.py'}:{name}")
    validate(config)
    run = config_file.load(str(ROOT / "configs/train" / f"{name}.py"))
    assert (config.detector, config.train, config.data, config.weights) == (
        run.detector,
        run.train,
        run.data,
        run.weights,
    )
    task = task_of(build_detector(config.detector)[0])
    losses = [read_pair(text, task, library_loss)[1] for text in config.pairs]
    assert len({tuple(pair.key) for pair in [task.default, *losses]}) == len(losses) + 1


def small(config, tmp_path):
    """The config with the fewest layers, images and steps that make a search."""
    features = {name: part for name, part in FEATURES.items() if hasattr(config.detector, name)}
    config.detector = dataclasses.replace(config.detector, **features)
    if hasattr(config.detector, "towers"):
        config.detector = dataclasses.replace(config.detector, towers=1, norm_groups=4)
    if isinstance(config.detector, CascadeRCNNConfig):
        stages = ("stage_ious", "stage_stds", "stage_weights")
        config.detector = dataclasses.replace(config.detector, **{s: getattr(config.detector, s)[:2] for s in stages})
    config.train.batch_size = 2
    config.schedule = ScheduleConfig(probe=(1, 2), probe_images=4, probe_at_once=2, overfit=2, proxy=(1, 2), final=2)
    for branch in (config.search.classification, config.search.regression):
        branch.generations, branch.population = 0, 10
    config.search.regression.generations = 1
    config.search.regression.max_probe = config.search.regression.max_overfit = 1
    config.search.final = dataclasses.replace(config.search.final, seeds=1, fit_weights=())
    config.data.data_dir = str(tmp_path / "data")
    scenes = config.data.digit_scenes
    scenes.train_images, scenes.select_images, scenes.test_images = 20, 4, 4
    return config


def opened(name, folder):
    """The small config of this name, and its trainer."""
    config = small(read(ROOT / "configs" / "search" / f"{name}.py").get_config(), folder)
    assert isinstance(config.detector, CONFIGS[name])
    return config, trainer_of(config, folder)


@pytest.mark.slow
def test_a_search_runs_to_its_final_table(tmp_path):
    config, trainer = opened("mask_rcnn", tmp_path)
    with (
        search.Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"probe": 1, "overfit": 2, "proxy": 2, "final": 2}) as monitor,
    ):
        result = search.run(config.search, trainer=trainer, ledger=ledger, progress=monitor)
    assert [len(branch.funnel) for branch in result.branches] == [0, 1]
    assert result.branches[0].space == trainer.task.cls_space
    assert all(0.0 <= row.mean <= 1.0 for row in result.table), result.table


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_a_config_is_made_again_from_a_result(path):
    config = read(path).get_config()
    assert recorded.search_run(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_config_of_before_is_made_again():
    """Its file has fewer fields, which now have defaults."""
    config = read(SEARCHES[0]).get_config()
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    for branch in ("classification", "regression"):
        del plain["search"][branch]["template"]
    assert recorded.search_run(plain) == config


@pytest.mark.slow
def test_a_config_of_any_data_set_is_made_again():
    config, plain = read(SEARCHES[0]).get_config(), []
    for kind in DiskData.__subclasses__():
        config.data = kind(root="/data/mine", select_images=3)
        plain.append(dataclasses.asdict(config))
    code = (
        "import json, sys, recorded\nfor p in json.load(sys.stdin): print(type(recorded.search_run(p).data).__name__)"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "launch")])
    found = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(plain), env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.split() == [kind.__name__ for kind in DiskData.__subclasses__()], found.stderr


def test_a_config_of_no_known_class_is_refused():
    plain = json.loads(json.dumps(dataclasses.asdict(read(SEARCHES[0]).get_config())))
    with pytest.raises(InputError, match="0 classes have the fields mystery.*give the same --config"):
        recorded.search_run(plain | {"detector": {"mystery": 1}})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["atss", "faster_rcnn", "cascade_rcnn"])
def test_heads_are_trained_under_formulas_side_by_side(name, tmp_path):
    """On random features; all else of a search is that of Mask R-CNN."""
    _, trainer = opened(name, tmp_path)
    trainer._starts.save(0, trainer._compiled.init(0).model)
    pairs = [trainer.task.default, trainer.task.replaced("box", cse_jax.parse("1 - i / u", spaces.BOX), 2.0)]
    trainings = trainer.train(pairs, purpose="probe", seed=0, horizon=2, stop=threading.Event())
    assert all(0.0 <= training.ap <= 1.0 for training in trainings), trainings
