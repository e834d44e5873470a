"""Interruptions reach a script wherever they arrive, and end it."""

import pathlib
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
_INTERRUPTED_IN = {
    "a collection of garbage": """
def _xla_gc_callback(phase, info):
    interrupt()
gc.callbacks.append(_xla_gc_callback)
gc.collect()
gc.callbacks.clear()
""",
    "a finaliser": """
class Closing:
    def __del__(self):
        interrupt()
Closing()
""",
    "ordinary code": "interrupt()",
}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("where", _INTERRUPTED_IN)
def test_interruptions_are_heard(where, name):
    script = f"""
import gc, os, signal, sys, time
import interrupts

def interrupt():
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.01)

signal.signal(signal.SIGINT, signal.default_int_handler)
interrupts.hear()
try:
{_indented(_INTERRUPTED_IN[where])}
    time.sleep(10)
except KeyboardInterrupt:
    sys.exit(130)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=LAUNCH, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and "ignored" not in done.stderr, done.stderr


def test_a_process_interrupted_in_an_import_ends_at_once(tmp_path):
    (tmp_path / "caught.py").write_text("""
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True: pass
except KeyboardInterrupt:  # which compiled modules don't survive
    os.abort()
""")
    script = """
import signal, sys
import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupts.hear()
sys.path.append(sys.argv[1])
import caught
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=LAUNCH, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "\nInterrupted.\n", "")


def test_who_ignores_interruptions_goes_on_ignoring_them():
    script = """
import signal
import interrupts
signal.signal(signal.SIGINT, signal.SIG_IGN)
interrupts.hear()
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
"""
    subprocess.run([sys.executable, "-c", script], cwd=LAUNCH, check=True, timeout=60)


def test_a_process_that_does_not_end_is_ended():
    script = """
import os, signal, time
import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupts.hear()
interrupts.say("All is kept.")
try:
    os.kill(os.getpid(), signal.SIGINT)
finally:
    time.sleep(60)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], cwd=LAUNCH, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (130, "\nInterrupted. All is kept.\n", "")
    assert time.monotonic() - started < 10


def test_the_end_of_a_forked_process_is_its_own():
    script = """
import os, signal, time
import interrupts
interrupts.hear()
reader, writer = os.pipe()
child = os.fork()
if not child:
    os.write(writer, b"x")
    time.sleep(60)
os.read(reader, 1)
os.kill(child, signal.SIGTERM)
os.waitpid(child, 0)
time.sleep(3)
"""
    subprocess.run([sys.executable, "-c", script], cwd=LAUNCH, capture_output=True, check=True, timeout=50)


def _indented(text):
    return "\n".join("    " + line for line in text.splitlines())


def test_what_must_be_undone_is_where_the_process_cannot_hear(tmp_path):
    """The main thread waits in a lock with the signals' handlers out of reach, as code of an extension does."""
    undone = tmp_path / "undone"
    script = f"""
import os, pathlib, signal, threading
import interrupts

signal.signal(signal.SIGINT, signal.default_int_handler)
interrupts.hear()
interrupts._interrupt = signal.signal(signal.SIGINT, lambda *_: None)
with interrupts.at_end(lambda: 1 / 0), interrupts.at_end(pathlib.Path({str(undone)!r}).touch):
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(20)
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=LAUNCH, capture_output=True, text=True, timeout=30)
    assert found.returncode == 130 and undone.exists(), found.stderr
    script = "import interrupts\nwith interrupts.at_end(lambda: print('late')):\n    pass\ninterrupts.leave()\n"
    found = subprocess.run([sys.executable, "-c", script], cwd=LAUNCH, capture_output=True, text=True, timeout=30)
    assert found.returncode == 130 and "late" not in found.stdout
