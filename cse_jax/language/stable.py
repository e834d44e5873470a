"""Stable functions for the logarithm of a sigmoid, of 1 less a sigmoid, and of a softmax.

In two steps their logarithm stops at that of the 1e-20 which ``Log`` adds, with a gradient of 0: in float32
``log(1 - sigmoid(x))`` is -46 from x = 17 on.  Programs, ``Expression.evaluate`` and exported code take these instead;
graphs, which judge formulas by the million in float64, do not.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cse_jax.language.operators import OPERATORS, Operator

Step = tuple[str, tuple[int, ...]]  # a leaf or an operator, and the numbers of the steps that are its operands


@jax.custom_jvp
def _log_sigmoid(x: jax.Array) -> jax.Array:
    return jnp.minimum(x, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(x)))


@_log_sigmoid.defjvp
def _log_sigmoid_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Its derivative does without the logarithm that ``jax.nn.log_sigmoid`` takes there."""
    return _log_sigmoid(*primals), tangents[0] * jax.nn.sigmoid(-primals[0])


_LOG_SIGMOID = Operator(
    "Log(Sig)",  # no name that a formula could have
    "log_sigmoid",
    1,
    _log_sigmoid,
    lambda sp, a: sp.log(sp.Function("sigmoid")(a)),
    {
        "numpy": "-np.logaddexp(0.0, -a)",
        "jax": "jax.nn.log_sigmoid(a)",
        "pytorch": "torch.nn.functional.logsigmoid(a)",
    },
)
_LOG_REST = Operator(
    "Log(1-Sig)",
    "log_one_less_sigmoid",
    1,
    lambda x: _log_sigmoid(-x),
    lambda sp, a: sp.log(1 - sp.Function("sigmoid")(a)),
    {
        "numpy": "-np.logaddexp(0.0, a)",
        "jax": "jax.nn.log_sigmoid(-a)",
        "pytorch": "torch.nn.functional.logsigmoid(-a)",
    },
)
LOG_SOFTMAX = Operator(
    "Log(Softmax)",
    "log_softmax",
    1,
    lambda x: jax.nn.log_softmax(x, axis=-1),
    lambda sp, a: sp.log(sp.Function("softmax")(a)),
    {
        "numpy": "a - np.logaddexp.reduce(a, axis=-1, keepdims=True)",
        "jax": "jax.nn.log_softmax(a, axis=-1)",
        "pytorch": "torch.nn.functional.log_softmax(a, dim=-1)",
    },
    class_axis=True,
)
_ROWS = {row.name: row for row in (_LOG_SIGMOID, _LOG_REST, LOG_SOFTMAX)}


def operator(name: str) -> Operator:
    """The operator of a step."""
    return _ROWS.get(name) or OPERATORS[name]


def with_stable(table: tuple[Operator, ...]) -> tuple[Operator, ...]:
    """Operators, and the stable ones that formulas of them need."""
    names = {row.name for row in table}
    inside = {"Sig": (_LOG_SIGMOID, _LOG_REST), "Softmax": (LOG_SOFTMAX,)} if "Log" in names else {}
    return (*table, *(row for name, rows in inside.items() if name in names for row in rows))


def stable_log(steps: Sequence[Step], operand: int) -> tuple[str, int] | None:
    """What the logarithm of a step is: a stable operator, and the step it is of."""
    name, below = steps[operand]
    if name in ("Sig", "Softmax"):
        return (_LOG_SIGMOID if name == "Sig" else LOG_SOFTMAX).name, below[0]
    for one, other in {"Sub": [below], "Add": itertools.permutations(below)}.get(name, []):
        if name == "Add":
            other = steps[other][1][0] if steps[other][0] == "Neg" else one
        if steps[one][0] == "1" and steps[other][0] == "Sig":
            return _LOG_REST.name, steps[other][1][0]
    return None
