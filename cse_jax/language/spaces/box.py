"""Box regression from the areas of intersection, union and smallest enclosing box."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from cse_jax.language.float64 import float64
from cse_jax.language.operators import OPERATORS
from cse_jax.language.spaces.space import Path, PredictionTask, Space, Variable

AREA_EPS = 1e-7  # added to areas that divide, as in the released code of CSE-AutoLoss and in MMDetection
SIDES = {  # of targets on the verification paths, and limits of those in the prediction task
    "pixels": ((1.0, 4.0, 16.0, 64.0, 128.0), (8.0, 64.0)),
    "strides": ((0.25, 1.0, 4.0, 8.0, 16.0), (1.0, 8.0)),
}
_STEPS = np.linspace(0.0, 1.0, 13)
_RIGHT = 1e-7  # tangents are taken from the right: areas have kinks where edges meet, perfect overlap among them
_ROWS = 64
_RATE = 0.02  # of a side of the target, for a step of gradient descent

_Motion = Callable[[jax.Array], tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]]

# Centre offset and scale of the predicted box, in units of the target's sides, as the path parameter goes from 0 to 1.
_MOTIONS: dict[str, _Motion] = {
    "the box shifts right": lambda s: (3.0 * s, 0.0, 1.0, 1.0),
    "the box shifts down": lambda s: (0.0, 3.0 * s, 1.0, 1.0),
    "the box shifts along the diagonal": lambda s: (2.5 * s, 2.5 * s, 1.0, 1.0),
    "the box grows": lambda s: (0.0, 0.0, 1.0 + 3.0 * s, 1.0 + 3.0 * s),
    "the box shrinks": lambda s: (0.0, 0.0, 1.0 - 0.95 * s, 1.0 - 0.95 * s),
    "the box gets wide and low": lambda s: (0.0, 0.0, 1.0 + 3.0 * s, 1.0 / (1.0 + 3.0 * s)),
    "the box gets narrow and high": lambda s: (0.0, 0.0, 1.0 / (1.0 + 3.0 * s), 1.0 + 3.0 * s),
}


def areas(boxes: Float[Array, "*n 4"], sides: Float[Array, "*#n 2"]) -> dict[str, Float[Array, "*n"]]:
    """The variables of the space, for predicted boxes and the sides (width, height) of their targets.

    A target is centred at 0, and its box is given in units of its sides.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    inner = jnp.maximum(jnp.minimum(high, 0.5) - jnp.maximum(low, -0.5), 0.0) * sides
    outer = (jnp.maximum(high, 0.5) - jnp.minimum(low, -0.5)) * sides
    own = jnp.maximum(high - low, 0.0) * sides
    intersection, enclosure, predicted, target = (a[..., 0] * a[..., 1] for a in (inner, outer, own, sides))
    return {"I": intersection, "U": predicted + target - intersection + AREA_EPS, "E": enclosure + AREA_EPS}


def _paths(units: str) -> list[Path]:
    """The predicted box leaves its target in each of the motions above, for targets of all sides."""
    targets = np.array(
        [(side if k % 2 else side * 1.25, side if k % 2 else side * 0.8) for k, side in enumerate(SIDES[units][0])]
    )
    with float64(), jax.ensure_compile_time_eval():
        inputs = jax.device_get(_on_all_motions(targets, _STEPS, False))
        tangents = jax.device_get(_on_all_motions(targets, _STEPS + _RIGHT, True))
    return [
        Path(
            f"{name} (target {width:g} x {height:g})",
            inputs={variable: a[m, k] for variable, a in inputs.items()},
            tangents={variable: a[m, k] for variable, a in tangents.items()},
        )
        for m, name in enumerate(_MOTIONS)
        for k, (width, height) in enumerate(targets)
    ]


@functools.partial(jax.jit, static_argnums=2)
def _on_all_motions(
    targets: Float[Array, "t 2"], steps: Float[Array, " s"], tangent: bool
) -> dict[str, Float[Array, "m t s"]]:
    """The variables on every motion away from every target, or their derivatives along it."""

    def at(sides: jax.Array, s: jax.Array) -> dict[str, jax.Array]:
        poses = jnp.stack([jnp.stack([jnp.asarray(part, float) for part in motion(s)]) for motion in _MOTIONS.values()])
        centres, halves = poses[:, :2], poses[:, 2:] / 2
        return areas(jnp.concatenate([centres - halves, centres + halves], -1), sides)

    along = jax.jacfwd(at, 1) if tangent else at
    return jax.vmap(jax.vmap(along, (None, 0), -1), (0, None), 1)(targets, steps)


def _prediction(units: str, seed: int) -> PredictionTask:
    """Displaced and resized boxes of random targets; the metric is the mean IoU."""
    rng = np.random.default_rng(seed)
    low, high = SIDES[units][1]
    sides = np.exp(rng.uniform(np.log(low), np.log(high), (_ROWS, 1))) * np.exp(rng.normal(0.0, 0.2, (_ROWS, 2)))
    sides = sides.astype(np.float32)
    centre = rng.normal(0.0, 0.25, (_ROWS, 2))
    half = 0.5 * np.exp(rng.normal(0.0, 0.35, (_ROWS, 2)))
    start = jnp.asarray(np.concatenate([centre - half, centre + half], -1).astype(np.float32))

    def inputs(boxes):
        return areas(boxes, jnp.asarray(sides))

    def mean_iou(boxes):
        found = inputs(boxes)
        return jnp.mean(found["I"] / (found["U"] - AREA_EPS))

    return PredictionTask(start, inputs, mean_iou, _RATE)


_OPERATORS = "Add Sub Mul Div Neg Exp Log Abs Sqrt Softplus Sig Tanh Relu Sin Cos"

BOX = Space(
    name="box",
    variables=(
        Variable("I", "i", "i", "intersection area [...]", "nonnegative"),
        Variable("U", "u", "u", "union area + 1e-7 [...]", "positive"),
        Variable("E", "e", "e", "area of the smallest enclosing box + 1e-7 [...]", "positive"),
    ),
    differentiable=("I", "U", "E"),
    operators=tuple(_OPERATORS.split()),
    further_operators=tuple(name for name, row in OPERATORS.items() if not row.class_axis),
    class_axis=False,
    losses={
        "GIoU": "1 - i / u + (e - u) / e",
        "IoU": "1 - i / u",
        "-log IoU": "-log(i / u)",
    },
    published={
        "A_reg": "Add(1,Neg(Add(Div(I,U),Neg(Div(Add(E,Neg(Add(I,2))),E)))))",
        "B_reg": "Neg(Div(Add(Div(Neg(Add(Neg(E),Add(1,I))),Neg(Add(3,Add(2,U)))),"
        "Add(Div(E,E),Div(Neg(E),Neg(1)))),Neg(Add(Div(Neg(Add(U,Div(I,1))),Neg(3)),Neg(E)))))",
    },
    paths=_paths,
    prediction=_prediction,
)
