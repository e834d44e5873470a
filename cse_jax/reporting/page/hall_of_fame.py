"""The best losses of each branch, with their formulas and how sure their scores are."""

from typing import Any

from cse_jax.reporting.final_table import shown
from cse_jax.reporting.page import formulas
from cse_jax.reporting.page.facts import Facts
from cse_jax.reporting.page.markup import Markup, escaped, part, table, tag

_SHOWN = 10


def section(facts: Facts) -> Markup:
    """The section of the halls of fame."""
    parts = []
    for branch, hall in facts.result["hall_of_fame"].items():
        parts += [tag("h3", branch), tag("p", about(facts, hall))]
        entries = hall["entries"][:_SHOWN]
        nodes = [len(facts.formula(branch, entry)) for entry in entries]
        cells = [
            [
                rank,
                _with_error(entry, hall),
                " ".join(f"{ap:.3f}" for ap in entry["aps"]),
                size,
                f"{entry['weight']:.3g}",
                shown(entry["overfit"], ".3f"),
                entry["generation"],
            ]
            for rank, (entry, size) in enumerate(zip(entries, nodes, strict=True), start=1)
        ]
        header = ["rank", "AP ± error", "each seed", "nodes", "weight", "AP, one image per category", "generation"]
        parts.append(table(f"Hall of fame, {branch}", header, cells))
        for rank, (entry, size) in enumerate(zip(entries, nodes, strict=True), start=1):
            heading = tag("h4", f"{rank}. AP {_with_error(entry, hall)}, {size} nodes")
            parts.append(tag("div", heading, formulas.shown(facts.formula(branch, entry)), class_="entry"))
    return part("Hall of fame", *(parts or [tag("p", "It is empty.")]), name="fame")


def about(facts: Facts, hall: dict[str, Any]) -> Markup:
    """What the scores of a hall of fame are, in a sentence."""
    error, default = hall["standard_error"], facts.default_ap(hall)
    noise = (
        f"the standard error of each is {error:.3f}, from the noise between seeds" if error else "the noise is unknown"
    )
    beside = "" if default is None else f"the default losses reach {default:.3f}; "
    return escaped(
        f"AP on the select split at the end of the proxy task, mean over seeds; {beside}{noise}. "
        "Among losses that differ by less than the noise, the shortest formula ranks first."
    )


def _with_error(entry: dict[str, Any], hall: dict[str, Any]) -> str:
    error = hall["standard_error"]
    return f"{entry['ap']:.3f}" + (f" ± {error:.3f}" if error else "")
