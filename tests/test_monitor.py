"""The live view of a search: the time that is left, and tables that fit a terminal."""

import io
import math

import pytest
from rich.console import Console

from cse_jax.reporting.monitor import Monitor, funnel_tables
from cse_jax.screening.candidate import STAGES


def test_the_time_left():
    monitor = Monitor(Console(file=io.StringIO()), steps={"probe": 2, "proxy": 100})
    monitor.expect({"probe": 10, "proxy": 4})
    monitor.trained("proxy", 90.0)  # it was compiled
    assert math.isnan(monitor.seconds_left())
    monitor.trained("proxy", 10.0)
    assert monitor.seconds_left() == pytest.approx(2 * 10.0 + 10 * 0.2), "a probe costs 2 of 100 steps"
    for seconds in (50.0, 1.0, 1.0, 9.0):
        monitor.trained("probe", seconds)
    assert monitor.seconds_left() == pytest.approx(2 * 10.0 + 6 * 1.0)


def test_the_funnel_fits_a_terminal():
    counts = dict.fromkeys(STAGES, 20_000)
    tables = funnel_tables({(branch, k): counts for branch in ("binary_class", "box") for k in range(4)})
    assert len(tables) == 2
    for table in tables:
        console = Console(file=io.StringIO(), width=80)
        console.print(table)
        lines = console.file.getvalue().splitlines()
        assert len(lines) == 1 + len(STAGES) and all("20,000" in line for line in lines[1:])
