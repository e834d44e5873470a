"""What a calibration leaves behind to be read: ``result.json``, ``report.md``, and the tables on the terminal."""

import json
import math
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from cse_jax.language.expression import to_authors, to_infix
from cse_jax.reporting.final_table import markdown_table
from cse_jax.search.calibration import TOP, Agreement, Calibration
from cse_jax.workdir import write_whole

_COLUMNS = ("stage", "losses", "Kendall's tau", f"precision at {TOP}", f"of the best {TOP} rejected", "rejected", "s")


def show(console: Console, calibrations: Mapping[str, Calibration]) -> None:
    """Prints a table of each branch."""
    for branch, calibration in calibrations.items():
        table = Table(title=_title(branch, calibration), title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in _COLUMNS:
            table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=column == "stage")
        for stage in calibration.stages:
            table.add_row(*_cells(stage))
        console.print(table)


def write(workdir: pathlib.Path, calibrations: Mapping[str, Calibration]) -> None:
    """Writes ``result.json`` and ``report.md``, each complete or not at all."""
    data = {branch: _plain(calibration) for branch, calibration in calibrations.items()}
    write_whole(workdir / "result.json", json.dumps(data, indent=2))
    write_whole(workdir / "report.md", _markdown(calibrations))


def _title(branch: str, calibration: Calibration) -> str:
    seeds = len(calibration.losses[0].final)
    return (
        f"{branch}: scores of {len(calibration.losses)} losses beside the mean AP of {seeds} trainings on the "
        f"test split; tau of one of these with the others: {calibration.ceiling:.2f}"
    )


def _cells(stage: Agreement) -> tuple[str, ...]:
    seconds = "-" if math.isnan(stage.seconds) else f"{stage.seconds:.2g}"
    figures = f"{stage.tau:.2f}", f"{stage.precision:.1f}", str(stage.lost), str(stage.rejected)
    return stage.stage, str(stage.count), *figures, seconds


def _plain(calibration: Calibration) -> dict[str, Any]:
    return {
        "ceiling": _number(calibration.ceiling),
        "stages": [{k: _number(v) for k, v in vars(stage).items()} for stage in calibration.stages],
        "losses": [
            {
                "authors": to_authors(c.formula),
                "origin": c.origin,
                "weight": c.weight,
                "scores": {stage: _number(score) for stage, score in c.scores.items()},
                "rejected": c.rejected,
                "final": [_number(ap) for ap in c.final],
            }
            for c in calibration.losses
        ],
    }


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _markdown(calibrations: Mapping[str, Calibration]) -> str:
    lines = ["# Calibration", ""]
    for branch, calibration in calibrations.items():
        lines += [
            f"## {_title(branch, calibration)}",
            "",
            *markdown_table(_COLUMNS, map(_cells, calibration.stages)),
            "",
        ]
        rows = []
        for c in sorted(calibration.losses, key=lambda c: -c.truth):
            finite = [ap for ap in c.final if math.isfinite(ap)]
            error = statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
            scores = (f"{score:.3g}" for score in c.scores.values())
            formula = f"`{to_infix(c.formula)}`"
            rows.append((f"{c.truth:.3f} ± {error:.3f}", c.origin, *scores, ", ".join(c.rejected), formula))
        header = ("AP", "origin", *calibration.losses[0].scores, "rejected by", "formula")
        lines += [*markdown_table(header, rows), ""]
    return "\n".join(lines)
