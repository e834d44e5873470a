"""Builds a data set from its original layout, verifies it and draws samples.

    python launch/data.py --root=/data/mine
    python launch/data.py --config=configs/data/coco.py --config.root=/data/coco
    python launch/data.py --config=configs/data/voc.py --config.root=/data/VOCdevkit --draw=20 --out=samples
    python launch/data.py --config=configs/data/bccd.py --config.root=/data/BCCD --list_bad=100

    python launch/data.py --config=configs/data/coco.py --config.root=/data/coco --benchmark=50 --config.workers=8

The first recognises the layout (COCO, VOC, YOLO or BDD100K, as annotation tools write them), and writes a config to
search on the data set and one to train on it.
A data set is built once; the same command then only reads it, unless bad images have been repaired. Every record is
decoded again when it is verified. --rebuild builds it again.
"""

import script

import collections
import dataclasses
import pathlib
import time

import numpy as np
from absl import flags, logging

import config_file
import own_configs
from cse_jax.errors import InputError
from detectors.data.datasets import read_built
from detectors.data.decoding import mode_of
from detectors.data.doubts import doubts_of_annotations
from detectors.data.drawing import draw_objects
from detectors.data.layouts import recognise
from detectors.data.on_disk import ROLES, DiskData, build_detection_set, built_categories, repaired_files

_CONFIG = config_file.define("configs/data/coco.py", "The data set.", DiskData)
_DRAW = flags.DEFINE_integer(
    "draw", 0, "Images of each split that are drawn with their objects.", lower_bound=0, upper_bound=10**6
)
_OUT = flags.DEFINE_string("out", "samples", "Folder of the drawn images.")
_SEED = flags.DEFINE_integer("seed", 0, "Which images are drawn.", lower_bound=0, upper_bound=10**9)
_LIST_BAD = flags.DEFINE_integer(
    "list_bad", 20, "Bad records that are named for each reason.", lower_bound=0, upper_bound=10**9
)
_ROOT = flags.DEFINE_string("root", None, "Folder of a data set whose layout is recognised, instead of --config.")
_SEARCH_CONFIG = flags.DEFINE_string(
    "search_config",
    None,
    "With --root: the config to search with, which is written; in runs/ by default, and one to train with beside it.",
)
_REBUILD = flags.DEFINE_bool("rebuild", False, "Build the data set again, from all its files as they are now.")
_BENCHMARK = flags.DEFINE_integer(
    "benchmark",
    0,
    "Training batches of 16 images that are timed, against torch's DataLoader if torch is installed.",
    lower_bound=0,
    upper_bound=10**6,
)
_SATURATED = 0.6  # share of an image's values that are 0 or 255, from which on it is doubted


def main(argv: list[str]) -> None:
    script.start(argv)
    logging.set_verbosity(logging.ERROR)
    if _ROOT.value is not None and flags.FLAGS["config"].present:
        raise InputError("give either --root or --config")
    with script.ending("The check of the data set", interrupted="A data set that was built stays."):
        config = _CONFIG.value
        if _ROOT.value is not None:
            said, found = recognise(pathlib.Path(_ROOT.value).expanduser().absolute())
            config = _with_changed_fields(found, config)
            print(f"{_ROOT.value} has {said}.")
        builder = _built(dataclasses.replace(config, mask_stride=1))  # masks are counted and drawn
        for role in ROLES:
            _verify(builder, role)
        if _ROOT.value is not None:
            own_configs.write(config, read_built(builder, "train", masks=False), _SEARCH_CONFIG.value)
        if _BENCHMARK.value:
            _print_rates(config, _BENCHMARK.value)


def _with_changed_fields(recognised: DiskData, given: DiskData) -> DiskData:
    """The config of a layout, with the fields that flags change; only those that all layouts have."""
    shared = [field.name for field in dataclasses.fields(DiskData) if field.name != "root"]
    changed = list(config_file.changed())
    for name in changed:
        if name not in shared:
            raise InputError(f"--config.{name} does not go with --root, which takes {', '.join(shared)}")
    return dataclasses.replace(recognised, **{name: getattr(given, name) for name in changed})


