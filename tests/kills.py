"""Kills searches or trainings at random moments, resumes them, and counts those that end as if nobody had.

    PYTHONPATH=.:launch python tests/kills.py search --times=20
    PYTHONPATH=.:launch python tests/kills.py train --times=20

Each is killed once, at a moment of its own from its start to its end. The exit code is 1 unless all end the same. The
search is that of test_launch.py; the training saves a checkpoint every third step, which is most of what it does.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import test_launch
from scripts import Script, start

TRAINING = ("--config=configs/train/fcos_digits.py", "--config.steps=150", "--config.save_every=3")


def scores(folder: pathlib.Path) -> Any:
    """What a training ends with."""
    return json.loads((folder / "result.json").read_text())["test"]


JOBS: dict[str, tuple[tuple[str, ...], Callable[[pathlib.Path], Any]]] = {  # arguments, and the result in a folder
    "search": (test_launch.SMALL, test_launch.outcome),
    "train": (TRAINING, scores),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", choices=JOBS)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"  # each start would compile the same for a minute
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        good = kill(options.script, pathlib.Path(folder), options.times, random.Random(options.seed))
    print(f"{good} of {options.times}")
    return 0 if good == options.times else 1


def kill(script: str, folder: pathlib.Path, times: int, rng: random.Random) -> int:
    """How many of so many runs of a script, each killed once, end with the result of one that was not."""
    arguments, outcome = JOBS[script]

    def begin(name: str) -> Script:
        return start(script, *arguments, f"--workdir={folder / name}", data_dir=folder / "data")

    finished(begin("data"))  # which also draws the images
    begun = time.monotonic()
    finished(begin("whole"))
    length, good = time.monotonic() - begun, 0
    for k in range(times):
        name, moment = f"killed{k}", rng.uniform(0.0, length)
        process = begin(name)
        time.sleep(moment)
        killed(process)
        finished(begin(name))
        same = outcome(folder / name) == outcome(folder / "whole")
        good += same
        print(f"killed after {moment:.1f} of {length:.1f} s: {'the same' if same else 'another'} result", flush=True)
    return good


def killed(process: Script) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.finish()


def finished(process: Script) -> None:
    code, output = process.finish(timeout=1200)
    if code != 0:
        sys.exit(f"exit code {code}: {output}")


if __name__ == "__main__":
    sys.exit(main())
