"""Trains a detector under given losses and scores it on the test split.

    python launch/train.py
    python launch/train.py --config.loss.cls=varifocal_loss --config.loss.box=diou_loss --config.loss.box_weight=2
    python launch/train.py --config=configs/train/faster_rcnn_digits.py --config.loss.box="1 - i / u"
    python launch/train.py --config=configs/train/fcos_bccd.py --config.data.root=/data/BCCD --search=runs/fcos_bccd

After an interruption the same command resumes from the last checkpoint.  Several processes share each batch, on one
machine or on many that share the work folder:

    python launch/train.py --coordinator=host:1234 --processes=2 --process=0
    python launch/train.py --coordinator=host:1234 --processes=2 --process=1
"""

import script

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import time

from absl import flags

import compilation
import config_file
import processes
from cse_jax import workdir
from cse_jax.errors import InputError
from cse_jax.language import spaces, zoo
from cse_jax.language.expression import to_authors
from cse_jax.search import confirmation
from cse_jax.search.trainer import TrainingDiverged
from detectors import checkpoint, parallel
from detectors.data.datasets import open_dataset
from detectors.data.voc import VocData
from detectors.evaluation import inference
from detectors.evaluation.coco import detect, ground_truth
from detectors.evaluation.scores import Scores, as_json, in_a_line, score
from detectors.losses import resolve_pair
from detectors.models import build_detector
from detectors.training.initial_weights import starting_from
from detectors.training.log import TrainingLog
from detectors.training.loop import fit
from detectors.training.run_config import LossConfig, TrainRun
from detectors.training.search_trainer import task_of
from detectors.training.step import jit_detector

_CONFIG = config_file.define("configs/train/fcos_digits.py", "What to train.", TrainRun)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training; runs/<config.name> by default.")
_SEARCH = flags.DEFINE_string(
    "search", None, "Folder of a finished search, whose losses become config.loss; weights are factors on usual ones."
)
_RESUME = flags.DEFINE_bool("resume", True, "Resume from the last checkpoint; --noresume deletes it and restarts.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Also write figures for TensorBoard (needs tensorboardX).")


def main(argv: list[str]) -> None:
    script.start(argv)
    processes.check()
    config: TrainRun = _CONFIG.value
    folder = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / config.name)
    resumes = f"The same command resumes from the last checkpoint in {folder}."
    with script.ending("The training", interrupted=resumes, folder=folder), compilation.kept():
        processes.join()
        detector, build = build_detector(config.detector, config.data.normalisation)
        if _SEARCH.value:
            config.loss = _discovered(pathlib.Path(_SEARCH.value), config.loss, detector)
        options = dataclasses.asdict(config.loss) | {"stable": config.train.stable_logs}
        losses = resolve_pair(detector.cls_space, usual_box_weight=detector.box_weight, **options)
        with workdir.opened(folder) if parallel.writes() else contextlib.nullcontext():
            try:
                _train(config, folder, detector, build, losses)
            except TrainingDiverged as error:
                raise InputError(f"{error}. Try a smaller --config.loss weight or another loss") from error


def _discovered(search: pathlib.Path, given: LossConfig, detector) -> LossConfig:
    """The pair of losses that a search ended with; weights are factors on the detector's usual ones."""
    if given != LossConfig():
        raise InputError("give either --search or fields of --config.loss")
    found = confirmation.discovered(workdir.read_result(search), task_of(detector))
    return LossConfig(to_authors(found.cls), to_authors(found.box), found.cls_weight, found.box_weight)


def _train(config, folder: pathlib.Path, detector, build, losses) -> None:
    about = workdir.describe(config)
    if _RESUME.value:
        remedy = "choose another folder, --workdir, or name, --config.name, or delete that folder"
        workdir.check_same_config(folder, about["config"], remedy=remedy)
        if (folder / "result.json").exists():
            print(f"This training is finished: {folder / 'result.json'}")
            return
    compiled = starting_from(jit_detector(build, config.train), build, config.weights)
    data = open_dataset(config.data)
    data.check_classes(config.detector.classes)
    if parallel.writes():
        if not _RESUME.value:
            _forget(folder)
        workdir.write_description(folder, about)
        inference.keep_label_names(folder, data.categories)
        checkpoint.exists(folder / "partial")  # ends what a kill has left half done
    parallel.together("the start of a training")

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

    batch_size, partial = config.train.batch_size, folder / "partial"
    steps, epoch = config.length(len(data.train))
    board = _TENSORBOARD.value and parallel.writes()
    log = TrainingLog(folder, steps=steps, epoch_steps=epoch, batch_size=batch_size, tensorboard=board)

    def scores(state, source) -> Scores:
        predict, whole_pixels = functools.partial(compiled.predict, state), inference.whole_pixels(config.detector)
        found = detect(predict, source, batch_size=batch_size, whole_pixels=whole_pixels)
        truth = ground_truth(source.annotations)
        masks = found.masks is not None and truth.masks is not None
        return score(found, truth, source.categories, masks=masks, voc=isinstance(config.data, VocData))

    def evaluate(done: int, state) -> None:
        found = scores(state, data.select)
        best = parallel.agreed(parallel.writes() and log.evaluated(done, found))
        checkpoint.save(folder / "last", state.model)
        if best:
            checkpoint.save(folder / "best", state.model)

    said = False

    def progress(done: int, metrics) -> None:
        nonlocal said
        log.progress(done, metrics)
        if not said and (text := compilation.summary()):
            print(text, flush=True)
        said = True

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
        progress=progress if parallel.writes() else None,
        evaluate_every=config.evaluate_epochs * epoch,
        evaluate=evaluate,
    )
    checkpoint.save(folder / "last", state.model)
    final = scores(state, data.test)
    if not parallel.writes():
        return
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
    for name in ("config.json", "result.json", "log.jsonl", inference.LABELS):
        (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    script.run(main)
