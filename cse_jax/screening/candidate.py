"""A formula on its way through a search, and how far it came."""

import dataclasses
import math
from typing import Literal

from cse_jax.language.expression import Expression

# What a candidate passes, in this order.  From the simulation on, a stage gives a score, and its name is also that of
# the score, of the purpose of its trainings, of its threshold in the config and of its column in the ledger.
STAGES = ("generated", "valid", "verification", "distinct", "simulation", "probe", "overfit", "proxy")
Filter = Literal["verification", "simulation", "probe", "overfit"]  # the stages that a search may do without


@dataclasses.dataclass(eq=False)
class Candidate:
    """A formula that passed the verification, or that was not verified.

    Attributes:
      formula: what is trained: in canonical form, with the sign flipped if only the negation converges.
      stage: the last of ``STAGES`` that it passed.
      reason: why it went no further; empty while it is in the race.
      flipped: whether its sign was flipped.
      fingerprint: as the verification gives it.
      row: of its population, the first that is this formula up to trivial rewrites.
      copies: how many of its generation are.
      duplicates: how many others of its generation had the same fingerprint, its further copies among them; 0 for one
        that is left out for a shorter one.
      weight: factor that matches its gradient to the default loss's.
      simulation: gain in prediction-space simulation, as a share of the default loss's; NaN where that was not judged.
      probe: AP with output layers trained on fixed features; NaN where it was not trained, likewise below.
      overfit: AP of a detector trained and scored on one image per category.
      proxy: AP on the proxy task, the mean over its seeds.
      curve: (steps, AP) at each horizon of the proxy task.
      aps: by seed, at the end of it.
      seconds: time spent on it.
    """

    formula: Expression
    stage: str = "verification"
    reason: str = ""
    flipped: bool = False
    fingerprint: str = ""
    row: int = -1
    copies: int = 1
    duplicates: int = 0
    weight: float = 1.0
    simulation: float = math.nan
    probe: float = math.nan
    overfit: float = math.nan
    proxy: float = math.nan
    curve: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    aps: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def promise(self) -> float:
        """What all stages so far say together: the product of their scores (docs/benchmarks.md)."""
        return math.prod(filter(math.isfinite, (self.simulation, self.probe, self.overfit, self.proxy)))

    def passed(self, stage: str) -> bool:
        """Whether it came at least so far."""
        return STAGES.index(self.stage) >= STAGES.index(stage)
