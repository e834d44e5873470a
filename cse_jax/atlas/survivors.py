"""The survivors of a screening, on disk: Parquet files that hold whole batches or sizes, so that a kill loses nothing.

A file appears complete or not at all and says which batches it holds.  An interrupted screening resumes with those
that no file holds, so a damaged file can be removed and its batches are screened again.  Each behaviour is written when
it is met first, and again when a shorter formula has it.
"""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from cse_jax.atlas.enumeration import SizeReport
from cse_jax.atlas.stream import Batch
from cse_jax.errors import UserError
from cse_jax.language.expression import Expression, to_authors, to_infix
from cse_jax.language.population import PAD, decode
from cse_jax.language.spaces import Space
from cse_jax.screening.verification import Property, fingerprint
from cse_jax.workdir import WorkdirError, irregular, read_json, write_whole, writing

_NAME = re.compile(r"process(\d+)-batches-(\d+)-(\d+)\.parquet")
_ROW_LIMIT = 50_000
_HASH_LIMIT = 1_000_000  # 22 MB of a file's metadata, of which Parquet's readers take some 70
FORMAT = 3  # of a folder
_ORDER = ("nodes", "batch", "authors")  # columns by which the shortest formula of a behaviour comes first


class SurvivorsError(UserError, RuntimeError):
    """A folder of survivors that can't be used; the message says why."""


class Survivors:
    """A folder of survivors that one process writes.

    Attributes:
      seen: hashes of the formulas that passed before.
      candidates: formulas screened so far by this process.
      behaviours: distinct fingerprints so far.
    """

    def __init__(self, folder: pathlib.Path, space: Space, settings: dict[str, Any], *, process: int = 0) -> None:
        """Opens a folder, with what it holds.

        Raises:
          SurvivorsError: it holds survivors of other settings, or can't be read.
        """
        self.folder, self.space, self.process = folder, space, process
        self.seen: set[int] = set()
        self._shortest: dict[str, int] = {}
        self.candidates = 0
        self._step = settings.get("processes", 1)  # from one batch of this process to its next
        self._on_disk: set[int] = set()
        self._batches: list[int] = []  # since the last flush
        self._screened = 0  # formulas in them
        self._hashes: list[int] = []
        self._rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        _check_settings(folder / "settings.json", settings)
        for path in _parts(folder, process):
            self._load(path)

    @property
    def behaviours(self) -> int:
        return len(self._shortest)

    def left(self) -> Iterator[int]:
        """Numbers of the batches that no file holds, without end: those of lost files first."""
        for number in itertools.count(self.process, self._step):
            if number not in self._on_disk:
                yield number

    def _load(self, path: pathlib.Path) -> None:
        table = _read(path)
        about = json.loads(table.schema.metadata[b"cse_jax"])
        self.candidates += about["candidates"]
        self._on_disk.update(about["batches"])
        self.seen.update(about["hashes"])
        for name, nodes in zip(
            *(table[column].to_numpy().tolist() for column in ("fingerprint", "nodes")), strict=True
        ):
            self._shortest[name] = min(nodes, self._shortest.get(name, nodes))

    def add(self, batch: Batch) -> None:
        """Adds the survivors of a batch."""
        self._batches.append(batch.number)
        self._screened += batch.candidates
        self.candidates += batch.candidates
        sizes = (batch.tokens != PAD).sum(1)
        for k, value in enumerate(batch.hashes.tolist()):
            if value in self.seen:
                continue
            self.seen.add(value)
            self._hashes.append(value)
            flipped = int(batch.judged.failed[k, 0] != Property.NONE)
            name, nodes = fingerprint(batch.judged, k, flipped=bool(flipped)), int(sizes[k]) + flipped
            if nodes < self._shortest.get(name, nodes + 1):
                self._shortest[name] = nodes
                self._rows.append(self._row(batch, k, name, flipped))

    def _row(self, batch: Batch, k: int, name: str, flipped: int) -> dict[str, Any]:
        (expression,) = decode(batch.tokens[k : k + 1], self.space)
        if flipped:
            expression = Expression(("Neg", *expression.tokens), self.space)
        return {
            "formula": to_infix(expression),
            "authors": to_authors(expression),
            "nodes": len(expression),
            "height": expression.height,
            "fingerprint": name,
            "flipped": bool(flipped),
            "rise": float(batch.judged.rise[k, flipped]),
            "start_gradient": float(batch.judged.start_gradient[k, flipped]),
            "batch": batch.number,
        }

    def flush(self) -> None:
        """Writes what has been added since the last flush.

        Raises:
          OSError: it can't be written; nothing that is on disk is lost.
        """
        if not self._batches:
            return
        about = {"candidates": self._screened, "batches": self._batches, "hashes": self._hashes}
        first, last = self._batches[0], self._batches[-1]
        _write(self.folder, f"process{self.process}-batches-{first:09d}-{last:09d}.parquet", self._rows, about)
        self._on_disk.update(self._batches)
        self._batches, self._screened, self._hashes, self._rows = [], 0, [], []

    @property
    def full(self) -> bool:
        """Whether enough has been added to be worth a file."""
        return len(self._rows) >= _ROW_LIMIT or len(self._hashes) >= _HASH_LIMIT


