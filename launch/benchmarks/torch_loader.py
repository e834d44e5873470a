"""torch's DataLoader as a yardstick of the training pipeline: images as torch users commonly load them."""

import io
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.utils.data
from PIL import Image

from detectors.data.resizing import fitted_size
from detectors.data.settings import BatchConfig


class Photos(torch.utils.data.Dataset):
    """Images decoded and resized by Pillow, mirrored at random, and normalised as float32."""

    def __init__(self, encoded: Callable[[int], tuple[bytes, int]], config: BatchConfig) -> None:
        """Takes the data set's function from an image's index to its file's bytes and id."""
        self._encoded, self._limits, self._flip = encoded, config.limits, config.flip
        self._mean, self._std = (torch.tensor(each)[:, None, None] for each in config.normalisation)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(io.BytesIO(self._encoded(index)[0])) as image:
            height, width = fitted_size(image.size[::-1], self._limits or image.size[::-1])
            image = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        if torch.rand(()) < self._flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().sub_(self._mean).div_(self._std)


def padded(images: list[torch.Tensor]) -> torch.Tensor:
    """One batch of images of several sizes, with zeros below and on the right."""
    height, width = (-(-max(image.shape[axis] for image in images) // 32) * 32 for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]].copy_(image)
    return batch


def batches(
    photos: Photos, groups: Sequence[Sequence[int]], *, batch_size: int, count: int, workers: int
) -> Iterator[torch.Tensor]:
    """Shuffled batches, each of images of one group; one may reach into the next epoch.

    Args:
      photos: the images.
      groups: indices of those that share batches (landscape and portrait ones).
      batch_size: images per batch.
      count: batches to make.
      workers: processes.
    """
    rng, sizes = np.random.default_rng(0), np.array([len(group) for group in groups])
    orders = [_endless(group, rng) for group in groups]
    turns = rng.choice(len(groups), count, p=sizes / sizes.sum())
    chosen = [list(itertools.islice(orders[turn], batch_size)) for turn in turns]
    loader = torch.utils.data.DataLoader(
        photos,
        batch_sampler=chosen,
        num_workers=workers,
        collate_fn=padded,
        multiprocessing_context="spawn",
    )
    return iter(loader)


def _endless(group: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """The group's indices in a new order each epoch."""
    while True:
        yield from rng.permutation(group).tolist()
