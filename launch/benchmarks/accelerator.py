"""What a GPU or a TPU does: the other suites one after the other, cut to nine minutes.

Each runs in a process of its own, which has the device to itself, and is ended at its limit; what it has measured by
then counts. This process leaves the device alone, as a TPU admits only one.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.report import Report

_BENCHMARK = pathlib.Path(__file__).resolve().parents[1] / "benchmark.py"
_SECONDS = 540
_PARTS = {"simulation": 190, "screening": 120, "detectors": 160, "losses": 60}  # seconds of each, at most
_LAST_WORDS = 300  # characters of a suite's output that say why it failed


def measure(report: Report, *, size: str, rounds: int) -> None:
    """All tables of these suites, which share what they compile."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for suite, limit in _PARTS.items():
            left = _SECONDS - (time.monotonic() - started)
            ended = _suite(report, suite, size, rounds, min(limit, left), pathlib.Path(folder))
            report.note(f"Suite {suite}: {ended}.")


def _suite(report: Report, suite: str, size: str, rounds: int, limit: float, folder: pathlib.Path) -> str:
    """Runs one suite, takes over its figures, and says how it ended."""
    started, path = time.monotonic(), folder / f"{suite}.json"
    flags = [f"--suite={suite}", f"--size={size}", f"--rounds={rounds}", f"--json={path}"]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")} | os.environ
    with (folder / "output").open("w+") as output:
        command = [sys.executable, _BENCHMARK, *flags]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            code = process.wait(limit)
        except BaseException as error:  # Ctrl-C, too
            process.kill()
            code = process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        output.seek(0)
        said = output.read()
    found = json.loads(path.read_text()) if path.exists() else {"notes": [], "tables": {}}
    for text in found["notes"]:
        report.note(text)
    for title, rows in found["tables"].items():
        for row in rows:
            report.row(title, row)
    seconds = time.monotonic() - started
    if code == 0:
        return f"{seconds:.0f} s"
    if seconds >= limit:
        return f"ended at its limit of {limit:.0f} s"
    return f"failed after {seconds:.0f} s with exit status {code}: {said[-_LAST_WORDS:].strip()}"
