"""The search loop with a trainer that costs nothing: counts, selection, failures, interruptions."""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import math
import os
import sqlite3
import threading

import pytest
from fakes import FakeTrainer
from rich.console import Console

import cse_jax
from cse_jax import search
from cse_jax.language import spaces, zoo
from cse_jax.language.expression import to_authors
from cse_jax.language.population import encode
from cse_jax.reporting import report
from cse_jax.reporting.monitor import Monitor
from cse_jax.screening.candidate import STAGES, Candidate
from cse_jax.screening.funnel import Screened, screen_population
from cse_jax.screening.simulation import simulate
from cse_jax.search import pipeline, tuning
from cse_jax.search.comparison import Role, Row, judged, mean_std, prior_variance
from cse_jax.search.conclusion import conclusion, scope
from cse_jax.search.config import BranchConfig, FilterConfig, FinalConfig, SearchConfig
from cse_jax.search.ends import Ends
from cse_jax.search.ledger import Ledger, LedgerError
from cse_jax.search.ledger_reader import read_hall_of_fame
from cse_jax.search.racing import Race
from cse_jax.search.statistics import signal_variance
from cse_jax.search.task import LossPair
from cse_jax.search.trainer import OutOfMemory, Stopped, Training
from cse_jax.search.trials import Trials
from cse_jax.workdir import WorkdirError, opened

pytestmark = pytest.mark.computes
SIZES = BranchConfig(
    strategy="cascade", generations=2, population=400, offspring=200, max_overfit=5, max_proxy=3, parents=2
)
CONFIG = SearchConfig(classification=SIZES, regression=SIZES, final=FinalConfig(seeds=3))
ONE = dataclasses.replace(SIZES, generations=1)
SHORT = dataclasses.replace(CONFIG, classification=ONE, regression=ONE)


def run(path, trainer=None, config=CONFIG, identity=None):
    console = Console(file=io.StringIO())
    with (
        Ledger(path / "ledger.sqlite", identity=identity or {"config": 1}) as ledger,
        Monitor(console, steps={"probe": 4, "overfit": 5, "proxy": 20, "final": 30}) as monitor,
    ):
        return search.run(config, trainer=trainer or FakeTrainer(), ledger=ledger, progress=monitor)


@pytest.fixture(scope="module")
def trainer():
    """That of the finished search."""
    return FakeTrainer()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, trainer):
    path = tmp_path_factory.mktemp("search")
    return path, run(path, trainer)


def test_the_funnel_narrows(finished):
    _, result = finished
    assert [(branch.name, len(branch.funnel)) for branch in result.branches] == [("binary_class", 2), ("box", 2)]
    for generation, counts in (row for branch in result.branches for row in enumerate(branch.funnel)):
        assert list(counts) == list(STAGES)
        assert counts["generated"] == (400, 200)[generation]
        assert sorted(counts.values(), reverse=True) == list(counts.values())
        assert counts["proxy"] <= 3 and counts["verification"] > 0


def test_the_hall_of_fame_is_new_sorted_and_verified(finished):
    import cse_jax

    _, result = finished
    for branch in result.branches:
        space, entries = branch.space, branch.entries
        margin = math.sqrt(2.0) * branch.standard_error
        for better, worse in itertools.combinations(entries, 2):
            assert better.ap > worse.ap - margin, "only differences within the noise may be out of order"
        verdicts = cse_jax.verify([entry.formula for entry in entries], space, units="strides")
        assert all(v.passed for v in verdicts)
        known = {v.fingerprint for v in cse_jax.verify(list(zoo.known(space).values()), space, units="strides")}
        found = [v.fingerprint for v in verdicts]
        assert len(set(found)) == len(found) and not known & set(found)


def test_what_passed_the_gate_is_in_the_ledger_with_its_reason(finished):
    path, result = finished
    with contextlib.closing(sqlite3.connect(path / "ledger.sqlite")) as db:
        db.row_factory = sqlite3.Row
        rows = db.execute("select * from candidates").fetchall()
        results = [json.loads(text) for (text,) in db.execute("select result from generations")]
    rejected = sum(sum(result["rejected"].values()) for result in results)
    assert sum(row["copies"] for row in rows) + rejected == 2 * (400 + 200) and len(rows) > 100
    for row in rows:
        assert row["stage"] in STAGES
        assert (row["reason"] == "") == (row["stage"] == "proxy"), dict(row)
    assert sum(row["stage"] == "proxy" for row in rows) == sum(len(branch.entries) for branch in result.branches)


