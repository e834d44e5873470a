"""How many formulas each stage left, and why the others went no further."""

import itertools

from cse_jax.language.parsing import parse
from cse_jax.reporting.page.facts import Facts
from cse_jax.reporting.page.markup import Markup, folded, part, table, tag
from cse_jax.screening.candidate import STAGES

_REASONS = 25  # kinds of reasons that are shown


def section(facts: Facts) -> Markup:
    """The section of the funnel."""
    rows = facts.result["funnel"]
    if not rows:
        return part("Funnel", tag("p", "No generation has been screened yet."), name="funnel")
    tables = []
    for branch, of_branch in itertools.groupby(rows, key=lambda row: row["branch"]):
        generations = list(of_branch)
        header = ["stage passed", *(f"generation {row['generation']}" for row in generations)]
        cells = ([stage, *(f"{row[stage]:,}" for row in generations)] for stage in STAGES)
        tables.append(table(f"{branch}: candidates left after each stage", header, cells))
    return part("Funnel", *tables, _rejected(facts), _reasons(facts), _proposed(facts), name="funnel")


def _rejected(facts: Facts) -> Markup:
    """What random formulas failed first, before they were candidates."""
    names = list(dict.fromkeys(name for counts in facts.rejected.values() for name in counts))
    rows = ([name.replace("_", " "), *(f"{c.get(name, 0):,}" for c in facts.rejected.values())] for name in names)
    caption = "Formulas that fail the verification, by the first property that they lack"
    return folded("Properties that formulas lack", table(caption, ["property", *facts.rejected], rows))


def _proposed(facts: Facts) -> Markup | None:
    """What became of the formulas that people or programs proposed."""
    rows = [
        [tag("code", str(parse(text, facts.task.space(facts.parts[branch])))), branch, said]
        for branch, of_branch in facts.proposed.items()
        for text, said in of_branch.items()
    ]
    return table("Proposed formulas", ["formula", "branch", "what became of it"], rows) if rows else None


def _reasons(facts: Facts) -> Markup:
    shown = facts.reasons[:_REASONS]
    rows = [[kind, stage, branch, f"{count:,}"] for branch, stage, kind, count in shown]
    left = sum(reason.count for reason in facts.reasons[_REASONS:])
    if left:
        rows.append(["other reasons", "", "", f"{left:,}"])
    caption = "Why candidates went no further; n stands for any number"
    return folded("Reasons", table(caption, ["reason", "last stage passed", "branch", "candidates"], rows))
