"""What a peer makes of formulas, and the properties of the gate in NumPy, by which peers judge."""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float

from cse_jax.language.spaces import Trajectories
from cse_jax.screening import verification


@dataclasses.dataclass(frozen=True)
class PeerResult:
    """What a peer made of ``n`` formulas.

    Attributes:
      passed: which pass, as they are or with their sign flipped; ``None`` if nothing was judged.
      judged: which formulas the peer can express at all; the times are for these.
      seconds: time to evaluate and judge them, without compilation.
      seconds_compile: time to compile them.
      recompiles: whether compilation is paid for every formula; else it is paid once.
      note: conditions of the measurement, or why there is none.
    """

    passed: Bool[np.ndarray, " n"] | None
    judged: Bool[np.ndarray, " n"] | None
    seconds: float
    seconds_compile: float
    recompiles: bool
    note: str

    @property
    def rate(self) -> float | None:
        """Formulas a second in the long run: with the compilation if it recurs, without if it is paid once."""
        if self.judged is None:
            return None
        return float(self.judged.sum() / (self.seconds + self.recompiles * self.seconds_compile))


def absent(note: str) -> PeerResult:
    """The result of a peer that can't be measured, and why."""
    return PeerResult(None, None, math.nan, math.nan, False, note)


def even(count: int, batch: int) -> int:
    """A size of equal batches, at most ``batch``, so that little is padded."""
    return -(-count // -(-count // batch))


def passes(
    values: Float[np.ndarray, "*n t p"],
    along: Float[np.ndarray, "*n t p"],
    general: Float[np.ndarray, "*n t p"],
    paths: Trajectories,
) -> Bool[np.ndarray, "*n"]:
    """Which losses pass, as they are or with their sign flipped: the properties of the gate, in NumPy.

    ``along`` is the gradient along the path, ``general`` that in a general direction.
    """
    with np.errstate(all="ignore"):
        steepest = np.abs(along).max(-1)
        magnitude = np.abs(values).max(-1)
        noise = verification.ROUNDING * magnitude
        finite = magnitude < verification.LARGEST
        finite &= (np.abs(along) + np.abs(general)).max(-1) < verification.LARGEST
        vanished = np.abs(along[..., 0]) <= verification.VANISHED * steepest
        valid = finite.all(-1) & (steepest.max(-1) > 0.0) & (vanished | ~paths.vanishing).all(-1)
        steps = np.diff(values)
        dip = verification.GRADIENT_TOLERANCE * steepest + noise
        drop = verification.GRADIENT_TOLERANCE * np.ptp(values, axis=-1) + noise
        passed = np.zeros(values.shape[:-2], bool)
        for sign in (1.0, -1.0):
            monotone = ((sign * along).min(-1) >= -dip) & ((sign * steps).min(-1) >= -drop)
            rises = sign * (values[..., -1] - values[..., 0]) > verification.MIN_RISE * magnitude
            passed |= (monotone & rises | ~paths.gated).all(-1)
        return passed & valid
