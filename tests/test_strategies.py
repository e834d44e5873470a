"""Strategies: what they may propose, what they find in simulated tables, and what replays say of them."""

import dataclasses
import math

import numpy as np
import pytest

from benchmarks import strategies
from benchmarks.report import Report
from cse_jax import loss_table
from cse_jax.errors import InputError
from cse_jax.language import spaces, zoo
from cse_jax.language.parsing import parse
from cse_jax.loss_table import Curve, LossTable, LossTableError, TableLoss, replay
from cse_jax.loss_table.replay import Case
from cse_jax.loss_table.table import save
from cse_jax.screening.candidate import Candidate
from cse_jax.search import choosing
from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.strategies import STRATEGIES, Observation, Pool, Prior, compress, named
from cse_jax.search.strategies.surrogate import log_expected_improvement
from cse_jax.search.task import Task

NOISE = 0.005


def pool(features, rng=None):
    """A pool whose scores are random, or missing."""
    bare = Pool.unscored(features)
    if rng is None:
        return bare
    scores = rng.random((2, len(features)))
    return dataclasses.replace(bare, simulation=scores[0], probe=np.where(scores[1] < 0.1, math.nan, scores[1]))


def smooth(rng, losses=150):
    """AP falls with the distance from one behaviour; a fifth of the losses, in a corner, don't train at all."""
    features = rng.standard_normal((losses, 4))
    truth = 0.7 - 0.02 * np.linalg.norm(features - features[0], axis=1)
    truth[features[:, 1] < np.quantile(features[:, 1], 0.2)] = 0.0
    told = truth + NOISE * rng.standard_normal((2, losses))
    return Case(pool(features), np.maximum(told, 0.0), np.stack([truth, truth]), NOISE)


def lottery(rng, losses=60):
    """APs that nothing explains, in a table of their own for each replay."""
    aps = 0.5 + 0.02 * rng.standard_normal((2, 1, losses))
    return Case(pool(rng.standard_normal((losses, 3)), rng), aps[0], aps[1], 0.02)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("scored", [False, True])
def test_proposals_are_untried_and_distinct_and_follow_the_rng(name, scored):
    rng = np.random.default_rng(1)
    losses = pool(rng.standard_normal((30, 3)), rng if scored else None)
    told = []
    while len(told) < 30:
        chosen = named(name).propose(losses, told, 7, np.random.default_rng(len(told)))
        again = named(name).propose(losses, tuple(told), 7, np.random.default_rng(len(told)))
        assert chosen == again and len(chosen) == min(7, 30 - len(told))
        assert len(set(chosen)) == len(chosen) and not set(chosen) & {each.index for each in told}
        told += [Observation(index, 0.0 if index % 5 == 0 else rng.random()) for index in chosen]
    assert named(name).propose(losses, told, 7, rng) == []


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("ap", [0.0, 0.5])
def test_equal_aps_and_equal_behaviours_are_no_problem(name, ap):
    losses = pool(np.zeros((20, 3)))
    told = [Observation(index, ap) for index in range(12)]
    assert set(named(name).propose(losses, told, 8, np.random.default_rng(0))) == set(range(12, 20))


def test_an_unknown_strategy_is_refused_by_name():
    with pytest.raises(InputError, match=r"'annealing'.*'random'.*'surrogate'"):
        named("annealing")


def test_the_surrogate_needs_fewer_trainings_where_ap_is_smooth():
    """It has seen the best loss after a third of the trainings that random order needs, on the average 75.5."""
    needed = {"random": [], "evolution": [], "surrogate": []}
    for number in range(8):
        known = smooth(np.random.default_rng(number))
        for name, places in needed.items():
            settings = {"noise": NOISE} if name == "surrogate" and number % 2 else {}
            most = 60 if name == "surrogate" else 150  # it is slow, and done by then
            order = replay.replay(named(name, **settings), known, 0, np.random.default_rng(number), most=most)
            places.append([*np.flatnonzero(known.truth[0, order] == known.truth.max()).tolist(), 149][0] + 1)
    assert np.mean(needed["surrogate"]) < 75.5 / 3, needed
    assert np.mean(needed["surrogate"]) < np.mean(needed["evolution"]) < np.mean(needed["random"]), needed


