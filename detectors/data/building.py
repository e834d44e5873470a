"""Builds a TFDS data set once, completely or not at all, without TensorFlow."""

import contextlib
import fcntl
import io
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import TypeVar

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from cse_jax.errors import UserError

Builder = TypeVar("Builder", bound=tfds.core.DatasetBuilder)
Example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  # protobuf makes it at run time


class BuildError(UserError, OSError):
    """A data set cannot be built or read again; the message names the folder and says what to do."""


class StableWriter(writer.ExampleWriter):
    """Writes array records whose bytes are the same in every process.

    Protocol buffers would otherwise write the entries of a map in random order.
    """

    def __init__(self) -> None:
        super().__init__(file_format=tfds.core.FileFormat.ARRAY_RECORD)

    def write(self, path, examples):
        stable = (
            (key, Example.FromString(serialized).SerializeToString(deterministic=True)) for key, serialized in examples
        )
        return super().write(path, stable)


def build_once(make_builder: Callable[[], Builder], *, again: bool = False) -> Builder:
    """The builder, after building its data set unless it is there.

    The files appear under their final name in one step when they are complete. Several processes may call this at
    once: one of them builds, the others wait.

    Args:
      make_builder: makes a new builder at each call.
      again: whether to replace a build that is there.
    """
    with _quiet_tfds():
        builder = make_builder()
        if builder.data_path.exists() and not again:
            return builder
        path = pathlib.Path(builder.data_path)
        folder = pathlib.Path(builder.data_dir_root) / builder.name
        with _exclusive(folder):
            # Another process may have built it meanwhile; only a new builder reads what it wrote.
            builder = make_builder()
            _remove_interrupted_builds(path)
            if again and path.exists():
                shutil.rmtree(path)
                builder = make_builder()
            builder.download_and_prepare(
                download_dir=folder / "downloads",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
            return builder


@contextlib.contextmanager
def _exclusive(folder: pathlib.Path) -> Iterator[None]:
    """Holds a lock on the folder; the system drops it if the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_interrupted_builds(path: pathlib.Path) -> None:
    for leftover in path.parent.glob(f"incomplete.*_{path.name}"):
        shutil.rmtree(leftover)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silences TFDS, whose messages about downloads and custom configurations do not concern the user."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
