"""The configs: each builds its detector, fits its data, and says how it is run."""

import dataclasses
import importlib.util
import pathlib

import jax
import pytest
from flax import nnx

from detectors.data.bdd100k import Bdd100kData
from detectors.data.coco import CocoData
from detectors.data.datasets import DataConfig
from detectors.data.voc import VocData
from detectors.losses import resolve_pair
from detectors.models import build_detector
from detectors.models.mask_rcnn import MaskRCNNConfig
from detectors.training.initial_weights import WeightsConfig, load

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs" / "train").glob("*.py"))
SEARCHES = sorted((ROOT / "configs" / "search").glob("*.py"))
CATEGORIES = {CocoData: 80, Bdd100kData: 10}


def read(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*/*.py")), ids=lambda path: path.stem)
def test_a_flag_changes_one_field(path):
    """No two fields hold the same object, of which a flag would change both."""

    def parts(config):
        if dataclasses.is_dataclass(config):
            yield id(config)
            for field in dataclasses.fields(config):
                yield from parts(getattr(config, field.name))

    found = list(parts(read(path).get_config()))
    assert found and len(set(found)) == len(found)


@pytest.mark.parametrize("path", [*FILES, *SEARCHES], ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_a_config_is_whole(path):
    module = read(path)
    default = path.stem in ("fcos_digits", "default")
    assert f"--config=configs/{path.parent.stem}/{path.name}" in module.__doc__ or default
    config = module.get_config()
    detector, build = build_detector(config.detector)
    resolve_pair(detector.cls_space, usual_box_weight=detector.box_weight)
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    assert jax.tree.leaves(nnx.state(abstract, nnx.Param))
    kind = type(config.data)
    classes = len(config.data.names) if kind is VocData else CATEGORIES.get(kind, 10)
    assert config.detector.classes == classes
    assert bool(config.data.mask_stride) == isinstance(config.detector, MaskRCNNConfig)
    if getattr(config.detector.backbone, "norm", "") == "frozen_bn":
        with pytest.raises(ValueError, match=r"--config\.weights\.file"):
            load(abstract, WeightsConfig())
    if path in SEARCHES:
        assert kind is DataConfig or config.data.select_images, "nothing may be selected on the test split"
        return
    steps, epoch = config.length(1000)
    assert steps >= 1 and epoch == 1000 // config.train.batch_size


@pytest.mark.parametrize("name", read(ROOT / "configs" / "train" / "overfit.py").DETECTORS)
def test_every_detector_can_overfit(name):
    config = read(ROOT / "configs" / "train" / "overfit.py").get_config(name)
    _, build = build_detector(config.detector)
    nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    assert config.data.train == config.data.test and config.data.limit == 20


def test_an_unknown_detector_is_named():
    with pytest.raises(ValueError, match="'yolo' is no detector; use fcos, atss"):
        read(ROOT / "configs" / "train" / "overfit.py").get_config("yolo")


def test_a_training_without_length_is_refused():
    config = read(ROOT / "configs" / "train" / "fcos_digits.py").get_config()
    config.steps, config.epochs = 0, 0.0
    with pytest.raises(ValueError, match="steps=0 and epochs=0 make a training without a step"):
        config.check()
