"""What a search must know of the detector whose losses it looks for."""

import dataclasses
import functools
from typing import Literal

from cse_jax.language import zoo
from cse_jax.language.expression import Expression, to_authors
from cse_jax.language.spaces import BOX, Space

Part = Literal["cls", "box"]
PARTS: tuple[Part, Part] = ("cls", "box")


@dataclasses.dataclass(frozen=True)
class LossPair:
    """The losses of a detector's head, with their weights."""

    cls: Expression
    box: Expression
    cls_weight: float = 1.0
    box_weight: float = 1.0

    @property
    def key(self) -> list[str | float]:
        """What tells pairs apart, in plain data: the formulas in the authors' notation, each with its weight."""
        return [to_authors(self.cls), self.cls_weight, to_authors(self.box), self.box_weight]


@dataclasses.dataclass(frozen=True)
class Task:
    """A detector, as far as its losses are concerned.

    Attributes:
      cls_space: the space of its classification losses.
      box_units: unit of length of the boxes that its box loss gets, ``"pixels"`` or ``"strides"``.
      box_weight: its usual weight of the box loss.
    """

    cls_space: Space
    box_units: str = "pixels"
    box_weight: float = 1.0

    @functools.cached_property
    def default(self) -> LossPair:
        """The losses that such detectors usually train with."""
        return LossPair(zoo.default(self.cls_space), zoo.default(BOX), box_weight=self.box_weight)

    def as_data(self) -> dict[str, str | float]:
        """The task in plain data, for JSON."""
        return {"cls_space": self.cls_space.name, "box_units": self.box_units, "box_weight": self.box_weight}

    def space(self, part: Part) -> Space:
        """The space of one of the two losses."""
        return self.cls_space if part == "cls" else BOX

    def replaced(self, part: Part, formula: Expression, factor: float, pair: LossPair | None = None) -> LossPair:
        """A pair of losses, the default one unless given, with one loss replaced and its usual weight multiplied."""
        pair = pair or self.default
        weight = factor * getattr(self.default, f"{part}_weight")
        return dataclasses.replace(pair, **{part: formula, f"{part}_weight": weight})
