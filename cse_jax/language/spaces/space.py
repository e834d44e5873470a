"""What a search space is: everything the search asks about it, as data and three functions."""

import dataclasses
import functools
import keyword
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from cse_jax.errors import InputError
from cse_jax.language.operators import OPERATORS, Operator

Inputs = Mapping[str, Float[Array, "..."]]  # by the variables' names


@dataclasses.dataclass(frozen=True)
class Variable:
    """An input of a formula.

    Attributes:
      name: the authors' name, as in ``Sig(X)``.
      symbol: the name in infix notation, as in ``sigmoid(x)``.
      latex: the name in LaTeX.
      meaning: what it holds, with its shape.
      sign: what is known of its values when a formula is simplified: ``"real"``, ``"nonnegative"`` or ``"positive"``.
    """

    name: str
    symbol: str
    latex: str
    meaning: str
    sign: str = "real"


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """A way in which a prediction gets steadily worse: ``p`` points, the best first.

    Attributes:
      name: what moves, for messages.
      inputs: each variable along the path; ``[p]``, or ``[p, c]`` in a space with a class axis.
      tangents: derivatives of the variables along the path; those left out are fixed.
      rises: whether a loss must rise along it.  If not, it need only be finite: with soft labels the optimum may lie
        inside the path.
      vanishes: whether a loss's gradient along the path must vanish at the first point.
    """

    name: str
    inputs: Mapping[str, Float[np.ndarray, "p *c"]]
    tangents: Mapping[str, Float[np.ndarray, "p *c"]]
    rises: bool = True
    vanishes: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionTask:
    """A set of bare predictions that a useful loss improves by gradient descent.

    Attributes:
      start: the predictions at first.
      inputs: the variables of the space, from the predictions; differentiable.
      metric: how good predictions are; it rises as they get better.
      rate: length of a step whose gradient has the root mean square of the first one.
    """

    start: Float[Array, "n k"]
    inputs: Callable[[jax.Array], Inputs]
    metric: Callable[[jax.Array], Float[Array, ""]]
    rate: float


@dataclasses.dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
      name: its name in configs, ledgers and messages.
      variables: the inputs, in the order in which a compiled candidate expects them.
      differentiable: names of the inputs that carry the gradient to the network.
      operators: names of the operators that random formulas are made of.
      class_axis: whether inputs have a trailing class axis.
      losses: the field's usual losses as formulas, by name; the first is what detectors train with by default.
      paths: the verification paths in a unit of length.
      prediction: the prediction task in a unit of length, from a seed.
      per_row: whether the loss of a row is its sum over the class axis; else each class has its own loss.
      published: losses published by CSE-AutoLoss, verbatim.
      constants: the constants, above 0.
      further_operators: operators that a formula may contain beside ``operators``.
      units: units of length that the paths depend on.
    """

    name: str
    variables: tuple[Variable, ...]
    differentiable: tuple[str, ...]
    operators: tuple[str, ...]
    class_axis: bool
    losses: Mapping[str, str] = dataclasses.field(hash=False)
    paths: Callable[[str], Sequence[Path]]
    prediction: Callable[[str, int], PredictionTask]
    per_row: bool = False
    published: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    constants: tuple[int | float, ...] = (1, 2, 3)
    further_operators: tuple[str, ...] = ()
    units: tuple[str, ...] = ("pixels", "strides")

    def __post_init__(self) -> None:
        """Checks what can be checked without evaluating anything; writes whole constants as such."""
        names = [v.name for v in self.variables]
        spellings = names + [v.symbol for v in self.variables if v.symbol != v.name]
        functions = {s for row in OPERATORS.values() for s in (row.name, row.symbol)}
        unknown = [name for name in self.operators + self.further_operators if name not in OPERATORS]
        if unknown:
            raise InputError(f"space {self.name}: no operator {unknown[0]!r}; add its row with cse_jax.operators.add")
        for spelling in spellings:
            if not (spelling.isascii() and spelling.isidentifier()) or keyword.iskeyword(spelling):
                raise InputError(f"space {self.name}: {spelling!r} is no name of a variable; use letters and digits")
        if len(set(spellings)) < len(spellings) or functions & set(spellings):
            raise InputError(f"space {self.name}: two things have the same name among {sorted(spellings)}")
        if not self.differentiable or not set(self.differentiable) <= set(names):
            raise InputError(f"space {self.name}: differentiable {self.differentiable} must be some of {names}")
        if 1 not in self.constants or not all(0 < c < math.inf for c in self.constants):
            raise InputError(f"space {self.name}: constants {self.constants} must be above 0, with 1 among them")
        if len(set(self.constants)) < len(self.constants):
            raise InputError(f"space {self.name}: constants {self.constants} has a number twice")
        whole = tuple(int(c) if c % 1 == 0 else c for c in self.constants)
        object.__setattr__(self, "constants", whole)  # 1.0 is the 1 of log(1 - sigmoid(x))
        if not self.class_axis and any(OPERATORS[name].class_axis for name in self.readable):
            raise InputError(f"space {self.name} has no class axis, which an operator of it needs")
        if not self.operators:
            raise InputError(f"space {self.name}: operators is empty; random formulas are made of them")
        if not self.losses:
            raise InputError(f"space {self.name}: losses is empty; candidates are measured against its first")

    @functools.cached_property
    def readable(self) -> tuple[str, ...]:
        """Names of all operators that a formula may contain, in opcode order."""
        return self.operators + tuple(name for name in self.further_operators if name not in self.operators)

    @functools.cached_property
    def can_negate(self) -> bool:
        """Whether a formula may be negated: then one whose sign is wrong is a loss with its sign flipped."""
        return "Neg" in self.readable

    @functools.cached_property
    def leaves(self) -> tuple[str, ...]:
        """Tokens without operands: variables, then constants."""
        return tuple(v.name for v in self.variables) + tuple(str(c) for c in self.constants)

    @functools.cached_property
    def arities(self) -> dict[str, int]:
        """Number of operands of each token; 0 for variables and constants."""
        return dict.fromkeys(self.leaves, 0) | {name: OPERATORS[name].arity for name in self.readable}

    @functools.cached_property
    def spellings(self) -> dict[str, str]:
        """The name of each variable, by its name and by its symbol."""
        return {spelling: v.name for v in self.variables for spelling in (v.name, v.symbol)}

    @functools.cached_property
    def table(self) -> tuple[Operator, ...]:
        """Rows of the operators that a formula may contain, in the order of ``readable``."""
        return tuple(OPERATORS[name] for name in self.readable)

    def __getstate__(self) -> dict[str, Any]:
        """The fields as they travel to other processes, without what was derived from them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectories:
    """The paths of a space, joined: ``v`` variables, ``t`` paths of ``p`` points, ``c`` classes.

    Attributes:
      names: what moves on each path, for messages.
      inputs: the variables along each path, in the order of ``space.variables``.
      tangents: derivative of each variable along the path.
      gated: paths that must rise.
      vanishing: paths along which the gradient must vanish at the start.
    """

    names: tuple[str, ...]
    inputs: Float[np.ndarray, "v t p *c"]
    tangents: Float[np.ndarray, "v t p *c"]
    gated: Bool[np.ndarray, " t"]
    vanishing: Bool[np.ndarray, " t"]


