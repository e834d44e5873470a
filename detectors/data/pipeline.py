"""From records to batches: validated examples with random access, batched by Grain.

A training batch depends only on the source, the seed and the step, so that an interrupted training goes on with the
very batches it would have seen.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8

from detectors.data.digit_scenes import CATEGORIES, SPLITS, DigitScenesConfig, build_digit_scenes
from detectors.data.records import Annotation, BadRecord, BadRecords, decode_image, read_annotation
from detectors.structures import Batch

SIZE_MULTIPLE = 32  # batches are padded to a multiple of the detectors' common strides


@dataclasses.dataclass
class DataConfig:
    """What to train and evaluate on, and how batches are made from it."""

    digit_scenes: DigitScenesConfig = dataclasses.field(default_factory=DigitScenesConfig)
    data_dir: str = ""  # where built data sets are kept; empty: $CSE_JAX_DATA_DIR or ~/.cache/cse_jax
    max_boxes: int = 8  # ground truth is padded to so many boxes
    mean: tuple[float, float, float] = (128.0, 128.0, 128.0)  # RGB, grey levels of 0..255
    std: tuple[float, float, float] = (60.0, 60.0, 60.0)
    flip: float = 0.0  # for train_batches: probability of mirroring; digits are not the same mirrored
    min_side: int = 32  # smaller images are not trained on; pixels
    cache: bool = True  # keep decoded images in memory


class Layout(NamedTuple):
    """The static shape of a batch, and the normalisation of its images."""

    size: tuple[int, int]  # (height, width) after padding, pixels
    max_boxes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Example(NamedTuple):
    image: UInt8[np.ndarray, "h w 3"]
    annotation: Annotation


@dataclasses.dataclass(frozen=True, eq=False)
class Source(Sequence[Example]):
    """Valid examples of one split, with random access. ``annotations`` are at hand without decoding an image."""

    annotations: Sequence[Annotation]
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]]  # (height, width) differs
    categories: tuple[str, ...]
    layout: Layout

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self.annotations[index])

    def subset(self, indices: Sequence[int]) -> "Source":
        """The examples at ``indices``, decoded and held in memory."""
        images = [self.images[index] for index in indices]
        return dataclasses.replace(self, annotations=[self.annotations[index] for index in indices], images=images)


class Dataset(NamedTuple):
    """The three splits of a data set. ``test`` is for the final report only: nothing may be selected on it."""

    categories: tuple[str, ...]
    train: Source
    select: Source
    test: Source
    bad_records: dict[str, BadRecords]


def open_dataset(config: DataConfig) -> Dataset:
    """Builds the digit scenes unless they are cached, and opens their splits.

    What is wrong with single records is logged once and kept in ``bad_records``.

    Raises:
      OSError: the data set can be neither built nor read, naming the folder.
      ValueError: an image has more boxes than ``config.max_boxes``, or a split has no valid record.
    """
    builder = build_digit_scenes(config.digit_scenes, config.data_dir)
    try:
        records = {
            split: builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
            for split in SPLITS
        }
        return open_records(records, CATEGORIES, config)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"Could not read the data set in {builder.data_path}: {error}. Delete that folder to have it built again."
        ) from error


def open_records(
    records: Mapping[str, grain.sources.RandomAccessDataSource[Mapping]],
    categories: tuple[str, ...],
    config: DataConfig,
) -> Dataset:
    """Validates the records of ``train``, ``select`` and ``test``, as ``open_dataset`` does for the digit scenes.

    Images without boxes and small images are kept in ``select`` and ``test``, where every image is scored, and left
    out of ``train``.
    """
    valid, reports = {}, {}
    for split in SPLITS:
        valid[split], reports[split] = _validate(records[split], categories, config, training=split == "train")
        if reports[split]:
            logging.warning("Split %s has flawed records:\n%s", split, reports[split])
        if not valid[split][0]:
            raise ValueError(f"Split {split!r} has no valid record out of {len(records[split])}:\n{reports[split]}")
    sizes = np.array([a.size for annotations, _ in valid.values() for a in annotations])
    padded = -(-sizes.max(0) // SIZE_MULTIPLE) * SIZE_MULTIPLE
    layout = Layout(tuple(padded.tolist()), config.max_boxes, tuple(config.mean), tuple(config.std))
    sources = {split: Source(*valid[split], categories, layout) for split in SPLITS}
    return Dataset(categories, **sources, bad_records=reports)


def train_batches(
    source: Source, *, batch_size: int, seed: int, flip: float = 0.0, start_step: int = 0
) -> grain.DatasetIterator[Batch]:
    """Endless training batches, shuffled anew each epoch; a batch may reach into the next epoch.

    Args:
      source: what to train on.
      batch_size: images per batch.
      seed: of order and flips; the batch of a step depends on nothing else.
      flip: probability of a horizontal flip (``DataConfig.flip``).
      start_step: the step whose batch comes first.

    Returns:
      A Grain iterator, checkpointable by ``get_state`` and ``set_state``; its state counts from ``start_step``.
    """
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    if flip > 0:
        examples = examples.random_map(lambda example, rng: flipped(example) if rng.random() < flip else example)
    batches = examples.batch(batch_size, drop_remainder=True, batch_fn=lambda chosen: make_batch(chosen, source.layout))
    threads = 0 if isinstance(source.images, list) else 2  # threads only help where images are decoded
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(batches[start_step:].to_iter_dataset(options))


def eval_batches(source: Source, batch_size: int) -> Iterator[Batch]:
    """Every image once, in order; the last batch is filled up with blank images that ``real`` marks as False."""
    for start in range(0, len(source), batch_size):
        chosen = [source[index] for index in range(start, min(start + batch_size, len(source)))]
        yield make_batch(chosen, source.layout, batch_size)


def one_image_per_category(source: Source, seed: int) -> Source:
    """One random image for each category (the set D_verify of the model optimization simulation).

    No image is drawn twice as long as a category has others.

    Raises:
      ValueError: a category has no image.
    """
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for label, name in enumerate(source.categories):
        holders = [index for index, annotation in enumerate(source.annotations) if label in annotation.labels]
        if not holders:
            raise ValueError(f"No image shows category {name!r}; use more images or declare fewer categories.")
        fresh = [index for index in holders if index not in chosen]
        chosen.append(int(rng.choice(fresh or holders)))
    return source.subset(chosen)


def make_batch(examples: Sequence[Example], layout: Layout, batch_size: int = 0) -> Batch:
    """Normalises, pads and stacks examples; ``batch_size`` beyond their number adds blank images."""
    rows = max(batch_size, len(examples))
    height, width = layout.size
    image = np.zeros((rows, height, width, 3), np.float32)
    boxes = np.zeros((rows, layout.max_boxes, 4), np.float32)
    labels = np.zeros((rows, layout.max_boxes), np.int32)
    valid = np.zeros((rows, layout.max_boxes), bool)
    image_size = np.tile(np.array(layout.size, np.float32), (rows, 1))
    image_id = np.full(rows, -1, np.int32)
    # Rows of interleaved channels keep numpy's inner loop long: 10x faster than broadcasting over the 3 channels.
    mean, scale = (np.tile(np.array(v, np.float32), width) for v in (layout.mean, 1 / np.array(layout.std)))
    lines = image.reshape(rows, height, width * 3)
    for row, (pixels, annotation) in enumerate(examples):
        h, w = annotation.size
        target = lines[row, :h, : 3 * w]
        np.subtract(pixels.reshape(h, 3 * w), mean[: 3 * w], out=target)
        target *= scale[: 3 * w]
        n = len(annotation.labels)
        boxes[row, :n], labels[row, :n], valid[row, :n] = annotation.boxes, annotation.labels, True
        image_size[row], image_id[row] = annotation.size, annotation.image_id
    return Batch(image, image_size, boxes, labels, valid, image_id, real=np.arange(rows) < len(examples))


def flipped(example: Example) -> Example:
    """The example mirrored left to right."""
    x1, y1, x2, y2 = example.annotation.boxes.T
    width = np.float32(example.annotation.size[1])
    boxes = np.stack([width - x2, y1, width - x1, y2], axis=-1)
    return Example(np.ascontiguousarray(example.image[:, ::-1]), example.annotation._replace(boxes=boxes))


class _DecodedOnDemand(Sequence):
    """Images of the records at ``indices``, decoded at each access."""

    def __init__(self, records: grain.sources.RandomAccessDataSource[Mapping], indices: Sequence[int]):
        self._records, self._indices = records, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        record = self._records[self._indices[index]]
        return decode_image(record["image"], int(record["image_id"]))


def _validate(records, categories, config: DataConfig, *, training: bool):
    """The annotations and images of the valid records, and the report on the others."""
    report = BadRecords()
    annotations, images, indices = [], [], []
    for index in range(len(records)):
        record = records[index]
        try:
            image = decode_image(record["image"], int(record["image_id"]))
            annotation = read_annotation(record, image.shape[:2], categories, report)
        except BadRecord as bad:
            report.add(bad.reason, bad.detail)
            continue
        if len(annotation.labels) > config.max_boxes:
            raise ValueError(
                f"Image {annotation.image_id} has {len(annotation.labels)} boxes, more than max_boxes="
                f"{config.max_boxes}: set data.max_boxes to at least {len(annotation.labels)}."
            )
        if training and min(annotation.size) < config.min_side:
            height, width = annotation.size
            report.add(f"image with a side under {config.min_side}", f"image {annotation.image_id} ({width}x{height})")
        elif training and not len(annotation.labels):
            report.add("image without boxes, not trained on", f"image {annotation.image_id}")
        else:
            annotations.append(annotation)
            indices.append(index)
            if config.cache:
                images.append(image)
    return (annotations, images if config.cache else _DecodedOnDemand(records, indices)), report
