"""Lists the candidates of a search, and explains one of them.

    python launch/explore.py --workdir=runs/default
    python launch/explore.py --workdir=runs/default --branch=box --stage=probe --formula="tanh(?)" --at_least=probe=0.5
    python launch/explore.py --workdir=runs/default --reason="on one image per category" --max_nodes=12 --limit=50
    python launch/explore.py --workdir=runs/default --explain=box/0/17 --plot=loss.png
    python launch/explore.py --workdir=runs/default --branch=box --explain="1 - i / u"

A search may be running meanwhile.  Those that came furthest are listed first.
"""

import script

import pathlib
import re

from absl import flags

import recorded
from cse_jax.errors import InputError
from cse_jax.language import zoo
from cse_jax.language.expression import to_authors
from cse_jax.reporting import explanation, loss_plot
from cse_jax.reporting.page.facts import branches
from cse_jax.search.ledger_reader import RECORDED, SCORES, Filter, LedgerReader

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a search, finished or not.")
_BRANCH = flags.DEFINE_string("branch", None, "List candidates of this branch only.")
_STAGE = flags.DEFINE_enum("stage", None, RECORDED, "List candidates whose last stage passed is this.")
_REASON = flags.DEFINE_string("reason", "", "List candidates whose reason to go no further contains this.")
_FORMULA = flags.DEFINE_string("formula", "", "List candidates whose formula contains this; ? is any text.")
_NODES = flags.DEFINE_integer("max_nodes", None, "List formulas of no more nodes.", lower_bound=1, upper_bound=10_000)
_AT_LEAST = flags.DEFINE_list("at_least", [], f"Least scores, as in probe=0.5; of {', '.join(SCORES)}.")
_LIMIT = flags.DEFINE_integer("limit", 20, "How many to list.", lower_bound=1, upper_bound=10_000)
_EXPLAIN = flags.DEFINE_string("explain", None, "A candidate as it is listed, or a formula or known loss of --branch.")
_PLOT = flags.DEFINE_string("plot", None, "With --explain: a PNG of its value and gradient.")
_IDENTITY = re.compile(r"(?P<branch>[^/]+)/(?P<generation>\d+)/(?P<number>\d+)")


def main(argv: list[str]) -> None:
    script.start(argv)
    if _WORKDIR.value is None:
        raise InputError("--workdir names the folder of a search")
    if _PLOT.value is not None and _EXPLAIN.value is None:
        raise InputError("--plot shows a single loss: name it with --explain")
    folder = pathlib.Path(_WORKDIR.value)
    with (
        script.ending("The explorer", interrupted="Nothing was changed."),
        LedgerReader(folder / "ledger.sqlite") as ledger,
    ):
        if _EXPLAIN.value is None:
            _list(ledger)
        else:
            _explain(ledger, folder, _EXPLAIN.value)


def _list(ledger: LedgerReader) -> None:
    wanted = Filter(_BRANCH.value, _STAGE.value, _REASON.value, _FORMULA.value, _NODES.value, _least_scores())
    rows = ledger.candidates(wanted, limit=_LIMIT.value + 1)
    for row in rows[: _LIMIT.value]:
        scores = [f"{name} {row[name]:.4f}" for name in SCORES if row[name] is not None]
        print(", ".join([f"{explanation.identity(row)}: {row['stage']}", f"{row['nodes']} nodes", *scores]))
        print(f"    {row['formula']}")
        if row["reason"]:
            print(f"    {row['reason']}")
    if not rows:
        print("no candidate is like that")
    elif len(rows) > _LIMIT.value:
        print(f"There are more; --limit={2 * _LIMIT.value} lists further ones.")


def _least_scores() -> dict[str, float]:
    found = {}
    for text in _AT_LEAST.value:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise InputError(f"--at_least={text} is no score: write a name and a number, as in probe=0.5") from None
    return found


def _explain(ledger: LedgerReader, folder: pathlib.Path, wanted: str) -> None:
    task = recorded.task(folder)
    named = _IDENTITY.fullmatch(wanted)
    branch = named["branch"] if named else _BRANCH.value
    known = branches(task)
    if branch not in known:
        where = f"--explain={wanted}" if named else "a formula to explain needs --branch, which"
        raise InputError(f"{where} names no branch of this search; use {', '.join(map(repr, known))}")
    space = task.space(known[branch][0])
    if named:
        row = ledger.candidate(branch, place=(int(named["generation"]), int(named["number"])))
        if row is None:
            raise InputError(f"the ledger has no candidate {wanted}")
        formula = zoo.find(row["authors"], space)
    else:
        formula = zoo.find(wanted, space)
        row = ledger.candidate(branch, authors=to_authors(formula))
    weight = row["weight"] if row else 1.0
    print("\n".join(explanation.explain(formula, weight, row, units=task.box_units)))
    if _PLOT.value is not None:
        loss_plot.save(pathlib.Path(_PLOT.value), formula, weight, units=task.box_units)
        print(f"\nPlot: {_PLOT.value}")


if __name__ == "__main__":
    script.run(main)
