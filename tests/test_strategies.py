"""Strategies: what they may propose, and the parts of the surrogate."""

import dataclasses
import math

import numpy as np
import pytest

from cse_jax.errors import InputError
from cse_jax.search.strategies import STRATEGIES, Observation, Pool, compress, named
from cse_jax.search.strategies.surrogate import log_expected_improvement


def pool(features, rng=None):
    """A pool whose scores are random, or missing."""
    bare = Pool.unscored(features)
    if rng is None:
        return bare
    scores = rng.random((2, len(features)))
    return dataclasses.replace(bare, simulation=scores[0], probe=np.where(scores[1] < 0.1, math.nan, scores[1]))


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


def test_expected_improvement_is_right_and_never_ends():
    from scipy.integrate import quad
    from scipy.stats import norm

    for mean, deviation in ((0.3, 0.1), (-0.2, 0.5), (-3.0, 0.5)):
        area = quad(lambda x: x * norm.pdf(x, mean, deviation), 0.0, 8.0, epsabs=0.0)[0]  # noqa: B023
        found = log_expected_improvement(np.array([mean]), np.array([deviation]))
        assert found[0] == pytest.approx(math.log(area), rel=1e-3)
    falling = log_expected_improvement(-np.geomspace(1.0, 1e6, 100), np.ones(100))
    assert np.isfinite(falling).all() and (np.diff(falling) < 0.0).all()


def test_places_keep_what_is_near_near():
    rng = np.random.default_rng(0)
    behaviours = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 50))
    one, other = compress(behaviours[:25], behaviours[20:])
    assert one.shape == (25, 16) and other.shape == (20, 16)
    assert other[:5] == pytest.approx(one[20:])
    assert np.abs(one[:, 3:]).max() < 1e-9
    assert not compress(np.ones((3, 5)))[0].any()
