"""Sigmoid classification in one-stage heads.

The 0.25 / 0.75 balance of the focal loss multiplies outside a formula, as in the authors' code.
"""

import jax.numpy as jnp
import numpy as np

from cse_jax.language.operators import OPERATORS
from cse_jax.language.spaces import logits as shared
from cse_jax.language.spaces.space import Path, PredictionTask, Space, Variable


def _paths(units: str) -> list[Path]:
    """One logit sweeps: the label's on foreground rows, another class's on foreground and background rows."""
    del units
    paths = []
    for label in (0, None):
        for others in shared.OTHERS:
            for moving, iou in [(1, 1.0)] + [(0, q) for q in (1.0, 0.2, 0.6) if label is not None]:
                logits, tangent = shared.sweep(others, moving, label=label)
                positive = np.zeros_like(logits)
                if label is not None:
                    positive[:, label] = 1.0
                name = shared.path_name(moving=moving, label=label, background=label is None, quality=f"q={iou:g}")
                inputs = {"X": logits, "Q": iou * positive, "PY": positive, "NY": 1.0 - positive}
                paths.append(Path(name, inputs, {"X": tangent}, rises=iou == 1.0, vanishes=iou == 1.0))
    return paths


def _prediction(units: str, seed: int) -> PredictionTask:
    """Logits of random rows; the metric is the accuracy, balanced between positives and negatives."""
    del units
    start, label, background, iou = shared.random_rows(seed)
    one_hot = np.eye(shared.CLASSES, dtype=np.float32)[label]
    one_hot[background] = 0.0

    def inputs(logits):
        return {
            "X": logits,
            "Q": jnp.asarray(iou * one_hot),
            "PY": jnp.asarray(one_hot),
            "NY": jnp.asarray(1.0 - one_hot),
        }

    def accuracy(logits):
        positive = one_hot > 0.0
        return shared.balanced((logits > 0.0) == positive, positive)

    return PredictionTask(start, inputs, accuracy, shared.RATE)


BINARY_CLASS = Space(
    name="binary_class",
    variables=(
        Variable("X", "x", "x", "logits [..., C]"),
        Variable("Q", "q", "q", "detached IoU at the ground-truth class, 0 elsewhere [..., C]", "nonnegative"),
        Variable("PY", "y", "y", "label, 0 or 1 [..., C]", "nonnegative"),
        Variable("NY", "ny", r"\bar{y}", "1 - label [..., C]", "nonnegative"),
    ),
    differentiable=("X",),
    operators=tuple(name for name in OPERATORS if name not in ("Serfc", "Dot")),
    further_operators=("Serfc", "Dot"),
    class_axis=True,
    losses={
        "focal": "-(y * ((1 - sigmoid(x)) * (1 - sigmoid(x)) * log(sigmoid(x)))"
        " + ny * (sigmoid(x) * sigmoid(x) * log(1 - sigmoid(x))))",
        "CE": "-(y * log(sigmoid(x)) + ny * log(1 - sigmoid(x)))",
        "CEI": "-(q * log(sigmoid(x)) + ny * log(1 - sigmoid(x)))",
    },
    published={
        "B_cls": "Neg(Add(Mul(Q,Mul(Add(1,Serf(Sig(NY))),Log(Sig(X)))),Mul(Add(Sgdf(X),Neg(Q)),"
        "Mul(Add(Add(1,Neg(Q)),Neg(Add(1,Neg(Sig(X))))),Log(Add(1,Neg(Sig(X))))))))"
    },
    paths=_paths,
    prediction=_prediction,
)
