"""Every formula of a space up to a number of nodes, each behaviour once, and which of them converge.

Formulas are built bottom-up: those of ``n`` nodes are an operator over behaviours of ``n - 1`` nodes, or over pairs of
behaviours that have ``n - 1`` together.  A behaviour is the values of a formula at a few points (``atlas.probes``); the
first formula that has it, by nodes and then in a fixed order, stands for it in all larger ones.

A formula that is NaN at an end of a path is dropped: no operator removes a NaN, so nothing made of it is finite there,
and the gate would reject it.  Infinite values are kept (``1 / inf``), and so is NaN at a generic point, which the gate
does not look at.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int, UInt64

from cse_jax.atlas.levels import (
    NOTHING,
    Block,
    Level,
    blocks_of,
    count_candidates,
    in_batches,
    recomputed,
    take,
    tokens_of,
)
from cse_jax.atlas.probes import DEPENDS, KNOWN, MAY_PASS, probes_of
from cse_jax.atlas.stream import may_pass_finer_grid
from cse_jax.language.expression import Expression
from cse_jax.language.population import decode
from cse_jax.language.spaces import Space
from cse_jax.screening.verification import Property, fingerprint, judge

JUDGED = 1 << 16  # formulas sent to the gate at once


@dataclasses.dataclass(frozen=True)
class Loss:
    """A convergent behaviour.

    Attributes:
      expression: its shortest formula.
      nodes: nodes of that formula.
      fingerprint: the gate's.
      flipped: whether what was enumerated is its negation, one node shorter.
    """

    expression: Expression
    nodes: int
    fingerprint: str
    flipped: bool


@dataclasses.dataclass(frozen=True)
class SizeReport:
    """All formulas of one size.

    Attributes:
      nodes: their size.
      formulas: how many there are, operands in either order.
      candidates: of them, those over behaviours met before, commutative operands in one order.
      behaviours: values met first at this size.
      dependent: of them, those that change with the prediction.
      judged: of them, those that a few values did not rule out, which went to the gate.
      losses: those that pass, or whose negations do, one for each fingerprint that no smaller size has.
    """

    nodes: int
    formulas: int
    candidates: int
    behaviours: int
    dependent: int
    judged: int
    losses: tuple[Loss, ...]


def count_formulas(space: Space, max_nodes: int) -> list[int]:
    """How many formulas of random operators (``space.operators``) have 1, 2, ... ``max_nodes`` nodes."""
    arities = [row.arity for row in space.table if row.name in space.operators]
    unary, binary = arities.count(1), arities.count(2)
    counts = [len(space.leaves)]
    while len(counts) < max_nodes:
        pairs = sum(a * b for a, b in zip(counts[:-1], reversed(counts[:-1]), strict=True))
        counts.append(unary * counts[-1] + binary * pairs)
    return counts[:max_nodes]


def enumerate_losses(
    space: Space,
    max_nodes: int,
    *,
    units: str = "pixels",
    progress: Callable[[int, int, int], None] | None = None,
) -> Iterator[SizeReport]:
    """All behaviours of a space by size, and the losses among them.

    Memory: of the behaviours, 8 bytes for each value at a probe up to ``max_nodes - 2``, 11 bytes up to
    ``max_nodes - 1``, 16 bytes for all; and on a CPU some 0.5 GB that does not grow.

    Args:
      space: the space; its ``operators`` are used.
      max_nodes: size of the largest formulas.
      units: unit of length, one of ``space.units``.
      progress: called with the size, the number of candidates done, and that of all candidates of the size.

    Yields:
      A report for each size.  A loss whose negation was enumerated has one node more than its report says.
    """
    formulas = count_formulas(space, max_nodes)
    seen, named = _Seen(), set()
    levels: list[Level] = []
    values: list[Float[np.ndarray, "n p *c"]] = []
    for nodes in range(1, max_nodes + 1):
        last = nodes == max_nodes
        total = count_candidates(space, [len(level.token) for level in levels])
        kept, candidates, behaviours, dependent = [NOTHING], 0, 0, 0
        for blocks in in_batches(blocks_of(space, units, levels, values)):
            candidates += sum(block.flags.size for block in blocks)
            found = _settle(blocks, seen, space)
            behaviours += len(found.token)
            dependent += int(np.count_nonzero(found.flags & DEPENDS))
            kept.append(take(found, found.flags & MAY_PASS > 0) if last else found)
            if progress:
                progress(nodes, candidates, total)
        level = Level(*map(np.concatenate, zip(*kept, strict=True)))
        level = take(level, np.argsort(level.token, kind="stable"))
        levels.append(level)
        if nodes <= max_nodes - 2:
            chunks = [chunk[:count] for _, count, chunk in recomputed(space, units, levels, values)]
            blank = np.zeros((0, *probes_of(space, units).leaves.shape[1:]))
            values.append(np.concatenate([blank, *chunks]))
        judged, losses = _losses(levels, space, units, named)
        yield SizeReport(nodes, formulas[nodes - 1], candidates, behaviours, dependent, judged, losses)


class _Seen:
    """Hashes of all behaviours, sorted by their first half."""

    def __init__(self) -> None:
        self.first, self.second = np.zeros(0, np.uint64), np.zeros(0, np.uint64)

    def add(self, first: UInt64[np.ndarray, " n"], second: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """Where each behaviour that had not been seen occurs first, in order.

        Different behaviours are never taken for one: that needs all 128 bits to agree.
        """
        if not len(first):
            return np.zeros(0, int)
        order = np.argsort(first)
        one, two = first[order], second[order]
        starts = np.flatnonzero(np.append(True, (one[1:] != one[:-1]) | (two[1:] != two[:-1])))
        earliest, one, two = np.minimum.reduceat(order, starts), one[starts], two[starts]
        place = np.searchsorted(self.first, one)
        known = np.zeros(len(one), bool)
        inside = place < len(self.first)
        known[inside] = (self.first[place[inside]] == one[inside]) & (self.second[place[inside]] == two[inside])
        one, two = np.concatenate([self.first, one[~known]]), np.concatenate([self.second, two[~known]])
        merged = np.argsort(one, kind="stable")  # two sorted runs
        self.first, self.second = one[merged], two[merged]
        return np.sort(earliest[~known])


def _settle(blocks: list[Block], seen: _Seen, space: Space) -> Level:
    """The new behaviours among candidates, in order."""
    parts = []
    for block in blocks:
        variant, place = np.nonzero(block.flags & KNOWN)
        opcode, swapped = (np.array(each) for each in zip(*block.variants, strict=True))
        left, right = block.left[place], block.right[place]
        left, right = np.where(swapped[variant], right, left), np.where(swapped[variant], left, right)
        token = np.where(opcode[variant] < 0, left, len(space.leaves) + opcode[variant]).astype(np.int16)
        chosen = variant, place
        parts.append((block.first[chosen], block.second[chosen], token, left, right, block.flags[chosen]))
    first, second, *about = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    new = seen.add(first, second)
    return Level(*(array[new] for array in about))


def _losses(levels: list[Level], space: Space, units: str, named: set[str]) -> tuple[int, tuple[Loss, ...]]:
    """How many formulas of the last size went to the gate, and those that pass with a fingerprint not in ``named``."""
    rows = np.flatnonzero(levels[-1].flags & MAY_PASS)
    found: tuple[list[Loss], list[Loss]] = [], []  # plain, flipped
    count = 0
    for start in range(0, len(rows), JUDGED):
        tokens = tokens_of(levels, rows[start : start + JUDGED], space)
        tokens = tokens[may_pass_finer_grid(tokens, space, units)]
        count += len(tokens)
        judged = judge(tokens, space, units=units)
        passed = np.flatnonzero(judged.passed(sign_flip=space.can_negate))
        for k, expression in zip(passed.tolist(), decode(tokens[passed], space), strict=True):
            flipped = bool(judged.failed[k, 0] != Property.NONE)
            if flipped:
                expression = Expression(("Neg", *expression.tokens), space)
            name = fingerprint(judged, k, flipped=flipped)
            found[flipped].append(Loss(expression, len(expression), name, flipped))
    losses = []
    for loss in found[0] + found[1]:
        if loss.fingerprint not in named:
            named.add(loss.fingerprint)
            losses.append(loss)
    return count, tuple(losses)
