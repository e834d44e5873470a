"""Compares how fast searches find good losses, by kind; those of one name are one kind, and may differ in their seeds.

    python launch/compare_searches.py --searches='runs/algorithms_*'
    python launch/compare_searches.py --searches=runs/a_0,runs/a_1,runs/b_0,runs/b_1 --workdir=runs/a_and_b

Writes searches.md, searches.csv and searches.svg: the AP beyond the default losses of the best loss so far against the
losses trained, after how many losses each search had a good one, and what the test split says of its result.  Searches
that are not finished count as far as they are.  launch/report.py --compare shows a few searches in detail.
"""

import script

import glob
import pathlib

from absl import flags

import recorded
from cse_jax import workdir
from cse_jax.errors import InputError
from cse_jax.reporting import searches_report
from cse_jax.reporting.page import facts
from cse_jax.reporting.page.compare import differences_of_kind, setup_differences

_SEARCHES = flags.DEFINE_list("searches", None, "Folders of searches, or patterns of such, with commas between them.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/searches", "Folder for the files.")


def main(argv: list[str]) -> None:
    script.start(argv)
    if not _SEARCHES.value:
        raise InputError("--searches is missing; give it folders of searches")
    out = pathlib.Path(_WORKDIR.value)
    with script.ending("The comparison", interrupted="Nothing was written."):
        kinds: dict[str, list[searches_report.Curve]] = {}
        first, firsts = None, {}
        for folder in _folders(_SEARCHES.value):
            found = facts.read(folder, recorded.task(folder))
            first = first or found
            if differing := setup_differences(first, found):
                raise InputError(f"{first.folder} and {folder} differ in {differing[0]}: their APs can't be compared")
            of_kind = firsts.setdefault(found.name, found)
            if differing := differences_of_kind(of_kind, found):
                raise InputError(
                    f"{of_kind.folder} and {folder} have one name, {found.name}, and differ in {differing[0]}: "
                    "searches of one name are taken for one kind, so compare these apart"
                )
            kinds.setdefault(found.name, []).append(searches_report.curve(found))
        with workdir.opened(out):
            searches_report.write(out, kinds)
        print("\n".join(searches_report.markdown(kinds)))
        print(out / "searches.md")


def _folders(patterns: list[str]) -> list[pathlib.Path]:
    """The folders that the patterns name, each once.

    Raises:
      InputError: a pattern names none.
    """
    found: dict[pathlib.Path, None] = {}
    for pattern in patterns:
        folders = [path for path in map(pathlib.Path, sorted(glob.glob(pattern))) if path.is_dir()]
        if not folders:
            raise InputError(f"--searches: {pattern!r} names no folder")
        found |= dict.fromkeys(folders)
    return list(found)


if __name__ == "__main__":
    script.run(main)
