"""RoIAlign (He et al. 2017, section 3) over a feature pyramid, for one image, exact at the borders."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from detectors.structures import AnyArray

SAMPLES = 2  # sampling points per bin and axis
_Weighted = tuple[Int[Array, "n p"], Float[Array, "n p"]]  # cells along one axis, and their weights
_Neighbours = tuple[_Weighted, _Weighted]  # the two cells around each sampling point


def roi_levels(rois: Float[AnyArray, "n 4"], *, levels: int, finest_side: float = 56.0) -> Int[Array, " n"]:
    """Pyramid level of each RoI: floor(log2(sqrt(wh) / finest_side + 1e-6)), clipped (Lin et al. 2017, equation 1).

    Args:
      rois: boxes in pixels.
      levels: how many there are.
      finest_side: RoIs whose sides are below twice this take the finest level, pixels.
    """
    side = jnp.sqrt(jnp.maximum(jnp.prod(rois[:, 2:] - rois[:, :2], axis=-1), 0.0))
    level = jnp.floor(jnp.log2(side / finest_side + 1e-6))
    return jnp.clip(level, 0, levels - 1).astype(jnp.int32)


def roi_align(
    features: Sequence[Float[AnyArray, "_h _w c"]],
    rois: Float[AnyArray, "n 4"],
    level: Int[AnyArray, " n"],
    *,
    strides: tuple[int, ...],
    size: int,
    cells: Sequence[Float[AnyArray, " 2"]] | None = None,
    aligned: bool = True,
    as_product: bool = False,
) -> Float[Array, "n size size c"]:
    """Features of each RoI, bilinearly sampled on its level, ``SAMPLES`` squared points averaged per bin.

    Points more than one cell outside the image count as 0; others are clamped to it.

    Args:
      features: one image's maps, finest first.
      rois: boxes in pixels.
      level: index into ``features`` for each RoI.
      strides: pixels per cell of each map.
      size: bins per side.
      cells: rows and columns of each map that belong to the image, the rest is padding; all of them by default.
      aligned: a cell's value is that of its centre; if not, of its upper left corner, and RoIs count as at least one
        cell wide and high (the first version of the rule, torchvision's detectors).
      as_product: multiply every cell of every map by its weight in a matrix product, instead of gathering the sampled
        ones.  The result is the same.  This is faster for small maps on CPUs, where the gather's gradient, a scatter,
        is slow.
    """
    cells = [np.array(f.shape[:2], np.float32) for f in features] if cells is None else cells
    if as_product:
        return _as_product(features, cells, rois, level, strides=strides, size=size, aligned=aligned)
    flat = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
    shapes = np.array([f.shape[:2] for f in features], np.int32)
    starts = jnp.asarray(np.concatenate([[0], np.cumsum(shapes.prod(1))[:-1]]).astype(np.int32))[level]
    widths = jnp.asarray(shapes[:, 1])[level]
    limits = jnp.stack(list(cells))[level]
    scaled = in_cells(rois, jnp.asarray(strides, rois.dtype)[level][:, None], aligned=aligned)
    rows = _points(scaled[:, 1], scaled[:, 3], size, limits[:, 0])
    columns = _points(scaled[:, 0], scaled[:, 2], size, limits[:, 1])
    indices, weights, samples = [], [], range(SAMPLES)
    for (row, row_weight), (column, column_weight), i, j in itertools.product(rows, columns, samples, samples):
        row = starts[:, None] + row[:, i::SAMPLES] * widths[:, None]
        indices.append(row[..., None] + column[:, None, j::SAMPLES])
        weights.append(row_weight[:, i::SAMPLES, None] * column_weight[:, None, j::SAMPLES])
    return _weighted_sum(flat, indices, weights) / SAMPLES**2


@jax.custom_vjp
def _weighted_sum(
    cells: Float[Array, "m c"], indices: list[Int[Array, "n s s"]], weights: list[Float[Array, "n s s"]]
) -> Float[Array, "n s s c"]:
    """The sum over the lists' entries of a cell for each bin, times its weight.

    One gather per entry: they fuse, and no sampled value is stored.  Sums are in float32.  The gradient of the cells is
    a scatter for one entry after the other into one array of float32; JAX's own would be an array for each, in the type
    of the cells.
    """
    result = jnp.zeros((), jnp.float32)
    for index, weight in zip(indices, weights, strict=True):
        result += cells[index].astype(jnp.float32) * weight[..., None]
    return result.astype(cells.dtype)


def _forward(cells, indices, weights):
    return _weighted_sum(cells, indices, weights), (cells, indices, weights)


def _backward(kept, gradient):
    cells, indices, weights = kept

    def add(total, entry):
        index, weight = entry
        return total.at[index].add(gradient * weight[..., None]), None

    entries = jnp.stack(indices), jnp.stack(weights)
    of_cells, _ = jax.lax.scan(add, jnp.zeros(cells.shape, jnp.float32), entries)
    of_weights = [(gradient * cells[index]).sum(-1, dtype=jnp.float32) for index in indices]
    return of_cells.astype(cells.dtype), None, of_weights


_weighted_sum.defvjp(_forward, _backward)


def in_cells(
    rois: Float[AnyArray, "n 4"], stride: Float[AnyArray, "#n 1"] | int | float, *, aligned: bool
) -> Float[Array, "n 4"]:
    """RoIs in units of a map's cells, whose values lie at whole numbers.

    Args:
      rois: boxes in pixels.
      stride: pixels per cell.
      aligned: as in ``roi_align``.
    """
    scaled = jnp.asarray(rois) / stride
    if aligned:
        return scaled - 0.5
    low, high = jnp.split(scaled, 2, axis=-1)
    return jnp.concatenate([low, jnp.maximum(high, low + 1.0)], axis=-1)


def _as_product(
    features: Sequence[Float[AnyArray, "_h _w c"]],
    cells: Sequence[Float[AnyArray, " 2"]],
    rois: Float[AnyArray, "n 4"],
    level: Int[AnyArray, " n"],
    *,
    strides: tuple[int, ...],
    size: int,
    aligned: bool,
) -> Float[Array, "n size size c"]:
    """The same rule with each level's bilinear weights as a dense matrix; RoIs of other levels have weight 0."""
    n, result = rois.shape[0], jnp.zeros((), features[0].dtype)
    for k, (feature, (rows, columns), stride) in enumerate(zip(features, cells, strides, strict=True)):
        height, width, channels = feature.shape
        scaled = in_cells(rois, stride, aligned=aligned)
        rows = _dense(_points(scaled[:, 1], scaled[:, 3], size, jnp.full(n, rows)), size, height)
        columns = _dense(_points(scaled[:, 0], scaled[:, 2], size, jnp.full(n, columns)), size, width)
        rows = jnp.where((level == k)[:, None, None], rows, 0.0)
        weights = (rows[:, :, None, :, None] * columns[:, None, :, None, :]).reshape(-1, height * width)
        result += weights.astype(feature.dtype) @ feature.reshape(-1, channels)
    return result.reshape(n, size, size, -1)


def _dense(points: _Neighbours, size: int, length: int) -> Float[Array, "n size length"]:
    """Weight of every cell along one axis in every bin."""
    cells = jnp.arange(length)
    first, second = (jnp.where(cell[..., None] == cells, weight[..., None], 0.0) for cell, weight in points)
    return (first + second).reshape(-1, size, SAMPLES, length).mean(2)


def _points(low: Float[Array, " n"], high: Float[Array, " n"], size: int, length: Float[Array, " n"]) -> _Neighbours:
    """The two neighbouring cells of every sampling point along one axis, with their weights."""
    offset = (np.arange(size * SAMPLES) + 0.5) / (size * SAMPLES)
    at = low[:, None] + (high - low)[:, None] * offset.astype(np.float32)
    limit = (length - 1)[:, None].astype(at.dtype)
    inside = (at >= -1.0) & (at <= limit + 1.0)
    at = jnp.clip(at, 0.0, limit)
    first = jnp.floor(at)
    second = jnp.minimum(first + 1.0, limit)
    fraction = at - first
    weights = (jnp.where(inside, 1.0 - fraction, 0.0), jnp.where(inside, fraction, 0.0))
    return (first.astype(jnp.int32), weights[0]), (second.astype(jnp.int32), weights[1])
