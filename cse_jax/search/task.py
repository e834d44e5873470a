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
class LibraryLoss:
    """A loss that is a function and no formula, such as CIoU: to compare with, not to search for.

    Attributes:
      text: what the detectors call it, ``"ciou_loss"``, with its hyper-parameters if they are not the usual ones.
      space: that it belongs to.
      usual_weight: of a loss on other inputs than those of a space, such as L1 on offsets; None for the detector's.
    """

    text: str
    space: Space
    usual_weight: float | None = None

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class LossPair:
    """The losses of a detector's head, with their weights."""

    cls: Expression | LibraryLoss
    box: Expression | LibraryLoss
    cls_weight: float = 1.0
    box_weight: float = 1.0

    @property
    def is_data(self) -> bool:
        """Whether both losses are formulas, which a compiled function takes as inputs."""
        return isinstance(self.cls, Expression) and isinstance(self.box, Expression)

    @property
    def key(self) -> list[str | float]:
        """What tells pairs apart, in plain data: each loss in the authors' notation or as a text, with its weight."""
        cls, box = (to_authors(loss) if isinstance(loss, Expression) else loss.text for loss in (self.cls, self.box))
        return [cls, self.cls_weight, box, self.box_weight]


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

    def replaced(
        self, part: Part, loss: Expression | LibraryLoss, factor: float, pair: LossPair | None = None
    ) -> LossPair:
        """A pair of losses, the default one unless given, with one loss replaced and its usual weight multiplied."""
        pair = pair or self.default
        usual = loss.usual_weight if isinstance(loss, LibraryLoss) else None
        weight = factor * (getattr(self.default, f"{part}_weight") if usual is None else usual)
        return dataclasses.replace(pair, **{part: loss, f"{part}_weight": weight})
