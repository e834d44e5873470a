"""Figures of a search for TensorBoard."""

import pathlib
from collections.abc import Mapping, Sequence

from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.progress import Progress
from cse_jax.workdir import open_board


class Board:
    """A ``Progress`` that writes each finished generation, as its step, and passes everything on.

    A search that resumes tells of its finished generations again, so they are written again.  Use as a context manager.
    """

    def __init__(self, progress: Progress, folder: pathlib.Path) -> None:
        """Args:
        progress: hears everything.
        folder: of the search.

        Raises:
          MissingPackageError: tensorboardX is not installed.
        """
        self._progress, self._board = progress, open_board(folder, anew=True)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()

    def expect(self, trainings: Mapping[str, int]) -> None:
        self._progress.expect(trainings)

    def activity(self, what: str, number: int = 1, of: int = 1) -> None:
        self._progress.activity(what, number, of)

    def trained(self, purpose: str, seconds: float) -> None:
        self._progress.trained(purpose, seconds)

    def counts(self, branch: str, generation: int, counts: Mapping[str, int]) -> None:
        self._progress.counts(branch, generation, counts)

    def say(self, line: str) -> None:
        self._progress.say(line)

    def generation_done(
        self, branch: str, generation: int, counts: Mapping[str, int], hall_of_fame: Sequence[Entry]
    ) -> None:
        self._progress.generation_done(branch, generation, counts, hall_of_fame)
        figures: dict[str, float] = {f"passed {stage}": count for stage, count in counts.items()}
        if hall_of_fame:
            first = hall_of_fame[0]
            figures |= {"AP of the first": first.ap, "nodes of the first": len(first.formula)}
            figures["highest AP"] = max(entry.ap for entry in hall_of_fame)
        for name, value in figures.items():
            self._board.add_scalar(f"{branch}/{name}", value, generation)
        self._board.flush()
