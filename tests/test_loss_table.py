"""Tables of trained losses: what is drawn, how a table goes on after an interruption, and what is said of it."""

import dataclasses
import io
import math
import pathlib
import re

import numpy as np
import pytest
from fakes import FakeTrainer
from pyarrow import parquet
from rich.console import Console

from cse_jax import loss_table
from cse_jax.errors import InputError
from cse_jax.language import spaces, zoo
from cse_jax.language.parsing import parse
from cse_jax.loss_table import Curve, LossTable, LossTableError, TableLoss, analysis, making, read
from cse_jax.loss_table.config import LossTableConfig
from cse_jax.loss_table.drawing import spread
from cse_jax.loss_table.table import save
from cse_jax.reporting import loss_table_report
from cse_jax.reporting.monitor import Monitor
from cse_jax.screening import verification
from cse_jax.search.config import FilterConfig
from cse_jax.search.trainer import Training

pytestmark = pytest.mark.computes
CONFIG = LossTableConfig(
    classification=("y * softplus(-x) + 3 * ny * softplus(x)", "ny * softplus(x) - y * log(sigmoid(x))"),
    regression=("1 - i / e", "exp(1 - i / u)"),
    generated=5,
    rejected=2,
    population=600,
)


class Trainer(FakeTrainer):
    """Trainings for a table have a curve; formulas of some lengths diverge."""

    def horizons(self, purpose):
        return (10, 20) if purpose == "table" else super().horizons(purpose)

    def train_one(self, losses, purpose, seed, horizon):
        training = super().train_one(losses, purpose, seed, horizon)
        if purpose != "table":
            return training
        if (len(losses.cls) + len(losses.box)) % 7 == 0:
            return Training(None, failure="not finite at step 3")
        ap = training.ap
        return Training(ap, {"curve": [(10, ap / 2, ap / 2 + 0.01), (20, ap, ap + 0.01)]})


def make(path, config=CONFIG, trainer=None, task="a task", about=None, free=()):
    trainer = trainer or Trainer()
    steps = {"probe": 4, "overfit": 5, "table": 20}
    with Monitor(Console(file=io.StringIO()), steps=steps) as monitor:
        return making.make(
            config,
            FilterConfig(),
            parts=["cls", "box"],
            trainer=trainer,
            progress=monitor,
            path=path,
            about=about or {"task": {"detector": task}},
            free=free,
        )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "table.parquet"
    make(path)
    return path


@pytest.mark.slow
def test_losses_are_drawn_once_each(path):
    table = read(path)
    for part, space in (("cls", spaces.BINARY_CLASS), ("box", spaces.BOX)):
        losses = [loss for loss in table.losses if loss.part == part]
        origins = [loss.origin for loss in losses]
        assert origins[: len(zoo.known(space))] == list(zoo.known(space))
        assert origins.count("hand-made") == (1 if part == "cls" else 2)  # one of them is CE
        assert origins.count("generated") == 4 and origins.count("weak") == 1
        assert sum(origin.startswith("rejected: ") for origin in origins) == 2
        verdicts = verification.verify([loss.formula for loss in losses], space, units="strides")
        good = [verdict.fingerprint for verdict in verdicts if verdict.passed]
        assert len(set(good)) == len(good) == len(losses) - 2
        for loss, verdict in zip(losses, verdicts, strict=True):
            assert (loss.scores["margin"] > 0.0) == verdict.passed == (not loss.origin.startswith("rejected"))
            assert (loss.origin == "weak") == (loss.scores["simulation"] < 0.5) or loss.origin not in (
                "weak",
                "generated",
            )


def test_a_table_may_hold_only_known_and_hand_made_losses(tmp_path):
    config = dataclasses.replace(CONFIG, generated=0, rejected=0, population=10**9)  # which nobody draws from
    table = make(tmp_path / "table.parquet", config)
    names = {"hand-made"} | set(zoo.known(spaces.BINARY_CLASS)) | set(zoo.known(spaces.BOX))
    assert {loss.origin for loss in table.losses} == names and all(loss.trainings for loss in table.losses)
    few = dataclasses.replace(CONFIG, generated=1, rejected=0)
    origins = [loss.origin for loss in make(tmp_path / "few.parquet", few).losses]
    assert origins.count("generated") == 2 and "weak" not in origins  # one of each part


