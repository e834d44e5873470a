"""The live view of a search: funnel, hall of fame, current work and the time left."""

import itertools
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, JustifyMethod
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cse_jax.search.hall_of_fame import Entry

_SHOWN = 5


class Monitor:
    """Shows a search on a terminal, or as plain lines where the output is none.  Use as a context manager."""

    def __init__(self, console: Console | None = None, *, steps: Mapping[str, float]) -> None:
        """Args:
        console: where to show; standard output by default.
        steps: what a training of each purpose costs, in steps of one detector: for the time left before any was timed.
        """
        self.console = console or Console(file=sys.stdout)
        self._steps = dict(steps)
        self._expected: dict[str, int] = {}
        self._timed: dict[str, list[float]] = {}
        self._funnel: dict[tuple[str, int], dict[str, int]] = {}
        self._halls: dict[str, Sequence[Entry]] = {}
        self._activity, self._number, self._of = "", 1, 1
        self.hint = ""  # what the one who watches can do
        self._started = time.monotonic()
        self._live = Live(get_renderable=self._view, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Monitor":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def expect(self, trainings: Mapping[str, int]) -> None:
        """Sets how many trainings of each purpose are left at most."""
        self._expected = dict(trainings)

    def activity(self, what: str, number: int = 1, of: int = 1) -> None:
        """Says what runs now, and its place in a series."""
        self._activity, self._number, self._of = what, number, of
        if not self.console.is_terminal:
            self.say(f"[{self._time_left()}] {self._doing()}")

    def counts(self, branch: str, generation: int, counts: Mapping[str, int]) -> None:
        """Updates the funnel."""
        self._funnel[branch, generation] = dict(counts)

    def trained(self, purpose: str, seconds: float) -> None:
        """Notes a training's time."""
        self._timed.setdefault(purpose, []).append(seconds)
        self._expected[purpose] = max(0, self._expected.get(purpose, 0) - 1)

    def generation_done(
        self, branch: str, generation: int, counts: Mapping[str, int], hall_of_fame: Sequence[Entry]
    ) -> None:
        """Notes a finished generation."""
        self.counts(branch, generation, counts)
        self._halls[branch] = hall_of_fame
        if not self.console.is_terminal:
            funnel = ", ".join(f"{stage} {count}" for stage, count in counts.items())
            best = f"; best so far AP {hall_of_fame[0].ap:.3f}: {hall_of_fame[0].formula}" if hall_of_fame else ""
            self.say(f"{branch} generation {generation}: {funnel}{best}")

    def seconds_left(self) -> float:
        """Estimate from the trainings timed so far; NaN before there are any.

        A purpose's first training holds the compilation and tells nothing about the others.
        """
        times = {p: statistics.median(timed[1:]) for p, timed in self._timed.items() if len(timed) > 1}
        if not times:
            return math.nan
        per_step = statistics.fmean(seconds / self._steps[p] for p, seconds in times.items())
        return sum(n * times.get(p, per_step * self._steps[p]) for p, n in self._expected.items())

    def _time_left(self) -> str:
        left = self.seconds_left()
        elapsed = _clock(time.monotonic() - self._started)
        return f"{elapsed} elapsed" + (f", about {_clock(left)} left at most" if math.isfinite(left) else "")

    def _doing(self) -> str:
        return f"{self._activity} {self._number}/{self._of}" if self._of > 1 else self._activity

    @property
    def status(self) -> str:
        """What runs now, and the time left."""
        return f"{self._doing()}   {self._time_left()}"

    def say(self, line: str) -> None:
        """Prints a line, above the live view where there is one."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _view(self) -> Group:
        parts: list = funnel_tables(self._funnel)
        for branch, entries in self._halls.items():
            if entries:
                parts.append(hall_of_fame_table(branch, entries))
        parts.append(Text(self.status))
        if self.hint:
            parts.append(Text(self.hint))
        parts.append(ProgressBar(total=self._of, completed=self._number - 1, width=60))
        return Group(*parts)


def funnel_tables(funnel: Mapping[tuple[str, int], Mapping[str, int]]) -> list[Table]:
    """Candidates left after each stage: a table per branch, a column per generation."""
    tables = []
    for branch, rows in itertools.groupby(funnel.items(), key=lambda row: row[0][0]):
        generations, counts = zip(*((generation, counts) for (_, generation), counts in rows), strict=True)
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column(f"Funnel, {branch}")
        for generation in generations:
            table.add_column(f"generation {generation}", justify="right")
        for stage in counts[0]:
            table.add_row(stage, *(f"{of_generation[stage]:,}" for of_generation in counts))
        tables.append(table)
    return tables


def hall_of_fame_table(branch: str, entries: Sequence[Entry]) -> Table:
    """The best losses of a branch so far."""
    table = Table(title=f"Hall of fame, {branch}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    columns: tuple[tuple[str, JustifyMethod], ...] = (
        ("AP", "right"),
        ("weight", "right"),
        ("generation", "right"),
        ("formula", "left"),
    )
    for column, justify in columns:
        table.add_column(column, justify=justify, overflow="fold")
    for entry in entries[:_SHOWN]:
        formula = Text(str(entry.formula))
        table.add_row(f"{entry.ap:.3f}", f"{entry.weight:.3g}", str(entry.generation), formula)
    return table


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02d}"
