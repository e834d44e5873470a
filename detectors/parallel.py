"""Work shared by devices: each has its own images of a batch, and all have the whole model.

A training step is compiled for the batch as a whole, so its sums and normalisers are over all images on all devices.
What is done image by image (assignment, sampling, suppression) goes through ``map_images``: in a loop over an array
that is spread over devices, all of them would wait for each other at every iteration.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Devices = Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm]  # jaxlib's class has no stub

_AXIS = "images"
_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


def mesh_for(images: int, devices: Devices | None = None) -> Mesh:
    """A mesh of as many devices as can have equal shares of a batch.

    Args:
      images: their number in a batch.
      devices: those to choose from; all of this process by default.
    """
    devices = jax.local_devices() if devices is None else devices
    return Mesh(np.array(devices[: math.gcd(images, len(devices))]), (_AXIS,))


def by_image(mesh: Mesh) -> NamedSharding:
    """The sharding that gives each device its share of the images."""
    return NamedSharding(mesh, PartitionSpec(_AXIS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding that gives each device the whole."""
    return NamedSharding(mesh, PartitionSpec())


@contextlib.contextmanager
def using(mesh: Mesh) -> Iterator[None]:
    """Within this context ``map_images`` spreads what it traces over the mesh."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def map_images(function: Callable[..., Any], *arrays: Any) -> Any:
    """``jax.vmap`` of a function of one image, on each device over its own images.

    Args:
      function: takes one image; what it closes over must not depend on the images.
      arrays: trees of arrays, with the images along the first axis.
    """
    mapped, mesh = jax.vmap(function), _MESH.get()
    if mesh is None or mesh.size == 1:
        return mapped(*arrays)
    spec = PartitionSpec(_AXIS)
    # Unchecked, because JAX would refuse loops whose state starts as a constant and then depends on an image.
    return jax.shard_map(mapped, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)
