"""Trainings in processes of their own, on this machine or on many: each worker is a Ray actor that holds a trainer."""

import concurrent.futures
import contextlib
import functools
import importlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

from cse_jax.search.remote_trainer import LOOK_SECONDS, Local, RemoteTrainer, Worker, WorkersError
from cse_jax.search.trainer import OutOfMemory, Stopped, TrainingLost

START_SECONDS = 600.0  # that a worker may take to start
_ATTEMPTS = 3  # at what is no training of a candidate


class RayTrainer(RemoteTrainer[Local], contextlib.AbstractContextManager):
    """A ``Trainer`` whose workers are Ray actors; use as a context manager.

    A worker that dies, or whose training is to stop, is replaced when it is next needed, and so is one that runs out of
    memory.
    """

    def __init__(self, make: Callable[[], Local], *, address: str | None = None, workers: int = 0) -> None:
        """Connects to a cluster, or makes one of this machine.

        Args:
          make: makes a trainer; it is called here, for what is known without training, and in each worker.
          address: of the cluster; None for this machine.
          workers: how many; 0 for one for each accelerator, or each machine if there is none.

        Raises:
          WorkersError: there is no such cluster, or Ray is not installed.
        """
        self._ray = _ray()
        self._connect(address)
        try:
            self.local = make()
        except BaseException:
            self._ray.shutdown()
            raise
        resources = self._ray.cluster_resources()
        (kind,) = [kind for kind in ("GPU", "TPU") if resources.get(kind)][:1] or [None]
        self.workers = workers or int(resources[kind] if kind else len(self._ray.nodes()))
        one = {} if kind is None else {"num_gpus": 1} if kind == "GPU" else {"resources": {kind: 1}}
        self._actor = self._ray.remote(Worker).options(num_cpus=0, scheduling_strategy="SPREAD", **one)
        self._begin = functools.partial(self._actor.remote, make)
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()  # the last first: it has compiled
        for _ in range(self.workers):
            self._idle.put(None)

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def _connect(self, address: str | None) -> None:
        """Before JAX starts its threads, beside which Ray should not fork off its processes."""
        options = {} if address else {"include_dashboard": False}
        same = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}  # the project is where it is here
        try:
            self._ray.init(address or "local", runtime_env=same, log_to_driver=False, logging_level="error", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise WorkersError(f"no Ray cluster answers at {address}: {error}") from error

    def surely(self, method: str, *arguments: Any) -> Any:
        """What a worker answers, whichever of them lives."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(TrainingLost):
                return self.ask(method, *arguments)
        raise WorkersError(f"{_ATTEMPTS} workers, one after the other, have died of the same task")

    def ask(self, method: str, *arguments: Any, stop: threading.Event | None = None, **about: Any) -> Any:
        worker = self._idle.get()
        try:
            worker = worker or self._started()
            future = getattr(worker, method).remote(*arguments, **about).future()
            while not concurrent.futures.wait([future], timeout=LOOK_SECONDS).done:
                if stop is not None and stop.is_set():
                    worker = self._ended(worker)
                    raise Stopped("its worker was ended")
            return future.result()
        except self._ray.exceptions.RayTaskError as error:  # the worker lives, and tells what it has met
            if not isinstance(error.cause, OutOfMemory | MemoryError):
                raise error.cause from error
            worker = self._ended(worker)
            raise OutOfMemory(f"the memory of a worker is too small: {error.cause}") from error
        except self._ray.exceptions.RayError as error:
            worker = self._ended(worker)
            raise TrainingLost("lost its worker") from error
        finally:
            self._idle.put(worker)

    def _started(self) -> Any:
        worker = self._begin()
        try:
            self._ray.get(worker.start.remote(os.getcwd()), timeout=START_SECONDS)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            self._ended(worker)
            raise WorkersError(f"a worker could not be started ({type(error).__name__}: {error})") from error
        return worker

    def _ended(self, worker: Any) -> None:
        """Ends a worker; None takes its place until another is needed."""
        self._ray.kill(worker)


def _ray() -> Any:
    """Imported when it is used: it is an extra."""
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise WorkersError("Ray is not installed: python -m pip install '.[cluster]'") from error
