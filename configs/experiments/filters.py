"""What each filter is worth: random classification losses for FCOS are trained, with none of the filters and with more.

python launch/search.py --config=configs/experiments/filters.py:none
python launch/search.py --config=configs/experiments/filters.py:verification
python launch/search.py --config=configs/experiments/filters.py:simulation

Nothing is bred or ranked.  Other seeds are other searches: --config.search.seed=1 --workdir=runs/filters_none_1, and
launch/compare_searches.py shows them side by side.  Cost and AP are in docs/results.md.
"""

from cse_jax.errors import InputError
from cse_jax.screening.candidate import Filter
from cse_jax.search.config import BranchConfig, FilterConfig, FinalConfig, SearchConfig
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun

_TRAINED = 12
_SKIPPED: dict[str, tuple[Filter, ...]] = {
    "none": ("verification", "simulation", "probe", "overfit"),
    "verification": ("simulation", "probe", "overfit"),
    "simulation": ("probe", "overfit"),
}


def get_config(filters: str = "simulation") -> SearchRun:
    if filters not in _SKIPPED:
        raise InputError(f"there is no such search with {filters!r}; use {', '.join(_SKIPPED)}")
    skip = _SKIPPED[filters]
    return SearchRun(
        name=f"filters_{filters}",
        search=SearchConfig(
            classification=BranchConfig(
                generations=1,
                population=1_000 if "verification" in skip else 20_000,
                max_overfit=_TRAINED,
                max_proxy=_TRAINED,
                proxy_seeds=1,
                strategy="random",
                seed_known=False,
            ),
            regression=BranchConfig(generations=0),
            filters=FilterConfig(skip=skip),
            final=FinalConfig(seeds=1, fit_weights=(), branches=False),
        ),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(proxy=(400,), final=400, start=2000),
    )