def write_size(folder: pathlib.Path, space: Space, report: SizeReport, settings: dict[str, Any]) -> None:
    """Writes the losses of one size of an enumeration, in the form of survivors; the size stands for the batch.

    Raises:
      SurvivorsError: the folder holds something else.
      OSError: it can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "settings.json", settings)
    rows = [
        {
            "formula": to_infix(loss.expression),
            "authors": to_authors(loss.expression),
            "nodes": loss.nodes,
            "height": loss.expression.height,
            "fingerprint": loss.fingerprint,
            "flipped": loss.flipped,
            "batch": report.nodes,
        }
        for loss in report.losses
    ]
    counts = {name: value for name, value in dataclasses.asdict(report).items() if name != "losses"}
    _write(folder, f"process0-batches-{report.nodes:09d}-{report.nodes:09d}.parquet", rows, counts)


def _write(folder: pathlib.Path, name: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Writes a file that appears complete or not at all."""
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.Table.from_pylist(rows, schema=_schema(pyarrow))
    table = table.replace_schema_metadata({"cse_jax": json.dumps(about)})
    with writing(folder / name) as file:
        parquet.write_table(table, file, write_page_checksum=True)


def _read(path: pathlib.Path) -> Any:
    """A file's table.

    Raises:
      SurvivorsError: it is damaged.
    """
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise SurvivorsError(str(irregular(path)))
    try:
        return parquet.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise SurvivorsError(
            f"{path} can't be read ({error}); remove it, and the command that made it screens its batches again"
        ) from error


def read_survivors(folder: pathlib.Path, space: Space, *, most: int | None = None) -> list[dict[str, Any]]:
    """The rows of a folder, one for each behaviour: the first of its shortest formulas.  The shortest come first.

    Args:
      folder: of survivors.
      space: theirs.
      most: how many to read; all by default, which takes about a kilobyte of memory each.

    Raises:
      SurvivorsError: the folder holds no survivors, or those of another space.
    """
    paths = list(_parts(folder)) if folder.is_dir() else []
    if not paths:
        raise SurvivorsError(f"{folder} holds no survivors; screen into that folder first")
    about = _settings(folder)
    _check_format(folder, about)
    screened = about["space"]
    if screened != space.name:
        raise SurvivorsError(f"{folder} holds losses of space {screened}, not {space.name}")
    rows = [row for path in paths for row in _shortest(_read(path), most)]
    rows.sort(key=lambda row: tuple(row[column] for column in _ORDER))
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["fingerprint"], row)
    return list(first.values())[:most]


def _shortest(table: Any, most: int | None) -> list[dict[str, Any]]:
    """The rows of a file's table, or the first of them that hold as many behaviours."""
    if most is None:
        return table.to_pylist()
    table = table.sort_by([(column, "ascending") for column in _ORDER])
    seen: set[str] = set()
    for count, behaviour in enumerate(table["fingerprint"], start=1):
        seen.add(behaviour.as_py())
        if len(seen) == most:
            return table.slice(0, count).to_pylist()
    return table.to_pylist()


def _parts(folder: pathlib.Path, process: int | None = None) -> Iterable[pathlib.Path]:
    """Files of survivors, in order of their batches."""
    found = sorted(
        (int(m[2]), path)
        for path in folder.iterdir()
        if (m := _NAME.fullmatch(path.name)) and (process is None or int(m[1]) == process)
    )
    return [path for _, path in found]


def _check_format(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    written = settings.get("format", "an earlier one")
    if written != FORMAT:
        raise SurvivorsError(
            f"{folder} was written by another version of cse_jax (its format is {written}, this version reads "
            f"{FORMAT}); screen again into another folder"
        )


def _check_settings(path: pathlib.Path, settings: dict[str, Any]) -> None:
    text = json.dumps({"format": FORMAT} | settings, indent=1, sort_keys=True)
    if not path.exists():
        write_whole(path, text)
    before = _settings(path.parent)
    _check_format(path.parent, before)
    for name, value in json.loads(text).items():
        if before.get(name) != value:
            raise SurvivorsError(
                f"{path.parent} was screened with {name}={before.get(name)!r}, not {value!r}; use another folder"
            )


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """What a folder was screened with.

    Raises:
      SurvivorsError: that is lost or damaged.
    """
    path = folder / "settings.json"
    try:
        return read_json(path, "screen again into another folder, or put it back from a copy")
    except FileNotFoundError as error:
        raise SurvivorsError(f"{path} is missing; screen again into another folder, or put it back") from error
    except WorkdirError as error:
        raise SurvivorsError(str(error)) from error


def _schema(pyarrow):
    return pyarrow.schema(
        [
            ("formula", pyarrow.string()),
            ("authors", pyarrow.string()),
            ("nodes", pyarrow.int16()),
            ("height", pyarrow.int16()),
            ("fingerprint", pyarrow.string()),
            ("flipped", pyarrow.bool_()),
            ("rise", pyarrow.float64()),
            ("start_gradient", pyarrow.float64()),
            ("batch", pyarrow.int64()),
        ]
    )
