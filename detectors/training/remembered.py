"""A figure that takes minutes to measure is measured once."""

import contextlib
import json
import pathlib
from collections.abc import Callable

from cse_jax import workdir


def remembered(path: pathlib.Path, key: str, measure: Callable[[], int]) -> int:
    """What a file holds under a key; else it is measured, and written there if the file can be written.

    Raises:
      WorkdirError: the file is damaged.
    """

    def read() -> dict[str, int]:
        return workdir.read_json(path, "remove it, and it is measured again") if path.exists() else {}

    known = read()
    if key not in known:
        known = {key: measure()}
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            workdir.write_whole(path, json.dumps(read() | known))  # others may have written meanwhile
    return known[key]
