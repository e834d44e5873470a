"""Where tests find data that is not part of the project."""

import json
import os
import pathlib

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("project", max_examples=100, deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


def _beside(variable: str, name: str) -> pathlib.Path:
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / name
    return pathlib.Path(os.environ.get(variable, default))


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_functions():
    """Keeps the memory of a run bounded: modules share few compiled functions."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Real images and reference evaluations."""
    path = _beside("CSE_JAX_TEST_DATA", "data")
    if not path.is_dir():
        pytest.skip(f"no test data at {path}; set CSE_JAX_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def golden() -> dict:
    """Reference values of the loss language."""
    path = _beside("CSE_JAX_GOLDEN", "golden") / "losses.json"
    if not path.is_file():
        pytest.skip(f"no golden values at {path}; set CSE_JAX_GOLDEN")
    return json.loads(path.read_text())
