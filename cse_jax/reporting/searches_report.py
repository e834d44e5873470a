"""How fast searches find good losses: the best found so far against the losses trained, by kind of search.

Searches of one name that differ in their seeds are one kind.  Written as Markdown, CSV and SVG.
"""

import csv
import dataclasses
import functools
import io
import itertools
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from cse_jax.errors import InputError
from cse_jax.export.escaping import markdown_name
from cse_jax.reporting import curves_plot
from cse_jax.reporting.final_table import markdown_table
from cse_jax.reporting.page.chart import Series, stair
from cse_jax.reporting.page.facts import Facts
from cse_jax.search.comparison import Role
from cse_jax.search.statistics.verdicts import holm
from cse_jax.workdir import write_whole

WITHIN = (0.005, 0.0)  # AP below the default losses, at most, that makes a loss a good one
_SHOWN = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
_FAILED = 0.0  # AP of a loss whose training came to nothing


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one search had found after each loss that it trained.

    Attributes:
      folder: of the search.
      gains: AP on the select split beyond the default losses' with the same seeds, in the order in which the losses
        began to train; of one that did not come to the end, ``-default``.
      minutes: of training until each had ended.
      test: AP of the discovered pair beyond the default's, on the test split with fresh seeds; NaN if there is none.
    """

    folder: str
    gains: tuple[float, ...]
    minutes: tuple[float, ...]
    test: float

    @functools.cached_property
    def best(self) -> tuple[float, ...]:
        """The best gain so far, after each loss."""
        return tuple(itertools.accumulate(self.gains, max))

    def until(self, gain: float) -> int | None:
        """Losses trained until one has this gain; None if none has."""
        return next((k for k, reached in enumerate(self.gains, start=1) if reached >= gain), None)


def curve(facts: Facts) -> Curve:
    """The curve of a search, finished or not.

    Raises:
      InputError: it has trained no losses yet.
    """
    default = facts.result["default_proxy_ap"]
    if default is None or not facts.begun:
        raise InputError(f"the search in {facts.folder} has trained no losses yet")
    ended = {loss.place: loss for loss in facts.trained if loss.kind in facts.parts}
    gains, minutes, so_far = [], [], 0.0
    for place in facts.begun:
        loss = ended.get(place)
        so_far = max(so_far, loss.minutes if loss else 0.0)
        gains.append(loss.gain if loss else _FAILED - default)
        minutes.append(so_far)
    return Curve(str(facts.folder), tuple(gains), tuple(minutes), _test_gain(facts))


def _test_gain(facts: Facts) -> float:
    table = facts.result["table"]
    if not table or table[-1]["role"] != Role.DISCOVERED or None in (table[0]["mean"], table[-1]["mean"]):
        return math.nan
    return table[-1]["mean"] - table[0]["mean"]


def write(folder: pathlib.Path, kinds: Mapping[str, Sequence[Curve]]) -> None:
    """Writes ``searches.md``, ``searches.csv`` and ``searches.svg``; each is complete or not there.

    Args:
      folder: for the files.
      kinds: the searches of each kind, by its name.
    """
    write_whole(folder / "searches.md", "\n".join(markdown(kinds)))
    write_whole(folder / "searches.csv", _csv(kinds))
    curves_plot.save(
        folder / "searches.svg",
        [line for colour, (kind, curves) in enumerate(kinds.items()) for line in _lines(kind, curves, colour)],
        title="AP beyond the default losses of the best found so far",
        x_label="losses trained",
        y_label="AP, select split",
    )


def markdown(kinds: Mapping[str, Sequence[Curve]]) -> list[str]:
    """The lines of ``searches.md``."""
    longest = max(len(each.gains) for curves in kinds.values() for each in curves)
    trained = sorted({*(count for count in _SHOWN if count < longest), longest})
    found = [
        [
            str(count),
            *(_so_far(curves, count) for curves in kinds.values()),
        ]
        for count in trained
    ]
    summary = [
        [
            markdown_name(kind),
            str(len(curves)),
            str(sum(len(each.gains) for each in curves)),
            *(_hits(curves, -below) for below in WITHIN),
            _spread([each.test for each in curves if math.isfinite(each.test)]),
            f"{statistics.fmean(each.minutes[-1] for each in curves):.1f}",
        ]
        for kind, curves in kinds.items()
    ]
    header = ["searches", "how many", "losses trained", *(_bar(below) for below in WITHIN), "test AP", "minutes"]
    return [
        "# Searches",
        "",
        "AP (COCO, IoU .50:.95) beyond the default losses, paired by seed. *So far*: on the select split at the end of "
        "the proxy task, of the best loss so far, whose choice makes it partly luck; mean over the searches that went "
        "so far, with the least and the most. *Good*: losses among those trained that reach the default's AP there, or "
        "nearly so, and after how many losses each search had the first. *Test AP*: of what was discovered, with fresh "
        "seeds. *Minutes*: of all trainings until the last loss.",
        "",
        *markdown_table(["so far, losses trained", *map(markdown_name, kinds)], found),
        "",
        *markdown_table(header, summary),
        "",
        *_differences(kinds),
        "![The best found so far against losses trained](searches.svg)",
        "",
    ]


def _differences(kinds: Mapping[str, Sequence[Curve]]) -> list[str]:
    """Whether kinds differ in how many of the losses that they train are good."""
    from scipy import stats

    gains = {kind: [gain for each in curves for gain in each.gains] for kind, curves in kinds.items()}
    good = {kind: sum(gain >= -WITHIN[0] for gain in found) for kind, found in gains.items()}
    pairs = list(itertools.combinations(kinds, 2))
    if not pairs:
        return []
    counts = [[[good[kind], len(gains[kind]) - good[kind]] for kind in pair] for pair in pairs]
    p = [np.asarray(stats.fisher_exact(table)).tolist()[1] for table in counts]
    rows = [
        [
            *(f"{markdown_name(kind)}: {good[kind]} of {len(gains[kind])}" for kind in pair),
            f"{alone:.2g}",
            f"{corrected:.2g}",
        ]
        for pair, alone, corrected in zip(pairs, p, holm(p), strict=True)
    ]
    return [
        f"Losses within {WITHIN[0]:g} AP by kind, with the p of Fisher's exact test, alone and by Holm for all pairs. "
        "The test takes losses of a search to be independent; a strategy that learns makes them alike, so the true p "
        "is larger.",
        "",
        *markdown_table(["good", "good", "p", "p, all pairs"], rows),
        "",
    ]


def _bar(below: float) -> str:
    return f"good: within {below:g} AP" if below else "good: the default's AP"


def _so_far(curves: Sequence[Curve], count: int) -> str:
    found = [each.best[count - 1] for each in curves if len(each.best) >= count]
    return _spread(found) + (f", {len(found)} of {len(curves)}" if 0 < len(found) < len(curves) else "")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.fmean(values):+.3f} ({min(values):+.3f} to {max(values):+.3f})"


def _hits(curves: Sequence[Curve], gain: float) -> str:
    good = sum(value >= gain for each in curves for value in each.gains)
    first = ", ".join("never" if (k := each.until(gain)) is None else str(k) for each in curves)
    return f"{good} (first: {first})"


def _lines(kind: str, curves: Sequence[Curve], colour: int) -> list[Series]:
    """The mean of a kind, as far as all its searches go, and faintly each search."""
    mean = [statistics.fmean(reached) for reached in zip(*(each.best for each in curves), strict=False)]
    return [*(_line("", each.best, colour, dashed=True) for each in curves), _line(kind, mean, colour)]


def _line(label: str, best: Sequence[float], colour: int, *, dashed: bool = False) -> Series:
    return Series(label, *stair(range(1, len(best) + 1), best, len(best)), colour, dashed=dashed)


def _csv(kinds: Mapping[str, Sequence[Curve]]) -> str:
    """A line for each loss that was trained."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["kind", "folder", "losses_trained", "minutes", "gain", "best_so_far"])
    for kind, curves in kinds.items():
        for each in curves:
            for k, row in enumerate(zip(each.minutes, each.gains, each.best, strict=True), start=1):
                table.writerow([kind, each.folder, k, *(f"{value:.5f}" for value in row)])
    return text.getvalue()
