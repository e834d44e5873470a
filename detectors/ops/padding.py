"""What a detector sees of an image in a padded batch: the same as in a batch of this image alone.

Zeros around an image do not stay zeros: norms count them, biases fill them, and convolutions carry what they have
become back into the image. So every layer with a norm or a bias leaves zeros beyond the extent of each image, as a
convolution finds them at the edge of the image alone, and norms count what is within.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from detectors.structures import SIZE_MULTIPLE, AnyArray


def own_side(image_size: Float[AnyArray, "*b 2"]) -> Float[Array, "*b 2"]:
    """(height, width) of a batch of one image alone, from the image's own; pixels."""
    return jnp.ceil(jnp.asarray(image_size) / SIZE_MULTIPLE) * SIZE_MULTIPLE


def inside_padded_image(xy: Float[AnyArray, "n 2"], image_size: Float[AnyArray, " 2"]) -> Bool[Array, " n"]:
    """Marks the points (x, y) within a batch of one image alone, from its (height, width); all in pixels."""
    height, width = own_side(image_size)
    return (xy[:, 0] < width) & (xy[:, 1] < height)


class Extent(NamedTuple):
    """How far the images of a batch reach."""

    cells: Float[AnyArray, "b 2"]  # rows and columns of a feature map that belong to each image; whole numbers

    @classmethod
    def of(cls, image_size: Float[AnyArray, "b 2"]) -> "Extent":
        """In pixels, from the images' (height, width) inside the padding."""
        return cls(own_side(image_size))

    def strided(self, stride: int) -> "Extent":
        """After a convolution or pooling of this stride."""
        return Extent(jnp.ceil(self.cells / stride))

    def covers(self, x: Float[AnyArray, "b h w _"]) -> Bool[Array, "b h w 1"]:
        """The cells of a feature map that belong to the images."""
        rows, columns = (jnp.arange(side) < self.cells[:, axis, None] for axis, side in enumerate(x.shape[1:3]))
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    def clear(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The feature map with zeros beyond the images."""
        return jnp.where(self.covers(x), x, 0)


class Pyramid(NamedTuple):
    """The features of a batch on every level, finest first, and how far the images reach on each."""

    levels: list[Float[Array, "b _h _w c"]]
    extents: list[Extent]
