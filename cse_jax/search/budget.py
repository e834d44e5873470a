"""How many trainings of each purpose are left at most, for the time left that people are shown."""

from collections.abc import Mapping

from cse_jax.search.progress import Progress
from cse_jax.search.trainer import Purpose

Trainings = Mapping[Purpose, int]


class Budget:
    """The trainings of a search by its parts; a part that is done leaves the budget, trained in full or not."""

    def __init__(self, parts: Mapping[str, Trainings], progress: Progress) -> None:
        """Tells the progress of all parts."""
        self._left, self._progress = dict(parts), progress
        self._tell()

    def done(self, *parts: str) -> None:
        """Parts have ended, or are not needed."""
        for part in parts:
            self._left.pop(part, None)
        self._tell()

    def _tell(self) -> None:
        total: dict[str, int] = {}
        for trainings in self._left.values():
            for purpose, count in trainings.items():
                total[purpose] = total.get(purpose, 0) + count
        self._progress.expect(total)
