"""Keys that a script hears on its terminal."""

import os
import pty
import subprocess
import sys
import time

import pytest

LAUNCH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "launch")
_SCRIPT = f"""
import os, sys, termios, time
os.close(os.open(os.ttyname(0), os.O_RDWR))  # makes it the terminal of this session
sys.path.insert(0, {LAUNCH!r})
import keys
before = termios.tcgetattr(0)
pressed = []
with keys.heard("q", lambda: pressed.append(1)) as can:
    print("listening", can, flush=True)
    end = time.monotonic() + 20
    while not pressed and time.monotonic() < end:
        time.sleep(0.01)
print("pressed", len(pressed), "restored", termios.tcgetattr(0) == before, flush=True)
"""


def test_a_key_is_heard_and_the_terminal_is_left_as_it_was():
    terminal, other = pty.openpty()
    ends = dict(stdin=other, stdout=other, stderr=other)
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT], **ends, start_new_session=True)
    os.close(other)
    said = b""
    while b"listening True" not in said:
        said += os.read(terminal, 1000)
    os.write(terminal, b"xq")
    with pytest.raises(OSError):
        while True:
            said += os.read(terminal, 1000)
    os.close(terminal)
    assert process.wait(60) == 0 and b"pressed 1 restored True" in said, said


def test_without_a_terminal_nothing_is_heard(monkeypatch):
    import keys

    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with keys.heard("q", time.sleep) as can:
            assert not can
    monkeypatch.setattr(sys, "stdin", None)
    with keys.heard("q", time.sleep) as can:
        assert not can
