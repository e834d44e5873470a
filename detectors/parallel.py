"""Work shared by devices: each has its own images of a batch, and all have the whole model.

A training step is compiled for the batch as a whole, so its sums and normalisers are over all images on all devices.
What is done image by image (assignment, sampling, suppression) goes through ``map_images``: in a loop over an array
that is spread over devices, all of them would wait for each other at every iteration.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cse_jax.errors import InputError

Devices = Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm]  # jaxlib's class has no stub

_AXIS = "images"
_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)
_alone = False  # whether this process shares no work with the others that JAX knows of


def work_alone() -> None:
    """From now on this process works for itself, on its own devices."""
    global _alone
    _alone = True


def share() -> tuple[int, int]:
    """This process's place among those that share the work, and their number."""
    return (0, 1) if _alone else (jax.process_index(), jax.process_count())


def mesh_for(images: int, devices: Devices | None = None) -> Mesh:
    """A mesh of as many devices as can have equal shares of a batch; as many of each process.

    Args:
      images: their number in a batch.
      devices: those to choose from; all of all processes that share the work by default.

    Raises:
      InputError: the processes can't have equal shares.
    """
    if devices is None and (processes := share()[1]) > 1:
        if images % processes:
            raise InputError(f"{processes} processes can't share a batch, or a part of it, of {images} images equally")
        of_each = [[d for d in jax.devices() if d.process_index == process] for process in range(processes)]
        count = _sharing(images // processes, min(map(len, of_each)))
        return Mesh(np.array([device for own in of_each for device in own[:count]]), (_AXIS,))
    devices = jax.local_devices() if devices is None else devices
    return Mesh(np.array(devices[: _sharing(images, len(devices))]), (_AXIS,))


def _sharing(images: int, devices: int) -> int:
    """The most devices that can have equal shares."""
    return max(count for count in range(1, min(images, devices) + 1) if images % count == 0)


def shared(mesh: Mesh, own: Any) -> Any:
    """The arrays of a batch on all devices, of which each process gives its own images; copies are not waited for."""
    if share()[1] == 1:
        return jax.device_put(own, by_image(mesh))
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(by_image(mesh), np.asarray(array)), own)


def own_rows(array: Any) -> Any:
    """This process's images of a batch that each process has as a whole."""
    place, processes = share()
    each = len(array) // processes
    return array[place * each :][:each]


def gathered(batch: Any) -> Any:
    """The arrays of a batch, which are spread over all processes, as each process needs them to read them."""
    return batch if share()[1] == 1 else multihost_utils.process_allgather(batch, tiled=True)


def writes() -> bool:
    """Whether this is the process that writes what all of them have."""
    return share()[0] == 0


def agreed(value: bool) -> bool:
    """What the process that writes has found."""
    return value if share()[1] == 1 else bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def together(what: str) -> None:
    """Waits until all processes are here."""
    if share()[1] > 1:
        multihost_utils.sync_global_devices(what)


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
    return map_rows(_MESH.get(), lambda _, *image: function(*image), (), *arrays)


def map_rows(mesh: Mesh | None, function: Callable[..., Any], common: Any, *arrays: Any) -> Any:
    """``jax.vmap`` of a function over the first axis of arrays, on each device of a mesh over its own rows.

    Args:
      mesh: of one axis, whose size divides the number of rows; None for where the arrays are.
      function: takes what is common and one row of each array.
      common: a tree of arrays of which each device has the whole.
      arrays: trees of arrays.
    """

    def mapped(common, *arrays):
        return jax.vmap(functools.partial(function, common))(*arrays)

    if mesh is None or mesh.size == 1:
        return mapped(common, *arrays)
    rows = PartitionSpec(*mesh.axis_names)
    specs = (PartitionSpec(), *[rows] * len(arrays))
    # Unchecked, because JAX would refuse loops whose state starts as a constant and then depends on a row.
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(common, *arrays)


def row(array: jax.Array, number: int) -> jax.Array:
    """A row of an array whose rows are spread over devices, on the device that has it."""
    for shard in array.addressable_shards:
        first = shard.index[0].start or 0
        if first <= number < first + len(shard.data):
            return shard.data[number - first]
    raise IndexError(number)
