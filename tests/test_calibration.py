"""The calibration with a trainer that costs nothing: which losses are drawn, and what is said of the stages."""

import io
import json
import math

import pytest
from fakes import FakeTrainer
from rich.console import Console

from cse_jax.language import spaces, zoo
from cse_jax.reporting import calibration_report
from cse_jax.reporting.monitor import Monitor
from cse_jax.screening import verification
from cse_jax.search import calibration
from cse_jax.search.calibration import RANKED, SCREEN, JudgedLoss, agreement
from cse_jax.search.config import CalibrationConfig, SearchConfig
from cse_jax.search.ledger import Ledger
from cse_jax.search.trainer import Training

CONFIG = CalibrationConfig(
    classification=("y * softplus(-x) + 3 * ny * softplus(x)",),
    regression=("1 - i / e", "exp(1 - i / u)"),
    generated=4,
    rejected=2,
    population=600,
)


class Honest(FakeTrainer):
    """Every training of a loss reaches the same AP, whatever its purpose; formulas of odd length diverge at last."""

    def train_one(self, losses, purpose, seed, horizon):
        size = len(losses.cls) + len(losses.box)
        if purpose == "final" and size % 7 == 0:
            return Training(None, failure="not finite at step 3")
        return Training(0.0 if size % 7 == 0 else 0.2 + 0.005 * size)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration")
    steps = {"probe": 4, "overfit": 5, "proxy": 20, "final": 30}
    with (
        Ledger(path / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps=steps) as monitor,
    ):
        return calibration.run(
            CONFIG,
            SearchConfig(),
            trainer=Honest(),
            ledger=ledger,
            progress=monitor,
        )


def test_good_and_bad_losses_are_drawn_once_each(result):
    for space in (spaces.BINARY_CLASS, spaces.BOX):
        contestants = result[space.name].losses
        origins = [c.origin for c in contestants]
        assert origins[: len(zoo.known(space))] == list(zoo.known(space))
        assert origins.count("generated") == 4 and sum(o.startswith("rejected") for o in origins) == 2
        verdicts = verification.verify([c.formula for c in contestants], space, units="strides")
        good = [v.fingerprint for v in verdicts if v.passed]
        assert len(set(good)) == len(good) == len(contestants) - 2
        for contestant, verdict in zip(contestants, verdicts, strict=True):
            assert (contestant.scores["margin"] > 0.0) == verdict.passed == ("margin" not in contestant.rejected)


def test_stages_that_agree_with_the_end_are_said_to(result):
    for calibrated in result.values():
        stages = {stage.stage: stage for stage in calibrated.stages}
        assert list(stages) == [
            *("margin", "simulation", "probe 2", "probe 4", SCREEN, "overfit 5"),
            *(RANKED, "proxy 10", "halving at 10", "proxy 20"),
        ]
        halving = stages["halving at 10"]
        assert 0 < halving.rejected <= halving.count // 2 and not stages["proxy 10"].rejected  # ties are kept
        for contestant in calibrated.losses:
            scores = contestant.scores
            assert scores[SCREEN] == pytest.approx(scores["simulation"] * scores["probe 4"])
            assert scores[RANKED] == pytest.approx(scores[SCREEN] * scores["overfit 5"])
            assert scores["halving at 10"] == pytest.approx(scores[RANKED] * scores["proxy 10"])
        for name in ("probe 4", "overfit 5", "proxy 20"):
            assert stages[name].tau == pytest.approx(1.0) and stages[name].precision == 1.0
        assert stages["margin"].tau < 0.9
        assert calibrated.ceiling == pytest.approx(1.0)


def test_the_report_has_every_loss_and_stage(result, tmp_path):
    calibration_report.write(tmp_path, result)
    data = json.loads((tmp_path / "result.json").read_text())
    text = (tmp_path / "report.md").read_text()
    for branch, calibrated in result.items():
        assert len(data[branch]["losses"]) == len(calibrated.losses)
        for contestant in calibrated.losses:
            assert f"`{contestant.formula}`".replace("|", r"\|") in text
    console = Console(file=io.StringIO(), width=120)
    calibration_report.show(console, result)
    assert console.file.getvalue().count("Kendall") == 2


def contestants(truths, scores, rejected=()):
    formula = zoo.default(spaces.BOX)
    made = [JudgedLoss(formula, "", final=(t,), scores={"s": s}) for t, s in zip(truths, scores, strict=True)]
    for k in rejected:
        made[k].rejected.append("s")
    return made


def test_agreement():
    truths = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, math.nan]
    same = agreement(contestants(truths, [1, 2, 3, 4, 5, 6, 7, 0]), "s")
    assert (same.tau, same.precision, same.lost, same.rejected) == (pytest.approx(1.0), 1.0, 0, 0)
    other = agreement(contestants(truths, [7, 6, 5, 4, 3, 2, 1, 8], rejected=[0, 6]), "s")
    assert other.tau == pytest.approx(-1.0) and other.precision == 0.4 and (other.lost, other.rejected) == (1, 2)
    unknown = agreement(contestants(truths, [1, 2, math.nan, 4, 5, 6, 7, 0]), "s")
    assert unknown.count == 7 and unknown.tau == pytest.approx(1.0) and unknown.precision == 0.8