def _built(config: DiskData):
    """The build of a data set, made again if that may help; prints where it is."""
    started = time.monotonic()
    config.check_layout()
    there = bool(built_categories(config))
    builder = build_detection_set(config, again=_REBUILD.value)
    repaired = repaired_files(builder) if there else []
    if repaired:
        print(f"{len(repaired)} images that were bad have changed, such as {repaired[0]}: the data set is built again.")
        builder = build_detection_set(config, again=True)
    made = "built" if repaired or _REBUILD.value or not there else "as it was built before (--rebuild builds it again)"
    print(f"{config.title}, {made}: {builder.data_path} ({time.monotonic() - started:.1f} s)")
    return builder


def _verify(builder, role: str) -> None:
    """Prints what a split holds and draws some of it."""
    split = read_built(builder, role, shown_bad=_LIST_BAD.value)
    annotations = split.annotations
    unreadable, modes, flat, saturated = [], collections.Counter(), [], []
    lowest, highest = 255, 0
    for index, annotation in enumerate(annotations):
        image = split.image(index)
        modes[mode_of(split.encoded(index)[0])] += 1
        low, high = int(image.min()), int(image.max())
        lowest, highest = min(lowest, low), max(highest, high)
        if low == high:
            flat.append(split.names[index])
        elif np.mean((image == 0) | (image == 255)) > _SATURATED:
            saturated.append(split.names[index])
        if image.shape[:2] != annotation.size:
            unreadable.append(split.names[index])
    if unreadable:
        raise OSError(
            f"{len(unreadable)} records of {role} in {builder.data_path} have another size than annotated, the first "
            f"{unreadable[0]}: build it again with --rebuild."
        )
    total = {
        "images": len(annotations),
        "without objects": sum(not len(a.labels) for a in annotations),
        "boxes": sum(len(a.labels) for a in annotations),
        "most trained boxes in an image": max(int(a.trained.sum()) for a in annotations),
        "crowds": sum(int(a.crowd.sum()) for a in annotations),
        "difficult": sum(int(a.difficult.sum()) for a in annotations),
        "masks": sum(1 for a in annotations for runs in a.masks if runs),
    }
    print(f"\n{role}: " + ", ".join(f"{count} {name}" for name, count in total.items()))
    counts = np.bincount(np.concatenate([a.labels for a in annotations]), minlength=len(split.categories))
    print("categories: " + ", ".join(f"{name} {n}" for name, n in zip(split.categories, counts, strict=True)))
    print(f"pixels: {', '.join(f'{n} {mode}' for mode, n in modes.most_common())}; levels {lowest} to {highest}")
    doubts = doubts_of_annotations(annotations)
    doubts += [f"{len(flat)} images are of one colour, such as {flat[0]}"] if flat else []
    doubts += [f"{len(saturated)} images are mostly black or white, such as {saturated[0]}"] if saturated else []
    for doubt in doubts:
        print(f"Warning: {doubt}")
    print("bad records: " + (f"\n{split.report}" if split.report else "none"))
    out = pathlib.Path(_OUT.value)
    chosen = np.random.default_rng(_SEED.value).permutation(len(annotations))[: _DRAW.value].tolist()
    for index in chosen:
        out.mkdir(parents=True, exist_ok=True)
        drawn = draw_objects(split.image(index), annotations[index], split.categories)
        drawn.save(out / f"{role}-{pathlib.PurePath(split.names[index]).stem}.png")
    if len(chosen):
        print(f"drawn: {len(chosen)} images in {out}")


def _print_rates(config: DiskData, count: int) -> None:
    """Prints images a second of the training pipeline and, if torch is installed, of its DataLoader."""
    from benchmarks import input_pipeline  # not needed to build a data set

    found = input_pipeline.rates(config, count)
    print(f"\ntraining batches by {found.made_by}: {found.ours:.0f} images/s")
    if found.torch is None:
        print(f"torch's DataLoader is not timed: {found.note}")
    else:
        print(
            f"torch's DataLoader with {found.workers} processes, the same images: {found.torch:.0f} images/s; ours are "
            f"{found.ours / found.torch:.2f} times as many ({found.note})"
        )


if __name__ == "__main__":
    script.run(main)
