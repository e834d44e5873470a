"""What a search tells of itself while it runs; ``cse_jax.reporting.monitor`` shows it."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from cse_jax.search.hall_of_fame import Entry


@runtime_checkable
class Progress(Protocol):
    """Listens to a search."""

    def expect(self, trainings: Mapping[str, int]) -> None:
        """How many trainings of each purpose are left at most."""
        ...

    def activity(self, what: str, number: int = 1, of: int = 1) -> None:
        """What runs now, and its place in a series."""
        ...

    def trained(self, purpose: str, seconds: float) -> None:
        """A training has ended; its share of the time if several run at once."""
        ...

    def counts(self, branch: str, generation: int, counts: Mapping[str, int]) -> None:
        """How many candidates of a generation have passed each stage so far."""
        ...

    def say(self, line: str) -> None:
        """Something that a person should read."""
        ...

    def generation_done(
        self, branch: str, generation: int, counts: Mapping[str, int], hall_of_fame: Sequence[Entry]
    ) -> None:
        """A generation has ended."""
        ...


class PassedOn:
    """A ``Progress`` that passes everything on to another, to begin from for one that does more."""

    def __init__(self, progress: Progress) -> None:
        """``progress`` hears everything."""
        self._progress = progress

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
