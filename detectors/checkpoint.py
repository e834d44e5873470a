"""Checkpoints by Orbax: trees of arrays, each stored bit for bit under the name of its place in the tree.

A checkpoint that replaces another is written beside it and then takes its place, so at any moment one of them is whole.
Checksums of all arrays are stored with them and verified on reading.
"""

import contextlib
import functools
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading
import zlib
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree, UInt32

from cse_jax.errors import UserError
from detectors.parallel import share, together, writes
from detectors.structures import AnyArray

Tree = TypeVar("Tree")

_ONE_AT_A_TIME = threading.Lock()  # Orbax's saves from two threads disturb each other
_CHECKSUMS = "checksums"  # the array that holds those of the others, in the order of their names


class CheckpointError(UserError, OSError):
    """A checkpoint that cannot be written or read; the message says why and what to do."""


def save(path: pathlib.Path, tree: PyTree) -> None:
    """Writes a tree of arrays.  The checkpoint appears complete or not at all, and only then an earlier one goes.

    Several processes, which all have the whole tree, write it together.

    Raises:
      CheckpointError: the folder cannot be written; an earlier checkpoint is as it was.
    """
    path = path.absolute()
    arrays = {name: np.asarray(leaf) for name, leaf in _named(tree).items()}
    new, old = _beside(path, "new"), _beside(path, "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _ONE_AT_A_TIME:
            if writes():
                _settle(path)
                for left_by_a_kill in (new, new.with_name(f"{new.name}.orbax-checkpoint-tmp")):
                    shutil.rmtree(left_by_a_kill, ignore_errors=True)
            together("the start of a checkpoint")
            _call("save", str(new), arrays | {_CHECKSUMS: _checksums(arrays)})
            if writes():
                if path.exists():
                    os.replace(path, old)
                os.replace(new, path)
                _sync(path.parent)
                shutil.rmtree(old, ignore_errors=True)
            together("the end of a checkpoint")
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore report a full disk in several ways
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error}; make room or choose another folder"
        ) from error


def restore(path: pathlib.Path, like: Tree) -> Tree:
    """Reads a tree of arrays.

    Args:
      path: the checkpoint.
      like: a tree (of arrays or of shapes) with the structure, shapes and types to expect.

    Returns:
      the tree, each array on the devices of the one in ``like``: a compiled function takes both and is traced once.

    Raises:
      CheckpointError: there is no checkpoint, it is damaged, or its arrays differ from ``like``; all differences are
        named.
    """
    path = path.absolute()
    if not exists(path):
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with _ONE_AT_A_TIME:
            stored = _call("load", str(path))
    except MemoryError:
        raise
    except Exception as error:  # as many kinds as there are places where a byte may be wrong
        raise _damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    checksums = stored.pop(_CHECKSUMS, None)
    if checksums is not None:  # versions before 0.2.0 have none
        wrong = np.asarray(checksums) != _checksums(stored) if len(checksums) == len(stored) else [True]
        if np.any(wrong):
            raise _damaged(path, "the numbers are not those that were written")
    expected = _named(like)
    problems = [f"{name} is missing" for name in expected.keys() - stored.keys()]
    problems += [f"{name} is not part of this model" for name in stored.keys() - expected.keys()]
    for name in expected.keys() & stored.keys():
        ours, theirs = expected[name], stored[name]
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            problems.append(f"{name} is {theirs.dtype}{list(theirs.shape)}, not {ours.dtype}{list(ours.shape)}")
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise CheckpointError(f"the checkpoint {path} is of another model or configuration:\n  {listed}")
    return jax.tree.unflatten(jax.tree.structure(like), [_placed(stored[name], expected[name]) for name in expected])


def exists(path: pathlib.Path) -> bool:
    """Whether a complete checkpoint is there."""
    path = path.absolute()
    if writes():
        with _ONE_AT_A_TIME:
            _settle(path)
    return path.is_dir() and _orbax().is_orbax_checkpoint(str(path))


def found(folder: pathlib.Path) -> list[str]:
    """Names of the checkpoints in a folder."""
    return [path.name for path in sorted(folder.glob("[!.]*")) if exists(path)]


def delete(path: pathlib.Path) -> None:
    """Removes a checkpoint if there is one."""
    for each in (_beside(path, "new"), _beside(path, "old"), path):
        shutil.rmtree(each, ignore_errors=True)


def _damaged(path: pathlib.Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} is damaged: {why}. Put it back from a copy, or remove this folder, and what it was "
        "kept for begins anew"
    )


def _beside(path: pathlib.Path, what: str) -> pathlib.Path:
    return path.with_name(f".{path.name}.{what}")


def _settle(path: pathlib.Path) -> None:
    """Ends a replacement that was cut off between its two steps."""
    new, old = _beside(path, "new"), _beside(path, "old")
    if old.exists():
        if not path.exists():
            os.replace(new if new.exists() else old, path)
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: pathlib.Path) -> None:
    """Makes the names in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksums(arrays: Mapping[str, AnyArray]) -> UInt32[np.ndarray, " n"]:
    contents = (np.ascontiguousarray(arrays[name]) for name in sorted(arrays))
    return np.array([zlib.crc32(content.reshape(-1).view(np.uint8).data) for content in contents], np.uint32)


def _orbax() -> ModuleType:
    """Imported when it is first used: it takes long."""
    from orbax.checkpoint import v1

    return v1


def _call(name: str, *arguments: Any) -> Any:
    """Calls a function of Orbax, which would have all processes that JAX knows of take part.

    If this one works for itself, Orbax runs in a further process, which knows of no others.
    """
    if share()[1] == jax.process_count():
        return getattr(_orbax(), name)(*arguments)
    helper = _helper()
    helper.send((name, arguments))
    result, error = helper.recv()
    if error is not None:
        raise error
    return result


@functools.cache
def _helper() -> Connection:
    """To a process that ends with this one."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    spawn.Process(target=_help, args=(there,), daemon=True).start()
    there.close()
    return here


def _help(asked: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks hears it
    jax.config.update("jax_platforms", "cpu")  # the accelerator is that process's
    with contextlib.suppress(EOFError, OSError):  # the process that asks has ended
        while True:
            name, arguments = asked.recv()
            try:
                answer = getattr(_orbax(), name)(*arguments), None
            except Exception as error:
                answer = None, error
            asked.send(answer)


def _placed(array: np.ndarray, like: Any) -> AnyArray:
    if not isinstance(like, jax.Array):
        return array
    return jax.make_array_from_callback(array.shape, like.sharding, array.__getitem__)


def _named(tree: PyTree) -> dict[str, AnyArray | jax.ShapeDtypeStruct]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
