"""Side-by-side timing: rounds alternate between the contestants, so that a slow moment hits all of them."""

import statistics
import time
from collections.abc import Callable

import jax


def alternate(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one call of each that is not counted."""
    for run in contestants.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, peer: str) -> tuple[float, str]:
    """Ratio of the medians, and the range of the ratios of single rounds."""
    each = [a / b for a, b in zip(seconds[ours], seconds[peer], strict=True)]
    median = statistics.median(seconds[ours]) / statistics.median(seconds[peer])
    return median, f"{min(each):.3g} - {max(each):.3g}"


def milliseconds(values: list[float]) -> float:
    """The median in ms."""
    return 1e3 * statistics.median(values)
