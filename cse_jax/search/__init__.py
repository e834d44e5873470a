"""The search: trainings of candidates, racing, the hall of fame, and the final comparison.

``run`` runs a search with whatever fulfils the ``Trainer`` protocol.  Names are imported when they are first used, so
that a trainer that needs the protocol alone does not load the search.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cse_jax.search.config import SearchConfig
    from cse_jax.search.ledger import Ledger
    from cse_jax.search.pipeline import SearchFailed, SearchResult, run
    from cse_jax.search.task import LossPair, Task
    from cse_jax.search.trainer import Trainer, Training

_HOMES = {
    "Ledger": "ledger",
    "LossPair": "task",
    "SearchConfig": "config",
    "SearchFailed": "pipeline",
    "SearchResult": "pipeline",
    "Task": "task",
    "Trainer": "trainer",
    "Training": "trainer",
    "run": "pipeline",
}

__all__ = [
    "Ledger",
    "LossPair",
    "SearchConfig",
    "SearchFailed",
    "SearchResult",
    "Task",
    "Trainer",
    "Training",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
