"""Scores a detector on a data set, or a file of detections.

    python launch/evaluate.py --config=configs/train/fcos_digits.py
    python launch/evaluate.py --config=configs/train/fcos_digits.py --workdir=runs/mine --checkpoint=last --split=select
    python launch/evaluate.py --config=configs/pretrained/fcos_resnet50_fpn.py --weights=fcos.pth \\
        --config.data.root=/data/coco --results
    python launch/evaluate.py --results_file=detections.json --annotations=instances_val2017.json --iou_type=segm

The first two take config file and fields of the training. Scores are AP by the COCO rules, of masks too where detector
and data have them, and VOC's mAP for its data; they are printed and written to the work folder.
"""

import script

import dataclasses
import json
import math
import pathlib
import time

import numpy as np
from absl import flags

import compilation
import config_file
import trained_detector
from cse_jax import workdir
from cse_jax.errors import InputError
from detectors.data.datasets import open_dataset
from detectors.data.doubts import doubts_of_boxes
from detectors.data.voc import VocData
from detectors.evaluation import inference
from detectors.evaluation.coco import Found, GroundTruth, detect, ground_truth
from detectors.evaluation.results_files import IOU_TYPES, Reference, read_reference, read_results, write_results
from detectors.evaluation.scores import as_json, score, table
from detectors.models.mask_rcnn import MaskRCNNConfig
from detectors.training.run_config import TrainRun
from detectors.weights.pretrained import PretrainedFasterRCNN

