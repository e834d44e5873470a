"""The operator table of the loss language: one row per operator.

A new operator is a new row here, or ``add(Operator(...))`` before the space that uses it is made.  Whatever evaluates
formulas learns all it needs from the row.

Numerics follow the released training code of CSE-AutoLoss (Liu et al., ICLR 2021): ``log`` and ``/`` add 1e-20 to their
argument and divisor, ``exp`` clamps its input at 88, ``sqrt`` is unprotected, and the S-shaped curves are scaled to the
range (0, 1) with derivative 1/4 at 0.  ``cse_jax.language.stable`` says where candidates train with better ones.

``softmax`` and ``dot`` act along the class axis, the last one; ``dot`` reduces it to size 1.  A value with a class axis
is called wide, and one with a single entry per row narrow.  A narrow operand beside a wide one is repeated along the
class axis; where all operands are narrow, a class-axis operator acts along an axis of size 1.
"""

import dataclasses
import functools
import keyword
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cse_jax.errors import InputError

EPS = 1e-20
EXP_LIMIT = 88.0
_FAR = 1e9  # where ``alf`` is 0 or 1; the square of it is finite in float32


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
      name: the authors' name, as in ``Neg(Log(Softmax(X)))``.
      symbol: the name in infix notation: a function name, or a sign if ``precedence`` is set.
      arity: 1 or 2.
      fn: the JAX function of ``arity`` arrays of one shape.  It acts on each element alone, or, if ``class_axis`` is
        set, along the last axis, which it keeps or reduces to size 1.
      sympy: builds the SymPy form from the ``sympy`` module and ``arity`` SymPy expressions.
      code: ``fn`` as an expression of Python in ``a`` (and ``b``), for exported files; ``xp`` stands for the array
        module.  One text for ``numpy``, ``jax`` and ``pytorch`` alike, or one for each that differs.
      definition: builds the SymPy form of what it does, where its symbol is known by another meaning or not at all.
      domain: what to know about its arguments; empty if it is finite and smooth for all of them.
      precedence: binding strength of an infix or prefix sign; ``None`` for function notation.
      commutative: whether the two operands may be exchanged.
      class_axis: whether it acts along the class axis.
    """

    name: str
    symbol: str
    arity: int
    fn: Callable[..., jax.Array]
    sympy: Callable[..., Any]
    code: str | Mapping[str, str]
    definition: Callable[[Any, Any], Any] | None = None
    domain: str = ""
    precedence: int | None = None
    commutative: bool = False
    class_axis: bool = False

    @functools.cached_property
    def reduces(self) -> bool:
        """Whether the result is narrow even if the operands are wide."""
        return self.class_axis and self.result_shape((2, 3)) == (2, 1)

    @functools.cached_property
    def narrow(self) -> "Operator":
        """The element-wise operator that this one is on narrow operands: ``fn`` along an axis of size 1."""

        def over_axis_of_one(*operands: jax.Array) -> jax.Array:
            return jnp.squeeze(self.fn(*(a[..., None] for a in operands)), -1)

        return dataclasses.replace(self, fn=over_axis_of_one, class_axis=False) if self.class_axis else self

    def result_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result for operands of a shape."""
        return jax.eval_shape(self.fn, *[jax.ShapeDtypeStruct(shape, jnp.float32)] * self.arity).shape

    def apply(self, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
        """The result for operands of one shape, spread over that shape; a unary operator ignores the second."""
        return jnp.broadcast_to(self.fn(a) if self.arity == 1 else self.fn(a, b), a.shape)

    def transpose(
        self, a: Float[Array, "..."], b: Float[Array, "..."], cotangent: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The cotangents of both operands of ``apply``; those of an element-wise operator by ``chain``."""
        _, pullback = jax.vjp(self.apply, a, b)
        if self.class_axis:
            return pullback(cotangent)
        to_a, to_b = pullback(jnp.ones_like(cotangent))
        return chain(to_a, cotangent), chain(to_b, cotangent)


def _gudermannian(x: jax.Array) -> jax.Array:
    return 2.0 * jnp.arctan(jnp.tanh(x / 2.0))


def _sgdf(x: jax.Array) -> jax.Array:
    return (_gudermannian(math.pi / 4.0 * x) * (2.0 / math.pi) + 1.0) / 2.0


def _salf(x: jax.Array) -> jax.Array:
    half = jnp.clip(x / 2.0, -_FAR, _FAR)
    return (half / jnp.sqrt(1.0 + half * half) + 1.0) / 2.0


def _serf(x: jax.Array) -> jax.Array:
    return (jax.lax.erf(math.sqrt(math.pi) / 4.0 * x) + 1.0) / 2.0


def _named(name: str) -> Callable[[ModuleType, object], object]:
    return lambda sp, a: sp.Function(name)(a)


_ERF = {
    "numpy": "np.vectorize(math.erf, otypes=[float])(0.25 * math.sqrt(math.pi) * a).astype(a.dtype)",
    "jax": "jax.lax.erf(0.25 * math.sqrt(math.pi) * a)",
    "pytorch": "torch.erf(0.25 * math.sqrt(math.pi) * a)",
}

_ROWS = (
    Operator("Add", "+", 2, jnp.add, lambda sp, a, b: a + b, "a + b", precedence=1, commutative=True),
    Operator("Sub", "-", 2, jnp.subtract, lambda sp, a, b: a - b, "a - b", precedence=1),
    Operator("Mul", "*", 2, jnp.multiply, lambda sp, a, b: a * b, "a * b", precedence=2, commutative=True),
    Operator(
        "Div",
        "/",
        2,
        lambda a, b: a / (b + EPS),
        lambda sp, a, b: a / b,
        "a / (b + EPS)",
        domain="1e-20 is added to the divisor; infinite where that makes 0",
        precedence=2,
    ),
    Operator(
        "Dot",
        "dot",
        2,
        lambda a, b: jnp.sum(a * b, axis=-1, keepdims=True),
        lambda sp, a, b: sp.Function("dot")(a, b),
        "xp.sum(a * b, axis=-1, keepdims=True)",
        domain="sums over the class axis",
        commutative=True,
        class_axis=True,
    ),
    Operator("Neg", "-", 1, jnp.negative, lambda sp, a: -a, "-a", precedence=3),
    Operator(
        "Exp",
        "exp",
        1,
        lambda x: jnp.exp(jnp.minimum(x, EXP_LIMIT)),
        lambda sp, a: sp.exp(a),
        {
            "numpy": "np.exp(np.minimum(a, 88.0))",
            "jax": "jnp.exp(jnp.minimum(a, 88.0))",
            "pytorch": "torch.exp(torch.minimum(a, torch.full_like(a, 88.0)))",
        },
        domain="constant above 88",
    ),
    Operator(
        "Log",
        "log",
        1,
        lambda x: jnp.log(x + EPS),
        lambda sp, a: sp.log(a),
        "xp.log(a + EPS)",
        domain="1e-20 is added to the argument; NaN below -1e-20",
    ),
    Operator(
        "Abs",
        "abs",
        1,
        jnp.abs,
        lambda sp, a: sp.Abs(a),
        {"numpy": "np.abs(a)", "jax": "jnp.abs(a)", "pytorch": "torch.where(a < 0, -a, a)"},
        domain="kink at 0, where the gradient is 1",
    ),
    Operator(
        "Sqrt",
        "sqrt",
        1,
        jnp.sqrt,
        lambda sp, a: sp.sqrt(a),
        "xp.sqrt(a)",
        domain="NaN below 0, infinite gradient at 0",
    ),
    Operator(
        "Softmax",
        "softmax",
        1,
        lambda x: jax.nn.softmax(x, axis=-1),
        _named("softmax"),
        {
            "numpy": "np.exp(log_softmax(a))",
            "jax": "jax.nn.softmax(a, axis=-1)",
            "pytorch": "torch.softmax(a, dim=-1)",
        },
        domain="over the class axis",
        class_axis=True,
    ),
    Operator(
        "Softplus",
        "softplus",
        1,
        jax.nn.softplus,
        _named("softplus"),
        {
            "numpy": "np.logaddexp(a, 0.0)",
            "jax": "jax.nn.softplus(a)",
            "pytorch": "torch.logaddexp(a, torch.zeros_like(a))",
        },
    ),
    Operator(
        "Sig",
        "sigmoid",
        1,
        jax.nn.sigmoid,
        _named("sigmoid"),
        {"numpy": "np.exp(-np.logaddexp(0.0, -a))", "jax": "jax.nn.sigmoid(a)", "pytorch": "torch.sigmoid(a)"},
    ),
    Operator(
        "Sgdf",
        "gd",
        1,
        _sgdf,
        _named("gd"),
        {
            "numpy": "(2.0 * np.arctan(np.tanh(math.pi / 8.0 * a)) * (2.0 / math.pi) + 1.0) / 2.0",
            "jax": "(2.0 * jnp.arctan(jnp.tanh(math.pi / 8.0 * a)) * (2.0 / math.pi) + 1.0) / 2.0",
            "pytorch": "(2.0 * torch.atan(torch.tanh(math.pi / 8.0 * a)) * (2.0 / math.pi) + 1.0) / 2.0",
        },
        definition=lambda sp, a: (1 + 4 / sp.pi * sp.atan(sp.tanh(sp.pi / 8 * a))) / 2,
    ),
    Operator(
        "Salf",
        "alf",
        1,
        _salf,
        _named("alf"),
        "(xp.clip(a / 2.0, -1e9, 1e9) / xp.sqrt(1.0 + xp.clip(a / 2.0, -1e9, 1e9) ** 2) + 1.0) / 2.0",
        definition=lambda sp, a: (1 + a / sp.sqrt(4 + a**2)) / 2,
    ),
    Operator(
        "Serf",
        "erf",
        1,
        _serf,
        _named("erf"),
        {k: f"({v} + 1.0) / 2.0" for k, v in _ERF.items()},
        definition=lambda sp, a: (1 + sp.erf(sp.sqrt(sp.pi) / 4 * a)) / 2,
    ),
    Operator(
        "Serfc",
        "erfc",
        1,
        lambda x: 1.0 - _serf(x),
        _named("erfc"),
        {k: f"(1.0 - {v}) / 2.0" for k, v in _ERF.items()},
        definition=lambda sp, a: (1 - sp.erf(sp.sqrt(sp.pi) / 4 * a)) / 2,
    ),
    Operator("Tanh", "tanh", 1, jnp.tanh, lambda sp, a: sp.tanh(a), "xp.tanh(a)"),
    Operator(
        "Relu",
        "relu",
        1,
        jax.nn.relu,
        _named("relu"),
        {"numpy": "np.maximum(a, 0.0)", "jax": "jax.nn.relu(a)", "pytorch": "torch.relu(a)"},
        domain="kink at 0, where the gradient is 0",
    ),
    Operator("Sin", "sin", 1, jnp.sin, lambda sp, a: sp.sin(a), "xp.sin(a)"),
    Operator("Cos", "cos", 1, jnp.cos, lambda sp, a: sp.cos(a), "xp.cos(a)"),
)

OPERATORS: dict[str, Operator] = {row.name: row for row in _ROWS}


def chain(derivative: Float[Array, "..."], change: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of an element-wise operator times a cotangent or tangent, where 0 times infinity is 0.

    So what does not reach the result, or does not depend on the prediction, leaves no NaN.
    """
    return jnp.where((derivative == 0.0) | (change == 0.0), 0.0, derivative * change)


def add(row: Operator) -> None:
    """Adds a row to the table, for spaces that are made afterwards.

    Raises:
      InputError: a name is taken or can't be parsed, or ``fn`` is not what the row says it is.
    """
    names = {s for known in OPERATORS.values() if known.precedence is None for s in (known.name, known.symbol)}
    names |= set(OPERATORS)
    for text in (row.name, row.symbol):
        if not (text.isascii() and text.isidentifier()) or keyword.iskeyword(text):
            raise InputError(f"operator {row.name!r}: {text!r} is no name; signs can't be added")
        if text in names:
            raise InputError(f"operator {row.name!r}: the name {text!r} is taken")
    if row.arity not in (1, 2) or row.precedence is not None:
        raise InputError(f"operator {row.name!r}: arity must be 1 or 2, and precedence None")
    shape, allowed = row.result_shape((2, 3)), [(2, 3), (2, 1)][: 1 + row.class_axis]
    if shape not in allowed:
        raise InputError(
            f"operator {row.name!r}: fn makes shape {shape} of operands of shape (2, 3); it must keep the shape, or, "
            "with class_axis=True, keep all axes and reduce the last to size 1"
        )
    OPERATORS[row.name] = row
