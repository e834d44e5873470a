"""Tables of trained losses: what hundreds of different losses reach, with every stage's score of each.

``load`` reads one that comes with the package, ``read`` any other, ``find`` either; ``making.make`` makes one.
"""

import pathlib

from cse_jax.loss_table.prior import tried
from cse_jax.loss_table.table import Curve, LossTable, LossTableError, TableLoss, read

__all__ = ["Curve", "LossTable", "LossTableError", "TableLoss", "available", "find", "load", "read", "tried"]

FOLDER = pathlib.Path(__file__).parent / "tables"  # of those that come with the package


def available() -> list[str]:
    """The names of the tables that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.parquet"))


def load(name: str = "fcos_digits") -> LossTable:
    """A table that comes with the package, by its name.

    Raises:
      LossTableError: there is none of this name.
    """
    if name not in available():
        raise LossTableError(f"there is no table {name!r}; there are {', '.join(available()) or 'none'}")
    return read(FOLDER / f"{name}.parquet")


def find(name: str) -> LossTable:
    """A table that comes with the package, or of a file.

    Raises:
      LossTableError: there is neither.
    """
    return load(name) if name in available() or not pathlib.Path(name).exists() else read(pathlib.Path(name))
