"""The whole search: classification branch, regression branch, controls, and the final comparison."""

import contextlib
import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from cse_jax.errors import InputError, UserError
from cse_jax.language.expression import Expression
from cse_jax.language.parsing import parse
from cse_jax.ranges import validate
from cse_jax.search.branch import Branch, BranchResult, Plan, branch_name
from cse_jax.search.budget import Budget, Trainings
from cse_jax.search.choosing import Tried
from cse_jax.search.comparison import Contestant, Role, Row, combined, compare, controls, most_rows, prior_variance
from cse_jax.search.config import BranchConfig, SearchConfig
from cse_jax.search.ends import Ends
from cse_jax.search.extension import refuse_fewer
from cse_jax.search.grammar import grammar
from cse_jax.search.ledger import Ledger
from cse_jax.search.progress import Progress
from cse_jax.search.task import LossPair, Part
from cse_jax.search.trainer import Purpose, Trainer
from cse_jax.search.trials import Trials, training_key
from cse_jax.search.tuning import tuned


class SearchFailed(UserError, RuntimeError):
    """The search can't continue; the message says why."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
      branches: what each branch found, those of the random search last.
      default_proxy_ap: the default losses' AP on the proxy task, mean over seeds.
      discovered: of the branches' winners with each other and with the default losses, the best pair on the proxy task;
        None if no candidate passed all filters.
      table: the final comparison, the default losses first.
      one_start: whether all trainings of the table began with the same trained features.
    """

    branches: list[BranchResult]
    default_proxy_ap: float
    discovered: LossPair | None
    table: list[Row]
    one_start: bool = False

    @property
    def ended(self) -> str:
        """Which branches ended before their time, and why; empty if none did."""
        return " ".join(f"The branch {branch.name} ended {branch.ended}." for branch in self.branches if branch.ended)


def run(
    config: SearchConfig,
    *,
    trainer: Trainer,
    ledger: Ledger,
    progress: Progress,
    tried: Mapping[Part, Sequence[Tried]] | None = None,
    ends: Ends | None = None,
    proposals: Mapping[Part, Sequence[Expression]] | None = None,
) -> SearchResult:
    """Runs a search, or resumes one.

    Args:
      config: sizes and thresholds.
      trainer: trains the detector.
      ledger: remembers what is done.
      progress: hears of it.
      tried: by part, what another run has trained, for the strategies to start from.
      ends: what may end it before its last generation; nothing by default.
      proposals: by part, formulas to judge beside those that the search writes.

    Raises:
      InputError: the config is wrong, or there is no time for a search.
      SearchFailed: the default losses can't be trained.
      LedgerError: the ledger can't be written.
    """
    validate(config, "search")
    trials = Trials(trainer, ledger, progress, workers=config.workers, time_limit=config.time_limit)
    plans, ends = _plans(config), ends or Ends()
    proposed = _proposed(plans, proposals or {}, trainer=trainer, ledger=ledger)
    trainings = _trainings(config, plans, trainer, proposed)
    budget = Budget(trainings, progress)
    for plan in plans:
        grammar(plan.sizes, trainer.task.space(plan.part), max_nodes=config.filters.max_nodes)  # or says what is wrong
        name = branch_name(trainer.task.space(plan.part), control=plan.control)
        refuse_fewer(ledger, name, plan.sizes.generations)
    default_ap = _train_default(config, trials=trials, progress=progress)
    budget.done("default losses")
    known = {} if tried is None else tried
    after = _seconds([trainings["controls"], trainings["final"]], config, trainer=trainer, ledger=ledger)
    branches: list[BranchResult] = []
    for place, plan in enumerate(plans):
        branch = Branch(
            plan,
            config,
            trials=trials,
            ledger=ledger,
            progress=progress,
            ends=ends,
            tried=() if plan.control else known.get(plan.part, ()),
            proposals=() if plan.control else proposed.get(plan.part, ()),
        )
        timed = ends.allot(sum(other.sizes.generations > 0 for other in plans[place:]), after)
        if not timed and ledger.generation(branch.name, 0) is None and not place:
            raise InputError(
                f"{ends.hours:g} hours are too few: the controls and the final comparison take about "
                f"{after / 3600.0:.2g} of them"
            )
        for bred in branch.generations():
            budget.done(_part_of_budget(plan, bred))
        budget.done(*(_part_of_budget(plan, bred) for bred in (None, *range(plan.sizes.generations))))
        branches.append(branch.result)
    contestants = _contestants(config, branches, trials=trials)
    budget.done("controls")
    progress.expect({"final": len(contestants) * config.final.seeds})
    found = [contestant.losses for contestant in contestants if contestant.role == Role.DISCOVERED]
    discovered = found[-1] if found else None
    signal = prior_variance(branches, discovered, trainer.task.default)
    table = compare(contestants, config.final_seeds, trials=trials, signal=signal)
    return SearchResult(branches, default_ap, discovered, table, trainer.shared_start)


