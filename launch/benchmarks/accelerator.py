"""What a GPU or a TPU does: the other suites one after the other, cut to nine minutes.

Each runs in a process of its own, which has the device to itself, and is ended at its limit; what it has measured by
then counts, and what it has not is listed. This process leaves the device alone, as a TPU admits only one.
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
_PARTS = {"simulation": 150, "screening": 100, "losses": 85, "input": 35, "detectors": 150}  # seconds; 20 to start
_MISSING = "Not measured"
_LAST_WORDS = 300  # characters of a suite's output that say why it failed


def measure(report: Report, *, size: str, rounds: int) -> None:
    """All tables of these suites, which share what they compile; then what they lack.

    Seconds that a suite leaves are for those after it.
    """
    limit, missing = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for suite, seconds in _PARTS.items():
            limit += seconds
            ended, lacks = _suite(report, suite, size, rounds, limit - time.monotonic(), pathlib.Path(folder))
            report.note(f"Suite {suite}: {ended}.")
            missing += [{"table": table, "rows": rows, "why": f"suite {suite}: {ended}"} for table, rows in lacks]
    for row in missing:
        report.row(_MISSING, row)


def _suite(
    report: Report, suite: str, size: str, rounds: int, limit: float, folder: pathlib.Path
) -> tuple[str, list[tuple[str, str]]]:
    """Runs one suite and takes over its figures; says how it ended, and which tables lack which rows."""
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
    found = json.loads(path.read_text()) if path.exists() else {"planned": {}, "notes": [], "tables": {}}
    for text in found["notes"]:
        report.note(text)
    for title, rows in found["tables"].items():
        for row in rows:
            report.row(title, row)
    left = {title: names[len(found["tables"].get(title, [])) :] for title, names in found["planned"].items()}
    lacks = [(title, "; ".join(names)) for title, names in left.items() if names]
    seconds = time.monotonic() - started
    if code == 0:
        return f"{seconds:.0f} s", lacks
    lacks = lacks if left else [(f"all of the suite {suite}", "all")]
    if seconds >= limit:
        return f"ended at its limit of {limit:.0f} s", lacks
    return f"failed after {seconds:.0f} s with exit status {code}: {said[-_LAST_WORDS:].strip()}", lacks
