"""Random formulas for tests."""

import functools

import jax

from cse_jax.language.population import decode, encode
from cse_jax.sampling.random_trees import Shape, random_population
from cse_jax.sampling.variation import offspring

SHAPE = Shape()


@functools.cache
def random_expressions(space, count, seed=0, shape=SHAPE):
    """Random formulas of a space."""
    return decode(random_population(jax.random.key(seed), space, shape, count), space)


def descendants(parents, count, seed=0, shape=SHAPE):
    """Offspring of some formulas, a fifth of them new random ones."""
    space = parents[0].space
    rates = {"crossover_rate": 0.4, "mutation_rate": 0.4}
    tokens, _ = offspring(jax.random.key(seed), encode(parents, space), space, shape, count, **rates)
    return decode(tokens, space)
