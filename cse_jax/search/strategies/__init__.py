"""Strategies: what proposes the next losses to train.

Each is one file with a class that fulfils ``Strategy``, and a row of ``STRATEGIES``; its settings are the class's
fields.
"""

from collections.abc import Callable
from typing import Any

from cse_jax.errors import InputError
from cse_jax.search.strategies.cascade import Cascade
from cse_jax.search.strategies.evolution import Evolution
from cse_jax.search.strategies.random_order import RandomOrder
from cse_jax.search.strategies.strategy import Observation, Pool, Strategy, compress
from cse_jax.search.strategies.surrogate import Prior, Surrogate

__all__ = ["STRATEGIES", "Observation", "Pool", "Prior", "Strategy", "Surrogate", "compress", "named"]

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "random": RandomOrder,
    "cascade": Cascade,
    "evolution": Evolution,
    "surrogate": Surrogate,
}


def named(name: str, **settings: Any) -> Strategy:
    """The strategy of a name.

    Args:
      name: a key of ``STRATEGIES``.
      **settings: fields of its class.

    Raises:
      InputError: there is none of this name.
    """
    if name not in STRATEGIES:
        raise InputError(f"there is no strategy {name!r}; use {', '.join(map(repr, STRATEGIES))}")
    return STRATEGIES[name](**settings)