def test_the_final_table_has_all_rows(finished):
    _, result = finished
    names = [row.name for row in result.table]
    assert names[0] == "focal + GIoU (default)" and "fitted" in names[1]
    assert "B_cls + B_reg (published)" in names
    assert all(len(row.aps) == 3 and math.isfinite(row.mean) for row in result.table)
    rivals = [row for row in result.table if row.role != Role.DISCOVERED]
    assert all(row.against.seeds == 3 and math.isfinite(row.against.high) for row in rivals)
    assert all(row.against is None for row in result.table[-3:])
    cls, box = (branch.entries[0].formula for branch in result.branches)
    discovered = {row.name: (row.losses.cls, row.losses.box) for row in result.table if row.role == Role.DISCOVERED}
    assert discovered == {
        "discovered cls + GIoU": (cls, zoo.default(spaces.BOX)),
        "focal + discovered box": (zoo.default(spaces.BINARY_CLASS), box),
        "discovered cls + discovered box": (cls, box),
    }


def test_the_best_pair_on_the_proxy_task_is_what_was_discovered(finished):
    """Whether it is the winners together or one of them alone."""
    path, result = finished
    assert result.discovered == result.table[-1].losses
    with contextlib.closing(sqlite3.connect(path / "ledger.sqlite")) as db:
        query = (
            "select avg(ap), count(*) from trainings where purpose = 'proxy' and steps = 20 "
            "and cls = ? and box = ? and cls_weight = ? and box_weight = ?"
        )
        scores = {}
        for row in result.table[-3:]:
            losses = row.losses
            given = (str(losses.cls), str(losses.box), losses.cls_weight, losses.box_weight)
            scores[row.name], count = db.execute(query, given).fetchone()
            assert count == 2
    assert list(scores.values()) == sorted(scores.values())


def test_a_finished_search_trains_nothing_again(finished):
    path, result = finished
    trainer = FakeTrainer()
    again = run(path, trainer)
    assert trainer.count == 0
    assert again == result


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 35])
def test_an_interrupted_search_ends_the_same(finished, tmp_path, at):
    _, expected = finished
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FakeTrainer(interrupt_at=at), dataclasses.replace(CONFIG, workers=1))
    assert run(tmp_path) == expected


def test_failing_candidates_are_recorded_and_the_search_goes_on(tmp_path):
    result = run(tmp_path, FakeTrainer(diverge_every=2), SHORT)
    assert result.table
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        reasons = [r for (r,) in db.execute("select reason from candidates where reason like '%training:%'")]
        failures = [r for (r,) in db.execute("select failure from trainings where failure != ''")]
    assert any("not finite at step 3" in reason for reason in reasons)
    assert len(failures) >= len(reasons) > 0


@pytest.mark.slow
def test_an_error_of_the_program_is_raised_and_no_loss_is_blamed(finished, tmp_path):
    """Nothing is recorded of the training that met it, so the same command ends as if nothing had happened."""
    with pytest.raises(RuntimeError, match="something broke below"):
        run(tmp_path, FakeTrainer(break_at=40))
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        assert db.execute("select count(*), max(failure) from trainings").fetchone() == (db_count(db), "")
    assert run(tmp_path) == finished[1]


def db_count(db):
    (count,) = db.execute("select count(*) from trainings where ap is not null").fetchone()
    assert count > 0
    return count


@pytest.mark.slow
def test_what_does_not_fit_the_memory_together_is_trained_one_by_one(finished, tmp_path):
    assert run(tmp_path, FakeTrainer(most_at_once=1)) == finished[1]


def test_what_does_not_fit_the_memory_alone_stops_the_search(tmp_path):
    with pytest.raises(OutOfMemory, match="1 trainings at once are too many"):
        run(tmp_path, FakeTrainer(most_at_once=0))
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        assert db.execute("select count(*) from trainings").fetchone() == (0,)


def candidates_of(path):
    with contextlib.closing(sqlite3.connect(path / "ledger.sqlite")) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("select * from candidates")]


def test_the_better_half_goes_on_from_each_horizon(finished):
    path, result = finished
    for branch in result.branches:
        for generation in (0, 1):
            begun = [c for c in candidates_of(path) if (c["branch"], c["generation"]) == (branch.name, generation)]
            begun = [c for c in begun if json.loads(c["curve"])]
            promise = {
                c["number"]: c["simulation"] * c["probe"] * c["overfit"] * json.loads(c["curve"])[0][1] for c in begun
            }
            first = sorted(promise.values(), reverse=True)
            half = (len(begun) + 1) // 2
            for c in begun:
                curve, aps = json.loads(c["curve"]), json.loads(c["aps"])
                went_on = promise[c["number"]] in first[:half]
                assert [step for step, _ in curve] == ([10, 20] if went_on else [10])
                assert len(aps) == (2 if went_on else 0) and (c["stage"] == "proxy") == went_on
                assert went_on or "not among the better half" in c["reason"]
        assert all(len(f.aps) == 2 and f.ap == pytest.approx(sum(f.aps) / 2) for f in branch.entries)


def test_a_finished_generation_leaves_no_paused_training(finished, trainer):
    path, _ = finished
    stopped = sum("not among the better half" in c["reason"] for c in candidates_of(path))
    early = sum("on fixed features after" in c["reason"] for c in candidates_of(path))
    assert trainer.forgotten >= stopped + early > 0


