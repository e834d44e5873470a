"""Every formula of a space up to a number of nodes, each behaviour once, and which of them converge.

Formulas are built bottom-up: those of ``n`` nodes are an operator over behaviours of ``n - 1`` nodes, or over pairs of
behaviours that have ``n - 1`` together.  A behaviour is the values of a formula at a few probe points; the first
formula that has it, by nodes and then in a fixed order, stands for it in all larger ones.

Probes are ends of verification paths, where formulas are singular or saturate, and generic points between paths.
Values are rounded before they are compared: to 34 bits (10 digits) at generic points, to 13 bits (4 digits) at the
ends, where areas that differ by 1e-7 cancel.  Two ways to compute one value that straddle a boundary of rounding stay
two behaviours, about one pair in 4,000 for unit roundoff; no other behaviour depends on it, and the gate's fingerprint
joins them if they converge.

A formula that is NaN at an end is dropped: no operator removes a NaN, so nothing made of it is finite there, and the
gate would reject it.  Infinite values are kept (``1 / inf``), and so is NaN at a generic point, which the gate does not
look at.
"""

import concurrent.futures
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt64

from cse_jax.atlas.stream import may_pass_finer_grid
from cse_jax.language import graph as graphs
from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.population import PAD, arities, decode
from cse_jax.language.spaces import Space, trajectories
from cse_jax.screening.coarse import coarse_grid, may_pass
from cse_jax.screening.sizes import ROUGH
from cse_jax.screening.verification import Property, fingerprint, judge

POINTS = {True: 20, False: 48}  # probes, by whether there is a class axis
CHUNK = 4096  # operands, or pairs of them, at once
SETTLE = 1 << 21  # candidates between two eliminations of duplicates
JUDGED = 1 << 16  # formulas sent to the gate at once
WORKERS = 2
_GENERIC_BITS, _END_BITS = 34, 13  # of the 52 of a mantissa
_SAME = 1e-9  # relative change of a value that is rounding
_KNOWN, _WIDE, _DEPENDS, _MAY_PASS = (np.uint8(1 << k) for k in range(4))


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


class _Probes(NamedTuple):
    """Values of ``space.leaves`` at ends of paths, outside of them, at generic points, and at their partners.

    Partners differ in what moves along a path, and in nothing else.
    """

    leaves: Float[np.ndarray, "l p *c"]
    steps: Int[np.ndarray, " s"]  # points of each path among the ends, as in ``coarse_grid``
    ends: int
    pairs: int


class _Level(NamedTuple):
    """Behaviours of one size, by token; operands are rows of all behaviours in order of size."""

    token: Int[np.ndarray, " n"]
    left: Int[np.ndarray, " n"]
    right: Int[np.ndarray, " n"]
    flags: UInt8[np.ndarray, " n"]


_NOTHING = _Level(*(np.zeros(0, dtype) for dtype in (np.int16, np.int32, np.int32, np.uint8)))


class _Block(NamedTuple):
    """Operands, or pairs of them, and the digests of what each variant of an operator makes of them [m, k]."""

    variants: tuple[tuple[int, bool], ...]
    left: Int[np.ndarray, " k"]
    right: Int[np.ndarray, " k"]
    first: UInt64[np.ndarray, "m k"]
    second: UInt64[np.ndarray, "m k"]
    flags: UInt8[np.ndarray, "m k"]


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
    ``max_nodes - 1``, 16 bytes for all; and some 0.5 GB that does not grow.

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
    levels: list[_Level] = []
    values: list[Float[np.ndarray, "n p *c"]] = []
    for nodes in range(1, max_nodes + 1):
        last = nodes == max_nodes
        total = _candidates(space, [len(level.token) for level in levels])
        kept, candidates, behaviours, dependent = [_NOTHING], 0, 0, 0
        for blocks in _in_batches(_blocks(space, units, levels, values)):
            candidates += sum(block.flags.size for block in blocks)
            found = _settle(blocks, seen, space)
            behaviours += len(found.token)
            dependent += int(np.count_nonzero(found.flags & _DEPENDS))
            kept.append(_take(found, found.flags & _MAY_PASS > 0) if last else found)
            if progress:
                progress(nodes, candidates, total)
        level = _Level(*map(np.concatenate, zip(*kept, strict=True)))
        level = _take(level, np.argsort(level.token, kind="stable"))
        levels.append(level)
        if nodes <= max_nodes - 2:
            chunks = [chunk[:count] for _, count, chunk in _recomputed(space, units, levels, values)]
            blank = np.zeros((0, *_probes(space, units).leaves.shape[1:]))
            values.append(np.concatenate([blank, *chunks]))
        judged, losses = _losses(levels, space, units, named)
        yield SizeReport(nodes, formulas[nodes - 1], candidates, behaviours, dependent, judged, losses)


