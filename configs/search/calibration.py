"""Calibration: do the stages of a search predict how well a loss trains a detector in the end?

python launch/search.py --config=configs/search/calibration.py

Good, mediocre and bad losses pass through every stage and train to the end with 3 seeds.  Cost and results are in
docs/benchmarks.md.
"""

from cse_jax.search.config import CalibrationConfig
from detectors.training.run_config import training_in_seconds
from detectors.training.search_trainer import ScheduleConfig
from search_run import CalibrationRun, search_in_minutes

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


def get_config() -> CalibrationRun:
    return CalibrationRun(
        name="calibration",
        calibration=CalibrationConfig(classification=CLASSIFICATION, regression=REGRESSION, generated=7, rejected=2),
        search=search_in_minutes(),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(overfit=80, proxy=(200, 550), final=700),
    )