def test_evolution_beats_random_order_where_ap_is_smooth():
    known = smooth(np.random.default_rng(0), losses=400)
    regrets = {
        name: replay.replays(lambda name=name: named(name), known, count=300, most=60).regrets[:, -1].mean()
        for name in ("random", "evolution")
    }
    assert regrets["evolution"] < 0.8 * regrets["random"]


def test_nothing_beats_random_order_where_ap_is_noise():
    """The best of 20 is truly 0.5 with a deviation of 0.02; no mean is off by more than four of its errors."""
    for name, count in (("random", 200), ("cascade", 200), ("evolution", 200), ("surrogate", 15)):
        found = []
        for number in range(count):
            known = lottery(np.random.default_rng(number))
            runs = replay.replays(lambda name=name: named(name), known, count=1, most=20)
            found.append(runs.values[0, -1])
        assert abs(np.mean(found) - 0.5) < 4 * 0.02 / math.sqrt(count), name


def test_a_prior_of_a_similar_run_saves_trainings():
    """The other run has another level of AP; its losses are others of the same behaviours."""
    with_prior, without = [], []
    for number in range(4):
        rng = np.random.default_rng(number)
        whole = smooth(rng, losses=200)
        known = Case(pool(whole.pool.features[:100]), whole.told[:, :100], whole.truth[:, :100], NOISE)
        told = [Observation(k, float(ap)) for k, ap in enumerate(np.maximum(0.0, whole.told[1, 100:] - 0.2))]
        prior = Prior(pool(whole.pool.features[100:]), told)
        for needed, settings in ((with_prior, {"prior": prior}), (without, {})):
            order = replay.replay(named("surrogate", **settings), known, 0, np.random.default_rng(0), most=40)
            needed.append(known.truth[0, order[:5]].max())
    assert np.mean(with_prior) > np.mean(without) + 0.005


@pytest.mark.parametrize("name", ["evolution", "surrogate"])
def test_a_search_asks_for_candidates_beside_its_hall_of_fame(name):
    rng = np.random.default_rng(0)
    formulas = [parse(f"1 - i / u + {1 + n % 3} * (e - u) / {'eu'[n % 2]}", spaces.BOX) for n in range(24)]
    candidates = [Candidate(each, simulation=rng.random(), probe=rng.random()) for each in formulas[:12]]
    entries = [Entry(each, 1.0, (rng.random(), 0.5), 0.5, 0, (), 1.0, 0.5) for each in formulas[12:]]

    def choose(count):
        keywords = {"space": spaces.BOX, "units": "strides", "rng": choosing.generator(0, "box", 1)}
        return choosing.choose(named(name), candidates, entries, count, **keywords)

    chosen = choose(5)
    assert len(set(chosen)) == 5 and set(chosen) < set(candidates) and choose(5) == chosen
    assert choose(12) == candidates


def test_a_stage_that_judged_no_candidate_does_not_rank_them():
    """Although it has judged a loss of the hall of fame, before such stages gave no score."""
    formulas = [parse(f"1 - i / u{' * (i / u)' * n}", spaces.BOX) for n in range(4)]
    candidates = [Candidate(each, probe=0.1 * n) for n, each in enumerate(formulas[:3])]
    entries, rng = [Entry(formulas[3], 1.0, (0.5,), 0.5, 0, (), 1.0, 0.5)], np.random.default_rng(0)
    chosen = choosing.choose(named("cascade"), candidates, entries, 2, space=spaces.BOX, units="strides", rng=rng)
    assert chosen == candidates[:0:-1]
    assert chosen == sorted(candidates, key=lambda candidate: -candidate.promise)[:2]