def test_candidates_are_trained_in_the_order_of_their_promise(finished):
    path, _ = finished
    for branch, generation in itertools.product(("binary_class", "box"), (0, 1)):
        rows = [c for c in candidates_of(path) if (c["branch"], c["generation"]) == (branch, generation)]
        probed = [c for c in rows if STAGES.index(c["stage"]) >= STAGES.index("probe")]
        trained = [c["simulation"] * c["probe"] for c in probed if c["overfit"] is not None]
        others = [c["simulation"] * c["probe"] for c in probed if c["overfit"] is None]
        assert len(trained) == min(5, len(probed)) and min(trained) >= max(others, default=0.0)


@pytest.mark.slow
def test_a_strategy_chooses_who_trains(tmp_path):
    """Both generations; an interrupted search asks it the same again."""
    none, sizes = dataclasses.replace(SIZES, generations=0), dataclasses.replace(SIZES, max_overfit=3)
    evolved = dataclasses.replace(sizes, strategy="evolution")
    config = dataclasses.replace(CONFIG, classification=none, regression=evolved, workers=1)
    (tmp_path / "whole").mkdir()
    result = run(tmp_path / "whole", config=config)
    bold = 0
    for generation in (0, 1):
        rows = [c for c in candidates_of(tmp_path / "whole") if c["generation"] == generation]
        probed = [c for c in rows if STAGES.index(c["stage"]) >= STAGES.index("probe")]
        trained = [c["simulation"] * c["probe"] for c in probed if c["overfit"] is not None]
        others = [c for c in probed if c["overfit"] is None]
        assert len(trained) == min(3, len(probed))
        assert all(c["reason"].startswith("not among the 3 that the strategy 'evolution' chose") for c in others)
        bold += bool(others) and min(trained) < max(c["simulation"] * c["probe"] for c in others)
    assert bold
    (tmp_path / "again").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", FakeTrainer(interrupt_at=40), config)
    assert run(tmp_path / "again", config=config) == result


def test_the_heads_of_too_many_candidates_are_those_that_the_strategy_chooses(tmp_path):
    none, sizes = dataclasses.replace(SIZES, generations=0), dataclasses.replace(SIZES, generations=1, max_probe=6)
    run(tmp_path, config=dataclasses.replace(CONFIG, classification=none, regression=sizes, workers=1))
    simulated = [c for c in candidates_of(tmp_path) if STAGES.index(c["stage"]) >= STAGES.index("simulation")]
    probed = [c["simulation"] for c in simulated if c["probe"] is not None]
    others = [c for c in simulated if c["probe"] is None]
    assert len(probed) == 6 and len(others) > 6 and min(probed) >= max(c["simulation"] for c in others)
    assert all(
        c["reason"] == "not among the 6 that the strategy 'cascade' chose of its generation for the heads"
        for c in others
    )


def test_an_unknown_strategy_is_refused(tmp_path):
    branch = dataclasses.replace(SIZES, strategy="annealing")
    with pytest.raises(ValueError, match="there is no strategy 'annealing'; use 'random', 'cascade'"):
        run(tmp_path, config=dataclasses.replace(CONFIG, classification=branch))


@pytest.mark.slow
def test_the_weight_that_scores_best_on_fixed_features_is_kept(tmp_path):
    class Heavy(FakeTrainer):
        def train_one(self, losses, purpose, seed, horizon):
            training = super().train_one(losses, purpose, seed, horizon)
            factor = max(losses.cls_weight, losses.box_weight)
            return training._replace(ap=0.5 + 0.01 * min(factor, 10.0)) if purpose == "probe" else training

    small = dataclasses.replace(SHORT, filters=FilterConfig(weights=(1.0, 4.0, 0.5), scale="none"))
    result = run(tmp_path, Heavy(), small)
    assert {entry.weight for branch in result.branches for entry in branch.entries} == {4.0}


@pytest.mark.slow
def test_gradients_are_matched_in_the_detector(tmp_path):
    result = run(tmp_path, config=dataclasses.replace(SHORT, filters=FilterConfig(scale="detector")))
    default = {"binary_class": 1.0 + len(zoo.default(spaces.BINARY_CLASS)), "box": 2.0 * len(zoo.default(spaces.BOX))}
    for branch in result.branches:
        for entry in branch.entries:  # FakeTrainer's norms are lengths
            own = 1.0 + len(entry.formula) if branch.plan.part == "cls" else 2.0 * len(entry.formula)
            assert entry.weight == pytest.approx(default[branch.name] / own, rel=1e-3)


def test_an_unknown_scale_is_refused(tmp_path):
    filters = FilterConfig()
    filters.scale = "loud"
    with pytest.raises(ValueError, match="search.filters.scale is 'loud'; it must be 'prediction' or 'detector' or"):
        run(tmp_path, config=dataclasses.replace(CONFIG, filters=filters))


