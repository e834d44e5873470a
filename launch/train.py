"""Trains a detector under given losses and scores it on the test split.

    python launch/train.py
    python launch/train.py --config.loss.cls=varifocal_loss --config.loss.box=diou_loss --config.loss.box_weight=2
    python launch/train.py --config=configs/train/faster_rcnn_digits.py --config.loss.box="1 - i / u"

Interrupted, the same command goes on from the last checkpoint.
"""

import dataclasses
import json
import math
import os
import pathlib
import sys
import time

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from cse_jax import spaces, workdir, zoo
from cse_jax.trials import TrainingDiverged
from detectors import checkpoint
from detectors.data.datasets import open_dataset
from detectors.evaluation import evaluate_detector
from detectors.losses import resolve_pair
from detectors.models import build_detector
from detectors.trainer import fit
from detectors.training import compile_detector

_CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs" / "train"
_CONFIG = config_flags.DEFINE_config_file("config", str(_CONFIGS / "fcos_digits.py"), "What to train.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training; runs/<config.name> by default.")
_SAY_EVERY = 5.0  # seconds between lines of progress


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    workdir.hear_interrupts()
    config = _CONFIG.value
    folder = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / config.name)
    detector, build = build_detector(config.detector)
    try:
        options = dataclasses.asdict(config.loss)
        losses = resolve_pair(detector.cls_space, usual_box_weight=detector.box_weight, **options)
    except ValueError as error:
        sys.exit(str(error))
    try:
        with workdir.opened(folder):
            _train(config, folder, detector, build, losses)
    except KeyboardInterrupt:
        print(f"\nInterrupted. The same command goes on from the last checkpoint in {folder}.")
        workdir.leave_interrupted()
    except TrainingDiverged as error:
        sys.exit(f"The training diverged: {error}. Try a smaller --config.loss weight or another loss.")
    except (workdir.WorkdirError, OSError) as error:
        sys.exit(f"The training stopped: {error}")


def _train(config, folder: pathlib.Path, detector, build, losses) -> None:
    about = workdir.describe(config)
    workdir.check_same_config(folder, about["config"])
    if (folder / "result.json").exists():
        print(f"This training is finished: {folder / 'result.json'}")
        return
    workdir.write_description(folder, about)
    names = {
        "cls": config.loss.cls or zoo.default_name(detector.cls_space),
        "box": config.loss.box or zoo.default_name(spaces.BOX),
    }
    weights = {"cls_weight": float(losses.cls.weight), "box_weight": float(losses.box.weight)}
    print(
        f"{type(config.detector).__name__.removesuffix('Config')}, classification {names['cls']} (weight "
        f"{weights['cls_weight']:g}), box {names['box']} (weight {weights['box_weight']:g}), {about['device']}",
        flush=True,
    )
    data = open_dataset(config.data)
    for split, bad in data.bad_records.items():
        if bad:
            print(f"{split}: {bad}")
    compiled = compile_detector(build, config.detector.backbone, config.train)
    partial, batch_size = folder / "partial", config.train.batch_size
    started = time.monotonic()
    state = fit(
        compiled,
        losses,
        data.train,
        steps=config.steps,
        seed=config.seed,
        batch_size=batch_size,
        flip=config.data.flip,
        partial=partial,
        save_every=config.save_every,
        progress=_Progress(config.steps, batch_size),
    )
    checkpoint.save(folder / "model", (state.params, state.rest))
    metrics = evaluate_detector(
        lambda image, size: compiled.predict(state, image, size), data.test, batch_size=batch_size
    )
    figures = jax.tree.map(lambda value: value if math.isfinite(value) else None, metrics._asdict())
    seconds = time.monotonic() - started
    result = figures | {"losses": names | weights, "seconds": seconds, "checkpoint": "model"} | about
    temporary = folder / ".result.json.tmp"
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(temporary, folder / "result.json")
    checkpoint.delete(partial)
    print(f"test split: AP {metrics.ap:.4f}, AP50 {metrics.ap50:.4f}, AP75 {metrics.ap75:.4f}")
    print(f"Result: {folder / 'result.json'}")


class _Progress:
    """Prints step, losses, images a second and the time left, every few seconds."""

    def __init__(self, steps: int, batch_size: int) -> None:
        self._steps, self._batch_size = steps, batch_size
        self._first: tuple[int, float] | None = None
        self._said = -math.inf

    def __call__(self, done: int, metrics: dict) -> None:
        now = time.monotonic()
        self._first = self._first or (done, now)  # the steps before it were compiled as well
        if now - self._said < _SAY_EVERY and done < self._steps:
            return
        self._said = now
        parts = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("loss", "cls", "box"))
        line = f"step {done}/{self._steps}: {parts}"
        if done > self._first[0]:
            rate = (done - self._first[0]) / (now - self._first[1])
            line += f", {rate * self._batch_size:.0f} images/s, {(self._steps - done) / rate:.0f} s left"
        print(line, flush=True)


if __name__ == "__main__":
    app.run(main)
