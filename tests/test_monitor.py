"""The live view of a search: the time that is left, and tables that fit a terminal."""

import io
import math

import pytest
from extras import need
from rich.console import Console

from cse_jax.language import zoo
from cse_jax.language.spaces import BOX
from cse_jax.reporting.board import Board
from cse_jax.reporting.monitor import Monitor, funnel_tables
from cse_jax.screening.candidate import STAGES
from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.progress import Progress


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


def test_figures_for_tensorboard(tmp_path):
    need("tensorboardX")
    heard = Monitor(Console(file=io.StringIO()), steps={})
    entry = Entry(zoo.default(BOX), 1.0, (0.4, 0.5), 0.9, 0)
    with Board(heard, tmp_path) as board:
        assert isinstance(board, Progress)
        board.generation_done("box", 0, dict.fromkeys(STAGES, 3), [entry])
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"box/highest_AP" in file.read_bytes() and "box generation 0" in heard.console.file.getvalue()
