"""A table of trained losses in words and tables of Markdown."""

import math
from collections.abc import Iterator

from cse_jax.language.expression import to_infix
from cse_jax.loss_table.analysis import (
    NEAR,
    TOP,
    agreements,
    best,
    between,
    complete,
    default_beside_known,
    noise_by_length,
)
from cse_jax.loss_table.table import LossTable
from cse_jax.reporting.report import markdown_table
from cse_jax.search.config import FilterConfig
from cse_jax.search.task import PARTS, Part

SHOWN = 10  # losses of each part


def sections(table: LossTable, filters: FilterConfig, beside: LossTable | None = None) -> Iterator[str]:
    """The report, one part of the detector after the other.

    Args:
      table: the losses.
      filters: the thresholds of the search whose stages are judged.
      beside: a table of the same losses, trained otherwise.
    """
    for part in PARTS:
        if not _holds_default(table, part):
            continue
        losses, seeds = table.of(part), table.seeds(part)
        name = losses[0].formula.space.name
        lines = [f"## {name}: {len(losses)} losses, {len(seeds)} seed{'s'[: len(seeds) > 1]}", ""]
        rows = [
            (str(n.steps), *(_figure(value, 4) for value in (n.default, n.noise, n.signal, n.spread)),
             _figure(n.signal / n.noise, 1) if n.noise else "-", _figure(n.tau))
            for n in noise_by_length(table, part)
        ]  # fmt: skip
        near = f"within {NEAR:g} AP of the default"
        header = (
            "steps",
            "default AP",
            "noise",
            f"signal, {near}",
            "signal, all",
            "signal / noise",
            "tau with the end",
        )
        lines += [*markdown_table(header, rows), ""]
        rows = [
            (a.stage, str(a.count), *map(_figure, (a.tau, a.near_tau, a.precision)), str(a.lost), str(a.rejected))
            for a in agreements(table, part, filters)
        ]  # fmt: skip
        header = (
            "stage", "losses", "Kendall's tau", f"tau, {near}", f"precision at {TOP}",
            f"of the best {TOP} rejected", "rejected",
        )  # fmt: skip
        lines += [*markdown_table(header, rows), ""]
        if len(seeds) > 1:
            found = best(table, part)
            lines += [
                f"The loss that does best on the select split is {found.selected:+.4f} AP from the default there. What "
                f"one seed alone chooses is {found.judged:+.4f} ± {found.error:.4f} AP (standard error) from it on the "
                f"test split with the other seeds. On the test split the first is {found.shrunk.difference:+.4f} ± "
                f"{found.shrunk.deviation:.4f} AP from the default, as it is to be believed of the best of so many.",
                "",
            ]
        rows = [
            (loss.origin, _figure(c.difference, 4), f"{c.low:+.4f} to {c.high:+.4f}", str(c.verdict))
            for loss, c in default_beside_known(table, part)
            if math.isfinite(c.low)
        ]
        if rows:
            header = "the default beside", "ahead by, test AP", "95 % intervals, all at once", "the default is"
            lines += [*markdown_table(header, rows), ""]
        if beside is not None and _holds_default(beside, part):
            other = between(table, beside, part)
            lines += [
                f"The other table has {other.count} of these losses in an order that agrees with Kendall's tau "
                f"{_figure(other.tau)}, {_figure(other.near_tau)} for the {other.near_count} {near} in both; noise in "
                "either table lowers it.",
                "",
            ]
        lines += [*markdown_table(("test AP", "select AP", "origin", "weight", "formula"), _ranked(table, part)), ""]
        yield "\n".join(lines)


def _holds_default(table: LossTable, part: Part) -> bool:
    """Whether a part's default loss is among the losses that have been trained, without which nothing can be said."""
    return bool(table.of(part)) and complete(table, part).default >= 0


def _ranked(table: LossTable, part: Part) -> list[tuple[str, ...]]:
    losses, seeds = table.of(part), table.seeds(part)
    test, select = (table.aps(part, seeds, split=split)[:, :, -1].mean(1) for split in ("test", "select"))
    order = sorted(range(len(losses)), key=lambda k: -select[k] if math.isfinite(select[k]) else 1.0)
    rows = []
    for k in order[:SHOWN]:
        loss = losses[k]
        figures = f"{test[k]:.4f}", f"{select[k]:.4f}", loss.origin, f"{loss.weight:g}"
        rows.append((*figures, f"`{to_infix(loss.formula)}`"))
    return rows


def _figure(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
