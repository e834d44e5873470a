"""JSON files that other people's programs wrote, read row by row against a schema.

Numbers given as text and whole floats are read as numbers. Anything else that is not of its field's type is named and
never guessed. A row is decoded only when it is asked for, so that a large file takes little more memory than its bytes.
"""

import json
import pathlib
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeVar

import msgspec

from cse_jax.errors import UserError

Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Side = Annotated[int, msgspec.Meta(ge=1, le=2**20)]  # of an image, pixels
Flag = Annotated[int, msgspec.Meta(ge=0, le=1)] | bool | None
Row = TypeVar("Row", bound=msgspec.Struct)
_WORDS = {
    "int": "a whole number",
    "bool": "true or false",
    "float": "a number",
    "str": "text",
    "array": "a list",
    "object": "an object",
}
_SHOWN = 60  # letters of a value


class FileError(UserError, ValueError):
    """A file that is not what it should be; the message names it, the place and the value."""


class RowError(UserError, ValueError):
    """A row that does not fit its schema; the message names the field, its value and what is expected.

    ``row`` is what it holds, with numbers given as text as numbers.
    """

    def __init__(self, message: str, row: Any = None):
        super().__init__(message)
        self.row = row


def read_bytes(path: pathlib.Path) -> bytes:
    """The content of a regular file: others, such as pipes and devices, may never end.

    Raises:
      OSError: it is missing, not a regular file, or cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "not a regular file", str(path))
    return path.read_bytes()


def read_table(path: pathlib.Path, kind: Any, *, wanted: str) -> Any:
    """The outermost object or list of a JSON file, whose parts stay undecoded where ``kind`` says ``msgspec.Raw``.

    Args:
      path: of the file.
      kind: its type.
      wanted: what the file should be, for the message.

    Raises:
      FileError: it cannot be read or is of another type.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise FileError(f"{path} can't be read: {error.strerror}. It should be {wanted}") from error
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise FileError(f"{path} is not {wanted}: {_plain(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # JSON has no NaN and no encoding but UTF-8; Python writes the one and reads the other
    try:
        standard = json.dumps(json.loads(content, parse_constant=str)).encode()
        return msgspec.json.decode(standard, type=kind)
    except msgspec.ValidationError as error:
        raise FileError(f"{path} is not {wanted}: {_plain(str(error))}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FileError(f"{path} is not JSON, and should be {wanted}: {error}") from error


def rows(parts: Iterable[msgspec.Raw], kind: type[Row]) -> Iterator[Row | RowError]:
    """Each part as a row of a type, or why it is none."""
    decoder = msgspec.json.Decoder(kind, strict=False)
    for part in parts:
        try:
            yield decoder.decode(part)
        except (msgspec.DecodeError, UnicodeDecodeError):
            yield _second_try(part, kind)


def shown(value: Any) -> str:
    """The beginning of a value as JSON; of undecoded JSON as it is."""
    raw = isinstance(value, bytes | msgspec.Raw)
    text = bytes(value).decode(errors="replace") if raw else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _second_try(part: msgspec.Raw, kind: type[Row]) -> Row | RowError:
    """The row with numbers read from text that JSON's numbers do not allow, such as 007."""
    try:
        row = msgspec.json.decode(part)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return RowError(f"it is no JSON ({error})")
    if not isinstance(row, dict):
        return RowError(f"it is {shown(row)}, not an object", row)
    of_text = {field.name for field in msgspec.structs.fields(kind) if field.type in (str, str | None)}
    row = {name: value if name in of_text else _number(value) for name, value in row.items()}
    try:
        return msgspec.convert(row, kind, strict=False)
    except (msgspec.ValidationError, OverflowError) as error:
        said, _, place = str(error).partition(" - at `$.")
        name = re.split(r"[.\[`]", place)[0]
        if name in row:
            return RowError(f"{name} is {shown(row[name])}: {_plain(said).lower()}", row)
        return RowError(_plain(said), row)


def _number(value: Any) -> Any:
    """A whole number that is given as text with spaces or leading zeros."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,30}\s*", value):
        return int(value)
    return value


def _plain(said: str) -> str:
    """What msgspec says, in words."""

    def in_words(match: re.Match) -> str:
        return " or ".join(_WORDS.get(name, name) for name in str(match[1]).split(" | "))

    said = said.replace("Object missing required field", "it has no field").replace(" - at `$.", ", in `")
    return re.sub(r"`([^`]*)`", in_words, said)
