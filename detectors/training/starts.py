"""What the trainings of a search begin with: features that the default losses have learned."""

import contextlib
import fcntl
import functools
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any

import jax
import jax.numpy as jnp
from flax import nnx

from cse_jax.search.trainer import Stopped
from detectors import checkpoint
from detectors.training.step import JittedDetector, TrainState

_LOOK_SECONDS = 0.1


class Starts:
    """Detectors that the default losses have trained, by the seed of that training."""

    def __init__(
        self,
        compiled: JittedDetector,
        *,
        shared: bool,
        seed: int,
        own: bool,
        is_output: Callable[[tuple], bool],
        folder: pathlib.Path,
    ) -> None:
        """Has none yet but those in the folder.

        Args:
          compiled: the detector's functions; ``init`` makes an untrained one.
          shared: whether trainings on the train split begin with one; if not, only the probe's features are one's.
          seed: of the one that trainings begin with.
          own: whether final trainings begin with one of their own seed instead.
          is_output: which parameters a training draws anew.
          folder: where they are kept.
        """
        self._compiled, self._shared, self._seed, self._own = compiled, shared, seed, own
        self._folder = folder
        self._is_output: Callable[[tuple, Any], bool] = lambda path, value: is_output(tuple(path))
        self._failures: dict[int, str] = {}

    def of(self, purpose: str, seed: int) -> int:
        """The seed of the start that a training begins with."""
        return seed if self._own and purpose == "final" else self._seed

    @contextlib.contextmanager
    def making(self, seed: int, stop: threading.Event) -> Iterator[bool]:
        """Holds the start of a seed; waits while another thread or process does.

        Yields:
          Whether it is still to be made; not if it was found that it can't be.

        Raises:
          Stopped: ``stop`` was set meanwhile.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f".{self._file(seed).name}.lock"
        while (lock := _taken(path)) is None:
            if stop.wait(_LOOK_SECONDS):
                raise Stopped("stopped while it waited for its start")
        with lock:
            try:
                yield seed not in self._failures and not checkpoint.exists(self._file(seed))
            finally:
                path.unlink()  # while it is held: nobody else's

    def failure(self, seed: int) -> str:
        """Why there is no start of a seed; empty if there is one, or it was not trained yet."""
        return self._failures.get(seed, "")

    def fail(self, seed: int, reason: str) -> None:
        """Says that the start of a seed can't be trained."""
        self._failures[seed] = reason

    def save(self, seed: int, model: tuple[nnx.State, nnx.State]) -> None:
        """Keeps the start of a seed."""
        checkpoint.save(self._file(seed), model)

    @functools.cached_property
    def features(self) -> tuple[nnx.State, nnx.State]:
        """Parameters and the rest of the start of the search's seed, which was saved."""
        return self._restored(self._seed)

    def first(self, purpose: str, seed: int) -> TrainState:
        """The state that a training begins with: the start's features below new output layers, or all of it new."""
        state = self._compiled.init(seed)
        if not self._shared or purpose in ("start", "overfit"):
            return state
        of_start = self.of(purpose, seed)
        started, rest = self.features if of_start == self._seed else self._restored(of_start)
        fresh, _ = nnx.split_state(state.params, self._is_output, ...)
        _, kept = nnx.split_state(started, self._is_output, ...)
        params, rest = jax.tree.map(jnp.copy, (nnx.merge_state(fresh, kept), rest))  # a step donates its state
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        return jax.device_put(state._replace(params=params, rest=rest, ema=ema), state.step.sharding)

    def _restored(self, seed: int) -> tuple[nnx.State, nnx.State]:
        return checkpoint.restore(self._file(seed), self._compiled.init(self._seed).model)

    def _file(self, seed: int) -> pathlib.Path:
        return self._folder / ("features" if seed == self._seed else f"features-seed{seed}")


def _taken(path: pathlib.Path) -> IO | None:
    """The file, held until it is closed; None while somebody else holds it."""
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):  # held, or removed by who held it
        pass
    lock.close()
    return None