def test_strata_are_spread_over_the_behaviours():
    """Three near-copies of one loss and four others: five strata hold each of the others."""
    copies = [box(f"1 - i / u + {k} * (e - u) / e / 3 / 3 / 3 / 3") for k in (1, 2, 3)]
    others = [box(text) for text in ("u - i", "exp(u / i)", "-(i / e / exp(u))", "sigmoid(e - i)")]
    chosen = spread([*copies, *others], 5, units="strides", seed=0)
    assert len(set(chosen)) == len(chosen) == 5
    assert {3, 4, 5, 6} <= set(chosen)


def box(text):
    return parse(text, spaces.BOX)


def test_every_training_is_in_the_file(path):
    table = read(path)
    for loss in table.losses:
        assert sorted(loss.trainings) == [1000, 1001]
        assert {"margin", "simulation", "probe 2", "probe 4", "overfit 5"} == set(loss.scores)
    curves = [curve for loss in table.losses for curve in loss.trainings.values()]
    assert any(curve.failure for curve in curves)
    for curve in curves:
        if not curve.failure:
            assert curve.test == pytest.approx([ap + 0.01 for ap in curve.select])


@pytest.mark.slow
def test_an_interrupted_table_goes_on(path, tmp_path):
    whole, again = Trainer(), Trainer(interrupt_at=40)
    make(tmp_path / "whole.parquet", trainer=whole)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "table.parquet", trainer=again)
    rest = Trainer()
    make(tmp_path / "table.parquet", trainer=rest)
    # What a thread had in hand, at most a group of heads each, may run twice.
    assert whole.count <= again.count + rest.count <= whole.count + CONFIG.workers * whole.at_once("probe")
    assert rest.count < whole.count
    assert timeless(read(tmp_path / "table.parquet")) == timeless(read(path))
    idle = Trainer()
    make(tmp_path / "table.parquet", trainer=idle)
    assert idle.count == 0


def timeless(table):
    rows = []
    for loss in table.losses:
        trainings = {seed: curve._replace(seconds=0.0) for seed, curve in loss.trainings.items()}
        rows.append(repr(dataclasses.replace(loss, trainings=dict(sorted(trainings.items())))))
    return rows


def test_more_seeds_train_only_those(path, tmp_path):
    (tmp_path / "table.parquet").write_bytes(path.read_bytes())
    trainer = Trainer()
    table = make(tmp_path / "table.parquet", dataclasses.replace(CONFIG, seeds=3), trainer)
    pairs = {str(making.pair(loss, trainer.task).key) for loss in table.losses}
    assert trainer.count == len(pairs)  # the default pair stands in both parts
    assert all(sorted(loss.trainings) == [1000, 1001, 1002] for loss in table.losses)


def test_what_is_no_table_of_this_task_is_refused(path, tmp_path):
    with pytest.raises(InputError, match="another task"):
        make(path, task="another")
    (tmp_path / "broken.parquet").write_bytes(path.read_bytes()[:-50])
    with pytest.raises(LossTableError, match="broken"):
        read(tmp_path / "broken.parquet")
    with pytest.raises(LossTableError, match="none of them"):
        loss_table.load("none of them")


def test_another_machine_may_go_on_with_a_table(path, tmp_path):
    """With more trainings side by side and the data elsewhere; the table says which machines have worked on it."""
    (tmp_path / "table.parquet").write_bytes(path.read_bytes())
    about = {"task": {"detector": "a task", "schedule": {"at_once": 64}}, "device": "1 x fast (gpu)"}
    with pytest.raises(InputError, match=r"config.schedule.at_once: None -> 64"):
        make(tmp_path / "table.parquet", about=about)
    trainer = Trainer()
    table = make(tmp_path / "table.parquet", trainer=trainer, about=about, free=("schedule.at_once",))
    assert trainer.count == 0
    assert table.about["machines"] == [{}, {"device": "1 x fast (gpu)"}]


