"""That a GPU gives the same bits with the flag that docs/design.md names for it."""

import os
import subprocess
import sys

import pytest
from scripts import ROOT

PROGRAM = """
import dataclasses, hashlib, jax, jax.numpy as jnp
from micro import library_losses
from test_detectors import batch_of
from benchmarks.smallest import faster_rcnn_smallest
from detectors.models import build_detector
from detectors.training.step import TrainConfig, jit_detector

config = faster_rcnn_smallest(3)
config = dataclasses.replace(config, roi=dataclasses.replace(config.roi, pool_as_product=False))
detector, build = build_detector(config)
functions, losses = jit_detector(build, TrainConfig(batch_size=2, warmup_steps=0)), library_losses(detector)
state = functions.init(0)
for step in range(5):
    state, metrics = functions.step(state, functions.place(batch_of(step)), losses, jnp.int32(5), jnp.int32(0))
assert metrics["finite"]
leaves = jax.device_get(jax.tree.leaves(state))
print(hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest())
"""


@pytest.mark.gpu
@pytest.mark.slow
def test_a_gpu_trains_to_the_same_bits_if_told_to():
    """Each process compiles for itself, since it is then that kernels are chosen."""
    hidden = ("JAX_COMPILATION_CACHE_DIR", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_gpu_deterministic_ops=true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # beside the tests' own process
        "PYTHONPATH": f"{ROOT}:{ROOT / 'launch'}:{ROOT / 'tests'}",
    }
    found = set()
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