def _train_default(config: SearchConfig, *, trials: Trials, progress: Progress) -> float:
    """Trains the default losses for every purpose, by which candidates are measured; their AP on the proxy task.

    Raises:
      SearchFailed: they can't be trained, which would make every comparison void.
    """
    trainer, default = trials.trainer, trials.trainer.task.default
    if trainer.shared_start:
        progress.activity("default losses, the start of all trainings")
        trainer.prepare()
    aps: dict[Purpose, list[float]] = {}
    purposes: tuple[Purpose, ...] = ("proxy", "probe", "overfit")
    for purpose in purposes:
        if purpose in config.filters.skip:
            continue
        jobs = [(default, seed) for seed in (config.proxy_seeds if purpose == "proxy" else [config.seed])]
        horizons = trainer.horizons(purpose)
        for horizon in horizons:
            if purpose == "proxy" and horizon == horizons[-1]:
                trainer.prepare()
            what = f"default losses, {purpose} task"
            aps[purpose] = []
            with contextlib.closing(trials.run(jobs, purpose=purpose, what=what, horizon=horizon)) as outcomes:
                for outcome in outcomes:
                    if outcome.failure or not math.isfinite(outcome.ap):
                        raise SearchFailed(
                            f"the default losses failed in the {purpose} training: "
                            f"{outcome.failure or 'AP is not finite'}. Lower the learning rate or check the data."
                        )
                    aps[purpose].append(outcome.ap)
    trainer.forget(default, purpose="proxy", seed=config.seed)
    return statistics.fmean(aps["proxy"])


def _seconds(trainings: Sequence[Trainings], config: SearchConfig, *, trainer: Trainer, ledger: Ledger) -> float:
    """About how long trainings take, by the end of one of the default losses, whose first seed compiled."""
    *_, before, end = (0, *trainer.horizons("proxy"))
    timed = ledger.training(training_key(trainer.task.default, "proxy", config.proxy_seeds[-1], end))
    assert timed is not None
    steps = sum(n * trainer.horizons(purpose)[-1] for part in trainings for purpose, n in part.items())
    return timed["seconds"] / (end - before) * steps / config.workers


def _contestants(config: SearchConfig, branches: list[BranchResult], *, trials: Trials) -> list[Contestant]:
    """The rows of the final table: controls first, the best discovered pair last."""
    rows = controls(config.final, trials=trials, seed=config.seed)
    if config.final.tuned:
        name, losses = tuned(_tuning_budget(config, trials.trainer), trials=trials, seeds=config.proxy_seeds)
        rows.append(Contestant(f"{name} (tuned, same budget)", Role.TUNED, losses))
    at_random, discovered = (
        combined([b for b in branches if b.plan.control == control], trials=trials, seeds=config.proxy_seeds)
        for control in (True, False)
    )
    name = "random search, same budget"
    rows += [dataclasses.replace(pair, name=name, role=Role.RANDOM_SEARCH) for pair in at_random[-1:]]
    return rows + (discovered if config.final.branches else discovered[-1:])


def _plans(config: SearchConfig) -> list[Plan]:
    """The branches to run, those of the random search last."""
    plans = [Plan("cls", config.classification), Plan("box", config.regression)]
    if config.final.random_search:
        alone = {"crossover": 0.0, "mutation": 0.0, "seed_known": False, "screened": ""}
        plans += [Plan(plan.part, dataclasses.replace(plan.sizes, **alone), control=True) for plan in plans]
    return plans


