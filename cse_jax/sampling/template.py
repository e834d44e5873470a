"""A fixed part of formulas around a searched one, as in ``-dot(y * ?, log(softmax(x)))``."""

import dataclasses

import numpy as np
from jaxtyping import Int

from cse_jax.errors import InputError
from cse_jax.language.expression import Expression
from cse_jax.language.parsing import parse
from cse_jax.language.population import PAD, vocabulary
from cse_jax.language.spaces import Space

HOLE = "?"


@dataclasses.dataclass(frozen=True)
class Template:
    """The tokens before and after the searched part, in prefix order."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    space: Space

    @classmethod
    def read(cls, text: str, space: Space) -> "Template":
        """Reads a formula in which ``?`` stands for the searched part.

        Raises:
          InputError: it has no such part, or more than one.
          FormulaError: it is no formula of the space.
        """
        if text.count(HOLE) != 1 or text.strip() == HOLE:
            raise InputError(f"the template {text!r} must have one {HOLE}, and something around it")
        one, other = (parse(text.replace(HOLE, f"({leaf})"), space).tokens for leaf in space.leaves[:2])
        hole = next(k for k, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        return cls(one[:hole], one[hole + 1 :], space)

    def __len__(self) -> int:
        """Number of fixed nodes."""
        return len(self.before) + len(self.after)

    def part_of(self, formula: Expression) -> Expression | None:
        """What a formula has in place of the searched part; None if it is not of this form."""
        head, tail = len(self.before), len(formula) - len(self.after)
        if formula.tokens[:head] != self.before or formula.tokens[tail:] != self.after:
            return None
        try:
            return Expression(formula.tokens[head:tail], self.space)
        except ValueError:  # it takes more of the formula than one part
            return None

    def filled(self, parts: Int[np.ndarray, "n m"]) -> Int[np.ndarray, "n k"]:
        """Whole formulas with these parts, as tokens by number."""
        number = {token: k for k, token in enumerate(vocabulary(self.space))}
        before, after = ([number[token] for token in tokens] for tokens in (self.before, self.after))
        whole = np.full((len(parts), len(self) + parts.shape[1]), PAD, parts.dtype)
        whole[:, : len(before)] = before
        whole[:, len(before) : len(before) + parts.shape[1]] = parts
        ends = len(before) + (parts != PAD).sum(1)
        whole[np.arange(len(parts))[:, None], ends[:, None] + np.arange(len(after))] = after
        return whole
