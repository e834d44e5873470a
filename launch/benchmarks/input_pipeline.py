"""Training batches of our input pipeline beside those of torch's DataLoader, from the same image files."""

import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.report import Report
from detectors.data.coco import CocoData
from detectors.data.datasets import open_dataset, read_built
from detectors.data.on_disk import DiskData, build_detection_set
from detectors.data.pipeline import train_batches

_BATCH = 16
_STARTED = 3  # batches that come before the timed ones, until processes and buffers are started
_SIZES = {  # images, height, width, short and long side that they are resized to, timed batches, processes
    "smallest": (16, 48, 64, 96, 160, 1, (0,)),
    "small": (64, 480, 640, 800, 1333, 10, (0,)),
    "full": (128, 480, 640, 800, 1333, 20, (0, 8)),
}
_TITLE = "Input pipeline, images per second"


class Rates(NamedTuple):
    """Images per second.

    Attributes:
      made_by: what makes our batches.
      ours: of our pipeline.
      workers: processes of torch's DataLoader.
      torch: of torch's DataLoader; None if it is not installed.
      note: what its batches are, or why there are none.
    """

    made_by: str
    ours: float
    workers: int
    torch: float | None
    note: str


def measure(report: Report, *, size: str, rounds: int) -> None:
    """The suite's table, on generated photographs; batches take turns in no rounds, since both sides prefetch."""
    del rounds
    images, height, width, short_side, long_side, count, processes = _SIZES[size]
    report.plan(_TITLE, map(_made_by, processes))
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "photographs"
        _write_photographs(root, images, (height, width))
        data = CocoData(str(root), data_dir=f"{folder}/built", short_side=short_side, long_side=long_side)
        for workers in processes:
            found = rates(dataclasses.replace(data, workers=workers), count)
            report.row(
                _TITLE,
                {
                    "images": f"{images} of {height} x {width} to {short_side} x {long_side}",
                    "by": found.made_by,
                    "ours": found.ours,
                    "torch's DataLoader": found.torch,
                    "its processes": found.workers,
                    "ours / torch's": found.torch and found.ours / found.torch,
                    "note": found.note,
                },
            )


def rates(config: DiskData, count: int) -> Rates:
    """Times so many training batches of 16 images of a data set, on both sides."""
    config = dataclasses.replace(config, cache=False)
    source = open_dataset(config).train
    pipeline = train_batches(source, batch_size=_BATCH, seed=0, flip=config.flip, workers=config.workers)
    ours = _images_per_second(pipeline, count)
    if config.workers:
        pipeline.close()
    made_by, workers = _made_by(config.workers), config.workers or 2
    try:
        from benchmarks.torch_loader import Photos, batches
    except ImportError as error:
        return Rates(made_by, ours, workers, None, f"torch is not installed: {error}")
    split = read_built(build_detection_set(config), "train", masks=False)
    places = {annotation.image_id: index for index, annotation in enumerate(split.annotations)}
    groups = [[places[source.annotations[index].image_id] for index in group] for group in source.orientations()]
    photos = Photos(split.encoded, config)
    loader = batches(photos, groups, batch_size=_BATCH, count=_STARTED + count, workers=workers)
    return Rates(made_by, ours, workers, _images_per_second(loader, count), "torch's are float32, ours bytes")


def _made_by(workers: int) -> str:
    return f"{workers} processes" if workers else "2 threads"


def _images_per_second(batches: Iterator, count: int) -> float:
    for _ in range(_STARTED):
        next(batches)
    started = time.monotonic()
    for _ in range(count):
        next(batches)
    return count * _BATCH / (time.monotonic() - started)


def _write_photographs(root: pathlib.Path, count: int, size: tuple[int, int]) -> None:
    """A data set in COCO's layout: smooth colours with noise, which JPEG packs about as well as photographs."""
    rng, (height, width) = np.random.default_rng(0), size
    for split, images in (("train", count), ("val", 1)):
        folder = root / f"{split}2017"
        folder.mkdir(parents=True)
        for number in range(images):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
            pixels += rng.normal(0.0, 12.0, pixels.shape)
            Image.fromarray(pixels.clip(0.0, 255.0).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
        about = [{"id": n, "file_name": f"{n}.jpg", "height": height, "width": width} for n in range(images)]
        box = {"category_id": 1, "bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0}
        content = {
            "images": about,
            "annotations": [{"id": n + 1, "image_id": n} | box for n in range(images)],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
