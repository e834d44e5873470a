"""From validated examples to batches, by Grain.

A training batch depends only on the source, the seed and the step, so a training that resumes gets the same batches as
one that was never interrupted.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from cse_jax.errors import InputError
from detectors.data.records import Annotation
from detectors.data.resizing import Pixels, image_size, mask_grid
from detectors.data.settings import BatchConfig
from detectors.structures import SIZE_MULTIPLE, Batch


class Layout(NamedTuple):
    """The static shapes of batches."""

    size: tuple[int, int]  # (height, width) after padding, pixels; of landscape images if there are two shapes
    max_boxes: int
    two_shapes: bool = False  # portrait images (not wider than high) have batches of their own, of the transposed size
    mask_stride: int = 0  # pixels per cell of the batches' masks; 0 for no masks

    def stands(self, size: tuple[int, int]) -> bool:
        """Whether an image of (height, width) goes into a batch of the transposed size."""
        return self.two_shapes and size[1] <= size[0]


def layout_for(sizes: Iterable[tuple[int, int]], config: BatchConfig) -> Layout:
    """The layout that holds all images: of one shape, or of two for landscape and portrait ones if they are resized.

    Args:
      sizes: (height, width) of all images to come.
      config: how they are resized.
    """
    fitted = np.array([config.fitted_size(size) for size in sizes])
    if config.limits:
        fitted.sort(axis=1)
    height, width = (-(-fitted.max(0) // SIZE_MULTIPLE) * SIZE_MULTIPLE).tolist()
    return Layout((height, width), config.max_boxes, two_shapes=bool(config.limits), mask_stride=config.mask_stride)


class Example(NamedTuple):
    """An image at the detector's size, and its annotation in pixels of the original."""

    image: Pixels
    annotation: Annotation
    mirrored: bool = False  # whether the annotation's masks are still to be mirrored as the image and boxes are


@dataclasses.dataclass(frozen=True, eq=False)
class Source(Sequence[Example]):
    """Valid examples of one split, with random access. Reading ``annotations`` decodes no image."""

    annotations: Sequence[Annotation]
    images: Sequence[Pixels]  # (height, width) differs
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

    def orientations(self) -> list[list[int]]:
        """Indices of the images that may share a batch: all, or the landscape and the portrait ones."""
        stands = [self.layout.stands(annotation.size) for annotation in self.annotations]
        groups = [[index for index, value in enumerate(stands) if value == wanted] for wanted in (False, True)]
        return [group for group in groups if group]


def train_batches(
    source: Source, *, batch_size: int, seed: int, flip: float = 0.0, start_step: int = 0, workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:  # fmt: skip
    """Endless training batches in a new order each epoch; a batch may reach into the next epoch.

    Batches of the two orientations take turns in proportion to their numbers of images, each with epochs of its own.

    Args:
      source: what to train on.
      batch_size: images per batch.
      seed: of order and flips.
      flip: probability of a horizontal flip (``DataConfig.flip``).
      start_step: the step whose batch comes first.
      share: which of how many equal parts of each batch to make.
      workers: processes that make batches from images which are not in memory; with 0, threads of this process make
        them. The batches are the same.

    Returns:
      A Grain iterator. ``get_state`` and ``set_state`` save and restore it; its state counts from ``start_step``. With
      workers, ``close`` it when done.

    Raises:
      InputError: an image has more boxes than batches are padded to.
    """
    import grain  # slow to import, and not needed to evaluate

    _check_padding(source)
    streams, groups = [], source.orientations()
    for group in groups:
        endless = grain.MapDataset.range(len(group)).seed(seed).repeat()
        examples = endless.map_with_index(_Shuffled(source, group, seed))
        if flip > 0:
            examples = examples.random_map(lambda example, rng: flipped(example) if rng.random() < flip else example)
        size = batch_size // share[1]
        parts = examples.batch(size, drop_remainder=True, batch_fn=lambda chosen: make_batch(chosen, source.layout))
        streams.append(parts[share[0] :: share[1]])
    batches = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, [len(group) for group in groups])
    in_memory = isinstance(source.images, list)  # threads and processes only help where images are decoded
    threads = 0 if in_memory else 2
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    prepared = batches[start_step:].to_iter_dataset(options)
    if workers and not in_memory:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads a flag, and a program without absl.app has not parsed any
        prepared = prepared.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(prepared)


def eval_batches(source: Source, batch_size: int) -> Iterator[Batch]:
    """Every image once, in order; landscape ones before portrait ones if their batches differ in shape.

    Batches have no boxes: an image may show any number, and is scored with ``source.annotations``. The last batch of a
    shape is filled up with blank images, which ``real`` marks as False.
    """
    for group in source.orientations():
        for start in range(0, len(group), batch_size):
            chosen = [_without_objects(source[index]) for index in group[start : start + batch_size]]
            yield make_batch(chosen, source.layout._replace(max_boxes=0, mask_stride=0), batch_size)


