"""The whole search: classification branch, regression branch, controls, and the final comparison."""

import dataclasses
import math
import statistics

from cse_jax.language import spaces
from cse_jax.language.spaces import Space
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.branch import Branch, BranchConfig, HallOfFameEntry
from cse_jax.search.comparison import FinalConfig, Row, combined, compare, contestants, fit_default_weights
from cse_jax.search.ledger import Ledger
from cse_jax.search.racing import FilterConfig, default_seeds
from cse_jax.search.trials import LossPair, Trainer, Trials, default_pair

RANDOM = " (random)"  # added to the names of the branches of the random search


@dataclasses.dataclass
class SearchConfig:
    """What to search, and how much.

    Attributes:
      seed: of everything random: populations, simulations, network initialisation, batches.
      workers: trainings that run at once, in threads.  Results don't depend on it.
      classification, regression: sizes of the two branches.
      cascade: thresholds of the filters.
      final: the final comparison.
    """

    seed: int = 0
    workers: int = 2
    classification: BranchConfig = dataclasses.field(default_factory=BranchConfig)
    regression: BranchConfig = dataclasses.field(default_factory=BranchConfig)
    cascade: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    final: FinalConfig = dataclasses.field(default_factory=FinalConfig)


class SearchFailed(RuntimeError):
    """The search can't go on; the message says why."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
      funnel: counts per stage by (branch, generation).
      fame: hall of fame by branch, the random search's included, best first.
      errors: standard error of the AP of a branch's famous losses, from the noise between seeds.
      default_proxy_ap: the default losses' AP on the proxy task, mean over seeds.
      discovered: what was found: of the branches' winners with each other and with the default losses, the best pair on
        the proxy task; None if no candidate passed all filters.
      table: the final comparison, the default losses first.
    """

    funnel: dict[tuple[str, int], dict[str, int]]
    fame: dict[str, list[HallOfFameEntry]]
    errors: dict[str, float]
    default_proxy_ap: float
    discovered: LossPair | None
    table: list[Row]


def run(
    config: SearchConfig,
    *,
    cls_space: Space,
    box_weight: float,
    units: str,
    trainer: Trainer,
    ledger: Ledger,
    monitor: Monitor,
) -> SearchResult:
    """Runs a search, or goes on with one.

    Args:
      config: sizes and thresholds.
      cls_space: the detector's classification space.
      box_weight: the detector's usual weight of the box loss.
      units: what the detector feeds its box loss, ``"pixels"`` or ``"strides"``.
      trainer: trains the detector.
      ledger: remembers what is done.
      monitor: shows progress.

    Raises:
      SearchFailed: the default losses can't be trained.
      LedgerError: the ledger can't be written.
    """
    trials = Trials(trainer, ledger, monitor, workers=config.workers)
    base = default_pair(cls_space, box_weight)
    plan = _plan(config)
    monitor.expect(_sum(plan))
    proxy_ap = _train_default(base, config, trials=trials)
    plan.pop(("default", 0))
    funnel: dict[tuple[str, int], dict[str, int]] = {}
    fame: dict[str, list[HallOfFameEntry]] = {}
    errors: dict[str, float] = {}
    for (part, kind), sizes in _branches(config).items():
        space = cls_space if part == "cls" else spaces.BOX
        branch = Branch(
            space,
            base,
            sizes,
            config.cascade,
            trials=trials,
            ledger=ledger,
            monitor=monitor,
            seed=config.seed,
            units=units,
            name=space.name + kind,
        )
        for generation, counts in enumerate(branch.generations()):
            funnel[branch.name, generation] = counts
            plan.pop((part + kind, generation))
            monitor.expect(_sum(plan))
        fame[branch.name], errors[branch.name] = branch.fame, branch.error
    fitted = fit_default_weights(base, config.final, trials=trials, seed=config.seed)
    random_fame = {name.removesuffix(RANDOM): members for name, members in fame.items() if name.endswith(RANDOM)}
    proxy_seeds = default_seeds(config.seed, "proxy", _proxy_seeds(config))
    discovered, at_random = (combined(base, found, trials=trials, seeds=proxy_seeds) for found in (fame, random_fame))
    rows = contestants(base, fitted, discovered, at_random, config.final, box_weight=box_weight)
    monitor.expect({"final": len(rows) * config.final.seeds})
    seeds = [config.seed + k for k in range(config.final.seeds)]
    table = compare(rows, seeds, trials=trials)
    return SearchResult(funnel, fame, errors, proxy_ap, discovered[-1][1] if discovered else None, table)


def _proxy_seeds(config: SearchConfig) -> int:
    return max(config.classification.proxy_seeds, config.regression.proxy_seeds)


def _branches(config: SearchConfig) -> dict[tuple[str, str], BranchConfig]:
    """Sizes of the branches, by the part of the loss and the kind of search."""
    branches = {("cls", ""): config.classification, ("box", ""): config.regression}
    if config.final.random_search:
        alone = {"crossover": 0.0, "mutation": 0.0, "seed_known": False, "screened": ""}
        branches |= {(part, RANDOM): dataclasses.replace(sizes, **alone) for (part, _), sizes in branches.items()}
    return branches


def _train_default(base: LossPair, config: SearchConfig, *, trials: Trials) -> float:
    """The default losses' AP on the proxy task; they must train, or every comparison would be void."""
    aps: dict[str, list[float]] = {}
    for purpose in ("proxy", "probe", "verify"):  # the proxy training leaves the features for the probes
        jobs = [(base, seed) for seed in default_seeds(config.seed, purpose, _proxy_seeds(config))]
        for horizon in trials.trainer.horizons(purpose):
            outcomes = trials.run(jobs, purpose=purpose, what=f"default losses, {purpose} task", horizon=horizon)
            aps[purpose] = []
            for outcome in outcomes:
                if outcome.failure or not math.isfinite(outcome.ap):
                    raise SearchFailed(
                        f"the default losses failed in the {purpose} training: "
                        f"{outcome.failure or 'AP is not finite'}. Lower config.train.learning_rate or check the data."
                    )
                aps[purpose].append(outcome.ap)
    return statistics.fmean(aps["proxy"])


def _plan(config: SearchConfig) -> dict[tuple[str, int], dict[str, int]]:
    """Most trainings per part of the search, by purpose."""
    plan: dict[tuple[str, int], dict[str, int]] = {("default", 0): {"probe": 1, "verify": 1, "proxy": 2}}
    for (part, kind), sizes in _branches(config).items():
        for generation in range(sizes.generations):
            plan[part + kind, generation] = {
                "probe": sizes.probes,
                "verify": sizes.optimisations,
                "proxy": sizes.proxies + (sizes.proxies + 1) // 2 * (sizes.proxy_seeds - 1),
            }
    rows = (7 if config.final.branches else 5) + config.final.random_search
    together = 3 * _proxy_seeds(config) * (1 + config.final.random_search)
    plan["final", 0] = {"proxy": 2 * len(config.final.fit_weights) + together, "final": rows * config.final.seeds}
    return plan


def _sum(plan: dict[tuple[str, int], dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in plan.values():
        for purpose, count in part.items():
            total[purpose] = total.get(purpose, 0) + count
    return total