def test_a_default_that_fails_stops_the_search(tmp_path):
    class Broken(FakeTrainer):
        others, heard = threading.Event(), False

        def train(self, losses, *, purpose, seed, horizon, stop):
            if seed == CONFIG.proxy_seeds[0]:
                assert self.others.wait(60)
                return [Training(None, failure="not finite at step 1")]
            self.others.set()
            self.heard = stop.wait(60)
            raise Stopped("stopped")

    trainer, said = Broken(), "default losses failed in the proxy training: not finite at step 1"
    with pytest.raises(search.SearchFailed, match=said) as _:  # which keeps the frames of the search
        run(tmp_path, trainer)
    assert trainer.heard, "the other trainings go on"


def test_a_branch_can_be_left_out(tmp_path):
    config = dataclasses.replace(SHORT, regression=dataclasses.replace(SIZES, generations=0))
    result = run(tmp_path, config=config)
    assert result.branches[1].entries == () and result.table[-1].name == "discovered cls + GIoU"


def test_differences_to_the_default_are_of_the_same_seeds(tmp_path):
    """The default losses train with two seeds at least; the losses of a branch with one are compared with the first."""
    sizes, final = dataclasses.replace(ONE, proxy_seeds=1), FinalConfig(seeds=1, fit_weights=(), branches=False)
    unused = dataclasses.replace(sizes, generations=0)
    result = run(tmp_path, config=SearchConfig(classification=sizes, regression=unused, final=final))
    default = FakeTrainer.task.default
    first, second = (FakeTrainer().train_one(default, "proxy", seed, 20).ap for seed in (0, 1))
    branch = result.branches[0]
    assert result.default_proxy_ap == pytest.approx((first + second) / 2) and branch.default_ap == first
    differences = [entry.ap - first for entry in branch.entries]
    signal = signal_variance(differences, math.sqrt(2.0) * branch.standard_error)
    assert prior_variance(result.branches, result.discovered, default) == signal


def test_random_first_population(tmp_path):
    sizes = dataclasses.replace(SIZES, seed_known=False, generations=1, population=600)
    result = run(tmp_path, config=dataclasses.replace(CONFIG, classification=sizes, regression=sizes))
    assert result.branches[1].funnel[0]["verification"] > 0


# The ledger and the folder


@pytest.mark.slow
def test_random_search_with_the_same_budget_is_a_control(tmp_path):
    final = FinalConfig(seeds=2, branches=False, random_search=True)
    config = SearchConfig(classification=ONE, regression=ONE, final=final)
    result = run(tmp_path, config=config)
    searched, control = (
        [counts for branch in result.branches if branch.plan.control == control for counts in branch.funnel]
        for control in (False, True)
    )
    assert [c["generated"] for c in searched] == [c["generated"] for c in control] == [400] * 2
    converged = [sum(counts["verification"] for counts in funnel) for funnel in (control, searched)]
    assert converged[0] < converged[1]  # random formulas rarely do
    (row,) = (row for row in result.table if row.role == Role.RANDOM_SEARCH)
    assert conclusion([*result.table[:1], row]) == "Nothing was discovered: no candidate passed all filters."
    best = [next(iter(branch.entries), None) for branch in result.branches if branch.plan.control]
    assert any(best)
    defaults = (zoo.default(spaces.BINARY_CLASS), zoo.default(spaces.BOX))
    for loss, famous, default in zip((row.losses.cls, row.losses.box), best, defaults, strict=True):
        assert loss == default or loss == famous.formula
    assert (row.losses.cls, row.losses.box) != defaults
    assert read_hall_of_fame(tmp_path / "ledger.sqlite").keys() == {"binary_class", "box"}
    again = FakeTrainer()
    assert run(tmp_path, again, config=config) == result
    assert again.count == 0


@pytest.mark.slow
def test_tuned_hyper_parameters_are_a_control(tmp_path):
    final = FinalConfig(seeds=2, fit_weights=(), branches=False, tuned=True)
    trainer = FakeTrainer()
    result = run(tmp_path, trainer, dataclasses.replace(SHORT, final=final))
    (row,) = (row for row in result.table if row.role == Role.TUNED)
    assert row.name.endswith("(tuned, same budget)") and row.against is not None
    assert row.losses.cls in tuning.settings(spaces.BINARY_CLASS).values() and row.losses.box == zoo.default(spaces.BOX)
    again = FakeTrainer()
    assert run(tmp_path, again, dataclasses.replace(SHORT, final=final)) == result and again.count == 0


