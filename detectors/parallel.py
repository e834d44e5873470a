"""Work shared by devices: each has its own images of a batch, and all have the whole model.

A training step is compiled for the batch as a whole, so its sums and normalisers are over all images wherever they
are. What is done image by image (assignment, sampling, suppression) goes through ``map_images``: in a loop over an
array that is spread over devices, all of them would wait for each other at every iteration.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "images"
_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


def mesh_for(images: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """As many devices as can have equal shares of a batch.

    Args:
      images: of a batch.
      devices: those to choose from; all of this process by default.
    """
    devices = jax.local_devices() if devices is None else devices
    return Mesh(np.array(devices[: math.gcd(images, len(devices))]), (_AXIS,))


def by_image(mesh: Mesh) -> NamedSharding:
    """Each device has its share of the images."""
    return NamedSharding(mesh, PartitionSpec(_AXIS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Each device has all of it."""
    return NamedSharding(mesh, PartitionSpec())


@contextlib.contextmanager
def using(mesh: Mesh) -> Iterator[None]:
    """Functions that are traced within spread ``map_images`` over the mesh."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def map_images(function: Callable[..., Any], *arrays: Any) -> Any:
    """``jax.vmap`` of a function of one image, on each device over its own images.

    Args:
      function: of one image; what it closes over must not depend on the images.
      arrays: trees of arrays, the images along the first axis.
    """
    mapped, mesh = jax.vmap(function), _MESH.get()
    if mesh is None or mesh.size == 1:
        return mapped(*arrays)
    spec = PartitionSpec(_AXIS)
    # Unchecked, because a loop that begins with a constant and goes on with an image's values is refused otherwise.
    return jax.shard_map(mapped, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)
