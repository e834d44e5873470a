"""A search as a page: one file that opens anywhere, without a network, and is written anew while the search runs.

``facts`` gathers what is known, the sections have one file each, ``chart`` and ``sweeps`` make the figures, and all
texts go through ``markup``.
"""

import importlib.resources
import pathlib
from collections.abc import Sequence

from cse_jax.reporting.page import (
    behaviour,
    compare,
    family_tree,
    final_table,
    front,
    funnel,
    hall_of_fame,
    pictures,
    progress,
    provenance,
    summary,
)
from cse_jax.reporting.page.facts import Facts, read
from cse_jax.reporting.page.markup import Markup, joined, tag
from cse_jax.search.task import Task
from cse_jax.workdir import write_whole

NAME = "report.html"
REFRESH_SECONDS = 15  # of a page of a search that runs
_SECTIONS = {
    "verdict": ("Verdict", summary),
    "table": ("Test split", final_table),
    "fame": ("Hall of fame", hall_of_fame),
    "front": ("Accuracy against simplicity", front),
    "pictures": ("On test images", pictures),
    "trained": ("What was trained", progress),
    "family": ("Family tree", family_tree),
    "behaviour": ("What the losses do", behaviour),
    "funnel": ("Funnel", funnel),
    "run": ("How it was run", provenance),
}


def write(folder: pathlib.Path, task: Task, *, running: bool = False, status: str = "") -> pathlib.Path:
    """Writes ``report.html`` into the folder of a search, complete or not at all; its path.

    Args:
      folder: of the search, finished or not.
      task: of its detector.
      running: whether the search is in progress.
      status: what it does now; such a page loads itself again.

    Raises:
      LedgerError: there is no ledger, or none that this version reads.
      WorkdirError: a file of the folder is damaged.
    """
    write_whole(folder / NAME, page(read(folder, task, running=running, status=status)))
    return folder / NAME


def write_comparison(file: pathlib.Path, searches: Sequence[tuple[pathlib.Path, Task]]) -> None:
    """Writes a page that shows searches side by side, complete or not at all.

    Args:
      file: to write.
      searches: the folder of each, finished or not, and the task of its detector.

    Raises:
      LedgerError, WorkdirError: as of ``write``.
    """
    facts = [read(folder, task) for folder, task in searches]
    write_whole(file, document("Searches side by side", compare.sections(facts), note=f"As of {facts[0].written}."))


def page(facts: Facts) -> Markup:
    """The page of a search."""
    links = (tag("li", tag("a", heading, href=f"#{name}")) for name, (heading, _) in _SECTIONS.items())
    return document(
        f"Search {facts.name}",
        tag("nav", tag("ul", *links), aria_label="Sections"),
        *(module.section(facts) for _, module in _SECTIONS.values()),
        note=f"As of {facts.written}.",
        refresh=bool(facts.status),
    )


def document(title: str, *parts: object, note: str, refresh: bool = False) -> Markup:
    """A whole page.

    Args:
      title: its heading.
      *parts: what it holds.
      note: below the heading.
      refresh: whether it loads itself again.
    """
    style = importlib.resources.files(__name__).joinpath("style.css").read_text()
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="refresh", content=str(REFRESH_SECONDS)) if refresh else None,
        tag("title", title),
        tag("style", Markup(style)),
    )
    skip = tag("a", "Skip to the content", href="#main", class_="skip")
    heading = tag("header", tag("h1", title), tag("p", note, class_="note"))
    body = tag("body", skip, heading, tag("main", *parts, id="main"))
    return joined([Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en")])
