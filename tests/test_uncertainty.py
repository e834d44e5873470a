"""Noise between seeds, and ranks that respect it."""

import math

import numpy as np
import pytest

from cse_jax.search.statistics import ranked, seed_noise, standard_error


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
