"""Interruptions reach the script wherever they arrive, and small files are written whole."""

import os
import subprocess
import sys

import pytest

from cse_jax import workdir

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
from cse_jax import workdir

def interrupt():
    os.kill(os.getpid(), signal.{name})
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


def test_a_damaged_config_is_named_with_the_remedy(tmp_path):
    for content in (b"", b'{"a": 1', b"[]", b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(workdir.WorkdirError, match=r"config.json is damaged .*; remove it if"):
            workdir.check_same_config(tmp_path, {"a": 1})


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    workdir.write_whole(tmp_path / "a.json", "before")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        workdir.write_whole(tmp_path / "a.json", "after")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.json", "before\n")]
    with pytest.raises(workdir.WorkdirError, match="No space left on device; make room there"):
        workdir.write_description(tmp_path, {"config": {}, "versions": {}, "device": ""})


def test_a_folder_without_anything_written_is_removed_after_an_error(tmp_path):
    for name, written in (("empty", False), ("used", True)):
        with pytest.raises(ValueError, match="wrong"), workdir.opened(tmp_path / name) as folder:
            if written:
                (folder / "config.json").write_text("{}")
            raise ValueError("wrong")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def _indented(text):
    return "\n".join("    " + line for line in text.splitlines())
