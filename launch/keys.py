"""Single keys on a terminal, heard while a script runs."""

import script  # noqa: F401

import contextlib
import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator

import interrupts

_PAUSE = 0.2  # seconds between looks at whether to stop listening


@contextlib.contextmanager
def heard(key: str, act: Callable[[], None]) -> Iterator[bool]:
    """Calls a function whenever a key is pressed; yields whether keys can be heard, as in a terminal's foreground."""
    if not _in_foreground():
        yield False
        return
    keyboard, done = sys.stdin.fileno(), threading.Event()
    before = termios.tcgetattr(keyboard)

    def restore() -> None:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)

    def listen() -> None:
        while not done.is_set():
            if select.select([keyboard], [], [], _PAUSE)[0] and os.read(keyboard, 1) == key.encode():
                act()

    listener = threading.Thread(target=listen, daemon=True)
    with interrupts.at_end(restore):
        tty.setcbreak(keyboard)  # keys come one by one, and Ctrl-C stays Ctrl-C
        listener.start()
        try:
            yield True
        finally:
            done.set()
            listener.join()
            restore()


def _in_foreground() -> bool:
    """Whether this process may read a terminal's keys; one in the background is stopped when it tries."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):  # there is no standard input
        return False
