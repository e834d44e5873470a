"""Opens a data set: the digit scenes, or one that the user has on disk. Flawed records are logged once."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8

from cse_jax.errors import InputError
from cse_jax.ranges import Count, Positive, Share, validate
from detectors.data.annotated import load_annotations, load_report
from detectors.data.building import BuildError, Example
from detectors.data.digit_scenes import CATEGORIES, SPLITS, DigitScenesConfig, build_digit_scenes
from detectors.data.on_disk import ROLES, DiskData, build_detection_set, built_categories
from detectors.data.pipeline import Source, layout_for
from detectors.data.records import Annotation, BadRecord, BadRecords, Records, decode_image, read_annotation
from detectors.data.resizing import Pixels, image_size
from detectors.data.settings import BatchConfig, Deviation, Grey


@dataclasses.dataclass
class DataConfig(BatchConfig):
    """The digit scenes and how batches are made from them."""

    digit_scenes: DigitScenesConfig = dataclasses.field(default_factory=DigitScenesConfig)
    max_boxes: Positive = dataclasses.field(default=8, kw_only=True)
    mean: tuple[Grey, Grey, Grey] = dataclasses.field(default=(128.0, 128.0, 128.0), kw_only=True)
    std: tuple[Deviation, Deviation, Deviation] = dataclasses.field(default=(60.0, 60.0, 60.0), kw_only=True)
    flip: Share = dataclasses.field(default=0.0, kw_only=True)  # digits are not the same mirrored
    short_side: Count = dataclasses.field(default=0, kw_only=True)
    long_side: Count = dataclasses.field(default=0, kw_only=True)
    cache: bool = dataclasses.field(default=True, kw_only=True)


class Dataset(NamedTuple):
    """The three splits of a data set.

    ``test`` is for the final report only: nothing may be selected on it. On a data set with two splits ``select`` is
    ``test``, unless some of the training images are held out (``DiskData.select_images``).
    """

    categories: tuple[str, ...]
    train: Source
    select: Source
    test: Source
    bad_records: dict[str, BadRecords]

    def check_classes(self, classes: int) -> None:
        """Raises InputError unless a detector of ``classes`` classes has one for each category."""
        if classes < len(self.categories):
            raise InputError(
                f"The data set has {len(self.categories)} categories, the detector {classes}: set "
                f"--config.detector.classes={len(self.categories)}"
            )


def open_dataset(config: DataConfig | DiskData) -> Dataset:
    """Builds the data set unless it is cached, and opens its splits.

    Flaws of single records are logged once and kept in ``bad_records``.

    Raises:
      BuildError, LayoutError: the data set can be neither built nor read; the message names the folder.
      InputError: the config is wrong, or a split has no valid record.
    """
    validate(config, "data")
    builder = (
        build_detection_set(config)
        if isinstance(config, DiskData)
        else build_digit_scenes(config.digit_scenes, config.data_dir)
    )
    try:
        if isinstance(config, DiskData):
            return _open_detection_set(builder, config)
        return open_records({split: _records_of(builder, split) for split in SPLITS}, CATEGORIES, config)
    except (OSError, RuntimeError) as error:
        raise BuildError(
            f"Could not read the data set in {builder.data_path}: {error}. Delete that folder to have it built again."
        ) from error


def _records_of(builder: tfds.core.DatasetBuilder, split: str) -> Records:
    """The records of a split, with encoded images."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    # A decorator of TFDS hides the parameter split from pyright.
    return builder.as_data_source(split=split, decoders=decoders)  # pyright: ignore[reportCallIssue]


def category_names(config: DataConfig | DiskData) -> tuple[str, ...]:
    """The names of a data set's labels, without building it.

    Raises:
      LayoutError: the data set's folder does not hold them.
    """
    if not isinstance(config, DiskData):
        return CATEGORIES
    config.check_layout()
    return built_categories(config) or config.categories()


def open_records(
    records: Mapping[str, Records],
    categories: tuple[str, ...],
    config: BatchConfig,
) -> Dataset:
    """Validates the records of ``train``, ``select`` and ``test``, as ``open_dataset`` does for the digit scenes.

    Images without boxes and small images are left out of ``train``, but kept in ``select`` and ``test``, where every
    image is scored.

    Args:
      records: of each split; see ``detectors.data.records``.
      categories: names of the labels.
      config: how batches are made.

    Raises:
      InputError: a split has no valid record.
    """
    annotations, images, reports = {}, {}, {}
    for split in SPLITS:
        report = reports[split] = BadRecords()
        found, decoded, indices, masks = [], [], [], bool(config.mask_stride)
        for index in range(len(records[split])):
            record = records[split][index]
            try:
                image = decode_image(record["image"], int(record["image_id"]))
                found.append(read_annotation(record, image_size(image), categories, report, masks=masks))
            except BadRecord as bad:
                report.add(bad.reason, bad.detail)
                continue
            indices.append(index)
            if config.cache:
                decoded.append(config.fitted(image))
        kept = _usable(found, config, report, training=split == "train")
        annotations[split] = [found[index] for index in kept]
        fetch = functools.partial(_record_image, records[split])
        chosen = [indices[index] for index in kept]
        images[split] = [decoded[index] for index in kept] if config.cache else _OnDemand(fetch, chosen, config)
        _check_split(split, annotations[split], len(records[split]), report)
    layout = layout_for((a.size for split in annotations.values() for a in split), config)
    train, select, test = (Source(annotations[split], images[split], categories, layout) for split in SPLITS)
    return Dataset(categories, train, select, test, bad_records=reports)


