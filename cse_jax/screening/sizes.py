"""How screening cuts its work, for CPUs, GPUs and TPUs.

On a CPU the rows of a tile stay in a core's cache.  On a GPU each tile costs some launches of kernels, so tiles are as
few and as wide as the memory allows; everyone is judged on the finer of the coarse grids there, which costs next to
nothing, so that fewer formulas come back to the host.  What an enumeration takes at once on a GPU was not measured: it
is as many operands as a batch of formulas that are judged by their values.
"""

import dataclasses

import jax

ROUGH, FINER = (3, 2), (8, 5)  # coarse grids: paths, and points of each


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes for one kind of device.

    Attributes:
      per_operator: tiles of each operator at each height of a random graph.
      width: rows of such a tile.
      everyone: the coarse grid for all random formulas.
      remaining: the one for those that remain, on which ``remaining_batch`` of them are judged at once, in tiles of
        ``remaining_tile`` rows; ``None`` if there is none.
      batch, tile: formulas whose values are judged at once on the full grid, and rows of a tile.
      gradient_batch, gradient_tile: likewise for values and gradients.
      passes: into how many parts the grid may be cut, the first that divides it is taken.
      workers: threads that build graphs, each beside the device's work for another; blocks of an enumeration in work.
      simulated: formulas whose descent on predictions is simulated at once.
      operands: of an enumeration, operands or pairs of them whose values are computed at once.
    """

    per_operator: int
    width: int
    everyone: tuple[int, int]
    remaining: tuple[int, int] | None
    batch: int
    tile: int
    gradient_batch: int
    gradient_tile: int
    passes: tuple[int, ...]
    workers: int
    simulated: int
    operands: int
    remaining_batch: int = 4096
    remaining_tile: int = 64


CPU = Sizes(16, 256, ROUGH, FINER, 8192, 32, 1024, 16, (4, 5, 3, 2, 1), 2, 64, 4096)
GPU = Sizes(1, 16384, FINER, None, 65536, 2048, 16384, 1024, (1,), 8, 2048, 65536)


def sizes() -> Sizes:
    """Those for the device that screens."""
    platform = jax.default_backend()
    if platform == "tpu":  # leaves float64 to its host
        return dataclasses.replace(CPU, simulated=GPU.simulated)
    return GPU if platform == "gpu" else CPU
