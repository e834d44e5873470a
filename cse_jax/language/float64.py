"""Float64, where a device has it."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Computes in float64: on a TPU's host, since a TPU makes do with two float32, which have their range."""
    with jax.enable_x64(True), contextlib.ExitStack() as stack:
        if jax.default_backend() == "tpu":
            stack.enter_context(jax.default_device(float64_devices()[0]))
        yield


def float64_devices() -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stub
    """The devices of this process that compute in float64."""
    return jax.local_devices(backend="cpu" if jax.default_backend() == "tpu" else None)
