"""Screens random formulas by the hundred million, batch after batch.

A batch is a function of the seed, its number and its size.  Each device grows a batch and judges it on a coarse grid.
The few formulas that may pass come back as tokens and are judged on a finer grid, and those that are left on the full
one.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, UInt64

from cse_jax.errors import InputError
from cse_jax.language import graph as graphs
from cse_jax.language import population
from cse_jax.language.float64 import float64, float64_devices
from cse_jax.language.graph import Graph
from cse_jax.language.spaces import Space
from cse_jax.sampling.random_graphs import Grown, grow, tokens_of
from cse_jax.screening.coarse import CoarseGrid, coarse_grid, may_pass
from cse_jax.screening.sizes import sizes
from cse_jax.screening.verification import Judged, judge


@dataclasses.dataclass(frozen=True)
class Batch:
    """The outcome of one batch.

    Attributes:
      number: of the batch.
      candidates: formulas it had.
      tokens: the formulas that pass the gate, or whose negation does, as prefix tokens by number; each once, and none
        that had been seen.
      hashes: of these formulas, with their sizes.
      judged: their verdicts.
    """

    number: int
    candidates: int
    tokens: Int[np.ndarray, "n m"]
    hashes: UInt64[np.ndarray, " n"]
    judged: Judged


def screen_batches(
    space: Space,
    numbers: Iterable[int],
    *,
    seen: Container[int] = (),
    seed: int = 0,
    units: str = "pixels",
    per_operator: int = 4,
    width: int = 256,
    max_nodes: int = 40,
) -> Iterator[Batch]:
    """Screens batches, in order.

    Args:
      space: the search space.
      numbers: of the batches.
      seen: hashes of formulas that need not be judged again; it may grow while batches are screened.
      seed: of all batches.
      units: unit of length, one of ``space.units``.
      per_operator: tiles of each operator at each height.
      width: rows of a tile; with ``per_operator`` the size of a batch.
      max_nodes: nodes that no formula may exceed.

    Raises:
      InputError: a batch has no formula with so few nodes.
    """

    workers = sizes().workers

    def one(group: list[int]) -> list[Batch]:
        with float64():
            found = jax.device_get(_grow_and_filter(space, units, per_operator, width, max_nodes, seed, group))
        batches = []
        for k, number in enumerate(group):
            grown, promising = jax.tree.map(lambda a: a[k], found)
            if not grown.candidate.any():
                raise InputError(f"no random formula of space {space} has as few as {max_nodes} nodes")
            batches.append(_judge_batch(space, number, grown, promising, seen, units))
        return batches

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: deque[concurrent.futures.Future[list[Batch]]] = deque()
        waiting = iter(numbers)
        try:
            while group := list(itertools.islice(waiting, len(float64_devices()))):
                pending.append(pool.submit(one, group))
                if len(pending) > workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _judge_batch(
    space: Space, number: int, grown: Grown, promising: Bool[np.ndarray, " r"], seen: Container[int], units: str
) -> Batch:
    """Judges the rows of a batch that may pass by the rough grid."""
    tokens, candidates = tokens_of(grown, np.flatnonzero(promising), space), int(grown.candidate.sum())
    tokens = tokens[may_pass_finer_grid(tokens, space, units)]
    nodes = (tokens != population.PAD).sum(1).astype(np.uint64)  # of rewrites of one formula, the shorter is wanted
    hashes, first = np.unique(population.hashes(tokens, space) + nodes, return_index=True)
    new = np.array([value not in seen for value in hashes.tolist()], bool)
    hashes, tokens = hashes[new], tokens[first[new]]
    judged = judge(tokens, space, units=units, values_first=False)
    passed = judged.passed(sign_flip=space.can_negate)
    judged = Judged(*(array[passed] for array in judged))
    return Batch(number, candidates, tokens[passed], hashes[passed], judged)


def may_pass_finer_grid(tokens: Int[np.ndarray, "n m"], space: Space, units: str) -> Bool[np.ndarray, " n"]:
    """Which formulas may pass the gate, by their values on the grid for those that remain, where there is one."""
    size = sizes()
    if size.remaining is None:
        return np.ones(len(tokens), bool)
    grid = coarse_grid(space, units, *size.remaining)
    keep = [np.zeros(0, bool)]
    for start in range(0, len(tokens), size.remaining_batch):
        chunk = tokens[start : start + size.remaining_batch]
        graph, roots, wide = graphs.from_tokens(chunk, space, width=size.remaining_tile)
        missing = size.remaining_batch - len(chunk)
        roots, wide = np.pad(roots, (0, missing)), np.pad(wide, (0, missing))
        with float64():
            keep.append(np.asarray(_may_pass(space, grid, graph, roots, wide, grid.leaves))[: len(chunk)])
    return np.concatenate(keep)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _may_pass(space: Space, grid: CoarseGrid, graph: Graph, roots, wide, leaves) -> Bool[Array, " n"]:
    (values,) = graphs.evaluate(space, graph, roots, leaves)
    return may_pass(space, grid.steps, values, wide)


def _grow_and_filter(
    space: Space, units: str, per_operator: int, width: int, max_nodes: int, seed: int, numbers: list[int]
) -> tuple[Grown, Bool[Array, "d r"]]:
    """The random graphs of some batches, one for each device, and which of their rows may pass."""
    missing = len(float64_devices()) - len(numbers)
    padded = np.array([*numbers, *numbers[:1] * missing], np.int32)
    return _on_all_devices(space, units, per_operator, width, max_nodes)(seed, padded)


@functools.cache
def _on_all_devices(space: Space, units: str, per_operator: int, width: int, max_nodes: int) -> Callable:
    mesh, of_each = Mesh(np.array(float64_devices()), ("batch",)), PartitionSpec("batch")

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), of_each), out_specs=of_each, check_vma=False
    )
    def grow_and_filter(seed: jax.Array, numbers: jax.Array) -> tuple[Grown, Bool[Array, "1 r"]]:
        grid = coarse_grid(space, units, *sizes().everyone)
        key = jax.random.fold_in(jax.random.key(seed), numbers[0])
        grown = grow(key, space, width=width, per_operator=per_operator, max_nodes=max_nodes)
        everyone = np.arange(len(grown.candidate))
        (values,) = graphs.evaluate(space, grown.graph, everyone, grid.leaves)
        found = grown, grown.candidate & may_pass(space, grid.steps, values, grown.wide)
        return jax.tree.map(lambda a: a[None], found)

    return grow_and_filter
