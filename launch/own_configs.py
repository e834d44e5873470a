"""Configs to search and to train on a data set of one's own, which ``data.py --root`` writes."""

import math
import pathlib
import re

from cse_jax import workdir
from detectors.data.datasets import BuiltSplit
from detectors.data.layouts import differing
from detectors.data.on_disk import DiskData

_LEAST_STEPS = 3_000  # of a training, where 12 epochs are fewer
_BATCH_SIZE = 16  # of a training


def write(config: DiskData, train: BuiltSplit, path: str | None) -> None:
    """Writes both configs, unless there are such, and prints the commands.

    Args:
      config: of the data set.
      train: its training split.
      path: of the config to search with; the one to train with is beside it.
    """
    name = re.sub(r"\W+", "_", config.folder().name).strip("_") or "data"
    search = pathlib.Path(path or f"runs/{name}_search.py")
    training = search.with_name(f"{search.stem.removesuffix('_search')}_train.py")
    shared = {
        "select_images": max(1, len(train.annotations) // 10),
        "max_boxes": max(1, *(int(annotation.trained.sum()) for annotation in train.annotations)),
    }
    about = dict(
        module=type(config).__module__,
        kind=type(config).__name__,
        name=name,
        classes=len(train.categories),
        root=str(config.folder()),
        training=training,
        batch_size=_BATCH_SIZE,
        epochs=max(12, math.ceil(_LEAST_STEPS * _BATCH_SIZE / len(train.annotations))),
    )
    small = {"short_side": 120, "long_side": 160, "cache": True}
    _write(search, _SEARCH, about, shared | small | differing(config))
    _write(training, _TRAINING, about, shared | {"workers": 8} | differing(config))
    print(f"\nconfig to search with: python launch/search.py --config={search}")
    print(f"config to train with: python launch/train.py --config={training} --search=runs/{name}")


def _write(path: pathlib.Path, form: str, about: dict, data: dict) -> None:
    fields = "".join(f"            {field}={value!r},\n" for field, value in data.items())
    text = form.format(**about, fields=fields)
    if path.exists() and path.read_text() != text:
        print(f"\n{path} is there already and was left as it is")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_whole(path, text)


_SEARCH = '''"""Search on a data set of one's own, written by launch/data.py.

The search sees the images at 160 x 120 pixels, and its trainings are as long as those of configs/search/fcos_bccd.py.
"""

from {module} import {kind}
from detectors.models.fcos import fcos_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun, search_in_minutes


def get_config() -> SearchRun:
    return SearchRun(
        name={name!r},
        search=search_in_minutes(),
        detector=fcos_tiny(classes={classes}),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(overfit=80, proxy=(200, 400), final=400, start=1000),
        data={kind}(
            {root!r},
{fields}        ),
    )
'''


_TRAINING = '''"""Training on a data set of one's own, written by launch/data.py: FCOS with ResNet-50 and FPN.

python launch/train.py --config={training} --search=runs/{name} \\
    --config.weights.file=resnet50-0676ba61.pth

The weights are torchvision's of ImageNet: https://download.pytorch.org/models/resnet50-0676ba61.pth.  With less memory
use --config.train.batch_size=4 (the learning rate scales with it) or --config.train.compute=bfloat16.
"""

from {module} import {kind}
from detectors.models.fcos import FCOSConfig
from detectors.models.resnet import resnet50
from detectors.training.run_config import TrainRun
from detectors.training.step import TrainConfig


def get_config() -> TrainRun:
    return TrainRun(
        name="{name}_train",
        detector=FCOSConfig(classes={classes}, backbone=resnet50(frozen_affine=True)),
        train=TrainConfig(
            batch_size={batch_size}, learning_rate=0.01, warmup_ratio=1 / 3, bias_rate=2.0, bias_decay=0.0
        ),
        data={kind}(
            {root!r},
{fields}        ),
        epochs={epochs},
    )
'''
