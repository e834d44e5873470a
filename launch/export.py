"""Prints a discovered loss as text, LaTeX and the authors' notation.

python launch/export.py --workdir=runs/default --rank=1
python launch/export.py --formula="1 - i / u" --space=box --format=latex
"""

import pathlib
import sys

from absl import app, flags

from cse_jax import zoo
from cse_jax.export import FORMATS
from cse_jax.expression import Expression
from cse_jax.ledger import LedgerError, read_fame
from cse_jax.parsing import FormulaError
from cse_jax.spaces import SPACES

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a search, finished or not.")
_RANK = flags.DEFINE_integer("rank", 1, "Place in the hall of fame of each branch.", lower_bound=1)
_FORMULA = flags.DEFINE_string("formula", None, "A formula, or the name of a known loss, instead of --workdir.")
_SPACE = flags.DEFINE_enum("space", None, list(SPACES), "The formula's search space; with --workdir, the branch.")
_FORMAT = flags.DEFINE_enum("format", "all", ["all", *FORMATS], "What to print.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags begin with --")
    if (_WORKDIR.value is None) == (_FORMULA.value is None):
        raise app.UsageError("give either --workdir or --formula")
    try:
        if _FORMULA.value is not None:
            if _SPACE.value is None:
                raise app.UsageError(f"--formula needs --space: one of {', '.join(SPACES)}")
            _show(zoo.find(_FORMULA.value, SPACES[_SPACE.value]))
        else:
            _show_fame(pathlib.Path(_WORKDIR.value))
    except (FormulaError, LedgerError) as error:
        sys.exit(str(error))


def _show_fame(workdir: pathlib.Path) -> None:
    """The losses at the wanted rank of each branch."""
    members = read_fame(workdir / "ledger.sqlite")
    branches = [branch for branch in members if _SPACE.value in (None, branch)]
    if not branches:
        sys.exit(f"no candidate of {workdir} has finished the proxy task yet; go on with the search")
    for branch in branches:
        if _RANK.value > len(members[branch]):
            sys.exit(f"the hall of fame of {branch} has {len(members[branch])} members; --rank={_RANK.value} is beyond")
        row = members[branch][_RANK.value - 1]
        scores = f"AP {row['proxy']:.4f}, weight {row['weight']:g}, generation {row['generation']}"
        print(f"{branch}, rank {_RANK.value}: {scores}")
        _show(zoo.find(row["authors"], SPACES[branch]))


def _show(expression: Expression) -> None:
    chosen = FORMATS if _FORMAT.value == "all" else {_FORMAT.value: FORMATS[_FORMAT.value]}
    for name, to_format in chosen.items():
        print(f"  {name + ':':9}{to_format(expression)}" if len(chosen) > 1 else to_format(expression))


if __name__ == "__main__":
    app.run(main)