def test_a_table_names_no_code(path, tmp_path):
    """The space of a row is looked up among the built-in ones, and never a file that is run."""
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    table = read(path)
    bad = dataclasses.replace(spaces.BOX, name=str(tmp_path / "evil.py"))
    loss = table.losses[-1]
    renamed = dataclasses.replace(loss.formula, space=bad)
    save(LossTable(table.horizons, [dataclasses.replace(loss, formula=renamed)]), tmp_path / "table.parquet")
    with pytest.raises(LossTableError, match=r"evil\.py"):
        read(tmp_path / "table.parquet")


def simulated(losses=200, seeds=4, noise=0.01, signal=0.03):
    """A table whose APs are known; the default loss is in the middle, the stage ``probe 4`` knows the truth."""
    rng = np.random.default_rng(0)
    truth = 0.5 + signal * rng.standard_normal(losses)
    truth[0] = 0.5
    of_seed = 0.02 * rng.standard_normal(seeds)
    rows = []
    for n in range(losses):
        formula = zoo.default(spaces.BOX) if n == 0 else box("1 - i / u")
        trainings = {}
        for seed in range(seeds):
            both = truth[n] + of_seed[seed] + noise * rng.standard_normal()
            trainings[seed] = Curve((0.1, both), (0.1, both), "", 1.0)
        scores = {"margin": 1.0, "simulation": 1.0, "probe 4": truth[n], "overfit 5": rng.random()}
        rows.append(TableLoss("box", formula, "", scores=scores, trainings=trainings))
    return LossTable((10, 20), rows), truth


def test_noise_and_signal_are_told_apart():
    table, _ = simulated()
    early, late = analysis.noise_by_length(table, "box")
    assert early.noise < 1e-12 and early.signal == 0.0
    # Of 600 degrees of freedom the noise is known to 3 %, of 199 the signal to 5 %; three times that is allowed.
    assert late.noise == pytest.approx(0.01, rel=0.09)
    assert late.signal == late.spread == pytest.approx(0.03, rel=0.15)
    assert 0.7 < late.tau < 1.0


def test_a_stage_that_knows_the_truth_is_said_to():
    table, truth = simulated()
    found = {a.stage: a for a in analysis.agreements(table, "box", FilterConfig())}
    assert found["probe 4"].tau > 0.85 > abs(found["overfit 5"].tau)
    assert found["probe 4"].rejected == (truth < 0.8 * 0.5).sum() and found["probe 4"].lost == 0
    assert found["overfit 5"].rejected > 20
    assert found[analysis.SCREEN].tau == found["probe 4"].tau
    assert found["training 20, one seed"].tau > 0.7 and np.isnan(found["training 10, one seed"].tau)


def test_what_a_stage_could_not_train_is_rejected_there():
    """And what it was not asked to judge is not; all that fails the verification has a margin."""
    table, _ = simulated(losses=20)
    _, failed, unknown, *_ = table.losses
    for stage in failed.scores:
        failed.scores[stage] = math.nan
    unknown.scores = {}
    found = {a.stage: a.rejected for a in analysis.agreements(table, "box", FilterConfig(overfit_tolerance=0.0))}
    assert found["probe 4"] == found["simulation"] == found["overfit 5"] == 1
    assert found["margin"] == found[analysis.SCREEN] == found["training 20, one seed"] == 0


def test_the_best_of_many_is_judged_by_other_seeds():
    """Without any signal the best of many looks better where it was chosen, and is not."""
    table, _ = simulated(signal=0.0, noise=0.02)
    chance = analysis.best(table, "box")
    assert chance.selected > 0.02 and abs(chance.judged) < 3 * chance.error
    table, truth = simulated()
    real = analysis.best(table, "box")
    assert real.judged == pytest.approx(truth.max() - 0.5, abs=3 * real.error)


