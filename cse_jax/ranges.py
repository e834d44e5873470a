"""What the fields of a config may be, written beside them as their types, and the check of a whole config."""

import dataclasses
import functools
import math
import types
import typing
from typing import Annotated, Any, Literal

from cse_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from ``least`` (or ``above``) to ``most`` (or ``below``)."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def fits(self, value: float) -> bool:
        """Whether a number is one of these."""
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"from {self.least:,.10g} to {self.most:,.10g}"
        bounds = ("of at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below)
        return " and ".join(f"{word} {bound:,.10g}" for word, bound in bounds if math.isfinite(bound))


@dataclasses.dataclass(frozen=True)
class Items:
    """Tuples of at least so many items; ``increasing`` ones grow from item to item."""

    least: int = 1
    increasing: bool = False

    def fits(self, value: tuple) -> bool:
        """Whether a tuple is one of these."""
        rising = all(a < b for a, b in zip(value, value[1:], strict=False))
        return len(value) >= self.least and (rising or not self.increasing)

    def __str__(self) -> str:
        return f"({self.least} or more{', increasing' if self.increasing else ''})"


Positive = Annotated[int, Range(least=1, most=10**9)]
Count = Annotated[int, Range(least=0, most=10**9)]
Seed = Annotated[int, Range(least=0, most=10**9)]  # below what NumPy and JAX take, as seeds are counted on from it
Threads = Annotated[int, Range(least=1, most=1024)]
Share = Annotated[float, Range(least=0, most=1)]
PositiveShare = Annotated[float, Range(above=0, most=1)]
Amount = Annotated[float, Range(least=0, most=1e9)]
PositiveAmount = Annotated[float, Range(above=0, most=1e9)]
Horizons = Annotated[tuple[Positive, ...], Items(increasing=True)]  # steps at which a training is scored

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


def validate(config: Any, name: str = "config") -> None:
    """Checks that each field of a dataclass, and of those in its fields, is what its type says.

    A ``check`` method of a dataclass is called when its fields are right; it says what they must be together.

    Args:
      config: an instance of a dataclass.
      name: of the config, in messages.

    Raises:
      InputError: names a field, its value and its range.
    """
    for field, kind in field_types(type(config)).items():
        value, place = getattr(config, field), f"{name}.{field}"
        if not fits(value, kind):
            raise InputError(f"{place} is {value!r}; it must be {describe(kind)}")
        if dataclasses.is_dataclass(value):
            validate(value, place)
    if hasattr(config, "check"):
        try:
            config.check()
        except InputError as error:
            raise InputError(f"{name}: {error}") from error


@functools.cache
def field_types(config: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with their ranges."""
    hints = typing.get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, and within its range."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return fits(value, parts[0]) and all(rule.fits(value) for rule in parts[1:])
    if origin is Literal:
        return value in parts
    if _is_union(kind):
        return any(fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple) or (parts[-1] is not ... and len(parts) != len(value)):
            return False
        return all(map(fits, value, parts[:1] * len(value) if parts[-1] is ... else parts))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind if kind in _NAMES else isinstance(value, kind)


def describe(kind: Any) -> str:
    """What ``fits`` lets pass, in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return " ".join([describe(parts[0]), *map(str, parts[1:])])
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if _is_union(kind):
        return " or ".join(map(describe, parts))
    if origin is tuple:
        each = list(dict.fromkeys(describe(part) for part in parts if part is not ...))
        size = "" if parts[-1] is ... else f" of {len(parts)} items"
        return f"a tuple{size}, each {' or '.join(each)}"
    if kind is types.NoneType:
        return "None"
    return _NAMES.get(kind, f"of the class {kind.__name__}")


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
