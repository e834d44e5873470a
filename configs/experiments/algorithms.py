"""Search algorithms with as many trainings each: classification losses for FCOS, from nothing.

python launch/search.py --config=configs/experiments/algorithms.py:random
python launch/search.py --config=configs/experiments/algorithms.py:evolution
python launch/search.py --config=configs/experiments/algorithms.py:cascade
python launch/search.py --config=configs/experiments/algorithms.py:surrogate

All have the same filters and know no hand-made losses; random search breeds nothing.  Other seeds are other searches:
--config.search.seed=1 --workdir=runs/algorithms_random_1, and launch/compare_searches.py shows them side by side.  Cost
and AP are in docs/results.md.
"""

from cse_jax.search.config import BranchConfig, FilterConfig, FinalConfig, SearchConfig
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun

_A_GENERATION = 3


def get_config(strategy: str = "surrogate") -> SearchRun:
    bred = 0.0 if strategy == "random" else 0.3
    return SearchRun(
        name=f"algorithms_{strategy}",
        search=SearchConfig(
            classification=BranchConfig(
                generations=4,
                population=20_000,
                offspring=20_000,
                max_probe=32,
                max_overfit=_A_GENERATION,
                max_proxy=_A_GENERATION,
                proxy_seeds=1,
                strategy=strategy,
                crossover=bred,
                mutation=bred,
                seed_known=False,
            ),
            regression=BranchConfig(generations=0),
            filters=FilterConfig(skip=("overfit",)),
            final=FinalConfig(seeds=1, fit_weights=(), branches=False),
        ),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(proxy=(400,), final=400, start=2000),
    )