def _take(level: _Level, chosen: np.ndarray) -> _Level:
    return _Level(*(array[chosen] for array in level))


@functools.cache
def _probes(space: Space, units: str) -> _Probes:
    grid = trajectories(space, units)
    ends = coarse_grid(space, units, *ROUGH)
    count, steps = grid.inputs.shape[1:3]
    rng = np.random.default_rng(0)
    moving = np.isin([v.name for v in space.variables], space.differentiable)
    border = ends.leaves[: len(space.variables), [0, len(ends.steps) - 1]]
    away = rng.uniform(0.02, 0.1, border.shape) * rng.choice((-1.0, 1.0), border.shape)
    away[~moving] = 0.0
    away *= np.abs(border[moving]).max(0)
    outside = np.concatenate([border + away, border - away], 1)
    fixed = [np.isin(array, (0.0, 1.0)).all() for array in grid.inputs]  # labels: nothing lies between 0 and 1
    kinds = [grid.inputs[fixed, path].tobytes() for path in range(count)]
    pairs = (POINTS[space.class_axis] - ends.leaves.shape[1] - outside.shape[1]) // 2
    points = np.zeros((2, pairs, *border.shape[:1], *border.shape[2:]))
    for k, path in enumerate(np.linspace(0, count - 1, pairs).round().astype(int)):
        other = next(o % count for o in range(path + 1, path + count + 1) if kinds[o % count] == kinds[path])
        weight = 10.0 ** rng.uniform(-3.0, -0.5)  # mostly small, which keeps the scale of a path
        for side in range(2):
            step, share = side * (steps // 2) + rng.integers(steps // 2), rng.uniform(size=2)
            one, two = (
                (1.0 - part) * grid.inputs[:, p, step] + part * grid.inputs[:, p, min(step + 1, steps - 1)]
                for p, part in zip((path, other), share, strict=True)
            )
            points[side, k] = (1.0 - weight) * one + weight * two
    points = np.moveaxis(points.reshape(-1, *points.shape[2:]), 0, 1)
    generic = graphs.leaf_values(space, np.concatenate([outside, points], 1))
    return _Probes(np.concatenate([ends.leaves, generic], 1), ends.steps, ends.leaves.shape[1], pairs)


def _variants(space: Space, arity: int) -> tuple[tuple[int, bool], ...]:
    """Operators by number, and whether the operands are exchanged; ``(-1, False)`` is the operand itself."""
    if arity == 0:
        return ((-1, False),)
    rows = [(k, row) for k, row in enumerate(space.table) if row.arity == arity and row.name in space.operators]
    orders = [(False,) if arity == 1 or row.commutative else (False, True) for _, row in rows]
    return tuple((k, swapped) for (k, _), each in zip(rows, orders, strict=True) for swapped in each)


def _candidates(space: Space, sizes: list[int]) -> int:
    if not sizes:
        return len(space.leaves)
    pairs = sum(
        a * b if i < j else a * (a + 1) // 2
        for i, j, a, b in zip(
            range(len(sizes)), range(len(sizes) - 2, -1, -1), sizes, reversed(sizes[:-1]), strict=False
        )
        if i <= j
    )
    return sizes[-1] * len(_variants(space, 1)) + pairs * len(_variants(space, 2))


def _blocks(space: Space, units: str, levels: list[_Level], values: list[np.ndarray]) -> Iterator[_Block]:
    """Digests of all candidates of the next size, in order; two blocks are in work at once."""
    starts = np.cumsum([0] + [len(level.token) for level in levels])

    def leaves() -> Iterator[tuple]:
        everyone = np.arange(len(space.leaves), dtype=np.int32)
        wide = (everyone < len(space.variables)) & space.class_axis
        yield 0, everyone, everyone, _pad(_probes(space, units).leaves), None, _pad(wide)

    def unary() -> Iterator[tuple]:
        for first, count, chunk in _operands(space, units, levels, values):
            rows = np.arange(first, first + count, dtype=np.int32)
            wide = levels[-1].flags[rows - starts[-2]] & _WIDE > 0
            yield 1, rows, rows, chunk, None, _pad(wide)

    def binary() -> Iterator[tuple]:
        for i in range((len(levels)) // 2):
            j = len(levels) - 2 - i
            for left, right in _pairs(len(levels[i].token), None if i == j else len(levels[j].token)):
                wide = (levels[i].flags[left] | levels[j].flags[right]) & _WIDE > 0
                rows = (left + starts[i]).astype(np.int32), (right + starts[j]).astype(np.int32)
                yield 2, *rows, _pad(values[i][left]), _pad(values[j][right]), _pad(wide)

    def digest(arity: int, left: np.ndarray, right: np.ndarray, a: np.ndarray, b, wide: np.ndarray) -> _Block:
        with float64():
            found = jax.device_get(_digests(space, units, arity, a, b, wide))
        return _Block(_variants(space, arity), left, right, *(array[:, : len(left)] for array in found))

    kinds = [kind for arity, kind in ((1, unary), (2, binary)) if _variants(space, arity)] if levels else [leaves]
    tasks = (task for kind in kinds for task in kind())
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        pending: deque[concurrent.futures.Future[_Block]] = deque()
        for task in tasks:
            pending.append(pool.submit(digest, *task))
            if len(pending) > WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _pad(array: np.ndarray) -> np.ndarray:
    """A full chunk; the first entry fills it up."""
    if len(array) == CHUNK:
        return array
    return np.concatenate([array, np.broadcast_to(array[:1], (CHUNK - len(array), *array.shape[1:]))])


def _pairs(rows: int, columns: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of a row and a column, or the unordered pairs of two rows if there are no columns, in chunks."""
    if columns is not None:
        for start in range(0, rows * columns, CHUNK):
            yield np.divmod(np.arange(start, min(start + CHUNK, rows * columns)), columns)
        return
    starts = np.concatenate([[0], np.cumsum(np.arange(rows, 0, -1))])  # of the pairs whose first is each row
    for start in range(0, int(starts[-1]), CHUNK):
        number = np.arange(start, min(start + CHUNK, int(starts[-1])))
        left = np.searchsorted(starts, number, side="right") - 1
        yield left, number - starts[left] + left


def _operands(
    space: Space, units: str, levels: list[_Level], values: list[np.ndarray]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """First row, number and values, filled up to a chunk, of the behaviours of the last size."""
    if len(values) < len(levels):
        yield from _recomputed(space, units, levels, values)
        return
    begin = sum(len(level.token) for level in levels[:-1])
    for start in range(0, len(values[-1]), CHUNK):
        part = values[-1][start : start + CHUNK]
        yield begin + start, len(part), _pad(part)


def _recomputed(
    space: Space, units: str, levels: list[_Level], values: list[np.ndarray]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The same as ``_operands``, computed again from the values of the operands, which are at hand."""
    level, leaves = levels[-1], len(space.leaves)
    starts = np.cumsum([0] + [len(other.token) for other in levels])
    wide_rows = np.concatenate([other.flags & _WIDE > 0 for other in levels])
    for token in np.unique(level.token):
        begin, end = np.searchsorted(level.token, [token, token + 1])
        for start in range(begin, end, CHUNK):
            part = slice(start, min(start + CHUNK, end))
            left, right = level.left[part], level.right[part]
            if token < leaves:
                chunk = _pad(_probes(space, units).leaves[left])
            else:
                opcode = int(token) - leaves
                rows_of_operands = (left, right)[: space.table[opcode].arity]
                operands = tuple(_pad(_gather(values, starts, rows)) for rows in rows_of_operands)
                wide = _pad(wide_rows[left] | wide_rows[right])
                with float64():
                    chunk = np.asarray(_apply(space, opcode, operands, wide))
            yield int(starts[-2]) + start, len(left), chunk


def _gather(values: list[np.ndarray], starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values of rows of any sizes."""
    which = np.searchsorted(starts, rows, side="right") - 1
    found = np.empty((len(rows), *values[0].shape[1:]))
    for k in np.unique(which):
        of_size = which == k
        found[of_size] = values[k][rows[of_size] - starts[k]]
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(
    space: Space, opcode: int, operands: tuple[Float[Array, "n p *c"], ...], wide: Bool[Array, " n"]
) -> Float[Array, "n p *c"]:
    """An operator on values, of which narrow ones are repeated along the class axis."""
    row = space.table[opcode]
    if not row.class_axis:
        return row.fn(*operands)
    along_classes = jnp.broadcast_to(row.fn(*operands), operands[0].shape)
    return jnp.where(wide[:, None, None], along_classes, row.narrow.fn(*operands))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _digests(
    space: Space, units: str, arity: int, left: jax.Array, right: jax.Array | None, wide: jax.Array
) -> tuple[UInt64[Array, "m n"], UInt64[Array, "m n"], UInt8[Array, "m n"]]:
    """Hashes and flags of what each variant makes of the operands."""
    found = []
    for opcode, swapped in _variants(space, arity):
        operands = (left,) if right is None else (right, left) if swapped else (left, right)
        values = left if opcode < 0 else _apply(space, opcode, operands, wide)
        reduces = opcode >= 0 and space.table[opcode].reduces
        found.append(_digest(space, units, values, jnp.zeros_like(wide) if reduces else wide))
    return jax.tree.map(lambda *each: jnp.stack(each), *found)


def _digest(
    space: Space, units: str, values: jax.Array, wide: jax.Array
) -> tuple[UInt64[Array, " n"], UInt64[Array, " n"], UInt8[Array, " n"]]:
    """A hash of 128 bits of the rounded values, and what is known of the formula."""
    probes = _probes(space, units)
    bits = jnp.concatenate(
        [_rounded(values[:, : probes.ends], _END_BITS), _rounded(values[:, probes.ends :], _GENERIC_BITS)], 1
    ).reshape(len(values), -1)
    keys = np.random.default_rng(0).integers(2**63, size=(3, bits.shape[1]), dtype=np.uint64) | np.uint64(1)
    mixed = bits + keys[0]
    mixed = (mixed ^ (mixed >> 31)) * keys[1]
    mixed = mixed ^ (mixed >> 29)
    again = (mixed ^ (mixed >> 32)) * keys[2]
    again = again ^ (again >> 30)
    first = mixed.sum(1) ^ wide.astype(jnp.uint64)
    one, two = values[:, -2 * probes.pairs : -probes.pairs], values[:, -probes.pairs :]
    moves = (one != two) & (jnp.abs(one - two) > _SAME * jnp.maximum(jnp.abs(one), jnp.abs(two)))
    moves |= jnp.isinf(one) ^ jnp.isinf(two)
    axes = tuple(range(1, values.ndim))
    known = ~jnp.isnan(values[:, : probes.ends]).any(axes)
    depends = moves.any(axes)
    may = depends & may_pass(space, probes.steps, values[:, : probes.ends], wide)
    flags = [(known, _KNOWN), (wide, _WIDE), (depends, _DEPENDS), (may, _MAY_PASS)]
    set_flags = [jnp.where(flag, bit, np.uint8(0)) for flag, bit in flags]
    return first, again.sum(1), functools.reduce(jnp.bitwise_or, set_flags)


def _rounded(values: jax.Array, kept: int) -> UInt64[Array, "..."]:
    """Values as bits, rounded to so many of the mantissa; 0 and NaN have one form each."""
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0.0, 0.0, values), jnp.uint64)
    bits = (bits + np.uint64(1 << (51 - kept))) >> np.uint64(52 - kept)
    return jnp.where(jnp.isnan(values), ~np.uint64(0), bits)


def _in_batches(blocks: Iterator[_Block]) -> Iterator[list[_Block]]:
    batch, size = [], 0
    for block in blocks:
        batch.append(block)
        size += block.flags.size
        if size >= SETTLE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


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


def _settle(blocks: list[_Block], seen: _Seen, space: Space) -> _Level:
    """The new behaviours among candidates, in order."""
    parts = []
    for block in blocks:
        variant, place = np.nonzero(block.flags & _KNOWN)
        opcode, swapped = (np.array(each) for each in zip(*block.variants, strict=True))
        left, right = block.left[place], block.right[place]
        left, right = np.where(swapped[variant], right, left), np.where(swapped[variant], left, right)
        token = np.where(opcode[variant] < 0, left, len(space.leaves) + opcode[variant]).astype(np.int16)
        chosen = variant, place
        parts.append((block.first[chosen], block.second[chosen], token, left, right, block.flags[chosen]))
    first, second, *about = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    new = seen.add(first, second)
    return _Level(*(array[new] for array in about))


def _losses(levels: list[_Level], space: Space, units: str, named: set[str]) -> tuple[int, tuple[Loss, ...]]:
    """How many formulas of the last size went to the gate, and those that pass with a fingerprint not in ``named``."""
    rows = np.flatnonzero(levels[-1].flags & _MAY_PASS)
    found: tuple[list[Loss], list[Loss]] = [], []  # plain, flipped
    count = 0
    for start in range(0, len(rows), JUDGED):
        tokens = _tokens(levels, rows[start : start + JUDGED], space)
        tokens = tokens[may_pass_finer_grid(tokens, space, units)]
        count += len(tokens)
        judged = judge(tokens, space, units=units)
        passed = np.flatnonzero(judged.passed(sign_flip="Neg" in space.readable))
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


def _tokens(levels: list[_Level], chosen: Int[np.ndarray, " n"], space: Space) -> Int[np.ndarray, "n m"]:
    """Formulas of the last size, as prefix tokens by number; all at once, one height after another."""
    starts = np.cumsum([0] + [len(level.token) for level in levels])
    arity = arities(space)
    tokens = np.full((len(chosen), len(levels)), PAD, np.int16)
    which, at, row = np.arange(len(chosen)), np.zeros(len(chosen), int), chosen + starts[-2]
    while len(row):
        size = np.searchsorted(starts, row, side="right")  # of the formula of each row, in nodes
        token, left, right = (np.empty(len(row), np.int64) for _ in range(3))
        for k in np.unique(size):
            of_size = size == k
            place = row[of_size] - starts[k - 1]
            for array, name in ((token, "token"), (left, "left"), (right, "right")):
                array[of_size] = getattr(levels[k - 1], name)[place]
        tokens[which, at] = token
        first, second = arity[token] > 0, arity[token] == 2
        at_second = at + 1 + np.searchsorted(starts, left, side="right")
        which = np.concatenate([which[first], which[second]])
        at = np.concatenate([at[first] + 1, at_second[second]])
        row = np.concatenate([left[first], right[second]])
    return tokens
