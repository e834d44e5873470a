"""Trainings in all processes of a ``jax.distributed`` job: the first searches and trains, the others train for it.

Trainings last unevenly, and a collective operation of JAX would have all processes wait for each other.  The first one
therefore asks the others over connections of its own, one for each training that a process runs at once.  A connection
also ends when a process does, so none of them waits for one that is gone.
"""

import concurrent.futures
import contextlib
import os
import pickle
import queue
import secrets
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cse_jax import workdir
from cse_jax.search.remote_trainer import LOOK_SECONDS, Local, RemoteTrainer, Worker, WorkersError
from cse_jax.search.trainer import ProcessLost

_BEGIN, _STOP, _END = "begin", "stop", "end"  # what is no call of a worker's method
_KEY_BYTES, _HOST_BYTES = 32, 255


@contextlib.contextmanager
def connected(host: str | None, threads: int) -> Iterator["Sequence[Link]"]:
    """Connects the first process of a job with the others; all of them call this at once.

    Args:
      host: of the first process, as the others know it; None for the address of its network.
      threads: trainings that each process runs at once; what the first one says holds.

    Yields:
      In the first process, links to the others; in these, the ones to the first, for ``serve``.

    Raises:
      ProcessLost: the first process can't be reached.
    """
    links = _to_first() if jax.process_index() else _to_others(host or _own_address(), threads)
    with contextlib.ExitStack() as stack:
        for link in links:
            stack.enter_context(link.connection)
        yield links
        for link in links if jax.process_index() == 0 else ():
            link.send(_END)


def _to_others(host: str, threads: int) -> Sequence["Link"]:
    key = secrets.token_bytes(_KEY_BYTES)
    others = jax.process_count() - 1
    with Listener(("", 0), backlog=others * threads, authkey=key) as listener:
        _broadcast(key + f"{listener.address[1]} {threads} {host}".encode())
        links = []
        while len(links) < others * threads:
            with contextlib.suppress(AuthenticationError):  # of who is none of them
                connection = listener.accept()
                links.append(Link(connection, int(connection.recv_bytes())))
    return links


def _to_first() -> Sequence["Link"]:
    said = _broadcast(b"")
    key, (port, threads, host) = said[:_KEY_BYTES], said[_KEY_BYTES:].decode().split()
    links = []
    for _ in range(int(threads)):
        try:
            connection = Client((host, int(port)), authkey=key)
        except OSError as error:
            raise ProcessLost(f"process 0 can't be reached at {host}:{port}: {error}") from error
        connection.send_bytes(str(jax.process_index()).encode())
        links.append(Link(connection, 0))
    return links


def _broadcast(text: bytes) -> bytes:
    """What the first process says."""
    padded = np.zeros(_KEY_BYTES + _HOST_BYTES + 32, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).rstrip(b"\0")


def _own_address() -> str:
    """This machine's address in the network of its default route, where it has one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
        except OSError:
            return socket.gethostname()
        return probe.getsockname()[0]


class Link:
    """A connection to another process, which is its ``process``-th."""

    def __init__(self, connection: Connection, process: int) -> None:
        self.connection, self.process = connection, process

    def send(self, *message: Any) -> None:
        # Of what ``Connection.send`` pickles, a buffer outlives an error, of which Python 3.13 complains.
        content = pickle.dumps(message)
        with self._or_lost():
            self.connection.send_bytes(content)

    def receive(self) -> Any:
        with self._or_lost():
            content = self.connection.recv_bytes()
        return pickle.loads(content)

    def waits(self, seconds: float = 0.0) -> bool:
        """Whether a message is there, or the process has ended."""
        with self._or_lost():
            return self.connection.poll(seconds)

    @contextlib.contextmanager
    def _or_lost(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            raise ProcessLost(
                f"process {self.process} has ended, and none goes on without it; it may have said why. The same "
                "commands resume"
            ) from error


class ProcessTrainer(RemoteTrainer[Local]):
    """A ``Trainer`` of the first process, whose workers are the threads of all processes."""

    def __init__(self, make: Callable[[], Local], links: Sequence[Link]) -> None:
        """Has a trainer made in each process.

        Args:
          make: makes one.
          links: to the other processes.

        Raises:
          WorkersError: the devices of the processes differ.
          ProcessLost: a process has ended.
        """
        first = list({link.process: link for link in reversed(links)}.values())
        for link in first:
            link.send(_BEGIN, make)
        self._own = _started(make)
        self.local = self._own.trainer
        self.device = workdir.device(own=True)
        for link in first:
            if (other := _answer(link)) != self.device:
                raise WorkersError(f"process 0 has {self.device}, but process {link.process} has {other}")
        threads = len(links) // len(first)
        self._idle: queue.LifoQueue[Link | None] = queue.LifoQueue()  # the last first: it has compiled
        for link in [*reversed(links), *[None] * threads]:
            self._idle.put(link)
        self.workers = len(links) + threads

    def ask(self, method: str, *arguments: Any, stop: threading.Event | None = None, **about: Any) -> Any:
        """As of ``RemoteTrainer``.

        Raises:
          ProcessLost: the worker's process has ended, and with it the job.
        """
        link = self._idle.get()
        try:
            if link is None:
                return getattr(self._own, method)(*arguments, **about, **({} if stop is None else {"stop": stop}))
            link.send(method, arguments, about)
            while not link.waits(LOOK_SECONDS):
                if stop is not None and stop.is_set():
                    link.send(_STOP)
                    stop = None
            return _answer(link)
        finally:
            self._idle.put(link)


def serve(links: Sequence[Link]) -> None:
    """Trains for the first process, until it is done.

    Raises:
      ProcessLost: it has ended before that.
    """
    holder: list[Worker] = []  # of what the threads share
    pool = concurrent.futures.ThreadPoolExecutor(len(links))  # not a context: a training that hangs would hold it
    for done in concurrent.futures.as_completed([pool.submit(_serve, link, holder) for link in links]):
        done.result()


def _serve(link: Link, holder: list[Worker]) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1)
    while (order := link.receive())[0] != _END:
        if order[0] == _STOP:  # what had just ended
            continue
        stop = threading.Event()
        work = pool.submit(_obeyed, holder, order, stop)
        while not concurrent.futures.wait([work], timeout=LOOK_SECONDS).done:
            if link.waits():
                link.receive()  # there is nothing else to say now
                stop.set()
        error = work.exception()
        told = "" if error is None else "".join(traceback.format_exception(error))
        try:
            link.send(None if error else work.result(), error, told)
        except (pickle.PicklingError, AttributeError, TypeError):  # of a library
            link.send(None, RuntimeError(f"{type(error).__name__}: {error}"), told)


def _obeyed(holder: list[Worker], order: tuple, stop: threading.Event) -> Any:
    if order[0] == _BEGIN:
        holder[:] = [_started(order[1])]
        return workdir.device(own=True)
    method, arguments, about = order
    return getattr(holder[0], method)(*arguments, **about, **({"stop": stop} if method == "train" else {}))


def _started(make: Callable[[], Local]) -> Worker[Local]:
    worker = Worker(make)
    worker.start(os.getcwd())
    return worker


def _answer(link: Link) -> Any:
    result, error, told = link.receive()
    if error is not None:
        error.add_note(f"It was met in process {link.process}.")
        raise error from RuntimeError(told)
    return result