class BuiltSplit(NamedTuple):
    """``train`` or ``test`` of a built data set, all of it."""

    categories: tuple[str, ...]
    annotations: list[Annotation]
    names: list[str]  # of the image files
    report: BadRecords  # what was dropped when it was built
    encoded: "_StoredImages"

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The decoded image, at its own size."""
        return decode_image(*self.encoded(int(index)))


def read_built(builder: tfds.core.DatasetBuilder, role: str, *, masks: bool = True, shown_bad: int = 3) -> BuiltSplit:
    """What ``build_detection_set`` wrote of ``train`` or ``test``, with up to ``shown_bad`` cases of each flaw."""
    path = pathlib.Path(builder.data_path)
    categories = tuple(json.loads((path / "categories.json").read_text()))
    annotations, names = load_annotations(path / f"annotations-{role}.npz", masks=masks)
    report = load_report(path / f"bad_records-{role}.json", shown_bad)
    files = [str(name) for name in builder.info.splits[role].filepaths]
    return BuiltSplit(categories, annotations, names, report, _StoredImages(files))


def _open_detection_set(builder: tfds.core.DatasetBuilder, config: DiskData) -> Dataset:
    splits = {role: read_built(builder, role, masks=bool(config.mask_stride)) for role in ROLES}
    annotations, places, reports = {}, {}, {}
    for role, split in splits.items():
        report = reports[role] = split.report
        found = split.annotations[: config.limit or None]
        places[role] = _usable(found, config, report, training=role == "train")
        annotations[role] = [split.annotations[index] for index in places[role]]
        _check_split(role, annotations[role], len(found), report)
    if not 0 <= config.select_images < len(places["train"]):
        raise InputError(
            f"data.select_images={config.select_images} must leave images to train on, of {len(places['train'])}"
        )
    layout = layout_for((a.size for split in annotations.values() for a in split), config)

    def source(role: str, chosen: Sequence[int]) -> Source:
        images = _OnDemand(splits[role].encoded, [places[role][index] for index in chosen], config)
        if config.cache:
            images = list(images)
        return Source([annotations[role][index] for index in chosen], images, splits[role].categories, layout)

    shuffled = np.random.default_rng(0).permutation(len(places["train"]))
    held_out = sorted(shuffled[: config.select_images].tolist())
    rest = sorted(shuffled[config.select_images :].tolist())
    test = source("test", range(len(places["test"])))
    select, reports["select"] = (source("train", held_out), BadRecords()) if held_out else (test, reports["test"])
    return Dataset(test.categories, source("train", rest), select, test, bad_records=reports)


def _usable(annotations: Sequence[Annotation], config: BatchConfig, report: BadRecords, *, training: bool) -> list[int]:
    """Indices of the images to use."""
    kept = []
    masks = config.mask_stride and any(any(annotation.masks or ()) for annotation in annotations)
    for index, annotation in enumerate(annotations):
        boxes = int(annotation.trained.sum())
        if training and min(annotation.size) < config.min_side:
            height, width = annotation.size
            report.add(f"image with a side under {config.min_side}", f"image {annotation.image_id} ({width}x{height})")
        elif training and masks and _lacks_a_mask(annotation):
            report.add("image with an object without mask, not trained on", f"image {annotation.image_id}")
        elif training and not boxes:
            report.add("image without boxes, not trained on", f"image {annotation.image_id}")
        else:
            kept.append(index)
    return kept


def _lacks_a_mask(annotation: Annotation) -> bool:
    runs = annotation.masks or (b"",) * len(annotation.labels)
    return any(not runs[index] for index in np.flatnonzero(annotation.trained))


def _check_split(split: str, annotations: Sequence[Annotation], records: int, report: BadRecords) -> None:
    if report:
        logging.warning("Split %s has flawed records:\n%s", split, report)
    if not annotations:
        raise InputError(f"Split {split!r} has no valid record out of {records}:\n{report}")


class _OnDemand(Sequence):
    """Images at ``indices``, decoded and resized at each access."""

    def __init__(self, fetch: Callable[[int], tuple[bytes, int]], indices: Sequence[int], config: BatchConfig) -> None:
        self._fetch, self._indices, self._config = fetch, list(indices), config

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Pixels:
        return self._config.fitted(decode_image(*self._fetch(self._indices[index])))


def _record_image(records: Records, index: int) -> tuple[bytes, int]:
    record = records[index]
    return record["image"], int(record["image_id"])


class _StoredImages:
    """Encoded images of array records, with their ids. Opened in the process that reads them."""

    def __init__(self, paths: Sequence[str]):
        self._paths = paths

    @functools.cached_property
    def _records(self):
        import grain  # slow to import

        return grain.sources.ArrayRecordDataSource(self._paths)

    def __getstate__(self):
        return {"_paths": self._paths}

    def __call__(self, index: int) -> tuple[bytes, int]:
        features = Example.FromString(self._records[index]).features.feature
        return features["image"].bytes_list.value[0], features["image_id"].int64_list.value[0]
