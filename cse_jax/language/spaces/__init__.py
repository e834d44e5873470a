"""The search spaces, one file each; a space is data, and a new one is one more file."""

import pathlib
import runpy

from cse_jax.errors import InputError
from cse_jax.language.spaces.binary_class import BINARY_CLASS
from cse_jax.language.spaces.box import BOX
from cse_jax.language.spaces.multi_class import MULTI_CLASS
from cse_jax.language.spaces.space import Inputs, Path, PredictionTask, Space, Trajectories, Variable, trajectories

SPACES: dict[str, Space] = {space.name: space for space in (MULTI_CLASS, BINARY_CLASS, BOX)}

__all__ = [
    "BINARY_CLASS",
    "BOX",
    "MULTI_CLASS",
    "SPACES",
    "Inputs",
    "Path",
    "PredictionTask",
    "Space",
    "Trajectories",
    "Variable",
    "find",
    "trajectories",
]


def find(text: str) -> Space:
    """A space by its name, or the ``SPACE`` of a Python file, which is run.

    Raises:
      InputError: there is no such space or file, or the file has none.
    """
    if text in SPACES:
        return SPACES[text]
    path = pathlib.Path(text)
    if path.suffix != ".py" or not path.is_file():
        known = ", ".join(SPACES)
        raise InputError(f"no search space {text!r}: use {known}, or the path of a Python file that defines SPACE")
    space = runpy.run_path(text).get("SPACE")
    if not isinstance(space, Space):
        raise InputError(f"{text} defines no SPACE; it must be a cse_jax.spaces.Space")
    return space
