"""Runs the scripts of ``launch/``: in this process where that is enough, else as processes of their own."""

import script

import contextlib
import io
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from absl import flags

_SCRIPT = "<run_path>"  # what absl calls a script that is run here
ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(name: str, *arguments: str, data_dir: pathlib.Path | str = "/nonexistent") -> tuple[int, str]:
    """Runs ``launch/<name>.py`` with these arguments in this process; its exit code and all that it printed."""
    output = io.StringIO()
    argv = [f"launch/{name}.py", *map(str, arguments)]
    printed = contextlib.redirect_stdout(output), contextlib.redirect_stderr(output)
    with printed[0], printed[1], _own_flags(), _as_from_root(argv, data_dir):
        code = _main(name)
    return code, output.getvalue()


def read_flags(name: str, *arguments: str) -> None:
    """Has ``launch/<name>.py`` read its flags and its config, and do nothing else.

    Raises:
      flags.Error, InputError: there is no such flag, field or value.
    """
    argv = [f"launch/{name}.py", *arguments]
    with _own_flags(), _as_from_root(argv, "/nonexistent"):
        runpy.run_path(str(ROOT / "launch" / f"{name}.py"))
        script.read_flags(argv)


def functions(name: str) -> dict[str, Any]:
    """The functions of ``launch/<name>.py``, by name; its flags are forgotten."""
    with _own_flags():
        return runpy.run_path(str(ROOT / "launch" / f"{name}.py"))


@contextlib.contextmanager
def own_flags(name: str) -> Iterator[list[flags.Flag]]:
    """The flags that ``launch/<name>.py`` defines, but for ``--config``."""
    with _own_flags():
        runpy.run_path(str(ROOT / "launch" / f"{name}.py"))
        own = [flag for flag in flags.FLAGS if flags.FLAGS.find_module_defining_flag(flag) == _SCRIPT]
        yield [flags.FLAGS[flag] for flag in own]


def _main(name: str) -> int:
    """What ``script.run`` does with a main function, but for the end of the process."""
    try:
        with script.ending(f"{name}.py"):
            main = runpy.run_path(str(ROOT / "launch" / f"{name}.py"))["main"]
            main(script.read_flags(sys.argv))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code)
            return 1
        return end.code or 0
    return 0


def run_on_devices(count: int, code: str) -> None:
    """Runs code in a process with so many simulated devices, where it finds the tests' modules."""
    environment = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'launch'}:{ROOT / 'tests'}",
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def _own_flags() -> Iterator[None]:
    """Lets a script define and parse its flags, and forgets them; those of libraries that it imports stay."""
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - before:
            if flags.FLAGS.find_module_defining_flag(name) == _SCRIPT or name.startswith("config"):
                delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


@contextlib.contextmanager
def _as_from_root(argv: list[str], data_dir: pathlib.Path | str) -> Iterator[None]:
    """The working folder, paths and environment of a script that a user runs."""
    environment, path, folder, before = dict(os.environ), list(sys.path), os.getcwd(), sys.argv
    sys.argv = argv  # where ml_collections looks for overrides
    os.environ["CSE_JAX_DATA_DIR"] = str(data_dir)
    sys.path.insert(0, str(ROOT / "launch"))
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path[:], sys.argv = path, before
        os.environ.clear()
        os.environ.update(environment)


class Script(subprocess.Popen[str]):
    """A script's process; it never waits for a reader of what it prints."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self._printed = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in finish)
        super().__init__(command, stdout=self._printed, stderr=subprocess.STDOUT, text=True, **options)

    def said(self) -> str:
        """All that it has printed so far."""
        file = self._printed.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode()  # which leaves the process its place in the file

    def finish(self, timeout: float = 240.0) -> tuple[int, str]:
        """Waits for its end; the exit code and what it printed."""
        with self, self._printed:
            self.wait(timeout)
            return self.returncode, self.said()


def start(name: str, *arguments: str, data_dir: pathlib.Path | str = "/nonexistent") -> Script:
    """Starts a script as a process that hears interrupts, for tests that end it."""
    environment = os.environ | {"CSE_JAX_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, f"launch/{name}.py", *map(str, arguments)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    try:
        return Script(command, cwd=ROOT, env=environment, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)
