"""What ends a search before its last generation: a time, an AP that is good enough, or a person.

What has been found by then is compared as at the end of a whole search.
"""

import math
import time
from collections.abc import Callable, Sequence

from cse_jax.search.hall_of_fame import Entry


class Ends:
    """The ends of a search, and which of them has come."""

    def __init__(
        self, *, hours: float = math.inf, target: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """The time begins now.

        Args:
          hours: that the whole search may take from now on, its final comparison included.
          target: AP on the select split, mean over seeds at the end of the proxy task; the search needs no better loss.
          clock: seconds.
        """
        self.hours, self.target, self._clock, self._started = hours, target, clock, clock()
        self._deadline = math.inf  # of the branch that runs
        self._asked = self._reached = ""

    @property
    def come(self) -> str:
        """Why the branch that runs ends now; empty if it goes on."""
        late = f"the time is up ({self.hours:g} hours with the final comparison)"
        return self._asked or self._reached or (late if self._clock() >= self._deadline else "")

    def ask(self) -> None:
        """A person asks for the end; any thread may."""
        self._asked = "it was asked to end"

    def allot(self, branches: int, after: float) -> bool:
        """Gives the next branch its share of the time.

        Args:
          branches: how many are left, the next one among them.
          after: seconds that all else will take.

        Returns:
          Whether there is any time.
        """
        now = self._clock()
        left = self._started + 3600.0 * self.hours - after - now
        self._deadline = now + left / max(1, branches)
        return left > 0.0

    def found(self, branch: str, entries: Sequence[Entry]) -> None:
        """Hears of a hall of fame, whose first is not the one of the highest AP but the shortest of those like it."""
        best = max((entry.ap for entry in entries), default=-math.inf)
        if best >= self.target:
            self._reached = f"a {branch} loss has reached AP {best:.3f}, the target is {self.target:g}"
