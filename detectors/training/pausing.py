"""Trainings side by side that wait between two horizons: each candidate has a file, and they go on in any group."""

import pathlib
import zipfile
from collections.abc import Sequence

import jax
import numpy as np

from cse_jax import workdir
from detectors.parallel import row
from detectors.training.batched import ManyState


def pause(state: ManyState, candidate: int, path: pathlib.Path) -> None:
    """Keeps one candidate's share of a state; a checkpoint of each would take as long as dozens of steps."""
    leaves = [np.asarray(row(leaf, candidate)) for leaf in jax.tree.leaves((state.own, state.opt_state))]
    path.parent.mkdir(parents=True, exist_ok=True)
    with workdir.writing(path) as file:
        np.savez(file, np.asarray(state.step), *leaves)


def resumed(state: ManyState, paused: Sequence[pathlib.Path]) -> ManyState:
    """The state with what the candidates have learned, if all were paused at the same step, and undamaged."""
    try:
        found = []
        for path in paused:
            with path.open("rb") as file, np.load(file) as arrays:
                found.append([arrays[name] for name in arrays.files])
    except (OSError, ValueError, zipfile.BadZipFile):
        return state
    steps = {int(step) for step, *_ in found}
    if len(steps) > 1:
        return state
    old, tree = jax.tree.flatten((state.own, state.opt_state))
    each = zip(*(leaves for _, *leaves in found), strict=True)
    new = [
        jax.device_put(np.stack(filled(leaves, len(like))), like.sharding)
        for leaves, like in zip(each, old, strict=True)
    ]
    own, opt_state = jax.tree.unflatten(tree, new)
    return state._replace(own=own, opt_state=opt_state, step=jax.device_put(np.int32(steps.pop()), state.step.sharding))


def filled(items: Sequence, count: int) -> list:
    """As many as ``count``, the last one repeated."""
    return [*items, *[items[-1]] * (count - len(items))]
