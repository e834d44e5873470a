"""The statistics of trainings: noise between seeds, ranks, and verdicts on whether one loss is better than others."""

from cse_jax.search.statistics.noise import pooled_noise, ranked, seed_noise, standard_error
from cse_jax.search.statistics.planning import power, seeds_needed, smallest_shown
from cse_jax.search.statistics.shrinkage import Shrunk, shrink, signal_variance
from cse_jax.search.statistics.verdicts import Comparison, Verdict, against_each, holm

__all__ = [
    "Comparison",
    "Shrunk",
    "Verdict",
    "against_each",
    "holm",
    "pooled_noise",
    "power",
    "ranked",
    "seed_noise",
    "seeds_needed",
    "shrink",
    "signal_variance",
    "smallest_shown",
    "standard_error",
]
