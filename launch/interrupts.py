"""Ctrl-C and terminations: heard wherever a script is, and obeyed within seconds."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_DEAF = frozenset({"_xla_gc_callback", "__del__"})  # Python prints an exception raised in these, and drops it
_IMPORTING = "<frozen importlib._bootstrap>"  # extension modules crash where an exception meets their initialisation
_AGAIN_SECONDS = 0.05
_GRACE_SECONDS = 1.5
_SHOW_CURSOR = "\x1b[?25h"  # which a progress display hides
_said = ""
_at_end: list[Callable[[], None]] = []


def hear() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt wherever it arrives, but for code that would drop it: there, right after.
    While a module is imported it ends the process at once.

    A termination, as a batch system or ``kill`` asks for it, is the same; it works where Ctrl-C is ignored, too.  A
    process that hasn't ended soon after, because it compiles or waits for its threads, is ended: whatever a script
    leaves on disk is made for an end at any moment.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGALRM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written to even while Python code can't run
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_end_late, args=(reader,), daemon=True).start()


def say(text: str) -> None:
    """Sets what an interruption says from now on."""
    global _said
    _said = text


@contextlib.contextmanager
def at_end(act: Callable[[], None]) -> Iterator[None]:
    """Has a function called if the process leaves within the context, even where no exception can reach it."""
    _at_end.append(act)
    try:
        yield
    finally:
        _at_end.remove(act)


def leave() -> NoReturn:
    """Says that the process was interrupted, and ends it with the exit status of an interruption, at once.

    Where the interruption met a compilation, jaxlib crashes in an orderly exit.  Everything that must be closed has
    been by the time the script's outermost handler runs.
    """
    for act in list(_at_end):
        with contextlib.suppress(Exception):
            act()
    cursor = _SHOW_CURSOR if sys.stdout.isatty() else ""
    print(f"{cursor}\nInterrupted. {_said}".rstrip())
    end(130)


def end(status: int) -> NoReturn:
    """Ends the process without waiting for its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _interrupt(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_name in _DEAF:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            return
        if frame.f_code.co_filename == _IMPORTING:
            leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end_late(reader: int) -> None:
    while os.read(reader, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
        pass
    time.sleep(_GRACE_SECONDS)
    leave()