def test_tuning_finds_the_best_setting_within_its_budget(tmp_path):
    class Known(FakeTrainer):
        """Small weights do better; the first seed flatters nobody."""

        def train_one(self, losses, purpose, seed, horizon):
            self.count += 1
            return Training(0.5 - 0.02 * losses.cls_weight - 0.01 * losses.box_weight)

    trainer = Known()
    with (
        Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"proxy": 20}) as monitor,
    ):
        trials = Trials(trainer, ledger, monitor)
        name, losses = tuning.tuned(30, trials=trials, seeds=[0, 1, 2])
        assert 20 < trainer.count <= 30
        assert tuning.tuned(1, trials=trials, seeds=[0, 1, 2])[1] == trainer.task.default
    tried = tuning._drawn(trainer.task, 20, 0)
    assert tried[name] == losses == min(tried.values(), key=lambda pair: 2.0 * pair.cls_weight + pair.box_weight)
    assert f"x{losses.cls_weight:g} + GIoU x{losses.box_weight:g}" in name


@pytest.mark.parametrize(
    ("sizes", "horizons", "trainings", "steps"),
    [
        (BranchConfig(max_proxy=4, max_overfit=8), (200, 400), 8, 2000),
        (BranchConfig(max_proxy=5, max_overfit=8), (400,), 10, 4000),
        (BranchConfig(max_proxy=5, max_overfit=3, proxy_seeds=3), (100, 200, 400), 8, 1500),
    ],
)
def test_the_budget_is_what_the_search_trains_at_most(tmp_path, sizes, horizons, trainings, steps):
    class Counting(FakeTrainer):
        """Goes on from the horizon before."""

        def __init__(self):
            super().__init__()
            self.reached = {}

        def horizons(self, purpose):
            return horizons if purpose == "proxy" else (80,)

        def train_one(self, losses, purpose, seed, horizon):
            self.reached[losses, seed] = horizon
            return super().train_one(losses, purpose, seed, horizon)

    trainer, config = Counting(), SearchConfig(classification=sizes, regression=sizes)
    formula = zoo.default(spaces.BOX)
    passed = [Candidate(formula, "overfit", weight=3.0 + number) for number in range(sizes.max_overfit)]
    with (
        Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"proxy": 20}) as monitor,
    ):
        trials = Trials(trainer, ledger, monitor)
        Race("box", "box", sizes, config, trials=trials, progress=monitor, ends=Ends())._proxy(
            0, passed, Screened(len(passed), {}, passed)
        )
    assert (trainer.count, sum(trainer.reached.values())) == (trainings, steps)
    assert pipeline._on_the_proxy_task(sizes, trainer) == (trainings, steps)
    overfit = 80 * sizes.max_overfit
    assert pipeline._tuning_budget(config, trainer) == 2 * sizes.generations * (overfit + steps) // 400


@pytest.mark.parametrize("space", [spaces.MULTI_CLASS, spaces.BINARY_CLASS], ids=str)
def test_what_is_tuned_converges_and_differs(space):
    found = tuning.settings(space)
    verdicts = cse_jax.verify(list(found.values()), space)
    assert all(verdict.passed for verdict in verdicts)
    names = dict(zip(found, (verdict.fingerprint for verdict in verdicts), strict=True))
    assert next(iter(found.values())) == zoo.default(space)
    if space == spaces.BINARY_CLASS:
        assert names["focal"] == names["focal, gamma 2, alpha ratio 1"]
        del names["focal"]
    assert len(set(names.values())) == len(names) > 5


def test_another_config_is_refused_and_named(finished):
    path, _ = finished
    with pytest.raises(LedgerError, match=r"other settings \(config: 1 -> 2\).*choose another work folder"):
        run(path, identity={"config": 2})


def test_a_ledger_of_another_version_is_refused(finished, tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes((finished[0] / "ledger.sqlite").read_bytes())
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db, db:
        db.execute("update meta set value = '3' where key = 'format'")
    for refused in (lambda: run(tmp_path), lambda: read_hall_of_fame(tmp_path / "ledger.sqlite")):
        with pytest.raises(LedgerError, match="made by another version of cse_jax.*format is 3, this version reads 5"):
            refused()


def test_a_ledger_without_results_takes_other_settings(tmp_path):
    """As after a config that was refused once the ledger was open."""
    for config in (1, 2):
        with Ledger(tmp_path / "ledger.sqlite", identity={"config": config}):
            pass


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"this is not a database, and long enough to be read as one" * 20)
    with pytest.raises(LedgerError, match="is damaged, or no ledger"):
        run(tmp_path)


def test_a_full_disk_loses_nothing(tmp_path):
    """SQLite's page limit stands for the full disk: the same error at the same places."""
    with Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger:
        row = {"key": "a", "purpose": "proxy", "cls": "x", "box": "i", "cls_weight": 1.0, "box_weight": 1.0}
        row |= {"seed": 0, "steps": 1, "ap": 0.5, "failure": "", "metrics": {}, "seconds": 1.0}
        ledger.record_training(row)
        pages = ledger._db.execute("pragma page_count").fetchone()[0]
        ledger._db.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(LedgerError, match="full.*make room.*run the same command again"):
            ledger.record_training(row | {"key": "b", "failure": "x" * 100_000})
        assert ledger.training("a")["ap"] == 0.5 and ledger.training("b") is None


