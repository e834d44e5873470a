"""A search's folder: config as run, versions, device, ledger; one search at a time in it."""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import secrets
import stat
from collections.abc import Callable, Collection, Iterator
from typing import IO, Any, Literal

import jax

from cse_jax.errors import InputError, MissingPackageError, UserError

_LOCK = ".lock"
RESULT_FORMAT = 3  # of a search's result.json
FREE = frozenset(  # fields of configs on which the result of no training depends
    {"data.workers", "save_every", "schedule.save_every", "search.workers", "search.time_limit"}
)
PACKAGES = ("cse_jax", "jax", "jaxlib", "flax", "optax", "numpy")


class WorkdirError(UserError, RuntimeError):
    """A folder that can't be used; the message says why and what to do."""


def default_data_dir() -> pathlib.Path:
    """``$CSE_JAX_DATA_DIR``, or ``~/.cache/cse_jax``: where built data sets and compiled programs are kept."""
    return pathlib.Path(os.environ.get("CSE_JAX_DATA_DIR") or "~/.cache/cse_jax").expanduser()


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Creates the folder if need be and holds it, so that no second search writes there.

    A folder in which nothing was written is removed after an error.

    Raises:
      WorkdirError: it can't be written, or another process holds it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _regular(path / _LOCK, "ab")
    except OSError as error:
        raise WorkdirError(
            f"cannot write to the work folder {path}: {error.strerror}; choose another work folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise WorkdirError(
                    f"another search is running in {path}; wait for it or choose another work folder"
                ) from error
            raise
        try:
            yield path
        except BaseException:
            _remove_if_empty(path)
            raise


def _remove_if_empty(path: pathlib.Path) -> None:
    if [file.name for file in path.iterdir()] == [_LOCK]:
        (path / _LOCK).unlink()
        path.rmdir()


def describe(config: Any) -> dict[str, Any]:
    """What a result depends on: the config as run, versions and device."""
    return {"config": dataclasses.asdict(config), "versions": versions(), "device": device()}


def write_description(path: pathlib.Path, about: dict[str, Any]) -> None:
    """Writes ``config.json`` and ``versions.json``, in which all but the config is."""
    try:
        write_whole(path / "config.json", json.dumps(about["config"], indent=2))
        rest = {name: value for name, value in about.items() if name != "config"}
        write_whole(path / "versions.json", json.dumps(rest, indent=2))
    except OSError as error:
        raise WorkdirError(f"cannot write to the work folder {path}: {error.strerror}; make room there") from error


def read_description(path: pathlib.Path) -> dict[str, Any]:
    """What ``write_description`` wrote.

    Raises:
      WorkdirError: a file is missing or damaged.
    """
    files = [path / name for name in ("config.json", "versions.json")]
    for file in files:
        if not file.is_file():
            raise WorkdirError(f"there is no {file}; is {path} the folder of a search?")
    config, rest = (read_json(file, "run the search's command again to have it rewritten") for file in files)
    return {"config": config} | rest


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text and a line's end: complete, or not at all, and what was there before stays until then."""
    with writing(path) as file:
        file.write(f"{text}\n".encode())


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when it is complete, and replaces what had it; a link is replaced, not followed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def open_board(folder: pathlib.Path, *, anew: bool = False) -> Any:
    """The writer of a folder's figures for TensorBoard; ``anew`` if all of them will be written again.

    Raises:
      MissingPackageError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        raise MissingPackageError(
            "--tensorboard needs a package that is not here: pip install 'cse_jax[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=0 if anew else None)


def append_line(path: pathlib.Path, text: str) -> None:
    """Adds a line to a file, which is made if need be.

    Raises:
      WorkdirError: it is a link, or no regular file.
    """
    with _regular(path, "ab") as file:
        file.write(f"{text}\n".encode())


def read_whole(path: pathlib.Path) -> str:
    """The text of a file.

    Raises:
      WorkdirError: it is no regular file; to read it could take for ever.
      UnicodeDecodeError: it is damaged.
    """
    with _regular(path, "rb") as file:
        return file.read().decode()


def _regular(path: pathlib.Path, mode: Literal["ab", "rb"]) -> IO[bytes]:
    """Opens a regular file; to write, one that is no link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW if mode == "ab" else os.O_RDONLY
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link; a socket; a folder
            raise irregular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise irregular(path)
    return open(handle, mode)


def irregular(path: pathlib.Path) -> WorkdirError:
    """The error for a file that must not be opened."""
    return WorkdirError(f"{path} is a link or no regular file; remove it, or choose another folder")


def read_result(path: pathlib.Path) -> dict[str, Any]:
    """The ``result.json`` of a finished search.

    Raises:
      WorkdirError: there is none, it is damaged, or another version wrote it.
    """
    file = path / "result.json"
    if not file.is_file():
        raise WorkdirError(f"there is no {file}; is {path} the folder of a finished search?")
    result = read_json(file, "run the search's command again to have it rewritten")
    written = result.get("format", "an earlier one")
    if written != RESULT_FORMAT:
        raise WorkdirError(
            f"{file} was written by another version of cse_jax (its format is {written}, this version reads "
            f"{RESULT_FORMAT}): run the search again with this version"
        )
    return result


def check_same_config(
    path: pathlib.Path, config: dict, *, remedy: str, relevant: Callable[[dict], dict] = dict
) -> None:
    """Refuses a folder that holds the trainings of another config, but for its ``FREE`` fields.

    Args:
      path: the folder.
      config: the present one.
      remedy: what the message advises.
      relevant: the part of a config on which the trainings depend.

    Raises:
      InputError: ``config.json`` is there and differs; names the fields.
      WorkdirError: it is damaged.
    """
    stored = path / "config.json"
    if not stored.exists():
        return
    before = read_json(stored, "remove it if the folder was made with the present config")
    changed = differences(relevant(before), relevant(config), free=FREE)
    if changed:
        raise InputError(f"{path} holds trainings with other settings ({'; '.join(changed[:5])}): {remedy}")


def read_json(file: pathlib.Path, remedy: str) -> dict[str, Any]:
    """An object of JSON.

    Raises:
      WorkdirError: the file is damaged, and the message says the remedy; or it is no regular file.
    """
    try:
        found = json.loads(read_whole(file))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except ValueError as error:  # of text that is not UTF-8, too
        raise WorkdirError(f"{file} is damaged ({error}); {remedy}") from error
    return found


def differences(before: dict, now: dict, *, free: Collection[str] = ()) -> list[str]:
    """The fields in which two configs differ, but for the free ones, each as ``config.field: before -> now``."""
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    changed = sorted(key for key in (new | old).keys() - free if new.get(key) != old.get(key))
    return [f"config.{key}: {old.get(key)} -> {new.get(key)}" for key in changed]


def _flat(tree: dict) -> dict[str, object]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: leaf is None)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def device(*, own: bool = False) -> str:
    """The devices that train, in words: all that JAX knows of, or only those of this process."""
    devices = jax.local_devices() if own else jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
