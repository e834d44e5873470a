"""Interruptions reach the script wherever they arrive."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("where", _INTERRUPTED_IN)
def test_interruptions_are_heard(where):
    script = f"""
import gc, os, signal, sys, time
from cse_jax import workdir

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)

signal.signal(signal.SIGINT, signal.default_int_handler)
workdir.hear_interrupts()
try:
{_indented(_INTERRUPTED_IN[where])}
    time.sleep(10)
except KeyboardInterrupt:
    sys.exit(130)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and "ignored" not in done.stderr, done.stderr


def test_who_ignores_interruptions_goes_on_ignoring_them():
    script = """
import signal
from cse_jax import workdir
signal.signal(signal.SIGINT, signal.SIG_IGN)
workdir.hear_interrupts()
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def _indented(text):
    return "\n".join("    " + line for line in text.splitlines())