@functools.cache
def trajectories(space: Space, units: str = "pixels") -> Trajectories:
    """The verification paths of a space.

    Args:
      space: the space.
      units: unit of length that the detector feeds its losses, one of ``space.units``.

    Raises:
      InputError: the space does not know the unit, no path of it rises, or one is malformed.
    """
    if units not in space.units:
        raise InputError(f"units is {units!r}; space {space.name} has {', '.join(map(repr, space.units))}")
    paths = list(space.paths(units))
    if not any(path.rises for path in paths):
        raise InputError(f"space {space.name} has no path that rises, by which formulas are verified")
    names = [v.name for v in space.variables]
    shape = np.shape(next(iter(paths[0].inputs.values())))
    for path in paths:
        _check(path, names, shape, space)
    inputs = np.stack([[path.inputs[name] for path in paths] for name in names]).astype(float)
    fixed = np.zeros(shape)
    tangents = np.stack([[path.tangents.get(name, fixed) for path in paths] for name in names]).astype(float)
    gated, vanishing = (np.array([getattr(path, flag) for path in paths]) for flag in ("rises", "vanishes"))
    return Trajectories(tuple(path.name for path in paths), inputs, tangents, gated, vanishing)


def _check(path: Path, names: list[str], shape: tuple[int, ...], space: Space) -> None:
    def wrong(what: str) -> InputError:
        return InputError(f"space {space.name}, path {path.name!r}: {what}")

    if set(path.inputs) != set(names) or not set(path.tangents) <= set(names):
        raise wrong(f"inputs must be {names}, tangents some of them; they are {[*path.inputs]}, {[*path.tangents]}")
    if not set(path.tangents) & set(space.differentiable):
        raise wrong(f"nothing moves: tangents has none of {space.differentiable}")
    for name, array in [*path.inputs.items(), *path.tangents.items()]:
        array: Any = np.asarray(array)
        if array.shape != shape or array.ndim != 1 + space.class_axis:
            raise wrong(f"{name} has shape {array.shape}; the first path has {shape}")
        if not np.isfinite(array).all():
            raise wrong(f"{name} is not finite")
