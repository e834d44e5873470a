"""Behaviours of one size as arrays, and the candidates of the next size that are made of them."""

import concurrent.futures
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8, UInt64

from cse_jax.atlas.probes import WIDE, apply, digests, probes_of, variants
from cse_jax.language.float64 import float64
from cse_jax.language.population import PAD, arities
from cse_jax.language.spaces import Space
from cse_jax.screening.sizes import sizes

SETTLE = 1 << 21  # candidates between two eliminations of duplicates, which the host does


class Level(NamedTuple):
    """Behaviours of one size, by token; operands are rows of all behaviours in order of size."""

    token: Int[np.ndarray, " n"]
    left: Int[np.ndarray, " n"]
    right: Int[np.ndarray, " n"]
    flags: UInt8[np.ndarray, " n"]


NOTHING = Level(*(np.zeros(0, dtype) for dtype in (np.int16, np.int32, np.int32, np.uint8)))


def take(level: Level, chosen: np.ndarray) -> Level:
    """The chosen behaviours."""
    return Level(*(array[chosen] for array in level))


class Block(NamedTuple):
    """Operands, or pairs of them, and the digests of what each variant of an operator makes of them [m, k]."""

    variants: tuple[tuple[int, bool], ...]
    left: Int[np.ndarray, " k"]
    right: Int[np.ndarray, " k"]
    first: UInt64[np.ndarray, "m k"]
    second: UInt64[np.ndarray, "m k"]
    flags: UInt8[np.ndarray, "m k"]


def count_candidates(space: Space, counts: list[int]) -> int:
    """Candidates of the next size, by how many behaviours each size has."""
    if not counts:
        return len(space.leaves)
    pairs = sum(
        a * b if i < j else a * (a + 1) // 2
        for i, j, a, b in zip(
            range(len(counts)), range(len(counts) - 2, -1, -1), counts, reversed(counts[:-1]), strict=False
        )
        if i <= j
    )
    return counts[-1] * len(variants(space, 1)) + pairs * len(variants(space, 2))


def blocks_of(space: Space, units: str, levels: list[Level], values: list[np.ndarray]) -> Iterator[Block]:
    """Digests of all candidates of the next size, in order; as many blocks as there are workers are in work at once."""
    workers = sizes().workers
    starts = np.cumsum([0] + [len(level.token) for level in levels])

    def leaves() -> Iterator[tuple]:
        everyone = np.arange(len(space.leaves), dtype=np.int32)
        wide = (everyone < len(space.variables)) & space.class_axis
        yield 0, everyone, everyone, pad(probes_of(space, units).leaves), None, pad(wide)

    def unary() -> Iterator[tuple]:
        for first, count, chunk in _operands(space, units, levels, values):
            rows = np.arange(first, first + count, dtype=np.int32)
            wide = levels[-1].flags[rows - starts[-2]] & WIDE > 0
            yield 1, rows, rows, chunk, None, pad(wide)

    def binary() -> Iterator[tuple]:
        for i in range((len(levels)) // 2):
            j = len(levels) - 2 - i
            for left, right in _pairs(len(levels[i].token), None if i == j else len(levels[j].token)):
                wide = (levels[i].flags[left] | levels[j].flags[right]) & WIDE > 0
                rows = (left + starts[i]).astype(np.int32), (right + starts[j]).astype(np.int32)
                yield 2, *rows, pad(values[i][left]), pad(values[j][right]), pad(wide)

    def digest(arity: int, left: np.ndarray, right: np.ndarray, a: np.ndarray, b, wide: np.ndarray) -> Block:
        with float64():
            found = jax.device_get(digests(space, units, arity, a, b, wide))
        return Block(variants(space, arity), left, right, *(array[:, : len(left)] for array in found))

    kinds = [kind for arity, kind in ((1, unary), (2, binary)) if variants(space, arity)] if levels else [leaves]
    tasks = (task for kind in kinds for task in kind())
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: deque[concurrent.futures.Future[Block]] = deque()
        for task in tasks:
            pending.append(pool.submit(digest, *task))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def in_batches(blocks: Iterator[Block]) -> Iterator[list[Block]]:
    """Blocks of ``SETTLE`` candidates together."""
    batch, size = [], 0
    for block in blocks:
        batch.append(block)
        size += block.flags.size
        if size >= SETTLE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def pad(array: np.ndarray) -> np.ndarray:
    """A full chunk; the first entry fills it up."""
    missing = sizes().operands - len(array)
    return np.concatenate([array, np.broadcast_to(array[:1], (missing, *array.shape[1:]))]) if missing else array


def _pairs(rows: int, columns: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of a row and a column, or the unordered pairs of two rows if there are no columns, in chunks."""
    chunk = sizes().operands
    if columns is not None:
        for start in range(0, rows * columns, chunk):
            yield np.divmod(np.arange(start, min(start + chunk, rows * columns)), columns)
        return
    starts = np.concatenate([[0], np.cumsum(np.arange(rows, 0, -1))])  # of the pairs whose first is each row
    for start in range(0, int(starts[-1]), chunk):
        number = np.arange(start, min(start + chunk, int(starts[-1])))
        left = np.searchsorted(starts, number, side="right") - 1
        yield left, number - starts[left] + left


def _operands(
    space: Space, units: str, levels: list[Level], values: list[np.ndarray]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """First row, number and values, filled up to a chunk, of the behaviours of the last size."""
    if len(values) < len(levels):
        yield from recomputed(space, units, levels, values)
        return
    begin, most = sum(len(level.token) for level in levels[:-1]), sizes().operands
    for start in range(0, len(values[-1]), most):
        part = values[-1][start : start + most]
        yield begin + start, len(part), pad(part)


def recomputed(
    space: Space, units: str, levels: list[Level], values: list[np.ndarray]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The same as ``_operands``, computed again from the values of the operands, which are at hand."""
    level, leaves, most = levels[-1], len(space.leaves), sizes().operands
    starts = np.cumsum([0] + [len(other.token) for other in levels])
    wide_rows = np.concatenate([other.flags & WIDE > 0 for other in levels])
    for token in np.unique(level.token):
        begin, end = np.searchsorted(level.token, [token, token + 1])
        for start in range(begin, end, most):
            part = slice(start, min(start + most, end))
            left, right = level.left[part], level.right[part]
            if token < leaves:
                chunk = pad(probes_of(space, units).leaves[left])
            else:
                opcode = int(token) - leaves
                rows_of_operands = (left, right)[: space.table[opcode].arity]
                operands = tuple(pad(_gather(values, starts, rows)) for rows in rows_of_operands)
                wide = pad(wide_rows[left] | wide_rows[right])
                with float64():
                    chunk = np.asarray(apply(space, opcode, operands, wide))
            yield int(starts[-2]) + start, len(left), chunk


def _gather(values: list[np.ndarray], starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values of rows of any sizes."""
    which = np.searchsorted(starts, rows, side="right") - 1
    found = np.empty((len(rows), *values[0].shape[1:]))
    for k in np.unique(which):
        of_size = which == k
        found[of_size] = values[k][rows[of_size] - starts[k]]
    return found


def tokens_of(levels: list[Level], chosen: Int[np.ndarray, " n"], space: Space) -> Int[np.ndarray, "n m"]:
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
