"""Where the best loss of each branch comes from: its parents, and theirs."""

from typing import Any

from cse_jax.language import zoo
from cse_jax.language.expression import to_authors
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import Space
from cse_jax.reporting.page.facts import Facts
from cse_jax.reporting.page.markup import Markup, part, tag

_WORDS = {
    "crossover": "a crossover of",
    "mutation": "a mutation of",
    "random": "a random formula",
    "proposed": "a proposal",
    "screened": "from an atlas",
}


def section(facts: Facts) -> Markup:
    """The section of the family trees."""
    parts = []
    for branch, hall in facts.result["hall_of_fame"].items():
        if hall["entries"] and not hall["control"]:
            parts += [tag("h3", branch), _tree(hall["entries"], facts.task.space(facts.parts[branch]))]
    about = tag(
        "p", "Formulas are cleaned up after they are bred, so a child may look less like its parents than it is."
    )
    return part("Family tree", *([about, *parts] if parts else [tag("p", "There is no loss yet.")]), name="family")


def _tree(entries: list[dict[str, Any]], space: Space) -> Markup:
    """The first entry with its ancestors as nested lists; of one that is met again, its parents are not."""
    by_formula = {entry["authors"]: entry for entry in entries}
    names = {to_authors(formula): name for name, formula in zoo.known(space).items()}
    seen: set[str] = set()

    def node(authors: str) -> Markup:
        entry = by_formula.get(authors)
        label = tag("code", names.get(authors) or str(parse(authors, space)))
        if entry is None:
            return tag("li", label, ", a known loss" if authors in names else "")
        figures = f": AP {entry['ap']:.3f}, generation {entry['generation']}"
        if authors in seen:
            return tag("li", label, figures, ", as above")
        seen.add(authors)
        kind, *parents = entry.get("origin") or [""]
        how = f", {_WORDS[kind]}" if kind else "; its parents were not recorded"
        below = tag("ul", *map(node, parents)) if parents else None
        return tag("li", label, figures, how, below)

    return tag("ul", node(entries[0]["authors"]), class_="tree")
