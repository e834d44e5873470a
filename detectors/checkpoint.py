"""Checkpoints by Orbax: trees of arrays, each stored bit for bit under the name of its place in the tree."""

import pathlib
import shutil
import threading
from types import ModuleType
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from cse_jax.errors import UserError
from detectors.structures import AnyArray

Tree = TypeVar("Tree")

_ONE_AT_A_TIME = threading.Lock()  # Orbax's saves from two threads disturb each other


class CheckpointError(UserError, OSError):
    """A checkpoint that cannot be written or read; the message says why and what to do."""


def save(path: pathlib.Path, tree: PyTree) -> None:
    """Writes a tree of arrays.  The checkpoint appears complete or not at all, and replaces an earlier one.

    Raises:
      CheckpointError: the folder cannot be written.
    """
    path = path.absolute()
    arrays = {name: np.asarray(leaf) for name, leaf in _named(tree).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _ONE_AT_A_TIME:
            left_by_a_kill = path.with_name(f"{path.name}.orbax-checkpoint-tmp")
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
            _orbax().save(str(path), arrays, overwrite=True)
    except Exception as error:  # Orbax and TensorStore report a full disk in several ways
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error}; make room or choose another folder"
        ) from error


def restore(path: pathlib.Path, like: Tree) -> Tree:
    """Reads a tree of arrays.

    Args:
      path: the checkpoint.
      like: a tree (of arrays or of shapes) with the structure, shapes and types to expect.

    Raises:
      CheckpointError: there is no checkpoint, or its arrays differ from ``like``; all differences are named.
    """
    path = path.absolute()
    if not exists(path):
        raise CheckpointError(f"there is no checkpoint at {path}")
    with _ONE_AT_A_TIME:
        stored = _orbax().load(str(path))
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
    return jax.tree.unflatten(jax.tree.structure(like), [stored[name] for name in expected])


def exists(path: pathlib.Path) -> bool:
    """Whether a complete checkpoint is there."""
    return path.is_dir() and _orbax().is_orbax_checkpoint(str(path.absolute()))


def delete(path: pathlib.Path) -> None:
    """Removes a checkpoint if there is one."""
    shutil.rmtree(path, ignore_errors=True)


def _orbax() -> ModuleType:
    """Imported when it is first used: it takes long."""
    from orbax.checkpoint import v1

    return v1


def _named(tree: PyTree) -> dict[str, AnyArray | jax.ShapeDtypeStruct]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
