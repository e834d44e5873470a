"""The operator table of the loss language: one row per operator, nothing about it stated anywhere else.

Numerics follow the released training code of CSE-AutoLoss (Liu et al., ICLR 2021): ``log`` and ``/`` add 1e-20 to their
argument and divisor, ``exp`` clamps its input at 88, ``sqrt`` is unprotected, and the S-shaped curves are scaled to the
range (0, 1) with slope 1/4 at 0.  ``softmax`` and ``dot`` act on the class axis, the last one; ``dot`` keeps it with
size 1 so that its result broadcasts.
"""

import dataclasses
import math
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp

EPS = 1e-20
EXP_LIMIT = 88.0


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
      name: the authors' name, as in ``Neg(Log(Softmax(X)))``.
      symbol: the name in infix print-out: a function name, or a sign if ``precedence`` is set.
      arity: 1 or 2.
      fn: the JAX function of ``arity`` arrays.
      sympy: builds the SymPy form from the ``sympy`` module and ``arity`` SymPy expressions.
      precedence: binding strength of an infix or prefix sign; ``None`` for function notation.
      commutative: whether the two operands may be exchanged.
      class_axis: whether it reads along the class axis.
    """

    name: str
    symbol: str
    arity: int
    fn: Callable[..., jax.Array]
    sympy: Callable[..., object]
    precedence: int | None = None
    commutative: bool = False
    class_axis: bool = False


def _gudermannian(x: jax.Array) -> jax.Array:
    return 2.0 * jnp.arctan(jnp.tanh(x / 2.0))


def _sgdf(x: jax.Array) -> jax.Array:
    return (_gudermannian(math.pi / 4.0 * x) * (2.0 / math.pi) + 1.0) / 2.0


def _salf(x: jax.Array) -> jax.Array:
    half = x / 2.0
    return (half / jnp.sqrt(1.0 + half * half) + 1.0) / 2.0


def _serf(x: jax.Array) -> jax.Array:
    return (jax.lax.erf(math.sqrt(math.pi) / 4.0 * x) + 1.0) / 2.0


def _named(name: str) -> Callable[[ModuleType, object], object]:
    return lambda sp, a: sp.Function(name)(a)


_ROWS = (
    Operator("Add", "+", 2, jnp.add, lambda sp, a, b: a + b, precedence=1, commutative=True),
    Operator("Sub", "-", 2, jnp.subtract, lambda sp, a, b: a - b, precedence=1),
    Operator("Mul", "*", 2, jnp.multiply, lambda sp, a, b: a * b, precedence=2, commutative=True),
    Operator("Div", "/", 2, lambda a, b: a / (b + EPS), lambda sp, a, b: a / b, precedence=2),
    Operator(
        "Dot",
        "dot",
        2,
        lambda a, b: jnp.sum(a * b, axis=-1, keepdims=True),
        lambda sp, a, b: sp.Function("dot")(a, b),
        commutative=True,
        class_axis=True,
    ),
    Operator("Neg", "-", 1, jnp.negative, lambda sp, a: -a, precedence=3),
    Operator("Exp", "exp", 1, lambda x: jnp.exp(jnp.minimum(x, EXP_LIMIT)), lambda sp, a: sp.exp(a)),
    Operator("Log", "log", 1, lambda x: jnp.log(x + EPS), lambda sp, a: sp.log(a)),
    Operator("Abs", "abs", 1, jnp.abs, lambda sp, a: sp.Abs(a)),
    Operator("Sqrt", "sqrt", 1, jnp.sqrt, lambda sp, a: sp.sqrt(a)),
    Operator("Softmax", "softmax", 1, lambda x: jax.nn.softmax(x, axis=-1), _named("softmax"), class_axis=True),
    Operator("Softplus", "softplus", 1, jax.nn.softplus, _named("softplus")),
    Operator("Sig", "sigmoid", 1, jax.nn.sigmoid, _named("sigmoid")),
    Operator("Sgdf", "gd", 1, _sgdf, _named("gd")),
    Operator("Salf", "alf", 1, _salf, _named("alf")),
    Operator("Serf", "erf", 1, _serf, _named("erf")),
    Operator("Serfc", "erfc", 1, lambda x: 1.0 - _serf(x), _named("erfc")),
    Operator("Tanh", "tanh", 1, jnp.tanh, lambda sp, a: sp.tanh(a)),
    Operator("Relu", "relu", 1, jax.nn.relu, _named("relu")),
    Operator("Sin", "sin", 1, jnp.sin, lambda sp, a: sp.sin(a)),
    Operator("Cos", "cos", 1, jnp.cos, lambda sp, a: sp.cos(a)),
)

OPERATORS: dict[str, Operator] = {row.name: row for row in _ROWS}
