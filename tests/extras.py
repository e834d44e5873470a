"""What only some tests need.  A test that lacks it is skipped, and says where to get it."""

import os
import pathlib
from types import ModuleType

import pytest

EXTRAS = {
    "torch": "compare",
    "torchvision": "parity",
    "mmdet": "clients",
    "mmcv": "clients",
    "transformers": "clients",
    "ultralytics": "clients",
    "ray": "cluster",
    "deap": "compare",
    "kozax": "compare",
    "tensorboardX": "tensorboard",
    "matplotlib": "plot",
}


def need(package: str) -> ModuleType:
    """Imports a package of an extra."""
    return pytest.importorskip(package, reason=f"needs {package}: pip install '.[{EXTRAS[package]}]'")


def beside(name: str) -> pathlib.Path:
    """A folder of test data that is no part of the project: real images, reference values, weights."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared"
    path = pathlib.Path(os.environ.get("CSE_JAX_TEST_DATA") or default) / name
    if not path.is_dir():
        pytest.skip(f"needs test data at {path}: set CSE_JAX_TEST_DATA to the folder with data, golden and weights")
    return path
