"""Noise between seeds, ranks that respect it, and verdicts, on simulated tables and beside SciPy's tests."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from cse_jax.search.statistics import (
    Verdict,
    against_each,
    holm,
    power,
    ranked,
    seed_noise,
    seeds_needed,
    shrink,
    signal_variance,
    smallest_shown,
    standard_error,
)


def test_noise_is_what_neither_loss_nor_seed_explains():
    rng = np.random.default_rng(0)
    losses, seeds = rng.normal(0.5, 0.1, (4000, 1)), rng.normal(0.0, 0.05, (1, 3))
    table = losses + seeds + rng.normal(0.0, 0.01, (4000, 3))
    assert seed_noise(table.tolist()) == pytest.approx(0.01, rel=0.03)
    assert seed_noise((losses + seeds).repeat(1, 0).tolist()) == pytest.approx(0.0, abs=1e-12)


def test_failed_and_short_rows_are_left_out():
    rows = [[0.5, 0.52], [0.4, 0.44], [0.3, math.nan], [0.9], [0.1, 0.2, 0.9]]
    assert seed_noise(rows) == pytest.approx(seed_noise(rows[:2]))
    assert seed_noise([[0.5, 0.52]]) == pytest.approx(np.std([0.5, 0.52], ddof=1))
    assert math.isnan(seed_noise([[0.5], [0.6]])) and math.isnan(seed_noise([]))


def order(scores, sizes, error):
    return ranked(range(len(scores)), score=scores.__getitem__, error=error, complexity=lambda k: (sizes[k],))


def test_ties_within_the_noise_go_to_the_simplest():
    scores, sizes = [0.60, 0.59, 0.50, 0.595], [20, 5, 3, 9]
    assert order(scores, sizes, 0.0) == [0, 3, 1, 2]
    assert order(scores, sizes, math.nan) == [0, 3, 1, 2]
    assert order(scores, sizes, 0.01) == [1, 3, 0, 2]  # a difference counts from 0.0141 on
    assert order(scores, sizes, 0.2) == [2, 1, 3, 0]


def test_a_mean_of_more_seeds_is_surer():
    assert standard_error(0.02, 4) == pytest.approx(0.01)


# Verdicts

TABLES = 2_000
TABLE = arrays.arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(2, 6)), elements=st.floats(0.0, 1.0))


def tables(effects, seeds, noise=0.01):
    """Simulated APs: the loss's effect, the seed's, and noise."""
    rng = np.random.default_rng(0)
    of_seed = rng.normal(0.5, 0.05, (TABLES, 1, seeds))
    return of_seed + np.asarray(effects)[None, :, None] + rng.normal(0.0, noise, (TABLES, len(effects), seeds))


def margin(share):
    """Three standard deviations of a share that was counted."""
    return 3.0 * math.sqrt(share * (1.0 - share) / TABLES)


@pytest.mark.parametrize(("rows", "seeds"), [(2, 3), (5, 3), (6, 8)])
def test_a_false_verdict_is_as_rare_as_promised(rows, seeds):
    wrong = rejected = better = 0
    for table in tables([0.0] * rows, seeds):
        found = against_each(table, 0, range(1, rows))
        better += any(c.verdict == Verdict.BETTER for c in found)
        wrong += any(c.verdict != Verdict.NOT_SHOWN for c in found)
        rejected += any(c.p <= 0.05 for c in found)
    assert wrong / TABLES <= 0.05 + margin(0.05) and rejected / TABLES <= 0.05 + margin(0.05)
    assert better / TABLES <= 0.025 + margin(0.025), "half of the false verdicts are on this side"
    if rows == 2:
        assert wrong / TABLES >= 0.05 - margin(0.05), "one comparison is corrected for nothing"


def test_intervals_hold_all_at_once():
    effects = [0.01, 0.0, 0.005, 0.02, -0.01]
    true = [effects[0] - effect for effect in effects[1:]]
    held = 0
    for table in tables(effects, 4):
        found = against_each(table, 0, range(1, 5))
        held += all(c.low <= d <= c.high for c, d in zip(found, true, strict=True))
    assert held / TABLES >= 0.95 - margin(0.95)


@pytest.mark.parametrize(("rows", "seeds", "effect"), [(2, 5, 0.02), (5, 3, 0.03), (5, 10, 0.015)])
def test_power_is_what_was_computed(rows, seeds, effect):
    shown = sum(
        against_each(table, 0, range(1, rows))[0].verdict == Verdict.BETTER
        for table in tables([effect] + [0.0] * (rows - 1), seeds)
    )
    expected = power(effect, 0.01, rows=rows, seeds=seeds, others=rows - 1)
    assert 0.3 < expected < 0.99
    assert shown / TABLES == pytest.approx(expected, abs=margin(expected))


def test_the_seeds_needed_are_the_least_that_suffice():
    for effect in (0.005, 0.02, 0.1):
        needed = seeds_needed(effect, 0.01, rows=4, others=3)
        assert needed is not None and power(effect, 0.01, rows=4, seeds=needed, others=3) >= 0.8
        assert needed == 2 or power(effect, 0.01, rows=4, seeds=needed - 1, others=3) < 0.8
    assert seeds_needed(1e-6, 0.01, rows=4, others=3) is None
    smallest = smallest_shown(0.01, rows=4, seeds=6, others=3)
    assert power(smallest, 0.01, rows=4, seeds=6, others=3) == pytest.approx(0.8, abs=0.01)


@given(TABLE)
def test_two_rows_are_the_paired_t_test(table):
    table = np.round(table[:2], 3)
    (found,) = against_each(table, 0, [1])
    if np.ptp(table[0] - table[1]) < 1e-6:
        assert found.error < 1e-12
        return
    peer = stats.ttest_rel(table[0], table[1])
    assert found.p == pytest.approx(peer.pvalue, rel=1e-6)
    interval = peer.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


@given(TABLE, st.data())
def test_what_all_losses_of_a_seed_share_changes_nothing(table, data):
    shifts = data.draw(arrays.arrays(np.float64, table.shape[1], elements=st.floats(-1.0, 1.0)))
    others = range(1, len(table))
    for before, after in zip(against_each(table, 0, others), against_each(table + shifts, 0, others), strict=True):
        for field in ("difference", "error", "low", "high"):
            assert getattr(after, field) == pytest.approx(getattr(before, field), abs=1e-9)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p):
    """A hypothesis is rejected if Bonferroni rejects every set that holds it (Marcus, Peritz and Gabriel 1976)."""
    sets = [s for n in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), n)]
    for k, adjusted in enumerate(holm(p)):
        assert adjusted == pytest.approx(max(min(1.0, len(s) * min(p[i] for i in s)) for s in sets if k in s))


def test_a_failed_training_and_a_single_seed_give_no_verdict():
    table = np.array([[0.5, 0.51, 0.52], [0.4, math.nan, 0.4], [0.3, 0.31, 0.33]])
    failed, found = against_each(table, 0, [1, 2])
    assert failed.verdict == Verdict.FAILED and math.isnan(failed.difference)
    (alone,) = against_each(table[[0, 2]], 0, [1])
    assert found == alone and found.verdict == Verdict.BETTER
    assert {c.verdict for c in against_each(table, 1, [0, 2])} == {Verdict.FAILED}
    (single,) = against_each(table[[0, 2], :1], 0, [1])
    assert single.verdict == Verdict.UNKNOWN and single.difference == pytest.approx(0.2)
    assert single.seeds_needed() is None and math.isnan(single.smallest_shown)


def test_scores_without_noise_are_judged_as_they_are():
    same, worse = against_each(np.array([[0.5, 0.5], [0.5, 0.5], [0.75, 0.75]]), 0, [1, 2])
    assert (same.verdict, worse.verdict) == (Verdict.NOT_SHOWN, Verdict.WORSE)


def test_the_best_of_many_is_believed_after_shrinkage():
    """Of many losses the one that looks best is picked: shrunk, its difference is right on average."""
    rng = np.random.default_rng(0)
    true = rng.normal(0.0, 0.01, (4_000, 20))
    measured = true + rng.normal(0.0, 0.02, true.shape)
    best = measured.argmax(1)
    rows = np.arange(len(true))
    signal = signal_variance(measured.ravel().tolist(), 0.02)
    assert math.sqrt(signal) == pytest.approx(0.01, rel=0.05)
    found = [shrink(d, 0.02, signal, 6) for d in measured[rows, best].tolist()]
    assert np.mean(measured[rows, best]) > 3.0 * np.mean(true[rows, best])
    assert np.mean([s.difference for s in found]) == pytest.approx(np.mean(true[rows, best]), rel=0.05)
    improved = np.mean(true[rows, best] > 0.0)
    assert np.mean([s.probability for s in found]) == pytest.approx(improved, abs=0.02)


def test_only_differences_with_a_prior_are_shrunk():
    table = np.random.default_rng(0).normal(0.5, 0.01, (4, 3)) + [[0.02], [0.0], [-0.05], [0.0]]
    default, rival, unknown = against_each(table, 0, [1, 2, 3], signals={1: 1e-4, 3: math.nan})
    assert default.shrunk == shrink(default.difference, default.error, 1e-4, 6) and default.shrunk.probability > 0.5
    assert math.isnan(rival.shrunk.difference) and unknown.shrunk.difference == unknown.difference
    other = default.reversed().shrunk
    assert (other.difference, other.probability) == (-default.shrunk.difference, 1.0 - default.shrunk.probability)


def test_what_nothing_is_known_of_is_not_shrunk():
    flat = shrink(0.02, 0.01, math.nan, 4)
    assert flat.difference == 0.02 and flat.probability == pytest.approx(stats.t.cdf(2.0, 4))
    assert shrink(0.02, 0.01, 0.0, 4) == (0.0, 0.0, 0.5)
    assert math.isnan(shrink(math.nan, 0.01, 1.0, 4).probability)
    assert math.isnan(signal_variance([0.1], 0.01)) and math.isnan(signal_variance([0.1, 0.2], math.nan))