def test_a_disk_that_keeps_nothing_is_said(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.EIO, "Input/output error")

    with Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger:
        ledger.record_training(
            {"key": "a", "purpose": "proxy", "cls": "x", "box": "i", "cls_weight": 1.0, "box_weight": 1.0, "seed": 0}
            | {"steps": 1, "ap": 0.5, "failure": "", "metrics": {}, "seconds": 1.0}
        )
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(
            LedgerError, match="cannot write to the ledger .*Input/output error. Nothing recorded so far"
        ):
            ledger.sync()


def test_read_fame(finished, tmp_path):
    path, result = finished
    members = read_hall_of_fame(path / "ledger.sqlite")
    for branch in result.branches:
        rows = members[branch.name]
        assert [row["authors"] for row in rows] == [to_authors(entry.formula) for entry in branch.entries]
        assert [row["proxy"] for row in rows] == [pytest.approx(entry.ap) for entry in branch.entries]
    with pytest.raises(LedgerError, match="is that the folder of a search"):
        read_hall_of_fame(tmp_path / "ledger.sqlite")


def test_one_search_per_folder(tmp_path):
    again = pytest.raises(WorkdirError, match="another search is running")
    with opened(tmp_path / "run"), again, opened(tmp_path / "run"):
        pass
    with opened(tmp_path / "run"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="choose another work folder"), opened(tmp_path / "file" / "run"):
        pass


# Screening and simulation


def screened(texts, space=spaces.BOX, **changes):
    import cse_jax

    return screen_population(encode([cse_jax.parse(text, space) for text in texts], space), space, **changes)


def test_duplicates_keep_the_shortest_formula():
    found = screened(["3 * (2 - i / u)", "1 - i / u", "-(i / u)", "1 + -(i / u)", "i / u"])
    kept = [c for c in found.candidates if c.stage == "simulation"]
    assert [str(c.formula) for c in kept] == ["-(i / u)"] and kept[0].duplicates == 4
    assert all("same gradient as -(i / u)" in c.reason for c in found.candidates if c is not kept[0])
    assert [c.copies for c in found.candidates] == [1, 2, 1, 1]
    assert found.counts() | {"verification": 5, "distinct": 1, "simulation": 1} == found.counts()


def test_known_losses_are_not_discoveries():
    import cse_jax

    fingerprint = cse_jax.verify([zoo.hand_made(spaces.BOX)["IoU"]], spaces.BOX)[0].fingerprint
    (candidate,) = screened(["2 - i / u"], seen={fingerprint: "IoU"}).candidates
    assert candidate.stage == "verification" and candidate.reason == "same gradient as IoU"


def test_the_sign_flip_is_an_option():
    (flipped,) = screened(["i / e"]).candidates
    assert flipped.flipped and flipped.stage == "simulation" and str(flipped.formula) == "-(i / e)"
    rejected = screened(["i / e", "sqrt(-u)", "i / e"], sign_flip=False)
    assert not rejected.candidates and rejected.rejected == {"monotone": 2, "finite_value": 1}
    assert rejected.counts() | {"generated": 3, "valid": 2, "verification": 0} == rejected.counts()


def test_matched_weights_ignore_the_scale_of_a_formula():
    weights = [screened([text]).candidates[0].weight for text in ("1 - i / u", "3 * (1 - i / u)")]
    assert weights[0] == pytest.approx(3.0 * weights[1], rel=1e-3)
    assert screened(["1 - i / u"], match_gradient=False).candidates[0].weight == 1.0
    (default,) = screened(["1 - i / u + (e - u) / e"]).candidates
    assert default.weight == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("space", spaces.SPACES.values(), ids=str)
def test_simulation_tells_losses_from_their_negations(space):
    from cse_jax.language.expression import Expression

    known = list(zoo.known(space).values())
    for units in ("pixels", "strides"):
        good = simulate(known, space, units=units)
        bad = simulate([Expression(("Neg", *e.tokens), space) for e in known], space, units=units)
        for up, down in zip(good, bad, strict=True):
            assert up.after > up.before + 0.3
            assert not down.after > down.before
            assert up.gradient == pytest.approx(down.gradient, rel=1e-5)


@pytest.mark.parametrize("space", [spaces.BINARY_CLASS, spaces.BOX], ids=str)
def test_simulation_does_not_depend_on_the_scale_of_a_loss(space):
    """Not even where the squares of its gradient are none of float32, here with a factor of 3e23."""
    text, large = to_authors(zoo.default(space)), "(exp(3 * 3 * 3) * exp(3 * 3 * 3))"
    usual, up, down = simulate(
        [cse_jax.parse(t, space) for t in (text, f"{large} * ({text})", f"({text}) / {large}")], space
    )
    assert up.gradient == pytest.approx(math.exp(54) * usual.gradient, rel=1e-4)  # that of exp in float32
    assert down.gradient == pytest.approx(math.exp(-54) * usual.gradient, rel=1e-4)
    assert all(
        found.after == pytest.approx(usual.after, abs=5e-3) for found in (up, down)
    )  # sixty steps round otherwise


