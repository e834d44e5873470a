"""Finds objects on images with a trained detector, and draws them.

    python launch/predict.py --config=configs/train/fcos_digits.py scene.png
    python launch/predict.py --config=configs/train/fcos_digits.py --workdir=runs/mine photos/ --score=0.3 --out=found
    python launch/predict.py --config=configs/pretrained/maskrcnn_resnet50_fpn.py --weights=maskrcnn.pth photos/

Config file and fields are those of the training. Each image is drawn with boxes, names, scores and masks, at its own
size, into a PNG of the folder --out; predictions.json beside them lists the same. An image that can't be read is named
and left out, and the exit code is then 1.
"""

import script

import json
import pathlib
import sys
import time

from absl import flags

import compilation
import config_file
import trained_detector
from cse_jax import workdir
from cse_jax.errors import InputError
from detectors.data.datasets import category_names
from detectors.data.drawing import draw_objects
from detectors.data.pipeline import layout_for
from detectors.evaluation import inference
from detectors.evaluation.photos import (
    Finding,
    PhotoError,
    find_objects,
    image_files,
    passed_over,
    read_photo,
    size_of,
)
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
_OUT = flags.DEFINE_string("out", "predictions", "Folder of the drawn images and of predictions.json.")
_SCORE = flags.DEFINE_float("score", 0.5, "Objects with a lower score are left out.", lower_bound=0.0, upper_bound=1.0)
_RECURSIVE = flags.DEFINE_bool("recursive", False, "Look into the sub-folders of folders as well.")
_NAMED = 20  # images that can't be read
_SAY_EVERY = 5.0  # seconds between lines of progress


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise InputError("name the images, or folders of them")
    trained_detector.check(checkpoint=_CHECKPOINT.value, weights=_WEIGHTS.value)
    script.quiet()
    out = pathlib.Path(_OUT.value)
    with script.ending("The prediction", interrupted=f"What was found until then is in {out}."), compilation.kept():
        unreadable = _predict(_CONFIG.value, argv[1:], out)
    if unreadable:
        which = "they are" if unreadable <= _NAMED else f"the first {_NAMED} are"
        sys.exit(f"{unreadable} images could not be read; {which} named above.")


def _predict(config, paths: list[str], out: pathlib.Path) -> int:
    """Draws all images that can be read, and returns how many can't."""
    files, sizes, unreadable = [], [], 0
    left_out = passed_over(paths, recursive=_RECURSIVE.value)
    if left_out:
        print(f"Left out: {left_out}", flush=True)
    for path in image_files(paths, recursive=_RECURSIVE.value):
        try:
            sizes.append(size_of(path))
            files.append(path)
        except PhotoError as error:
            unreadable = _said(error, unreadable)
    if not files:
        raise InputError(f"there is no image to look at in {', '.join(paths)}")
    predict, categories = _detector(config)
    layout, whole_pixels = layout_for(sizes, config.data), inference.whole_pixels(config.detector)
    out.mkdir(parents=True, exist_ok=True)
    listed, names, objects = [], _drawn_names(files), 0
    started = said = time.monotonic()
    try:
        for path, name in zip(files, names, strict=True):
            try:
                image = read_photo(path)
            except PhotoError as error:
                unreadable = _said(error, unreadable)
                continue
            finding = find_objects(predict, image, layout, config.data, least=_SCORE.value, whole_pixels=whole_pixels)
            draw_objects(image, finding.objects, categories, scores=finding.scores).save(out / name)
            listed.append({"image": str(path), "drawn": name} | _listed(finding, categories))
            objects += len(finding.scores)
            if time.monotonic() - said > _SAY_EVERY and path != files[-1]:
                said = time.monotonic()
                rate = len(listed) / (said - started)
                left = (len(files) - len(listed)) / rate
                print(f"{len(listed)}/{len(files)} images, {rate:.1f} images/s, {left:.0f} s left", flush=True)
    finally:
        workdir.write_whole(out / "predictions.json", json.dumps(listed, indent=1))
    print(f"{objects} objects on {len(listed)} images: {out}")
    if listed and not objects:
        print(f"None has a score of {_SCORE.value} or more; a lower --score shows what the detector is less sure of.")
    return unreadable


def _said(error: PhotoError, before: int) -> int:
    """Names one more image that can't be read, if not too many were named before; returns how many there are."""
    if before < _NAMED:
        print(error, file=sys.stderr, flush=True)
    return before + 1


def _detector(config):
    """The detector, and the names of its labels."""
    asked = {"workdir": _WORKDIR.value, "checkpoint": _CHECKPOINT.value, "weights": _WEIGHTS.value}
    trained = trained_detector.find(config, **asked)
    names = trained.label_names(lambda: category_names(config.data))
    categories = tuple(name for name in names if name)
    return inference.predictor(trained.model, inference.label_table(names, categories)), categories


def _listed(finding: Finding, categories: tuple[str, ...]) -> dict:
    """One image's part of predictions.json: boxes are x1, y1, x2, y2 in pixels, masks are COCO's run lengths."""
    height, width = finding.objects.size
    objects = []
    for index, score in enumerate(finding.scores):
        label = int(finding.objects.labels[index])
        box = [round(float(edge), 2) for edge in finding.objects.boxes[index]]
        found = {"category": categories[label], "label": label, "score": round(float(score), 5), "box": box}
        if finding.objects.masks is not None:
            found["mask"] = {"size": [height, width], "counts": finding.objects.masks[index].decode("ascii")}
        objects.append(found)
    return {"height": height, "width": width, "objects": objects}


def _drawn_names(files: list[pathlib.Path]) -> list[str]:
    """A PNG's name for each file; files of the same name in several folders are numbered."""
    taken: set[str] = set()
    names = []
    for path in files:
        name, number = f"{path.stem}.png", 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem}-{number}.png"
        taken.add(name.lower())
        names.append(name)
    return names


if __name__ == "__main__":
    script.run(main)
