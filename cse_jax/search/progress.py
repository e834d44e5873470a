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
