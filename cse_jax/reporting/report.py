"""What a search leaves behind to be read: ``result.json``, ``report.md``, and the tables on the terminal."""

import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from cse_jax.export.notation import to_latex
from cse_jax.language.expression import Expression, to_authors, to_infix
from cse_jax.reporting.monitor import funnel_tables, hall_of_fame_table
from cse_jax.search.comparison import Role, Row, conclusion
from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.pipeline import SearchResult
from cse_jax.search.task import LossPair
from cse_jax.workdir import RESULT_FORMAT, write_whole


def result_dict(result: SearchResult, *, about: dict[str, Any]) -> dict[str, Any]:
    """The result as plain data; ``about`` holds config, versions, device and times."""
    return {
        "format": RESULT_FORMAT,
        "funnel": [
            {"branch": branch.name, "generation": generation} | counts
            for branch in result.branches
            for generation, counts in enumerate(branch.funnel)
        ],
        "hall_of_fame": {
            branch.name: {
                "control": branch.plan.control,
                "standard_error": _number(branch.standard_error),
                "entries": [_entry(entry) for entry in branch.entries],
            }
            for branch in result.branches
        },
        "default_proxy_ap": result.default_proxy_ap,
        "discovered": _pair(result.discovered) if result.discovered else None,
        "table": [
            {
                "name": row.name,
                "role": row.role.value,
                **_pair(row.losses),
                "ap": [_number(ap) for ap in row.aps],
                "mean": _number(row.mean),
                "std": _number(row.std),
                "difference": _number(row.difference),
                "difference_std": _number(row.difference_std),
                "failures": list(row.failures),
            }
            for row in result.table
        ],
        "conclusion": conclusion(result.table),
    } | about


def _entry(entry: Entry) -> dict[str, Any]:
    scores = vars(entry) | {"ap": entry.ap}
    del scores["formula"]
    return _formula(entry.formula) | scores


def _pair(losses: LossPair) -> dict[str, dict[str, Any]]:
    return {
        "cls": _formula(losses.cls) | {"weight": losses.cls_weight},
        "box": _formula(losses.box) | {"weight": losses.box_weight},
    }


def _formula(expression: Expression) -> dict[str, str]:
    return {
        "space": expression.space.name,
        "text": to_infix(expression),
        "authors": to_authors(expression),
        "latex": to_latex(expression),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_result(workdir: pathlib.Path, data: dict[str, Any]) -> None:
    """Writes ``result.json`` and ``report.md``, each complete or not at all."""
    for name, text in (("result.json", json.dumps(data, indent=2)), ("report.md", markdown(data))):
        write_whole(workdir / name, text)


def final_table(rows: Sequence[Row]) -> Table:
    """The final comparison for the terminal."""
    title = "Test split: AP over seeds, paired difference to the first row"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    columns: tuple[tuple[str, JustifyMethod], ...] = (
        ("losses", "left"),
        ("AP", "right"),
        ("difference", "right"),
        ("each seed", "right"),
    )
    for column, justify in columns:
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        name, mean, difference, each = _cells(row.name, row.mean, row.std, row.difference, row.difference_std, row.aps)
        table.add_row(Text(name), mean, difference, each)
    return table


def show(console: Console, result: SearchResult) -> None:
    """Prints the stage table, the halls of fame and the final comparison."""
    funnel = {(b.name, generation): counts for b in result.branches for generation, counts in enumerate(b.funnel)}
    for table in funnel_tables(funnel):
        console.print(table)
    for branch in result.branches:
        if branch.entries:
            console.print(hall_of_fame_table(branch.name, branch.entries))
    console.print(final_table(result.table))


def _cells(name, mean, std, difference, difference_std, aps) -> tuple[str, str, str, str]:
    each = " ".join("failed" if ap is None or math.isnan(ap) else f"{ap:.3f}" for ap in aps)
    return name, _plus_minus(mean, std), _plus_minus(difference, difference_std, "+"), each


def _plus_minus(mean: float | None, std: float | None, sign: str = "") -> str:
    if mean is None or math.isnan(mean):
        return "failed"
    spread = "" if std is None or math.isnan(std) else f" ± {std:.3f}"
    return f"{mean:{sign}.3f}{spread}"


def markdown(data: dict[str, Any]) -> str:
    """The report."""
    lines = [f"# Search {data['name']}", "", data["conclusion"], ""]
    lines += [
        "## Test split",
        "",
        "AP (COCO, IoU .50:.95), mean ± standard deviation over seeds; paired difference to the first row.",
        "",
    ]
    rows = [
        _cells(r["name"], r["mean"], r["std"], r["difference"], r["difference_std"], r["ap"])
        + (f"{r['cls']['weight']:g}", f"{r['box']['weight']:g}")
        for r in data["table"]
    ]
    lines += markdown_table(("losses", "AP", "difference", "each seed", "cls weight", "box weight"), rows)
    lines += [
        "",
        "The test split took no part in any selection; candidates were selected on the select split.",
        "",
    ]
    for row in data["table"]:
        if row["role"] == Role.DISCOVERED:
            lines += [f"### {row['name']}", ""]
            for which in ("cls", "box"):
                part = row[which]
                lines += [
                    f"- {which}, weight {part['weight']:g}: `{part['text']}`",
                    f"  - authors' notation: `{part['authors']}`",
                ]
                lines += [f"  - $ {part['latex']} $"]
            lines.append("")
    lines += ["## Funnel", "", "Candidates left after each stage.", ""]
    stages = list(data["funnel"][0]) if data["funnel"] else []
    lines += markdown_table(stages, [[str(row[stage]) for stage in stages] for row in data["funnel"]])
    for branch, hall in data["hall_of_fame"].items():
        lines += ["", f"## Hall of fame, {branch}", ""]
        error = hall["standard_error"]
        noise = f"standard error of each {error:.3f}, from the noise between seeds" if error else "noise unknown"
        default = f"the default losses reach {data['default_proxy_ap']:.3f}"
        lines += [f"AP on the select split after the proxy task, mean over seeds; {default}; {noise}."]
        lines += ["Losses that differ by less than the noise are in order of their size.", ""]
        cells = [
            (
                f"{f['ap']:.3f}",
                " ".join(f"{ap:.3f}" for ap in f["aps"]),
                " ".join(f"{ap:.3f}" for _, ap in f["curve"]),
                f"{f['overfit']:.3f}",
                f"{f['weight']:.3g}",
                str(f["generation"]),
                f"`{f['text']}`",
            )
            for f in hall["entries"]
        ]
        header = ("AP", "each seed", "curve", "AP, one image per category", "weight", "generation", "formula")
        lines += markdown_table(header, cells)
    lines += ["", "## How it was run", "", f"- seeding with hand-made losses: {data['seeding']}"]
    lines += [f"- loss scale: {data['scale']}", f"- device: {data['device']}", f"- seconds: {data['seconds']:.0f}"]
    lines += [f"- {name} {version}" for name, version in data["versions"].items()]
    lines += ["", "```json", json.dumps(data["config"], indent=2), "```"]
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, its cells escaped."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *escaped)]
