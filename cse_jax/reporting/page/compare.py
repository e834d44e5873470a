"""Searches side by side."""

from collections.abc import Iterable, Sequence

from cse_jax import workdir
from cse_jax.reporting.final_table import cells_of
from cse_jax.reporting.page.facts import Facts
from cse_jax.reporting.page.markup import Markup, joined, part, table, tag
from cse_jax.search.comparison import Role
from cse_jax.search.task import PARTS

_SETUP = ("detector", "data", "train", "schedule", "weights")  # fields of a config that change what an AP means


def sections(searches: Sequence[Facts]) -> Markup:
    """What searches found and how they differ: the parts of a page.

    Args:
      searches: two or more.
    """
    names = [str(facts.folder) for facts in searches]
    first, *others = searches
    changed = {str(facts.folder): _differences(first, facts) for facts in others}
    return joined(
        [
            part(
                "What they found",
                _warning(changed),
                table("Searches", ["", *names], _rows(searches)),
                name="found",
            ),
            part("Final tables", *(_final_table(facts) for facts in searches), name="tables"),
            part("Settings that differ", *_settings(names[0], changed), name="settings"),
        ]
    )


def setup_differences(one: Facts, other: Facts) -> list[str]:
    """The fields of two searches' configs that differ and change what an AP means, with both values."""
    return _of_setup(_differences(one, other))


def differences_of_kind(one: Facts, other: Facts) -> list[str]:
    """The fields of two searches' configs that differ and change what is found, but for the seed, with both values."""
    lines = _differences(one, other, "search.seed", "search.workers", "search.time_limit")
    return [line for line in lines if not line.startswith("config.search.final.")]


def _differences(one: Facts, other: Facts, *free: str) -> list[str]:
    return workdir.differences(one.result["config"], other.result["config"], free={"name", *free})


def _of_setup(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.split(".")[1].split(":")[0] in _SETUP]


def _warning(changed: dict[str, list[str]]) -> Markup | None:
    if not any(map(_of_setup, changed.values())):
        return None
    return tag(
        "p",
        "These searches differ in detector, data or training, so that an AP of one cannot be compared with that of "
        "another; each difference to its own default can.",
        class_="verdict",
    )


def _rows(searches: Sequence[Facts]) -> list[list[object]]:
    rows: list[list[object]] = [["verdict", *(tag("p", _verdict(facts)) for facts in searches)]]
    for loss in PARTS:
        rows.append([f"{loss} loss", *(_formula(facts, loss) for facts in searches)])
    for name, role in (("default losses, test AP", Role.DEFAULT), ("discovered pair, test AP", Role.DISCOVERED)):
        rows.append([name, *(_cell(facts, role, 1) for facts in searches)])
    rows.append(["discovered less default", *(_cell(facts, Role.DEFAULT, 2) for facts in searches)])
    rows.append(["its 95 % interval", *(_cell(facts, Role.DEFAULT, 3) for facts in searches)])
    rows.append(["formulas generated", *(f"{_generated(facts):,}" for facts in searches)])
    rows.append(["losses at the end of the proxy task", *(_at_the_end(facts) for facts in searches)])
    rows.append(["minutes of training before the final table", *(_minutes(facts) for facts in searches)])
    rows.append(["device", *(facts.result.get("device", "") for facts in searches)])
    return rows


def _verdict(facts: Facts) -> str:
    return facts.result["conclusion"] if facts.finished else "It has not come to its end."


def _formula(facts: Facts, loss: str) -> object:
    pair = facts.result.get("discovered")
    return tag("code", f"{pair[loss]['weight']:g} * ({pair[loss]['text']})") if pair else ""


def _cell(facts: Facts, role: Role, column: int) -> str:
    """A cell of the last row of this role in the final table; empty if there is none."""
    rows = [row for row in facts.result["table"] if row["role"] == role]
    return cells_of(rows[-1])[column] if rows else ""


def _generated(facts: Facts) -> int:
    return sum(row["generated"] for row in facts.result["funnel"])


def _at_the_end(facts: Facts) -> int:
    return sum(row["proxy"] for row in facts.result["funnel"])


def _minutes(facts: Facts) -> str:
    return f"{max((loss.minutes for loss in facts.trained), default=0.0):.1f}"


def _final_table(facts: Facts) -> Markup:
    header = ["losses", "AP", "difference", "95 % interval", "verdict"]
    rows = (cells_of(row)[: len(header)] for row in facts.result["table"])
    return table(f"{facts.folder}: test split, difference of the last row to each", header, rows)


def _settings(first: str, changed: dict[str, list[str]]) -> list[Markup]:
    found = []
    for name, lines in changed.items():
        items = [tag("li", tag("code", line)) for line in lines] or [tag("li", "none")]
        found += [tag("h3", f"{first} -> {name}"), tag("ul", *items)]
    return found