def test_simulation_does_not_depend_on_the_batch():
    known = list(zoo.known(spaces.BOX).values())
    together = simulate(known, spaces.BOX)
    assert [simulate([e], spaces.BOX)[0] for e in known] == together


# Trials and conclusions


@pytest.mark.parametrize(("jobs", "share"), [(1, 1 / 8), (8, 1.0), (16, 1 / 2), (40, 1 / 2)])
def test_the_time_left_counts_full_groups_side_by_side(tmp_path, monkeypatch, jobs, share):
    """Eight probes at once, two groups in threads; a single one takes as long as eight would."""
    told = []
    pairs = [(LossPair(zoo.default(spaces.BINARY_CLASS), zoo.default(spaces.BOX), 1.0 + k), 0) for k in range(jobs)]
    with (
        Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"probe": 1}) as monitor,
    ):
        monkeypatch.setattr(monitor, "trained", lambda purpose, seconds: told.append(seconds))
        outcomes = list(Trials(FakeTrainer(), ledger, monitor, workers=2).run(pairs, purpose="probe", what="probes"))
    assert told == [pytest.approx(outcome.seconds * share) for outcome in outcomes] and len(told) == jobs


def test_the_same_training_is_run_once(tmp_path):
    trainer = FakeTrainer()
    pair = LossPair(zoo.default(spaces.BINARY_CLASS), zoo.default(spaces.BOX))
    with (
        Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"probe": 4, "overfit": 5, "proxy": 20}) as monitor,
    ):
        trials = Trials(trainer, ledger, monitor, workers=2)
        jobs = [(pair, 0), (pair, 0), (pair, 1)]
        first = list(trials.run(jobs, purpose="proxy", what="test"))
        assert trainer.count == 2 and first[0] == first[1]
        assert list(trials.run(jobs, purpose="proxy", what="test")) == first and trainer.count == 2
        list(trials.run(jobs[:1], purpose="overfit", what="test"))
        assert trainer.count == 3


def test_the_final_table_has_seeds_that_nothing_else_has(finished):
    path, _ = finished
    with contextlib.closing(sqlite3.connect(path / "ledger.sqlite")) as db:
        rows = db.execute("select distinct purpose, seed from trainings").fetchall()
    seeds = {purpose: {seed for p, seed in rows if p == purpose} for purpose, _ in rows}
    final = seeds.pop("final")
    assert set(seeds) == {"probe", "overfit", "proxy"} and final == set(CONFIG.final_seeds) and len(final) == 3
    assert not final & set().union(*seeds.values())
    assert not set(CONFIG.confirmation_seeds(50)) & final.union(*seeds.values())


def row(role, aps, weight=1.0, failures=()):
    pair = LossPair(zoo.default(spaces.BINARY_CLASS), zoo.default(spaces.BOX), weight)
    return Row(role.value, role, pair, tuple(aps), *mean_std(aps), failures=failures)


@pytest.mark.parametrize(
    ("discovered", "said"),
    [
        ((0.45, 0.46, 0.475), "is better than the best other row (default): paired difference +0.052 AP (corrected"),
        ((0.44, 0.40, 0.46), "is not shown to be better or worse"),
        ((0.43, 0.39, 0.45), "seeds would show a difference of 0.013 AP (80 % power)."),
        ((0.35, 0.36, 0.375), "is worse than"),
        ((0.38, math.nan, 0.40), "failed in training and is not compared"),
    ],
)
def test_the_conclusion_is_honest(discovered, said):
    rows = judged([row(Role.DEFAULT, (0.40, 0.41, 0.42)), row(Role.DISCOVERED, discovered, 2.0)])
    assert said in conclusion(rows)
    assert "says nothing of longer trainings" in scope(rows, one_start=False)
    assert "says nothing of other starts, longer trainings" in scope(rows, one_start=True)


def test_one_seed_gives_no_verdict():
    rows = judged([row(Role.DEFAULT, (0.40,)), row(Role.DISCOVERED, (0.60,), 2.0)])
    assert "No verdict" in conclusion(rows) and "+0.200 AP to the best other row" in conclusion(rows)
    assert rows[0].against.verdict == "noise unknown"


def test_rows_whose_trainings_failed_are_named_and_not_compared():
    failed = row(Role.PUBLISHED, (0.9, math.nan, 0.9), 3.0, failures=("seed 1001: not finite at step 3",))
    rows = [row(Role.DEFAULT, (0.40, 0.41, 0.42)), failed, row(Role.DISCOVERED, (0.45, 0.46, 0.475), 2.0)]
    compared = judged(rows)
    assert compared[0].against == judged([rows[0], rows[2]])[0].against
    assert compared[1].against.verdict == "not compared"
    assert "is better than the best other row (default)" in conclusion(compared)
    assert "Not compared, because trainings failed: published (seed 1001: not finite at step 3)" in conclusion(compared)
    alone = judged([failed, rows[2]])
    assert "is compared with nothing" in conclusion(alone) and "noise" not in scope(alone, one_start=False)


