"""What a final table says, in sentences that promise no more than it shows."""

import math
from collections.abc import Sequence

from cse_jax.search.comparison import Role, Row
from cse_jax.search.statistics import Comparison, Verdict

POINT = 0.01  # AP; no smaller difference is worth asking how many seeds would show it


def conclusion(rows: Sequence[Row], *, subject: str = "The discovered loss") -> str:
    """Whether the discovered pair beats the best other row, and with it all; rows that failed are named.

    Args:
      rows: as ``comparison.judged`` leaves them.
      subject: what the discovered pair is, as a sentence begins.
    """
    discovered = [row for row in rows if row.role == Role.DISCOVERED]
    if not discovered:
        return "Nothing was discovered: no candidate passed all filters."
    row = discovered[-1]
    if not math.isfinite(row.mean):
        return f"{subject} ({row.name}) failed in training and is not compared ({'; '.join(row.failures)})."
    rivals = [(other, other.against) for other in rows if other.against and math.isfinite(other.mean)]
    if not rivals:
        same = any(other.losses.key == row.losses.key for other in rows if other.role != Role.DISCOVERED)
        why = "no row of other losses" if same else "no other row"
        said = f"{subject} ({row.name}) is compared with nothing: {why} trained."
    else:
        best, against = max(rivals, key=lambda rival: rival[0].mean)
        said = _sentence(f"{subject} ({row.name})", best.name, against)
    failed = [f"{o.name} ({'; '.join(o.failures)})" for o in rows if o.failures]
    return said + (f" Not compared, because trainings failed: {', '.join(failed)}." if failed else "")


def _sentence(who: str, best: str, found: Comparison) -> str:
    whom = f"the best other row ({best})"
    if found.verdict == Verdict.UNKNOWN:
        whose = who[0].lower() + who[1:]
        return f"No verdict on {whose}: {difference(found)} to {whom}, one seed, noise unknown."
    figures = f"paired difference {difference(found)}, {found.seeds} seeds"
    if found.verdict == Verdict.NOT_SHOWN:
        return f"{who} is not shown to be better or worse than {whom}: {figures}; {_needed(found)}."
    return f"{who} is {found.verdict} than {whom}: {figures}."


def difference(found: Comparison) -> str:
    """A difference with its interval, for a sentence."""
    interval = f" (corrected 95 % interval {found.low:+.3f} to {found.high:+.3f})" if math.isfinite(found.low) else ""
    return f"{found.difference:+.3f} AP{interval}"


def _needed(found: Comparison) -> str:
    size = max(abs(found.difference), POINT)
    needed = found.seeds_needed(size)
    if needed is None:
        return f"no number of seeds in reach would show a difference of {size:.3f} AP"
    return f"about {needed} seeds would show a difference of {size:.3f} AP (80 % power)"


def scope(rows: Sequence[Row], *, one_start: bool) -> str:
    """What the table can show and what it cannot.

    Args:
      rows: of the table.
      one_start: whether all trainings began with the same trained features.
    """
    found = next((row.against for row in rows if row.against and math.isfinite(row.against.noise)), None)
    trainings, others = "short and of one detector on one data set", "longer trainings, larger detectors or other data"
    if one_start:
        trainings, others = f"{trainings}, and all begin with one start", f"other starts, {others}"
    limits = f"The trainings are {trainings}: a difference here says nothing of {others}."
    if found is None:
        return limits
    size = (
        f"One training's noise is {found.noise:.3f} AP, so {found.seeds} seeds show a true difference with 80 % power "
        f"if it is at least {found.smallest_shown:.3f} AP; smaller ones mostly stay hidden."
    )
    return f"{size} {limits}"
