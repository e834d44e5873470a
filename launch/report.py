"""Makes the page of a search again, or a page that shows searches side by side.

    python launch/report.py --workdir=runs/default
    python launch/report.py --compare=runs/default,runs/atss --out=compare.html

The first writes report.html into the folder of a search, finished or not; with --pictures it also draws the test images
again, from the models of a finished one.  Pages are one file each, and open without a network.
"""

import script

import pathlib

from absl import flags

import pictures
import recorded
from cse_jax import workdir
from cse_jax.errors import InputError
from cse_jax.reporting import page

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a search, finished or not.")
_COMPARE = flags.DEFINE_list("compare", None, "Folders of searches to show side by side, with commas between them.")
_PICTURES = flags.DEFINE_bool("pictures", False, "With --workdir: draw the test images again, which reads the data.")
_OUT = flags.DEFINE_string("out", "compare.html", "File for --compare.")


def main(argv: list[str]) -> None:
    script.start(argv)
    if (_WORKDIR.value is None) == (_COMPARE.value is None):
        raise InputError("give either --workdir or --compare")
    with script.ending("The report", interrupted="Nothing was written."):
        if _WORKDIR.value is not None:
            _one(pathlib.Path(_WORKDIR.value))
        else:
            _compare([pathlib.Path(name) for name in _COMPARE.value or []])


def _one(folder: pathlib.Path) -> None:
    task = recorded.task(folder)
    if _PICTURES.value:
        result = workdir.read_result(folder)
        pictures.write(recorded.search_run(result["config"]), folder, result)
    print(page.write(folder, task))


def _compare(folders: list[pathlib.Path]) -> None:
    if len(folders) < 2:
        raise InputError(f"--compare={','.join(map(str, folders))} names fewer than two folders; name two or more")
    page.write_comparison(pathlib.Path(_OUT.value), [(folder, recorded.task(folder)) for folder in folders])
    print(_OUT.value)


if __name__ == "__main__":
    script.run(main)
