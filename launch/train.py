"""Trains a detector under given losses and scores it on the test split.

    python launch/train.py
    python launch/train.py --config.loss.cls=varifocal_loss --config.loss.box=diou_loss --config.loss.box_weight=2
    python launch/train.py --config=configs/train/faster_rcnn_digits.py --config.loss.box="1 - i / u"
    python launch/train.py --config=configs/train/fcos_bccd.py --config.data.root=/data/BCCD --search=runs/fcos_bccd

Interrupted, the same command goes on from the last checkpoint.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import time

from absl import app, flags, logging
from ml_collections import config_flags

from cse_jax.language import spaces, zoo
from cse_jax.search import workdir
from cse_jax.search.trials import TrainingDiverged
from detectors import checkpoint
from detectors.data.datasets import open_dataset
from detectors.data.voc import VocData
from detectors.evaluation.coco import detect, ground_truth
from detectors.evaluation.scores import Scores, as_json, in_a_line, score
from detectors.losses import resolve_pair
from detectors.models import build_detector
from detectors.training.initial_weights import starting_from
from detectors.training.log import TrainingLog
from detectors.training.loop import fit
from detectors.training.run_config import LossConfig
from detectors.training.step import jit_detector
from detectors.weights.tensor_files import TensorFileError

_CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs" / "train"
_CONFIG = config_flags.DEFINE_config_file("config", str(_CONFIGS / "fcos_digits.py"), "What to train.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training; runs/<config.name> by default.")
_SEARCH = flags.DEFINE_string("search", None, "Folder of a finished search, whose losses become config.loss.")
_RESUME = flags.DEFINE_bool("resume", True, "Go on from the last checkpoint; --noresume deletes it and begins anew.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Also write figures for TensorBoard (needs tensorboardX).")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    workdir.hear_interrupts()
    config = _CONFIG.value
    folder = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / config.name)
    detector, build = build_detector(config.detector)
    try:
        if _SEARCH.value:
            config.loss = _discovered(pathlib.Path(_SEARCH.value), config.loss, detector)
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
    except (workdir.WorkdirError, TensorFileError, ValueError, OSError, ImportError) as error:
        sys.exit(f"The training stopped: {error}")


def _discovered(search: pathlib.Path, given: LossConfig, detector) -> LossConfig:
    """The pair of losses that a search ended with, weights included."""
    if given != LossConfig():
        raise ValueError("give either --search or fields of --config.loss")
    file = search / "result.json"
    if not file.is_file():
        raise ValueError(f"there is no {file}: --search is the folder of a finished search")
    found = json.loads(file.read_text()).get("discovered")
    if not found:
        raise ValueError(f"the search in {search} discovered no losses")
    cls, box = found["cls"], found["box"]
    if cls["space"] != detector.cls_space.name:
        raise ValueError(
            f"the search in {search} was for the space {cls['space']}; this detector takes {detector.cls_space.name}"
        )
    return LossConfig(cls["authors"], box["authors"], cls["weight"], box["weight"])


def _train(config, folder: pathlib.Path, detector, build, losses) -> None:
    about = workdir.describe(config)
    if not _RESUME.value:
        _forget(folder)
    workdir.check_same_config(folder, about["config"])
    if (folder / "result.json").exists():
        print(f"This training is finished: {folder / 'result.json'}")
        return
    compiled = starting_from(jit_detector(build, config.train), build, config.weights)
    workdir.write_description(folder, about)

    names = {
        "cls": config.loss.cls or zoo.default_name(detector.cls_space),
        "box": config.loss.box or zoo.default_name(spaces.BOX),
    }
    weights = {"cls_weight": float(losses.cls.weight), "box_weight": float(losses.box.weight)}
    print(
        f"{type(config.detector).__name__.removesuffix('Config')}, classification {names['cls']} (weight "
        f"{weights['cls_weight']:g}), box {names['box']} (weight {weights['box_weight']:g}), {compiled.devices} of "
        f"{about['device']}",
        flush=True,
    )

    data = open_dataset(config.data)
    data.check_classes(config.detector.classes)

    batch_size, partial = config.train.batch_size, folder / "partial"
    steps, epoch = config.length(len(data.train))
    log = TrainingLog(folder, steps=steps, epoch_steps=epoch, batch_size=batch_size, tensorboard=_TENSORBOARD.value)

    def scores(state, source) -> Scores:
        found = detect(functools.partial(compiled.predict, state), source, batch_size=batch_size)
        truth = ground_truth(source.annotations)
        masks = found.masks is not None and truth.masks is not None
        return score(found, truth, source.categories, masks=masks, voc=isinstance(config.data, VocData))

    def evaluate(done: int, state) -> None:
        best = log.evaluated(done, scores(state, data.select))
        checkpoint.save(folder / "last", state.model)
        if best:
            checkpoint.save(folder / "best", state.model)

    started = time.monotonic()
    state = fit(
        compiled,
        losses,
        data.train,
        steps=steps,
        seed=config.seed,
        batch_size=batch_size,
        flip=config.data.flip,
        partial=partial,
        save_every=config.save_every,
        workers=config.data.workers,
        progress=log.progress,
        evaluate_every=config.evaluate_epochs * epoch,
        evaluate=evaluate,
    )
    checkpoint.save(folder / "last", state.model)
    final = scores(state, data.test)
    result = {
        "test": as_json(final),
        "checkpoint": "last",
        "losses": names | weights,
        "steps": steps,
        "seconds": time.monotonic() - started,
        **about,
    }
    workdir.write_whole(folder / "result.json", json.dumps(result, indent=2))
    checkpoint.delete(partial)
    print(f"test split: {in_a_line(final)}")
    print(f"Result: {folder / 'result.json'}")


def _forget(folder: pathlib.Path) -> None:
    """Removes what an earlier training left."""
    for name in ("partial", "last", "best", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("config.json", "result.json", "log.jsonl"):
        (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    app.run(main)
