"""A table of trained losses: FCOS on digit scenes.

python launch/loss_table.py --config=configs/loss_table/fcos_digits.py

Hand-made losses, good, mediocre and bad, stand beside the known ones and those drawn from a screened population.  What
came out is in docs/benchmarks.md.
"""

from cse_jax.loss_table.config import LossTableConfig
from detectors.training.run_config import training_in_seconds
from detectors.training.search_trainer import ScheduleConfig
from search_run import LossTableRun

P = "sigmoid(x)"
CLASSIFICATION = (
    f"-(y * ((1 - {P}) * log({P})) + ny * ({P} * log(1 - {P})))",  # focal, gamma 1
    f"-(y * ((1 - {P}) * ((1 - {P}) * ((1 - {P}) * log({P})))) + ny * ({P} * ({P} * ({P} * log(1 - {P})))))",  # gamma 3
    f"-((q - {P}) * ((q - {P}) * (q * log({P}) + (1 - q) * log(1 - {P}))))",  # quality focal
    f"-(q * (q * log({P}) + (1 - q) * log(1 - {P})) + ny * ({P} * ({P} * log(1 - {P}))))",  # varifocal
    f"y * (1 - {P} - log({P})) + ny * ({P} - log(1 - {P}))",  # PolyLoss-1
    f"({P} - y) * ({P} - y)",
    f"abs({P} - y)",
    "y * relu(1 - x) + ny * relu(1 + x)",  # hinge
    "3 * y * softplus(-x) + ny * softplus(x)",
    "y * softplus(-x) + 3 * ny * softplus(x)",
    f"y * softplus(-x) + ny * {P} * {P}",
    "y * (1 - tanh(x)) + ny * (1 + tanh(x))",
)
REGRESSION = (
    "1 - i / e",
    "-log(i / e)",
    "(1 - i / u) * (1 - i / u)",
    "1 - i / u * (i / u)",
    "sqrt(1 - i / u)",
    "exp(1 - i / u)",
    "1 - i / u + 3 * ((e - u) / e)",
    "(u - i) / (i + 1)",
    "e - i",
    "log(1 + u - i)",
)


def get_config() -> LossTableRun:
    return LossTableRun(
        name="fcos_digits",
        table=LossTableConfig(classification=CLASSIFICATION, regression=REGRESSION),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(overfit=80, table=(100, 200, 400), start=2000),
    )
