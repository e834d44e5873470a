"""What a search found, in a sentence with its interval, and the pair of losses itself."""

from cse_jax.language.parsing import parse
from cse_jax.reporting.page import formulas
from cse_jax.reporting.page.facts import Facts
from cse_jax.reporting.page.markup import Markup, part, tag
from cse_jax.search.task import PARTS


def section(facts: Facts) -> Markup:
    """The first section."""
    if facts.finished:
        said = [tag("p", facts.result["conclusion"], class_="verdict"), tag("p", facts.result["scope"])]
        if ended := facts.result.get("ended"):
            said.append(tag("p", ended))
        return part("Verdict", *said, *_pair(facts), name="verdict")
    state = "is running" if facts.status else "has not come to its end"
    lines = [tag("p", f"This search {state}; there is no verdict yet.", class_="verdict")]
    if facts.status:
        lines.append(tag("p", facts.status))
    for branch, hall in facts.result["hall_of_fame"].items():
        best = hall["entries"][0]
        lines.append(
            tag("p", f"Best so far, {branch}: AP {best['ap']:.3f} on the proxy task, ", tag("code", best["text"]))
        )
    return part("Verdict", *lines, name="verdict")


def _pair(facts: Facts) -> list[Markup]:
    pair = facts.result["discovered"]
    if pair is None:
        return []
    found = [tag("h3", "The discovered pair")]
    for name in PARTS:
        loss = pair[name]
        heading = tag("h4", f"{name} loss, weight {loss['weight']:g}")
        formula = formulas.shown(parse(loss["authors"], facts.task.space(name)))
        found.append(tag("div", heading, formula, class_="entry"))
    return found
