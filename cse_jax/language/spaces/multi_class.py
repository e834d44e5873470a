"""Softmax classification in two-stage heads."""

import jax.numpy as jnp
import numpy as np

from cse_jax.language.operators import OPERATORS
from cse_jax.language.spaces import logits as shared
from cse_jax.language.spaces.space import Path, PredictionTask, Space, Variable


def _paths(units: str) -> list[Path]:
    """One logit sweeps: the label's or another class's, on foreground and background rows, under several others."""
    del units
    classes, background = 3, 2
    paths = []
    for label in (0, background):
        for others in shared.OTHERS:
            for moving, iou in [(label, 1.0), (1, 1.0)] + [(label, w) for w in (0.2, 0.6) if label != background]:
                logits, tangent = shared.sweep(others, moving, label=label)
                labels = np.broadcast_to(np.eye(classes)[label], logits.shape)
                name = shared.path_name(
                    moving=moving, label=label, background=label == background, quality=f"w={iou:g}"
                )
                inputs = {"X": logits, "Y": labels, "Z": np.full_like(logits, iou)}
                paths.append(Path(name, inputs, {"X": tangent}, rises=iou == 1.0, vanishes=iou == 1.0))
    return paths


def _prediction(units: str, seed: int) -> PredictionTask:
    """Logits of random rows; the metric is the accuracy, balanced between foreground and background."""
    del units
    start, label, background, iou = shared.random_rows(seed)
    one_hot = np.eye(shared.CLASSES, dtype=np.float32)[label]

    def inputs(logits):
        return {"X": logits, "Y": jnp.asarray(one_hot), "Z": jnp.asarray(iou)}

    def accuracy(logits):
        return shared.balanced(logits.argmax(-1) == label, ~background)

    return PredictionTask(start, inputs, accuracy, shared.RATE)


MULTI_CLASS = Space(
    name="multi_class",
    variables=(
        Variable("X", "x", "x", "logits [..., C+1]"),
        Variable("Y", "y", "y", "one-hot labels including the background [..., C+1]", "nonnegative"),
        Variable(
            "Z",
            "w",
            "w",
            "detached IoU of the decoded box with its target, 1 for background rows [..., C+1]",
            "nonnegative",
        ),
    ),
    differentiable=("X",),
    operators=tuple(name for name in OPERATORS if name != "Serfc"),
    further_operators=("Serfc",),
    class_axis=True,
    per_row=True,
    losses={
        "CE": "-dot(y, log(softmax(x)))",
        "CEI": "-dot(w * y, log(softmax(x)))",
    },
    published={"A_cls": "Neg(Dot(Mul(Y,Add(1,Sin(Z))),Log(Softmax(X))))"},
    paths=_paths,
    prediction=_prediction,
)
