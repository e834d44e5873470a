"""What one-stage detectors share: towers of convolutions, and the final selection from all cells of a pyramid."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from detectors.models.convolution import Conv
from detectors.models.norms import GroupNorm
from detectors.ops import boxes as box_ops
from detectors.ops.nms import select_detections
from detectors.ops.padding import Extent
from detectors.structures import AnyArray, Detections


@runtime_checkable
class SelectionConfig(Protocol):
    """The settings of the final selection, fields of a detector's config."""

    nms_threshold: float
    candidates_per_level: int
    candidates_are_pairs: bool
    max_candidates: int
    max_detections: int


class Tower(nnx.Module):
    """Convolution, group norm, ReLU, repeated."""

    def __init__(self, channels: int, convs: int, norm_groups: int, *, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List([head_conv(channels, channels, rngs) for _ in range(convs)])
        self.norms = nnx.List([GroupNorm(channels, norm_groups, epsilon=1e-5, rngs=rngs) for _ in range(convs)])

    def __call__(self, x: Float[Array, "b h w d"], extent: Extent) -> Float[Array, "b h w d"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x), extent))
        return x


def head_conv(inputs: int, outputs: int, rngs: nnx.Rngs, bias: float = 0.0) -> nnx.Conv:
    """A 3x3 convolution of a head; its kernel is drawn from a normal distribution with standard deviation 0.01."""
    return Conv(
        inputs,
        outputs,
        (3, 3),
        padding=[(1, 1)] * 2,
        kernel_init=nnx.initializers.normal(0.01),
        bias_init=nnx.initializers.constant(bias),
        rngs=rngs,
    )


def select_by_level(
    config: SelectionConfig,
    boxes: Float[Array, "n 4"],
    scores: Float[Array, "n c"],
    inside: Bool[Array, " n"],
    level: Int[np.ndarray, " n"],
    image_size: Float[AnyArray, " 2"],
) -> Detections:
    """The detections of an image: the best candidates of each level, then suppression over all.

    Args:
      config: settings.
      boxes: of all cells, pixels.
      scores: of each class; 0 where below the threshold.
      inside: cells that are not in the padding.
      level: of each cell; ascending.
      image_size: (height, width), to which boxes are clipped, pixels.
    """
    scores = jnp.where(inside[:, None], scores, -jnp.inf)
    rows, candidates = [], []
    for which in range(int(level[-1]) + 1):
        start, stop = level.searchsorted([which, which + 1])
        of_level = scores[start:stop]
        if config.candidates_are_pairs:
            least = jax.lax.top_k(of_level.reshape(-1), min(config.candidates_per_level, of_level.size))[0][-1]
            of_level = jnp.where(of_level >= least, of_level, 0.0)
        index = jax.lax.top_k(of_level.max(-1), min(config.candidates_per_level, stop - start))[1]
        rows.append(start + index)
        candidates.append(of_level[index])
    rows = jnp.concatenate(rows)
    detections, _ = select_detections(
        box_ops.clip(boxes[rows], image_size),
        jnp.concatenate(candidates),
        inside[rows],
        score_threshold=0.0,
        iou_threshold=config.nms_threshold,
        max_candidates=config.max_candidates,
        max_detections=config.max_detections,
    )
    return detections