_CONFIG = config_file.define(
    "configs/train/fcos_digits.py", "Of the training, or pretrained.", TrainRun, PretrainedFasterRCNN
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training; runs/<config.name> by default.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    f"A checkpoint of the work folder ({' or '.join(inference.USUAL)}; the first by default), or a path.",
)
_WEIGHTS = flags.DEFINE_string("weights", None, "torchvision's weights, instead of a checkpoint.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "select", "train"], "What to evaluate on.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Images per call of the detector.", lower_bound=1, upper_bound=4096)
_RESULTS = flags.DEFINE_bool("results", False, "Write the detections as well, as COCO's results file.")
_RESULTS_FILE = flags.DEFINE_string("results_file", None, "Detections in COCO's format to score, without a detector.")
_ANNOTATIONS = flags.DEFINE_string("annotations", None, "The ground truth of --results_file, in COCO's format.")
_IOU_TYPE = flags.DEFINE_enum("iou_type", "bbox", IOU_TYPES, "With --results_file: score boxes or masks.")
_MASK_STRIDE = 4  # only says that masks are wanted
_SAY_EVERY = 5.0  # seconds between lines of progress


def main(argv: list[str]) -> None:
    script.start(argv)
    if (_RESULTS_FILE.value is None) != (_ANNOTATIONS.value is None):
        raise InputError("--results_file needs --annotations, and they go together")
    trained_detector.check(checkpoint=_CHECKPOINT.value, weights=_WEIGHTS.value)
    with script.ending("The evaluation", interrupted="Nothing was written."), compilation.kept():
        if _RESULTS_FILE.value is not None:
            _score_file(pathlib.Path(_RESULTS_FILE.value), pathlib.Path(_ANNOTATIONS.value))
        else:
            _score_detector(_CONFIG.value)


def _score_file(path: pathlib.Path, annotations: pathlib.Path) -> None:
    masks = _IOU_TYPE.value == "segm"
    reference = read_reference(annotations, masks=masks)
    found = read_results(path, reference, iou_type=_IOU_TYPE.value)
    print(f"{path}: {len(found.scores)} detections on {len(reference.truth.image_ids)} images of {annotations}\n")
    if reference.bad_records:
        print(f"Bad records of {annotations}, left out:\n{reference.bad_records}\n")
    for file, objects in {annotations: reference.truth, path: found}.items():
        for doubt in [] if masks else _doubts(objects, reference):
            print(f"Warning: {file}: {doubt}\n")
    print(table(score(found, reference.truth, reference.categories, boxes=not masks, masks=masks)))


def _doubts(objects: GroundTruth | Found, reference: Reference) -> list[str]:
    """What looks wrong about boxes on images whose size is known."""
    sizes = [reference.sizes[image_id] for image_id in objects.image_of.tolist()]
    known = np.array([size is not None for size in sizes], bool)
    return doubts_of_boxes(objects.boxes[known], np.array([size for size in sizes if size], np.float64).reshape(-1, 2))


def _score_detector(config) -> None:
    asked = {"workdir": _WORKDIR.value, "checkpoint": _CHECKPOINT.value, "weights": _WEIGHTS.value}
    trained = trained_detector.find(config, **asked)
    folder, origin = trained.folder, trained.origin
    about = workdir.describe(config)
    with_masks = isinstance(config.detector, MaskRCNNConfig)
    data = _opened(config.data, masks=with_masks)
    # Masks are scored from the annotations: batches need none.
    source = getattr(data, _SPLIT.value)
    source = dataclasses.replace(source, layout=source.layout._replace(mask_stride=0))
    names = trained.label_names(lambda: data.categories)
    labels = inference.label_table(names, data.categories)
    unknown = sorted(set(data.categories) - set(names))
    kind = type(config.detector).__name__.removesuffix("Config")
    print(f"{kind} of {origin} on {len(source)} images of {_SPLIT.value}, {about['device']}", flush=True)
    if unknown:
        print(f"Categories that the detector does not know: {', '.join(unknown)}")
    started = time.monotonic()
    found = detect(
        inference.predictor(trained.model, labels),
        source,
        batch_size=_BATCH.value,
        whole_pixels=inference.whole_pixels(config.detector),
        progress=_Progress(len(source)),
    )
    seconds = time.monotonic() - started
    truth = ground_truth(source.annotations)
    if with_masks and truth.masks is None:
        print("Masks are not scored: the data have objects without masks.")
    scores = score(
        found,
        truth,
        data.categories,
        masks=with_masks and truth.masks is not None,
        voc=isinstance(config.data, VocData),
    )
    print(f"{len(found.scores)} detections in {seconds:.0f} s\n\n{table(scores)}\n")
    name = f"{origin.stem if _WEIGHTS.value else origin.name}-{_SPLIT.value}"
    folder.mkdir(parents=True, exist_ok=True)
    if _RESULTS.value:
        _write_detections(folder / f"detections-{name}.json", found, config.data, data.categories)
    result = as_json(scores) | {"split": _SPLIT.value, "images": len(source), "detector": str(origin)}
    path = folder / f"evaluation-{name}.json"
    workdir.write_whole(path, json.dumps(result | {"seconds": seconds} | about, indent=2))
    print(f"Scores: {path}")


def _opened(config, *, masks: bool):
    """The data set, without what only a training needs."""
    return open_dataset(dataclasses.replace(config, cache=False, mask_stride=_MASK_STRIDE if masks else 0))


def _write_detections(path: pathlib.Path, found: Found, config, categories: tuple[str, ...]) -> None:
    """With the annotation files' numbers of categories where there are any, else labels counted from 1."""
    numbered = hasattr(config, "category_ids")
    numbers = config.category_ids(categories) if numbered else range(1, len(categories) + 1)
    write_results(path, found, list(numbers))
    print(f"Detections: {path}")


class _Progress:
    """Prints images done, images a second and the time left, every few seconds."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._first: tuple[int, float] | None = None
        self._said = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        self._first = self._first or (done, now)  # the images before it were compiled for as well
        if now - self._said < _SAY_EVERY or done == self._first[0]:
            return
        self._said = now
        rate = (done - self._first[0]) / max(now - self._first[1], 1e-9)
        left = math.ceil((self._images - done) / rate)
        print(f"{done}/{self._images} images, {rate:.1f} images/s, {left} s left", flush=True)


if __name__ == "__main__":
    script.run(main)