def _proposed(
    plans: Sequence[Plan], proposals: Mapping[Part, Sequence[Expression]], *, trainer: Trainer, ledger: Ledger
) -> dict[Part, list[Expression]]:
    """The proposals, with those of earlier calls whose generations are made again."""
    found: dict[Part, list[Expression]] = {}
    for plan in plans:
        if not plan.control:
            space = trainer.task.space(plan.part)
            kept = [parse(text, space) for text in ledger.proposed(branch_name(space, control=False))]
            found[plan.part] = list(dict.fromkeys([*kept, *proposals.get(plan.part, ())]))
    return found


def _part_of_budget(plan: Plan, bred: int | None) -> str:
    """Of a generation by its number among those that are bred, or of the proposals."""
    generation = "proposals" if bred is None else bred
    return f"{plan.part} {'control' if plan.control else 'search'} {generation}"


def _trainings(
    config: SearchConfig, plans: list[Plan], trainer: Trainer, proposals: Mapping[Part, Sequence[Expression]]
) -> dict[str, Trainings]:
    """The most trainings that each part of the search can need."""
    seeds = len(config.proxy_seeds)
    default: Trainings = {
        "probe": len(trainer.horizons("probe")),
        "overfit": 1,
        "proxy": seeds * len(trainer.horizons("proxy")),
    }
    parts: dict[str, Trainings] = {"default losses": _needed(default, config)}
    for plan in plans:
        for generation in range(plan.sizes.generations):
            parts[_part_of_budget(plan, generation)] = _of_generation(plan.sizes, config, trainer)
        if proposals.get(plan.part) and not plan.control:
            parts[_part_of_budget(plan, None)] = _of_generation(plan.sizes, config, trainer)
    combinations = 3 * seeds * (1 + config.final.random_search)
    settings = _tuning_budget(config, trainer) if config.final.tuned else 0
    parts["controls"] = {"proxy": 2 * len(config.final.fit_weights) + combinations + settings}
    parts["final"] = {"final": most_rows(config.final, trainer.task) * config.final.seeds}
    return parts


def _of_generation(sizes: BranchConfig, config: SearchConfig, trainer: Trainer) -> Trainings:
    """The most trainings that a generation can need, each from one horizon to the next."""
    probe = sizes.max_probe * len(config.filters.weights) * len(trainer.horizons("probe"))
    proxy, _ = _on_the_proxy_task(sizes, trainer)
    return _needed({"probe": probe, "overfit": sizes.max_overfit, "proxy": proxy}, config)


def _on_the_proxy_task(sizes: BranchConfig, trainer: Trainer) -> tuple[int, int]:
    """The most trainings of a generation there, each from one horizon to the next, and the steps of all together."""
    horizons, going = trainer.horizons("proxy"), min(sizes.max_overfit, sizes.max_proxy)
    trainings = steps = 0
    for before, horizon in itertools.pairwise((0, *horizons)):
        if before:
            going = (going + 1) // 2  # the better half of those that came so far
        trainings, steps = trainings + going, steps + going * (horizon - before)
    further = going * (sizes.proxy_seeds - 1)  # which train to the end at once
    return trainings + further, steps + further * horizons[-1]


def _needed(trainings: Trainings, config: SearchConfig) -> Trainings:
    """The trainings without those of filters that are skipped."""
    return {purpose: count for purpose, count in trainings.items() if purpose not in config.filters.skip}


def _tuning_budget(config: SearchConfig, trainer: Trainer) -> int:
    """Trainings on the proxy task that take as many steps as whole detectors may take in both branches."""
    overfit = 0 if "overfit" in config.filters.skip else trainer.horizons("overfit")[-1]
    steps = sum(
        sizes.generations * (sizes.max_overfit * overfit + _on_the_proxy_task(sizes, trainer)[1])
        for sizes in (config.classification, config.regression)
    )
    return max(1, steps // trainer.horizons("proxy")[-1])
