"""A search space of one's own: losses for the centreness (or IoU) branch of a one-stage head.

    python docs/examples/centreness.py
    python launch/export.py --space=docs/examples/centreness.py --formula="sqr(sigmoid(x) - t)" --format=pytorch

Everything that is particular to the space stands in this file: an operator of its own, its constants, its inputs, the
ways in which a prediction gets worse, and a set of bare predictions to improve.  Nothing else is told about it.
"""

import jax
import jax.numpy as jnp
import numpy as np

import cse_jax
from cse_jax.language import operators, zoo
from cse_jax.language.spaces import Path, PredictionTask, Space, Variable

if "Sqr" not in operators.OPERATORS:
    operators.add(
        operators.Operator("Sqr", "sqr", 1, fn=lambda x: x * x, sympy=lambda sp, a: a**2, code="a * a"),
    )


def paths(units: str) -> list[Path]:
    """The logit leaves its optimum, ``log(t / (1 - t))``, upwards and downwards."""
    del units
    found = []
    steps = np.linspace(0.0, 8.0, 25)
    for target in (0.1, 0.3, 0.5, 0.7, 0.9):
        for what, sign in (("rises above", 1.0), ("falls below", -1.0)):
            logit = np.log(target / (1.0 - target)) + sign * steps
            found.append(
                Path(
                    f"the logit {what} the optimum (t={target:g})",
                    inputs={"X": logit, "T": np.full_like(logit, target)},
                    tangents={"X": np.full_like(logit, sign)},
                    vanishes=True,
                )
            )
    return found


def prediction(units: str, seed: int) -> PredictionTask:
    """Random logits and targets; the metric is 1 less the mean absolute error."""
    del units
    rng = np.random.default_rng(seed)
    target = jnp.asarray(rng.uniform(0.05, 0.95, 64).astype(np.float32))
    return PredictionTask(
        start=jnp.asarray(rng.normal(0.0, 2.0, 64).astype(np.float32)),
        inputs=lambda logits: {"X": logits, "T": target},
        metric=lambda logits: 1.0 - jnp.abs(jax.nn.sigmoid(logits) - target).mean(),
        rate=0.5,
    )


SPACE = Space(
    name="centreness",
    variables=(
        Variable("X", "x", "x", "logits [...]"),
        Variable("T", "t", "t", "target, between 0 and 1 [...]", "nonnegative"),
    ),
    differentiable=("X",),
    operators=("Add", "Sub", "Mul", "Div", "Neg", "Exp", "Log", "Abs", "Sqr", "Softplus", "Sig", "Tanh"),
    constants=(0.5, 1, 2),
    class_axis=False,
    losses={
        "CE": "-(t * log(sigmoid(x)) + (1 - t) * log(1 - sigmoid(x)))",
        "Brier": "0.5 * sqr(sigmoid(x) - t)",
    },
    paths=paths,
    prediction=prediction,
)


def main() -> None:
    for name, verdict in zip(SPACE.losses, cse_jax.verify(list(zoo.known(SPACE).values()), SPACE), strict=True):
        print(f"{name}: {'passes' if verdict.passed else verdict.reason}")
    screened = cse_jax.screen(SPACE, 20_000)
    survivors = screened.survivors
    print(f"{len(survivors)} of {screened.generated} random formulas converge and improve predictions; the shortest:")
    for candidate in survivors[:5]:
        print(f"  {candidate.formula}    gain {candidate.simulation:.2f}, weight {candidate.weight:g}")


if __name__ == "__main__":
    main()
