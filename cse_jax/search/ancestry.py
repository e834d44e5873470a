"""The formulas of a generation, and where each comes from."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from cse_jax.language.expression import Expression
from cse_jax.language.population import PAD, encode
from cse_jax.language.spaces import Space
from cse_jax.sampling.variation import VARIATIONS

ORIGINS = (*VARIATIONS, "proposed", "screened")


class Population(NamedTuple):
    """Formulas with their origins.

    Attributes:
      tokens: of the formulas.
      origins: of each its kind of ``ORIGINS`` and the numbers of its mother and father, ``PAD`` for none.
      parents: in the authors' notation.
    """

    tokens: Int[np.ndarray, "n m"]
    origins: Int[np.ndarray, "n 3"]
    parents: Sequence[str] = ()

    def origin(self, row: int) -> list[str]:
        """How a formula came about, and its parents in the authors' notation."""
        kind, *parents = self.origins[row].tolist()
        return [ORIGINS[kind], *(self.parents[int(k)] for k in parents if k != PAD)]

    def behind(self, first: "Population") -> "Population":
        """These formulas after others that have no parents."""
        width = max(first.tokens.shape[1], self.tokens.shape[1])
        both = [
            np.pad(part.tokens, ((0, 0), (0, width - part.tokens.shape[1])), constant_values=PAD)
            for part in (first, self)
        ]
        return Population(np.concatenate(both), np.concatenate([first.origins, self.origins]), self.parents)


def without_parents(tokens: Int[np.ndarray, "n m"], kind: Literal["random", "proposed", "screened"]) -> Population:
    """Formulas that come from outside the search, or from nowhere."""
    return Population(tokens, np.tile(np.array([ORIGINS.index(kind), PAD, PAD], np.int16), (len(tokens), 1)))


def written(formulas: Sequence[Expression], space: Space, kind: Literal["proposed", "screened"]) -> Population:
    """Formulas that someone has written."""
    return without_parents(encode(formulas, space), kind)
