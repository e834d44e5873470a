"""Candidates judged per second: ours, everyone on the full grid or coarse to fine, and the peers on the same ones."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.report import Report
from benchmarks.screening_peers.deap_torch import authors_generate, authors_route
from benchmarks.screening_peers.kozax import kozax
from benchmarks.screening_peers.stack_machine import vmapped_switch
from cse_jax.atlas.stream import screen_batches
from cse_jax.language import graph as graphs
from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.population import decode
from cse_jax.language.spaces import BOX, SPACES, Space, trajectories
from cse_jax.sampling.random_graphs import grow, tokens_of
from cse_jax.screening.sizes import sizes
from cse_jax.screening.verification import judge

_SIZES = {  # candidates judged by everyone's full grid, by peers one at a time, by the slow peers; batches
    "smallest": (64, 16, 8, 1),
    "small": (32768, 2000, 256, 16),
    "full": (262_144, 1000, 128, 64),
}


_RATES, _WORK = "Candidates per second, judged in float64", "The work"
_AUTHORS = "DEAP + PyTorch, one at a time"
_OURS = ("ours: generation", "ours: full grid for everyone", "ours: end to end, coarse to fine")
_COMPILED_PEERS = {"vmapped lax.switch": vmapped_switch, "kozax": kozax}  # slow to compile, and so the last


class _Judged(NamedTuple):
    """Formulas of a space, ours and the authors' verdicts a second on them, and what ours are."""

    expressions: list[Expression]
    verdicts: np.ndarray
    base: float | None


def measure(report: Report, *, size: str, rounds: int) -> None:
    """All tables of the suite."""
    chosen, few = [BOX] if size == "smallest" else list(SPACES.values()), _SIZES[size][2]
    names = [f"{space.name}, {name}" for space in chosen for name in (*_OURS, _AUTHORS, "DEAP: generation")]
    report.plan(_RATES, names + [f"{space.name}, {name}" for space in chosen for name in _COMPILED_PEERS])
    report.plan(_WORK, [space.name for space in chosen])
    judged = {}
    for space in chosen:
        report.say(space.name)
        judged[space.name] = _space(report, space, size, rounds)
    for space in chosen:
        expressions, verdicts, base = judged[space.name]
        for name, peer in _COMPILED_PEERS.items():
            report.say(f"{space.name}, {name}")
            report.row(_RATES, _row(space, name, base, *_peer(peer(expressions[:few], space), verdicts)))


def _row(space: Space, engine: str, base: float | None, rate: float | None, agreement: str | None, note: str) -> dict:
    over = rate / base if rate and base else None
    return {"space": space.name, "engine": engine, "per second": rate, "ratio": over} | {
        "same verdicts": agreement,
        "note": note,
    }


def _space(report: Report, space: Space, size: str, rounds: int) -> _Judged:
    """Rows of ours and of the authors' route, which is what the ratios are to."""
    everyone, one_by_one, _, batches = _SIZES[size]
    growth = {"per_operator": 1 if size == "smallest" else sizes().per_operator, "width": sizes().width}
    with float64():
        grown = grow(jax.random.key(1), space, **growth)
        rows = np.random.default_rng(0).permutation(np.flatnonzero(grown.candidate))[:everyone]
        tokens = tokens_of(grown, rows, space)
    expressions = decode(tokens[:one_by_one], space)
    verdicts = judge(tokens, space).passed(sign_flip=True)
    full = _median_rate(lambda: judge(tokens, space), len(tokens), rounds)

    list(screen_batches(space, range(2), **growth, seed=1))

    def stream() -> int:
        return sum(batch.candidates for batch in screen_batches(space, range(batches), **growth))

    streams = []
    for _ in range(max(1, rounds // 2)):
        started = time.perf_counter()
        streams.append(stream() / (time.perf_counter() - started))
    growing = _median_rate(
        lambda: jax.block_until_ready(grow(jax.random.key(2), space, **growth).graph),
        int(np.asarray(grow(jax.random.key(2), space, **growth).candidate).sum()),
        rounds,
    )
    theirs, generated = _peer(authors_route(expressions, space), verdicts), authors_generate(one_by_one, space)
    base, drawing = theirs[0], len(generated.expressions) / generated.seconds if generated.expressions else None
    for name, rate, note in zip(
        _OURS, (growing, full, statistics.median(streams)), ("", "", "generation included"), strict=True
    ):
        report.row(_RATES, _row(space, name, base, rate, None, note))
    report.row(_RATES, _row(space, _AUTHORS, base, *theirs))
    report.row(_RATES, _row(space, "DEAP: generation", base, drawing, None, generated.note))
    graph, _, _ = graphs.from_tokens(tokens, space)
    distinct = int((np.asarray(graph.left)[: int(graph.count)] != 0).sum())
    operators = int((tokens >= len(space.leaves)).sum())
    points = trajectories(space).inputs[0].size
    report.row(
        _WORK,
        {
            "space": space.name,
            "numbers a row": points,
            "candidates": len(tokens),
            "operator nodes each": operators / len(tokens),
            "distinct, share": min(1.0, distinct / operators),
            "node-numbers/s, full grid": full * operators / len(tokens) * points,
            "of it actually computed": full * distinct / len(tokens) * points,
            "limit: multiply-adds/s": _limit(),
        },
    )
    return _Judged(expressions, verdicts, base)


def _peer(result, verdicts) -> tuple[float | None, str | None, str]:
    if result.passed is None:
        return None, None, result.note
    judged = result.judged
    same = int((result.passed[judged] == verdicts[: len(judged)][judged]).sum())
    return result.rate, f"{same:,} of {int(judged.sum()):,}", result.note


def _median_rate(run: Callable[[], object], count: int, rounds: int) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return count / statistics.median(seconds)


def _limit() -> float:
    """Float64 multiply-adds a second on data that stays in the cache, all cores: an upper bound for any node."""
    with float64():
        rows = jax.numpy.ones((64, 1024))
        steps = 2000
        run = jax.jit(lambda a: jax.lax.fori_loop(0, steps, lambda _, c: c * 0.999 + a, a))
        return _median_rate(lambda: jax.block_until_ready(run(rows)), rows.size * steps, 3)
