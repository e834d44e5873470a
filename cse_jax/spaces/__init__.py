"""The search spaces, one file each; a space is data, and a new one is one more file."""

from cse_jax.spaces.binary_class import BINARY_CLASS
from cse_jax.spaces.box import BOX
from cse_jax.spaces.multi_class import MULTI_CLASS
from cse_jax.spaces.space import (
    Inputs,
    Path,
    PredictionTask,
    Space,
    Trajectories,
    Variable,
    trajectories,
)

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
    "trajectories",
]
