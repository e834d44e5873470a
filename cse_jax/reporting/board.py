"""Figures of a search for TensorBoard."""

import pathlib
from collections.abc import Mapping, Sequence

from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.progress import PassedOn, Progress
from cse_jax.workdir import open_board


class Board(PassedOn):
    """Writes each finished generation, as its step, and passes everything on.

    A search that resumes tells of its finished generations again, so they are written again.  Use as a context manager.
    """

    def __init__(self, progress: Progress, folder: pathlib.Path) -> None:
        """Args:
        progress: hears everything.
        folder: of the search.

        Raises:
          MissingPackageError: tensorboardX is not installed.
        """
        super().__init__(progress)
        self._board = open_board(folder, anew=True)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()

    def generation_done(
        self, branch: str, generation: int, counts: Mapping[str, int], hall_of_fame: Sequence[Entry]
    ) -> None:
        super().generation_done(branch, generation, counts, hall_of_fame)
        figures: dict[str, float] = {f"passed {stage}": count for stage, count in counts.items()}
        if hall_of_fame:
            first = hall_of_fame[0]
            figures |= {"AP of the first": first.ap, "nodes of the first": len(first.formula)}
            figures["highest AP"] = max(entry.ap for entry in hall_of_fame)
        for name, value in figures.items():
            self._board.add_scalar(f"{branch}/{name}", value, generation)
        self._board.flush()
