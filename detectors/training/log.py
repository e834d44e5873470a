"""The log of a training: JSON lines, a line on the console, and figures for TensorBoard on demand.

``log.jsonl`` has two kinds of lines. Those of a step have ``step``, ``epoch``, the losses, ``learning_rate``,
``gradient_norm``, ``images_per_second``, ``data_seconds`` (how long a step waited for its batch) and ``memory_mib``
(the peak so far, of the device if it says so and else of the process). Those of an evaluation have ``step``, ``epoch``
and ``evaluation``, with scores in 0..1. A training that resumes drops the lines after its checkpoint, so that every
step is there once.
"""

import json
import math
import pathlib
import resource
import time
from collections.abc import Mapping
from typing import Any

import jax

from cse_jax.workdir import append_line, open_board, read_whole, writing
from detectors.evaluation.scores import Scores, as_json, in_a_line

FILE = "log.jsonl"
_SAY_EVERY = 5.0  # seconds between lines on the console
_NO_LOSSES = ("loss", "learning_rate", "gradient_norm", "data_seconds", "positives")


class TrainingLog:
    """Writes and prints the progress of one training."""

    def __init__(
        self, folder: pathlib.Path, *, steps: int, epoch_steps: int, batch_size: int, tensorboard: bool = False
    ) -> None:
        """Starts or resumes the log.

        Args:
          folder: the training's folder.
          steps: length of the training.
          epoch_steps: steps of an epoch.
          batch_size: images per step.
          tensorboard: whether to write the figures for TensorBoard as well.

        Raises:
          MissingPackageError: ``tensorboard`` needs the package tensorboardX.
        """
        self._path, self._steps, self._epoch_steps, self._batch = folder / FILE, steps, epoch_steps, batch_size
        self._kept = False
        self._lines: list[dict[str, Any]] = []
        self._before: tuple[int, float] | None = None
        self._said = -math.inf
        self._board = None
        if tensorboard:
            self._board = open_board(folder)

    def progress(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Notes the metrics of the last of ``done`` steps."""
        now = time.monotonic()
        figures = {name: float(value) for name, value in metrics.items() if name != "finite"}
        rate = math.nan
        if self._before and done > self._before[0]:  # the time of the first ones includes their compilation
            rate = (done - self._before[0]) / (now - self._before[1])
        self._before = (done, now)
        memory = _memory_mib()
        self._write(done, _finite(figures | {"images_per_second": rate * self._batch, "memory_mib": memory}))
        if now - self._said < _SAY_EVERY and done < self._steps:
            return
        self._said = now
        parts = [name for name in figures if name not in _NO_LOSSES]
        losses = ", ".join(f"{name} {figures[name]:.4f}" for name in ("loss", *parts))
        line = f"step {done}/{self._steps}: {losses}, lr {figures['learning_rate']:.3g}"
        if math.isfinite(rate):
            left = (self._steps - done) / rate
            line += f", {rate * self._batch:.3g} images/s, data {1000 * figures['data_seconds']:.0f} ms"
            line += f", {memory:,.0f} MiB, {_clock(left)} left"
        print(line, flush=True)

    def evaluated(self, done: int, scores: Scores) -> bool:
        """Notes an evaluation after ``done`` steps.

        Returns:
          Whether it is the best so far by the AP of boxes; never if that AP is not defined.
        """
        if scores.boxes is None:
            raise ValueError("evaluations of a training score boxes")
        earlier = [line["evaluation"]["boxes"]["ap"] for line in self._read(done) if "evaluation" in line]
        self._write(done, {"evaluation": as_json(scores)})
        print(f"epoch {done / self._epoch_steps:.3g}, select split: {in_a_line(scores)}", flush=True)
        self._before = None  # the time of the evaluation does not count as time of steps
        return scores.boxes.ap >= max((ap for ap in earlier if ap is not None), default=0.0)  # false if it is NaN

    def _write(self, done: int, figures: Mapping[str, Any]) -> None:
        lines = self._read(done)
        line = {"step": done, "epoch": done / self._epoch_steps, **figures}
        lines.append(line)
        append_line(self._path, json.dumps(line))
        if self._board is not None:
            scored = figures.get("evaluation", {})
            by_part = {f"{part}/{k}": v for part, values in scored.items() for k, v in values.items()}
            for name, value in {**figures, **by_part}.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, done)

    def _read(self, done: int) -> list[dict[str, Any]]:
        """The lines so far; the first call drops those after the checkpoint that the training resumes from."""
        if not self._kept:
            self._kept = True
            if self._path.exists():
                self._lines = [line for line in map(_parsed, read_whole(self._path).splitlines()) if line]
                self._lines = [line for line in self._lines if line["step"] < done]
                with writing(self._path) as file:
                    file.writelines(f"{json.dumps(line)}\n".encode() for line in self._lines)
        return self._lines


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # a kill cut the line off; the training resumes from a checkpoint before it
        return None


def _finite(tree: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not know."""
    return jax.tree.map(lambda v: None if isinstance(v, float) and not math.isfinite(v) else v, tree)


def _memory_mib() -> float:
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return round(peak / 2**20, 1)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
