"""What a search leaves behind to be read: ``result.json``, ``report.md``, and the tables on the terminal."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from cse_jax.export import escaping
from cse_jax.reporting.final_table import (
    EXPLANATION,
    UNTOUCHED,
    loss_as_data,
    markdown_rows,
    markdown_table,
    number,
    pair_as_data,
    rows_as_data,
    shown,
    terminal_table,
)
from cse_jax.reporting.monitor import funnel_tables, hall_of_fame_table
from cse_jax.search.branch import Counts
from cse_jax.search.comparison import Role, prior_variance
from cse_jax.search.conclusion import conclusion, scope
from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.pipeline import SearchResult
from cse_jax.search.task import PARTS
from cse_jax.workdir import RESULT_FORMAT, write_whole


def result_dict(result: SearchResult, *, about: dict[str, Any]) -> dict[str, Any]:
    """The result as plain data; ``about`` holds config, versions, device and times."""
    return {
        "format": RESULT_FORMAT,
        "funnel": funnel_as_data({branch.name: branch.funnel for branch in result.branches}),
        "hall_of_fame": {
            branch.name: hall_as_data(
                branch.entries, branch.standard_error, branch.default_ap, control=branch.plan.control
            )
            for branch in result.branches
        },
        "default_proxy_ap": result.default_proxy_ap,
        "discovered": pair_as_data(result.discovered) if result.discovered else None,
        "prior_variance": number(prior_variance(result.branches, result.discovered, result.table[0].losses)),
        "table": rows_as_data(result.table),
        "conclusion": conclusion(result.table),
        "scope": scope(result.table, one_start=result.one_start),
        "ended": result.ended,
    } | about


def funnel_as_data(funnel: Mapping[str, Sequence[Counts]]) -> list[dict[str, Any]]:
    """The candidates left after each stage, a row per generation of each branch."""
    return [
        {"branch": branch, "generation": generation} | counts
        for branch, of_branch in funnel.items()
        for generation, counts in enumerate(of_branch)
    ]


def hall_as_data(
    entries: Sequence[Entry], standard_error: float, default_ap: float, *, control: bool
) -> dict[str, Any]:
    """A hall of fame, best first, how sure its APs are, and the default losses' with the same seeds."""
    return {
        "control": control,
        "standard_error": number(standard_error),
        "default_ap": number(default_ap),
        "entries": [_entry(entry) for entry in entries],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    scores = vars(entry) | {"ap": entry.ap}
    del scores["formula"]
    scores |= {stage: number(scores[stage]) for stage in ("simulation", "probe", "overfit")}  # of skipped filters
    return loss_as_data(entry.formula) | scores


def write_result(workdir: pathlib.Path, data: dict[str, Any]) -> None:
    """Writes ``result.json`` and ``report.md``, each complete or not at all."""
    for name, text in (("result.json", json.dumps(data, indent=2)), ("report.md", markdown(data))):
        write_whole(workdir / name, text)


def show(console: Console, result: SearchResult) -> None:
    """Prints the stage table, the halls of fame and the final comparison."""
    funnel = {(b.name, generation): counts for b in result.branches for generation, counts in enumerate(b.funnel)}
    for table in funnel_tables(funnel):
        console.print(table)
    for branch in result.branches:
        if branch.entries:
            console.print(hall_of_fame_table(branch.name, branch.entries))
    console.print(terminal_table(result.table))


def markdown(data: dict[str, Any]) -> str:
    """The report."""
    lines = [
        f"# Search {escaping.markdown(data['name'])}",
        "",
        escaping.markdown_name(data["conclusion"]),
        "",
        data["scope"],
        "",
    ]
    lines += [data["ended"], ""] if data["ended"] else []
    lines += ["## Test split", "", EXPLANATION, ""]
    lines += markdown_rows(data["table"])
    lines += ["", UNTOUCHED, ""]
    for row in data["table"]:
        if row["role"] == Role.DISCOVERED:
            lines += [f"### {escaping.markdown_name(row['name'])}", ""]
            for which in PARTS:
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
        default = "" if hall["default_ap"] is None else f"the default losses reach {hall['default_ap']:.3f}; "
        lines += [f"AP on the select split after the proxy task, mean over seeds; {default}{noise}."]
        lines += ["Losses that differ by less than the noise are in order of their size.", ""]
        cells = [
            (
                f"{f['ap']:.3f}",
                " ".join(f"{ap:.3f}" for ap in f["aps"]),
                " ".join(f"{ap:.3f}" for _, ap in f["curve"]),
                shown(f["overfit"], ".3f"),
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
