"""The tables of trained losses that a suite reads."""

import pathlib

from cse_jax import loss_table
from cse_jax.errors import InputError
from cse_jax.loss_table import LossTable


def chosen(file: str | None) -> list[tuple[str, LossTable]]:
    """Names and tables: the one in a file, or all that come with the package.

    Raises:
      InputError: there is none.
      LossTableError: the file can't be read.
    """
    if file:
        return [(pathlib.Path(file).stem, loss_table.read(pathlib.Path(file)))]
    names = loss_table.available()
    if not names:
        raise InputError("no table of trained losses comes with this version; --table=FILE names one")
    return [(name, loss_table.load(name)) for name in names]
