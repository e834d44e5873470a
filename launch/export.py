"""Writes a loss down: as a formula, in mathematical notation, or as code for other programs.

    python launch/export.py --workdir=runs/default --rank=1
    python launch/export.py --workdir=runs/default --space=box --format=pytorch > box_loss.py
    python launch/export.py --workdir=runs/default --space=box --out=box_loss
    python launch/export.py --formula="1 - i / u" --space=box --format=latex

With --out, one loss becomes a folder to hand on: all formats, what speaks for it, a plot and a test.

A formula is simplified where value and gradient stay the same; the standard error says what was done.
"""

import script

import json
import pathlib
import sys

from absl import flags

from cse_jax import export
from cse_jax.errors import InputError
from cse_jax.language import spaces, zoo
from cse_jax.reporting import loss_package
from cse_jax.search.ledger_reader import read_hall_of_fame
from cse_jax.workdir import read_result

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a search, finished or not.")
_RANK = flags.DEFINE_integer("rank", 1, "Place in the hall of fame of each branch.", lower_bound=1, upper_bound=10_000)
_FORMULA = flags.DEFINE_string("formula", None, "A formula, or the name of a known loss, instead of --workdir.")
_SPACE = flags.DEFINE_string(
    "space",
    None,
    f"The formula's search space: {', '.join(spaces.SPACES)}, or a Python file that defines SPACE.  With --workdir, "
    "the branch.",
)
_FORMAT = flags.DEFINE_enum("format", "all", ["all", *export.FORMATS], "What to print.")
_SIMPLIFY = flags.DEFINE_bool("simplify", True, "Look for a simpler form of the same loss.")
_OUT = flags.DEFINE_string("out", None, "A new folder for the loss in all formats, with its evidence and a test.")
_SHORT = ("text", "authors", "latex")


def main(argv: list[str]) -> None:
    script.start(argv)
    if (_WORKDIR.value is None) == (_FORMULA.value is None):
        raise InputError("give either --workdir or --formula")
    if _OUT.value is not None and (_WORKDIR.value is None or _FORMAT.value != "all"):
        raise InputError("--out writes all formats of a loss of --workdir: leave --format and --formula out")
    left = f"What {_OUT.value} holds is incomplete: delete it." if _OUT.value else "Nothing was written."
    with script.ending("The export", interrupted=left):
        if _FORMULA.value is not None:
            if _SPACE.value is None:
                raise InputError(f"--formula needs --space: one of {', '.join(spaces.SPACES)}, or a Python file")
            space = spaces.find(_SPACE.value)
            name = f"{_FORMULA.value}: " if _FORMULA.value in zoo.known(space) else ""
            title = f"{name}a loss for object detection."
            _show(zoo.find(_FORMULA.value, space), title=title[0].upper() + title[1:])
        else:
            _show_hall_of_fame(pathlib.Path(_WORKDIR.value))


def _show_hall_of_fame(workdir: pathlib.Path) -> None:
    """The losses at the wanted rank of each branch."""
    members = read_hall_of_fame(workdir / "ledger.sqlite")
    own = spaces.find(_SPACE.value) if _SPACE.value else None  # a file is run only if the user names it
    known = {own.name: own} if own else spaces.SPACES
    branches = [branch for branch in members if branch in known]
    if not branches:
        what = f"no candidate of {workdir}" + (f" in space {_SPACE.value}" if _SPACE.value else "")
        raise InputError(f"{what} has finished the proxy task yet; continue the search")
    if len(branches) > 1 and _OUT.value is not None:
        raise InputError(f"--out is for one loss: choose --space={' or --space='.join(branches)}")
    if len(branches) > 1 and _FORMAT.value not in ("all", *_SHORT):
        raise InputError(f"--format={_FORMAT.value} writes one file: choose --space={' or --space='.join(branches)}")
    detector = _detector(workdir)
    for branch in branches:
        if _RANK.value > len(members[branch]):
            raise InputError(
                f"the hall of fame of {branch} has {len(members[branch])} members; --rank={_RANK.value} is beyond"
            )
        row = members[branch][_RANK.value - 1]
        part = "box" if branch == spaces.BOX.name else "cls"
        scores = f"AP {row['proxy']:.4f} on the proxy task, generation {row['generation']}"
        weight, about = row["weight"], {}
        if detector is None:
            what = "no known detector: units and the box loss's usual weight, a factor on the weight, are not known"
            print(f"{workdir / 'config.json'} tells {what}", file=sys.stderr)
        else:
            usual = detector.box_weight if part == "box" else 1.0
            weight = float(f"{weight * usual:.6g}")
            if usual != 1.0:
                scores += f", weight {row['weight']:g} times the usual {usual:g} of {detector.__name__}"
            about = {"units": detector.box_units, "normaliser": detector.normalisers[part]}
        print(f"{branch}, rank {_RANK.value}: {scores}, weight {weight:g}", file=sys.stderr)
        about |= {"title": "A discovered loss for object detection.", "weight": weight}
        about["provenance"] = f"rank {_RANK.value} of the {branch} branch of the search in {workdir}: {scores}."
        formula = zoo.find(row["authors"], known[branch])
        if _OUT.value is None:
            _show(formula, **about)
        else:
            loss = export.prepare(formula, simplified=_SIMPLIFY.value, **about)
            result = read_result(workdir) if (workdir / "result.json").is_file() else None
            units = about.get("units", known[branch].units[0])
            for path in loss_package.write(pathlib.Path(_OUT.value), loss, row, result, units=units):
                print(path)


def _detector(workdir: pathlib.Path):
    """The detector class of a search; none if its config is of another version or a script of one's own."""
    import recorded
    from detectors.models import DETECTORS

    try:
        config = recorded.search_run(json.loads((workdir / "config.json").read_text()))
    except (InputError, OSError, ValueError):
        return None
    return DETECTORS.get(type(config.detector))


def _show(expression, **about) -> None:
    loss = export.prepare(expression, simplified=_SIMPLIFY.value, **about)
    print(f"form: {loss.note}", *loss.usage, sep="\n", file=sys.stderr)
    if _FORMAT.value != "all":
        print(export.FORMATS[_FORMAT.value](loss))
        return
    for name in _SHORT:
        print(f"  {name + ':':9}{export.FORMATS[name](loss)}")


if __name__ == "__main__":
    script.run(main)