def test_a_search_starts_from_what_another_run_has_tried():
    """There the losses whose second term is divided by e were good; the candidates of that kind are chosen."""
    formulas = [parse(f"1 - i / u + {1 + n % 3} * (e - u) / {'eu'[n % 2]}", spaces.BOX) for n in range(24)]
    candidates = [Candidate(each, simulation=1.0) for each in formulas[:12]]
    tried = [choosing.Tried(each, 0.7 if n % 2 == 0 else 0.6, 1.0) for n, each in enumerate(formulas[12:])]
    keywords = {"space": spaces.BOX, "units": "strides", "rng": np.random.default_rng(0), "tried": tried}
    chosen = choosing.choose(named("surrogate"), candidates, [], 4, **keywords)
    assert set(chosen) <= set(candidates[::2])
    with pytest.raises(InputError, match="'surrogate'"):
        choosing.choose(named("evolution"), candidates, [], 4, **keywords)


def test_of_a_large_pool_the_batch_is_made_of_the_most_promising():
    """Its covariance would take 8 GB."""
    rng = np.random.default_rng(0)
    places = rng.standard_normal((33_000, 4))
    told = [Observation(k, 0.7 - 0.02 * float(np.linalg.norm(places[k]))) for k in range(60)]
    chosen = named("surrogate", noise=NOISE).propose(pool(places), told, 20, rng)
    assert len(set(chosen)) == 20 and np.linalg.norm(places[chosen], axis=1).max() < 1.0


def test_a_table_tells_a_search_what_its_losses_have_reached():
    table = trained()
    task = Task(spaces.BINARY_CLASS, "strides")
    found = loss_table.tried(table, task)
    assert list(found) == ["box"] and len(found["box"]) == 22
    assert found["box"][5] == choosing.Tried(table.losses[5].formula, pytest.approx(0.451), 1.0)
    with pytest.raises(LossTableError, match="config.prior"):
        loss_table.tried(LossTable((10, 20), []), task)


def test_expected_improvement_is_right_and_never_ends():
    from scipy.integrate import quad
    from scipy.stats import norm

    for mean, deviation in ((0.3, 0.1), (-0.2, 0.5), (-3.0, 0.5)):
        area = quad(lambda x: x * norm.pdf(x, mean, deviation), 0.0, 8.0, epsabs=0.0)[0]  # noqa: B023
        found = log_expected_improvement(np.array([mean]), np.array([deviation]))
        assert found[0] == pytest.approx(math.log(area), rel=1e-3)
    falling = log_expected_improvement(-np.geomspace(1.0, 1e6, 100), np.ones(100))
    assert np.isfinite(falling).all() and (np.diff(falling) < 0.0).all()


def test_the_regret_of_random_order_is_the_expected_one():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((1, 30))
    known = Case(pool(np.zeros((30, 1))), truth, truth, 0.0)
    runs = replay.replays(lambda: named("random"), known, count=1500)
    expected = replay.random_regret(truth[0])
    errors = runs.regrets.std(0) / math.sqrt(1500)
    assert (np.abs(runs.regrets.mean(0) - expected) <= 4 * errors + 1e-12).all()
    assert expected[0] == pytest.approx(truth.max() - truth.mean()) and expected[-1] == pytest.approx(0.0)
    mean, (low, high) = replay.interval(runs.regrets)
    assert np.mean((low <= expected + 1e-12) & (expected <= high + 1e-12)) > 0.7  # they are not independent
    assert (high - low)[0] == pytest.approx(2 * 1.96 * errors[0], rel=0.15)
    assert mean == pytest.approx(runs.regrets.mean(0))


def test_places_keep_what_is_near_near():
    rng = np.random.default_rng(0)
    behaviours = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 50))
    one, other = compress(behaviours[:25], behaviours[20:])
    assert one.shape == (25, 16) and other.shape == (20, 16)
    assert other[:5] == pytest.approx(one[20:])
    assert np.abs(one[:, 3:]).max() < 1e-9
    assert not compress(np.ones((3, 5)))[0].any()