def test_rows_of_the_same_losses_count_once():
    """A fitted weight that is the default one is the same trainings: it must not make the noise look small."""
    rows = [row(Role.DEFAULT, (0.40, 0.41, 0.42)), row(Role.DISCOVERED, (0.45, 0.46, 0.475), 2.0)]
    doubled = judged([rows[0], row(Role.FITTED, rows[0].aps), *rows[1:]])
    assert doubled[0].against == doubled[1].against == judged(rows)[0].against


def test_a_pair_that_is_the_default_one_is_not_compared_with_itself():
    rows = judged([row(Role.DEFAULT, (0.40, 0.41)), row(Role.DISCOVERED, (0.40, 0.41))])
    assert "is compared with nothing: no row of other losses trained." in conclusion(rows)


def test_the_prior_is_of_the_difference_to_the_default_losses():
    """A published pair may be far behind, though the losses of the search hardly differ from the default ones."""
    aps = {Role.DEFAULT: (0.49, 0.50, 0.52), Role.PUBLISHED: (0.40, 0.41, 0.43), Role.DISCOVERED: (0.50, 0.52, 0.52)}
    rows = [row(role, each, weight) for weight, (role, each) in enumerate(aps.items(), start=1)]
    default, published, _ = (each.against for each in judged(rows, signal=1e-8))
    assert default.difference > 0.005 and 0.0 < default.shrunk.difference < 1e-4
    assert published.difference > 0.09 and math.isnan(published.shrunk.difference)


def test_no_discovery_is_said():
    assert "Nothing was discovered" in conclusion([row(Role.DEFAULT, (0.40, 0.41, 0.42))])


def test_the_report_holds_formulas_and_numbers(finished, tmp_path):
    _, result = finished
    about = dict(name="trial", seeding="yes", scale="raw", device="none", seconds=1.0, versions={"jax": "1"}, config={})
    data = report.result_dict(result, about=about)
    report.write_result(tmp_path, data)
    assert json.loads((tmp_path / "result.json").read_text())["conclusion"] == conclusion(result.table)
    text = (tmp_path / "report.md").read_text()
    (low, high), verdict = (data["table"][0]["against"][name] for name in ("interval", "verdict"))
    assert f"{low:+.3f} to {high:+.3f} | {verdict}" in text and data["conclusion"] in text and data["scope"] in text
    best = result.branches[1].entries[0]
    assert f"`{best.formula}`" in text and "B_cls + B_reg (published)" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


@pytest.mark.slow
def test_thresholds_are_used(tmp_path):
    strict = dataclasses.replace(SHORT, filters=FilterConfig(overfit_tolerance=10.0))
    result = run(tmp_path, config=strict)
    assert all(counts["overfit"] == 0 for branch in result.branches for counts in branch.funnel)
    assert "Nothing was discovered" in conclusion(result.table)


@pytest.mark.slow
def test_filters_that_are_skipped_reject_nothing(tmp_path):
    """Which is what tells the worth of a filter; all else of a search, its report among it, goes on as ever."""
    kept = screened(["1 - i / u", "i / e", "i / e + 1", "sqrt(-u)"], skip=("verification", "simulation")).candidates
    assert [(str(c.formula), c.stage, c.flipped) for c in kept] == [
        ("1 - i / u", "simulation", False),  # which is verified
        ("-(i / e)", "simulation", True),
        ("-1 - i / e", "verification", True),
        ("sqrt(-u)", "simulation", False),  # which is not a number anywhere
    ]
    assert all(math.isnan(c.simulation) and c.promise == 1.0 for c in kept), "nor do they rank"
    blind = FilterConfig(skip=("verification", "simulation", "probe", "overfit"))
    few = {"population": 50, "strategy": "random", "seed_known": False}
    branch = dataclasses.replace(ONE, max_overfit=4, max_proxy=4, proxy_seeds=1, **few)
    config = dataclasses.replace(SHORT, filters=blind, classification=branch, final=FinalConfig(1, (), False))
    result = run(tmp_path, config=config)
    (counts,) = result.branches[0].funnel
    assert counts["generated"] == counts["verification"] == 50 and counts["probe"] == counts["distinct"] > 40
    assert counts["proxy"] == 2, "the better half of 4"
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger:
        assert {purpose for (purpose,) in ledger.execute("select purpose from trainings")} == {"proxy", "final"}
    assert [row.role for row in result.table] == [Role.DEFAULT, Role.PUBLISHED, Role.DISCOVERED], "no fitted weights"
    data = report.result_dict(result, about={})
    json.dumps(data, allow_nan=False)
