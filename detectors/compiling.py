"""How the functions that train and apply detectors are compiled."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer


def jit(function: Callable, **options: Any) -> Callable:
    """``jax.jit`` with what this process's devices need.

    Where it is called within another jitted function, that one says how all is compiled.

    Args:
      function: to be compiled.
      options: of ``jax.jit``.
    """
    if jax.default_backend() != "gpu":
        return jax.jit(function, **options)
    # jaxlib 0.11.2 aborts where it fuses a convolution's patches into a matrix product.
    unfused = jax.jit(function, compiler_options={"xla_gpu_enable_triton_gemm": False}, **options)
    return _Jitted(unfused, jax.jit(function, **options))


@dataclasses.dataclass(frozen=True)
class _Jitted:
    """A function with compiler options, which JAX takes of the outermost function only."""

    outermost: Any
    nested: Any

    def __call__(self, *args: Any) -> Any:
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args))
        return (self.nested if traced else self.outermost)(*args)

    def lower(self, *args: Any) -> Any:
        return self.outermost.lower(*args)
