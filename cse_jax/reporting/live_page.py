"""The page of a search while it runs: written whole again and again, as seldom as costs next to nothing."""

import contextlib
import pathlib
import time
import traceback

from cse_jax.reporting import page
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.progress import PassedOn
from cse_jax.search.task import Task
from cse_jax.workdir import write_whole

ERROR_FILE = "page_error.txt"  # in the folder of the search
_PAUSE, _LONGEST = 10.0, 120.0  # seconds between two pages, at least and at most
_SHARE = 0.02  # of the time that pages may take, as far as the longest pause allows


class LivePage(PassedOn):
    """Tells a monitor everything and keeps the page in the folder up to date.  Use as a context manager.

    A page that cannot be written does not stop the search: the monitor's console says why, once.
    """

    def __init__(self, monitor: Monitor, folder: pathlib.Path, task: Task) -> None:
        """Args:
        monitor: is told everything, and says what the search does now.
        folder: of the search.
        task: of its detector.
        """
        super().__init__(monitor)
        self._monitor, self._folder, self._task = monitor, folder, task
        self._next, self._broken = 0.0, False

    def __enter__(self) -> "LivePage":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:  # otherwise the page of the result comes
            self.stopped()

    def stopped(self) -> None:
        """Says on the page that the search has stopped; any thread may."""
        self._write(running=False)

    def activity(self, what: str, number: int = 1, of: int = 1) -> None:
        super().activity(what, number, of)
        self._write(running=True)

    def _write(self, *, running: bool) -> None:
        """Writes the page if its time has come; at the end of the search, in any case."""
        started = time.monotonic()
        if self._broken or (running and started < self._next):
            return
        try:
            page.write(self._folder, self._task, running=True, status=self._monitor.status if running else "")
        except Exception as error:
            self._broken = True
            self._monitor.say(f"The page {page.NAME} is not written any more ({error}); the search goes on.")
            with contextlib.suppress(OSError):  # of a full disk, say, which the message names
                write_whole(self._folder / ERROR_FILE, traceback.format_exc())
                self._monitor.say(f"Where in the code is in {self._folder / ERROR_FILE}.")
        ended = time.monotonic()
        self._next = ended + min(max(_PAUSE, (ended - started) / _SHARE), _LONGEST)