def test_two_tables_agree_on_the_losses_that_both_have():
    def table(aps):
        known = zoo.known(spaces.BOX).values()
        rows = [
            TableLoss("box", formula, "", trainings={0: Curve((ap,), (ap,), "", 1.0)})
            for formula, ap in zip(known, aps, strict=False)
        ]
        return LossTable((10,), rows)

    found = analysis.between(table([0.5, 0.45, 0.48, 0.2]), table([0.7, 0.65, 0.69, 0.71, 0.72]), "box")
    assert (found.count, found.near_count) == (4, 3)  # the last one is near only in the second table
    assert found.tau == 0.0 and found.near_tau == 1.0
    text = "".join(loss_table_report.sections(simulated()[0], FilterConfig(), simulated()[0]))
    assert "in both; noise in either table lowers it" in text
    text = "".join(loss_table_report.sections(simulated()[0], FilterConfig(), LossTable((20,), [])))
    assert "box" in text and "in both" not in text


def test_the_default_is_judged_beside_the_known_losses():
    """Of known losses the one that is worse is said to be, and the one that is not is not."""
    rng = np.random.default_rng(1)
    rows = []
    for (name, formula), truth in zip(zoo.known(spaces.BOX).items(), (0.5, 0.5, 0.45, 0.5, 0.2), strict=True):
        aps = truth + 0.002 * rng.standard_normal(4)
        trainings = {seed: Curve((ap,), (ap,), "", 1.0) for seed, ap in enumerate(aps)}
        rows.append(TableLoss("box", formula, name, scores={"margin": 1.0}, trainings=trainings))
    found = {loss.origin: c for loss, c in analysis.default_beside_known(LossTable((10,), rows), "box")}
    assert list(found) == ["IoU", "-log IoU", "A_reg"]  # the last is too far to share the noise
    assert found["-log IoU"].verdict == "better" and found["-log IoU"].difference == pytest.approx(0.05, abs=0.01)
    assert found["IoU"].verdict == found["A_reg"].verdict == "not shown"


def test_the_report_has_noise_stages_and_formulas(path):
    text = "\n".join(loss_table_report.sections(read(path), FilterConfig()))
    for word in ("binary_class", "box", "Kendall's tau", "signal / noise", "probe 4", "seeds"):
        assert word in text
    assert "nan" not in text


def test_a_table_of_one_seed_knows_no_noise():
    table, _ = simulated(seeds=1)
    (*_, late) = analysis.noise_by_length(table, "box")
    assert np.isnan([late.noise, late.signal, late.tau]).all()
    assert "nan" not in "".join(loss_table_report.sections(table, FilterConfig()))


def test_the_columns_of_the_file_are_documented():
    about = (pathlib.Path(__file__).parents[1] / "docs" / "design.md").read_text()
    (rows,) = re.findall(r"\| column \| type \|.*\n\| --- .*\n((?:\|.*\n)+)", about)
    documented = [name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    (file,) = [path for path in loss_table.FOLDER.glob("*.parquet") if path.stem == "fcos_bccd"]
    schema = parquet.read_schema(file)
    assert documented == schema.names and b"cse_jax" in schema.metadata
    parts = {name: re.findall(r"`(\w+)`", rows.split(f"`{name}`")[1].split("|")[1]) for name in ("scores", "trainings")}
    assert parts == {name: [field.name for field in schema.field(name).type.value_type] for name in parts}


@pytest.mark.slow
def test_what_comes_with_the_package_can_be_read():
    for name in loss_table.available():
        table = loss_table.load(name)
        assert any(analysis.complete(table, part).default >= 0 for part in ("cls", "box"))
        for loss in table.losses:
            for curve in loss.trainings.values():
                assert curve.failure or all(0.0 <= ap <= 1.0 for ap in (*curve.select, *curve.test))
