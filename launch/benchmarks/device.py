"""The device that figures are of, as this process has it, or as another one tells that ends before others need it."""

import os
import platform
import subprocess
import sys
from typing import NamedTuple

import jax

from cse_jax.errors import UserError


class Device(NamedTuple):
    """A device.

    Attributes:
      platform: JAX's name: ``cpu``, ``gpu`` or ``tpu``.
      kind: what its maker calls it.
    """

    platform: str
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"


def here() -> Device:
    """The first device of this process, which holds it from now on."""
    return Device(jax.default_backend(), jax.devices()[0].device_kind)


def asked() -> Device:
    """The first device of a process like this one; this one does not touch it.

    Raises:
      UserError: JAX finds no device there.
    """
    code = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"JAX finds no device: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
    return Device(*done.stdout.splitlines()[-2:])
