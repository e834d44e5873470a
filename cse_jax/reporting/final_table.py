"""The final table as plain data, for the terminal and for a report; searches and confirmations share it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from cse_jax.export.escaping import markdown_name
from cse_jax.export.typesetting import to_latex
from cse_jax.language.expression import Expression, to_authors, to_infix
from cse_jax.search.comparison import Row
from cse_jax.search.conclusion import POINT
from cse_jax.search.statistics import Comparison
from cse_jax.search.task import LibraryLoss, LossPair

EXPLANATION = (
    "AP (COCO, IoU .50:.95), mean ± standard deviation over fresh seeds. *Difference* is that of the last row to "
    "the row, paired by seed. Its 95 % interval is Student's t on the residuals of the whole table, corrected for all "
    "rows compared (Bonferroni); *p* is Holm's. *Better* and *worse* are said where the interval excludes 0. *Shrunk* "
    "is the difference to the default losses as it is to be believed of the best of many (as measured, where no search "
    "says how much its losses differ), and *P* the probability that it is above 0."
)
UNTOUCHED = (
    "The test split and these seeds took no part in any selection; candidates were selected on the select split."
)
HEADER = ("losses", "AP", "difference", "95 % interval", "verdict", "p", "shrunk", "P", "each seed")


def rows_as_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for JSON; None where a number is not finite."""
    return [
        {
            "name": row.name,
            "role": row.role.value,
            **pair_as_data(row.losses),
            "ap": [number(ap) for ap in row.aps],
            "mean": number(row.mean),
            "std": number(row.std),
            "failures": list(row.failures),
            "against": comparison_as_data(row.against) if row.against else None,
        }
        for row in rows
    ]


def comparison_as_data(found: Comparison) -> dict[str, Any]:
    """One loss against another, for JSON."""
    return {
        "difference": number(found.difference),
        "standard_error": number(found.error),
        "interval": [number(found.low), number(found.high)],
        "p": number(found.p),
        "verdict": found.verdict.value,
        "noise": number(found.noise),
        "compared": found.others,
        "seeds_needed": {"observed": found.seeds_needed(), str(POINT): found.seeds_needed(POINT)},
        "shrunk": number(found.shrunk.difference),
        "shrunk_std": number(found.shrunk.deviation),
        "probability": number(found.shrunk.probability),
    }


def pair_as_data(losses: LossPair) -> dict[str, dict[str, Any]]:
    """A pair of losses for JSON."""
    return {
        "cls": loss_as_data(losses.cls) | {"weight": losses.cls_weight},
        "box": loss_as_data(losses.box) | {"weight": losses.box_weight},
    }


def loss_as_data(loss: Expression | LibraryLoss) -> dict[str, str]:
    """A formula in three notations, or the text of a loss that is none."""
    if isinstance(loss, LibraryLoss):
        return {"space": loss.space.name, "text": loss.text}
    return {
        "space": loss.space.name,
        "text": to_infix(loss),
        "authors": to_authors(loss),
        "latex": to_latex(loss),
    }


def number(value: float) -> float | None:
    """For JSON, which knows no NaN."""
    return value if math.isfinite(value) else None


def terminal_table(rows: Sequence[Row], *, split: str = "test") -> Table:
    """The final table for the terminal; ``split`` is the one that the rows are scored on."""
    title = (
        f"{split.capitalize()} split: AP over fresh seeds; difference of the last row to each, corrected 95 % interval"
    )
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    shown = ("losses", "AP", "difference", "95 % interval", "verdict", "each seed")
    for column in shown:
        justify: JustifyMethod = "left" if column in ("losses", "verdict") else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows_as_data(rows):
        cells = dict(zip(HEADER, cells_of(row), strict=True))
        table.add_row(*(Text(cells[column]) for column in shown))
    return table


def markdown_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The final table for a report, from ``rows_as_data``."""
    cells = [
        (markdown_name(row["name"]), *cells_of(row)[1:], f"{row['cls']['weight']:g}", f"{row['box']['weight']:g}")
        for row in rows
    ]
    return markdown_table((*HEADER, "cls weight", "box weight"), cells)


def cells_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of ``rows_as_data`` as it is shown, below ``HEADER``."""
    spread = "" if row["std"] is None else f" ± {row['std']:.3f}"
    mean = "failed" if row["mean"] is None else f"{row['mean']:.3f}{spread}"
    each = " ".join("failed" if ap is None else f"{ap:.3f}" for ap in row["ap"])
    return row["name"], mean, *_against_cells(row["against"]), each


def _against_cells(found: Mapping[str, Any] | None) -> tuple[str, ...]:
    if found is None:
        return ("",) * 6
    low, high = found["interval"]
    return (
        shown(found["difference"], "+.3f"),
        "" if low is None else f"{low:+.3f} to {high:+.3f}",
        found["verdict"],
        shown(found["p"], ".3f"),
        shown(found["shrunk"], "+.3f"),
        shown(found["probability"], ".2f"),
    )


def shown(value: float | None, form: str) -> str:
    """A number, or nothing for one that is not known."""
    return "" if value is None else format(value, form)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, its cells escaped."""
    head, *escaped = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *escaped)]