def trained(losses=24, seeds=3):
    """A table of box losses; the AP of seed s is the number of the loss plus s, a missing and a rejected loss last."""
    rows = []
    for n in range(losses):
        formula = zoo.default(spaces.BOX) if n == 2 else parse(f"1 - i / u + {1 + n % 3} * (e - u) / e", spaces.BOX)
        aps = {s: 0.4 + 0.01 * n + 0.001 * s for s in range(seeds)}
        trainings = {s: Curve((0.1, ap), (0.1, ap + 0.05 * s), "", 1.0) for s, ap in aps.items()}
        rows.append(TableLoss("box", formula, "", 1.0, {"simulation": 1.0, "probe 4": 0.1, "probe 9": 0.2}, trainings))
    rows[-1].origin = "rejected: monotone"
    del rows[-2].trainings[1]
    return LossTable((10, 20), rows)


def test_a_strategy_is_told_one_seed_and_judged_by_the_others():
    known = replay.case(trained(), "box", units="strides")
    assert known.told.shape == (3, 22) and known.pool.features.shape == (22, 16)
    assert known.told[1, 5] == pytest.approx(0.451) and (known.pool.probe == 0.2).all()
    assert known.truth == pytest.approx(np.tile(0.01 * (np.arange(22) - 2), (3, 1)))
    assert known.noise == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(InputError, match="default loss not among them"):
        replay.case(LossTable((10, 20), trained().losses[3:]), "box", units="strides")


def test_a_table_may_start_from_another():
    known = replay.case(trained(), "box", units="strides", prior=trained(12, seeds=2))
    assert known.pool.features.shape == (22, 16) and known.prior.pool.features.shape == (10, 16)
    assert known.prior.pool.features[:2] == pytest.approx(known.pool.features[:2])  # the same formulas
    assert [each.ap for each in known.prior.told] == pytest.approx(0.4005 + 0.01 * np.arange(10))
    runs = replay.replays(lambda: named("surrogate", prior=known.prior), known, count=3, most=7)
    assert runs.values.shape == (3, 7) and runs.values.mean() > 0.1


def test_the_value_is_that_of_the_loss_that_seems_best():
    told, truth = np.array([[0.1, 0.5, 0.3, 0.5]]), np.array([[4.0, 1.0, 9.0, 2.0]])
    known = Case(pool(np.zeros((4, 1))), told, truth, 0.0)
    for number in range(5):
        order = replay.replay(named("random"), known, 0, np.random.default_rng(number))
        runs = replay.replays(lambda: named("random"), known, count=number + 1)
        seen, best = order.tolist(), []
        for m in range(1, 5):
            best.append(truth[0, max(seen[:m], key=lambda k: told[0, k])])
        assert runs.values[number].tolist() == best
        assert runs.regrets[number].tolist() == [9.0 - value for value in best]
        hits = [m + 1.0 for m, value in enumerate(best) if value == 9.0]
        assert runs.needed[number] == (hits[0] if hits else math.inf)


def test_the_suite_replays_every_strategy(tmp_path):
    save(trained(), tmp_path / "table.parquet")
    said = []
    found, keywords = Report({}, said.append), {"size": "smallest", "rounds": 1}
    strategies.measure(found, **keywords, table=str(tmp_path / "table.parquet"))
    values, regrets, needed = found.tables.values()
    assert all(title.startswith("table, box: ") for title in found.tables) and "no trained losses of cls" in said[0]
    assert [row["trained"] for row in values] == [row["trained"] for row in regrets] == [1, 2, 5, 10, 20, 22]
    assert all(list(row) == ["trained", *STRATEGIES] for row in values)
    assert [row["strategy"] for row in needed] == list(STRATEGIES)
    assert all(row["replays"] == 3 and row["median"] <= 22 for row in needed)
    with pytest.raises(LossTableError, match="none is not a table"):
        strategies.measure(found, **keywords, table=str(tmp_path / "none"))
