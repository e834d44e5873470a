"""Candidates judged per second: ours, everyone on the full grid or coarse to fine, and the peers on the same ones."""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.report import Report
from benchmarks.screening_peers.deap_torch import authors_generate, authors_route
from benchmarks.screening_peers.kozax import kozax
from benchmarks.screening_peers.stack_machine import vmapped_switch
from cse_jax.atlas.stream import screen_batches
from cse_jax.language import graph as graphs
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


def measure(report: Report, *, size: str, rounds: int) -> None:
    """All tables of the suite."""
    for space in [BOX] if size == "smallest" else SPACES.values():
        report.say(f"{space.name}")
        rows, share = _space(space, size, rounds)
        for row in rows:
            report.row("Candidates per second, judged in float64", row)
        report.row("The work", share)


def _space(space: Space, size: str, rounds: int) -> tuple[list[dict], dict]:
    everyone, one_by_one, few, batches = _SIZES[size]
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
    found = {
        "ours: generation": (growing, None, ""),
        "ours: full grid for everyone": (full, None, ""),
        "ours: end to end, coarse to fine": (statistics.median(streams), None, "generation included"),
    }
    authors = authors_route(expressions, space)
    found["DEAP + PyTorch, one at a time"] = _peer(authors, verdicts)
    generated = authors_generate(one_by_one, space)
    if generated.seconds:
        found["DEAP: generation"] = (len(generated.expressions) / generated.seconds, None, generated.note)
    for name, peer in (("vmapped lax.switch", vmapped_switch), ("kozax", kozax)):
        found[name] = _peer(peer(expressions[:few], space), verdicts)
    base = found["DEAP + PyTorch, one at a time"][0]
    table = [
        {"space": space.name, "engine": name, "per second": rate, "ratio": rate / base if rate and base else None}
        | {"same verdicts": agreement, "note": note}
        for name, (rate, agreement, note) in found.items()
    ]
    graph, _, _ = graphs.from_tokens(tokens, space)
    distinct = int((np.asarray(graph.left)[: int(graph.count)] != 0).sum())
    operators = int((tokens >= len(space.leaves)).sum())
    points = trajectories(space).inputs[0].size
    return table, {
        "space": space.name,
        "numbers a row": points,
        "candidates": len(tokens),
        "operator nodes each": operators / len(tokens),
        "distinct, share": min(1.0, distinct / operators),
        "node-numbers/s, full grid": full * operators / len(tokens) * points,
        "of it actually computed": full * distinct / len(tokens) * points,
        "limit: multiply-adds/s": _limit(),
    }


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
