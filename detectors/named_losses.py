"""The losses of ``cse_jax.losses`` by name: which fit a space, and how text such as ``focal_loss(gamma=1.5)`` is read.

Text is parsed, never evaluated.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cse_jax import losses as library
from cse_jax.errors import UserError
from cse_jax.language import spaces
from cse_jax.language.spaces import Space

_BY_SPACE: dict[str, tuple[Callable, ...]] = {
    spaces.MULTI_CLASS.name: (
        library.cross_entropy,
        library.iou_weighted_cross_entropy,
        library.poly1_cross_entropy,
        library.cse_autoloss_a_cls,
    ),
    spaces.BINARY_CLASS.name: (
        library.binary_cross_entropy,
        library.iou_weighted_binary_cross_entropy,
        library.focal_loss,
        library.quality_focal_loss,
        library.varifocal_loss,
        library.ghm_c_loss,
        library.cse_autoloss_b_cls,
    ),
    spaces.BOX.name: (
        library.iou_loss,
        library.log_iou_loss,
        library.bounded_iou_loss,
        library.giou_loss,
        library.diou_loss,
        library.ciou_loss,
        library.cse_autoloss_a_reg,
        library.cse_autoloss_b_reg,
        library.l1_loss,
        library.smooth_l1_loss,
        library.balanced_l1_loss,
        library.ghm_r_loss,
    ),
}
_ON_OFFSETS = (library.l1_loss, library.smooth_l1_loss, library.balanced_l1_loss, library.ghm_r_loss)
_NOT_OPTIONS = ("mask", "weights", "counts", "momentum")  # momentum needs counts, the state that a training step lacks
_CALL = re.compile(r"([A-Za-z_]\w*)\s*(\(.*\))?", re.DOTALL)


class LossError(UserError, ValueError):
    """Text that names no loss of a space; the message shows the nearest name and the ones that fit."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=["function", "options"])
@dataclasses.dataclass(frozen=True)
class NamedLoss:
    """A function of ``cse_jax.losses``, and the weight it is multiplied by.

    A jitted function that takes one compiles once for each loss with its options; the weight is traced.

    Attributes:
      function: the loss.
      options: names and values of its hyper-parameters that differ from the default.
      weight: factor on the loss, a scalar array.
    """

    function: Callable
    options: tuple[tuple[str, int | float | None], ...]
    weight: typing.Any  # functions that map trees, such as jax.tree.map, put leaves of other types here

    @property
    def on_offsets(self) -> bool:
        """Whether a box loss reads encoded offsets rather than boxes."""
        return self.function in _ON_OFFSETS

    @property
    def is_mean(self) -> bool:
        """Whether the loss is by definition the mean over all entries that count, not over what the detector counts."""
        return self.function is library.ghm_c_loss


def names(space: Space) -> tuple[str, ...]:
    """The names of the losses that fit a space."""
    return tuple(function.__name__ for function in _BY_SPACE.get(space.name, ()))


def evaluate(
    loss: NamedLoss, inputs: Mapping[str, Float[Array, "..."]], mask: Bool[Array, "*b n"] | None = None
) -> Float[Array, "..."]:
    """The values of a library loss, times its weight.

    Args:
      loss: the loss.
      inputs: everything that a loss of the space may read, by the names of the library's arguments.
      mask: rows that count; the others give 0 and do not count in GHM's density.

    Returns:
      Values in the shape that the function documents.
    """
    wanted = [p.name for p in _parameters(loss.function) if p.kind is p.POSITIONAL_OR_KEYWORD]
    values = loss.function(*(inputs[name] for name in wanted), mask=mask, **dict(loss.options))
    if isinstance(values, tuple):  # GHM returns its state as well
        values = values[0]
    return values * loss.weight


def read(text: str, space: Space, weight: float = 1.0) -> NamedLoss | None:
    """Reads ``name`` or ``name(hyper_parameter=number, ...)``; None if the text starts with no name of the library.

    Raises:
      LossError: the loss does not fit the space, or a hyper-parameter is unknown or of the wrong type.
    """
    match = _CALL.fullmatch(text.strip())
    if not match or match[1] not in library.__all__:
        return None
    name = match[1]
    if name not in names(space):
        fitting = [other for other, functions in _BY_SPACE.items() if name in [f.__name__ for f in functions]]
        where = f"it is a loss of space {fitting[0]}; " if fitting else ""
        raise LossError(f"{name} does not fit space {space.name}: {where}{_listed(space)}")
    function = getattr(library, name)
    options = _options(function, text.strip()) if match[2] else {}
    return NamedLoss(function, tuple(sorted(options.items())), jnp.float32(weight))


def hint(text: str, space: Space) -> str:
    """Names of the library for text that is not a formula; empty if the text does not look like a loss's name."""
    match = _CALL.fullmatch(text.strip())
    if not match or (match[2] and "=" not in match[2] and match[2].strip("() ")):
        return ""
    close = difflib.get_close_matches(match[1].lower(), names(space), n=1, cutoff=0.5)
    close = close or [name for name in names(space) if name.startswith(match[1].lower())][:1]
    nearest = f"did you mean the loss {close[0]!r}; " if close else ""
    return f"{nearest}{_listed(space)}"


def _listed(space: Space) -> str:
    return f"the library losses of space {space.name} are {', '.join(names(space))}"


def _parameters(function: Callable) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _options(function: Callable, text: str) -> dict[str, int | float | None]:
    """The hyper-parameters in the text of a call."""
    name = function.__name__
    known = {p.name: p for p in _parameters(function) if p.kind is p.KEYWORD_ONLY and p.name not in _NOT_OPTIONS}
    shown = ", ".join(f"{p.name}={p.default}" for p in known.values())
    takes = f"{name} takes {shown}" if known else f"{name} takes no hyper-parameters"
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("hyper-parameters are given by keyword")
        given = [(_keyword(k), ast.literal_eval(k.value)) for k in call.keywords]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise LossError(f"cannot read {text!r}: write name(keyword=number, ...); {takes}") from error
    if len(dict(given)) < len(given):
        raise LossError(f"{text!r} gives a hyper-parameter twice; {takes}")
    for key, value in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            nearest = f"; did you mean {close[0]!r}" if close else ""
            raise LossError(f"{name} has no hyper-parameter {key!r}{nearest}; {takes}")
        _check(name, known[key], value)
    return {key: value for key, value in given if value != known[key].default}


def _keyword(given: ast.keyword) -> str:
    if given.arg is None:
        raise ValueError("** is not read")
    return given.arg


def _check(name: str, parameter: inspect.Parameter, value: object) -> None:
    annotation = parameter.annotation
    if value is None and types.NoneType in typing.get_args(annotation):
        return
    if annotation is int:
        fits, wanted = type(value) is int and value > 0, "a whole number above 0"
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        wanted = "a finite number"
    if not fits:
        raise LossError(f"{name}: {parameter.name} is {value!r}; give {wanted}, such as {parameter.default}")