def _without_objects(example: Example) -> Example:
    annotation = example.annotation
    nothing = Annotation(annotation.image_id, annotation.size, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    return example._replace(annotation=nothing)


def _check_padding(source: Source) -> None:
    boxes = [int(annotation.trained.sum()) for annotation in source.annotations]
    if boxes and max(boxes) > source.layout.max_boxes:
        fullest = source.annotations[int(np.argmax(boxes))]
        raise InputError(
            f"Image {fullest.image_id} has {max(boxes)} boxes, more than max_boxes={source.layout.max_boxes}: train "
            f"with --config.data.max_boxes={max(boxes)}."
        )


def one_image_per_category(source: Source, seed: int) -> Source:
    """One random image for each category that any image shows (D_verify of the paper's model optimization simulation).

    An image is drawn twice only if a category has no other.
    """
    holders: list[list[int]] = [[] for _ in source.categories]
    for index, annotation in enumerate(source.annotations):
        for label in np.unique(annotation.labels[annotation.trained]):
            holders[label].append(index)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for showing in filter(None, holders):
        fresh = [index for index in showing if index not in chosen]
        chosen.append(int(rng.choice(fresh or showing)))
    return source.subset(chosen)


def make_batch(examples: Sequence[Example], layout: Layout, batch_size: int = 0) -> Batch:
    """Pads and stacks examples, as NumPy arrays.

    Boxes are scaled to the resized images and clipped to them; crowds and difficult objects are left out.

    Args:
      examples: all of one orientation if the layout has two shapes.
      layout: of the batch.
      batch_size: images of the batch; if there are fewer examples, blank images are added.

    Raises:
      InputError: an example has more boxes than the layout, or lacks the masks that the layout asks for.
    """
    rows = max(batch_size, len(examples))
    height, width = layout.size[::-1] if examples and layout.stands(examples[0].annotation.size) else layout.size
    image = np.zeros((rows, height, width, 3), examples[0].image.dtype if examples else np.uint8)
    boxes = np.zeros((rows, layout.max_boxes, 4), np.float32)
    labels = np.zeros((rows, layout.max_boxes), np.int32)
    valid = np.zeros((rows, layout.max_boxes), bool)
    sizes = np.tile(np.array((height, width), np.float32), (rows, 1))
    image_id = np.full(rows, -1, np.int64)
    stride = layout.mask_stride
    masks = np.zeros((rows, layout.max_boxes, height // stride, width // stride), bool) if stride else None
    for row, example in enumerate(examples):
        pixels, annotation = example.image, example.annotation
        h, w = image_size(pixels)
        image[row, :h, :w] = pixels
        kept = np.flatnonzero(annotation.trained)
        n = len(kept)
        if n > layout.max_boxes:
            raise InputError(f"Image {annotation.image_id} has {n} boxes, more than max_boxes={layout.max_boxes}")
        stretch = np.array((w, h, w, h)) / np.array((*annotation.size[::-1], *annotation.size[::-1]))
        boxes[row, :n] = np.clip(annotation.boxes[kept] * stretch, 0, (w, h, w, h))
        labels[row, :n], valid[row, :n] = annotation.labels[kept], True
        sizes[row], image_id[row] = (h, w), annotation.image_id
        if masks is not None:
            for slot, index in enumerate(kept):
                runs = annotation.masks[index] if annotation.masks else b""
                if not runs:
                    raise InputError(f"Image {annotation.image_id} has a box without mask: set data.mask_stride to 0")
                grid = mask_grid(runs, annotation.size, (h, w), stride, mirrored=example.mirrored)
                masks[row, slot, : grid.shape[0], : grid.shape[1]] = grid
    real = np.arange(rows) < len(examples)
    return Batch(image, sizes, boxes, labels, valid, image_id, real=real, masks=masks)


def flipped(example: Example) -> Example:
    """The example mirrored left to right."""
    x1, y1, x2, y2 = example.annotation.boxes.T
    width = np.float32(example.annotation.size[1])
    annotation = example.annotation._replace(boxes=np.stack([width - x2, y1, width - x1, y2], axis=-1))
    image = np.empty_like(example.image)
    for channel in range(3):  # five times as fast as all of them at once
        image[..., channel] = example.image[:, ::-1, channel]
    return Example(image, annotation, not example.mirrored)


class _Shuffled:
    """The examples of a source at ``indices``, endlessly and in a new order each epoch.

    Grain's own shuffle tries the numbers of a cipher of 2^16 until one is in range, which takes 1.8 ms per example of
    a source of ten.
    """

    def __init__(self, source: Source, indices: Sequence[int], seed: int) -> None:
        self._source, self._indices, self._seed = source, np.asarray(indices), seed
        self._order = -1, self._indices

    def __call__(self, place: int, _: int) -> Example:
        epoch, place = divmod(place, len(self._indices))
        drawn, order = self._order  # one assignment below: threads may be in different epochs
        if drawn != epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(self._indices)
            self._order = epoch, order
        return self._source[int(order[place])]
