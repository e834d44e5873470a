"""Racing: candidates train in ever longer stages, and only the most promising of each stage enter the next.

The stages are output layers on fixed features (probe), whole detectors on one image per category (overfit), and the
proxy task, which is successive halving over its horizons.
"""

import contextlib
import math
import statistics
from collections.abc import Iterator, Sequence

from cse_jax.language.expression import to_authors
from cse_jax.screening.candidate import Candidate, Filter
from cse_jax.screening.funnel import Screened
from cse_jax.search.choosing import Tried, choose, generator
from cse_jax.search.config import BranchConfig, SearchConfig
from cse_jax.search.ends import Ends
from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.progress import Progress
from cse_jax.search.strategies import named
from cse_jax.search.task import PARTS, LossPair, Part
from cse_jax.search.trainer import Purpose
from cse_jax.search.trials import Outcome, Trials

RANKED = "cascade"  # the strategy that is the rank by promise: it needs neither behaviours nor random numbers


class Race:
    """Takes the candidates of a generation that passed the screening through trainings; each leaves with a reason."""

    def __init__(
        self,
        name: str,
        part: Part,
        sizes: BranchConfig,
        config: SearchConfig,
        *,
        trials: Trials,
        progress: Progress,
        ends: Ends,
        tried: Sequence[Tried] = (),
    ) -> None:
        """Prepares the races of a branch.

        Args:
          name: of the branch.
          part: the loss that is searched.
          sizes: of the branch.
          config: seeds and thresholds.
          trials: runs the trainings.
          progress: hears of them.
          ends: of the search, which are obeyed between trainings.
          tried: what another run has trained, for the strategy to start from.
        """
        self.filters = config.filters
        self.name, self.sizes = name, sizes
        self.strategy, self.tried = named(sizes.strategy), tried
        self.part: Part = part
        self.seed, self.default_seeds = config.seed, config.proxy_seeds
        self.trials, self.progress, self.ends, self.task = trials, progress, ends, trials.trainer.task
        self._ended = ""  # why the generation that runs is cut short

    def run(self, generation: int, screened: Screened, entries: Sequence[Entry]) -> str:
        """Weights and trains the candidates that were simulated; the last stage of each says how far it came.

        Args:
          generation: its number.
          screened: the candidates, changed in place.
          entries: the hall of fame so far, best first.

        Returns:
          Why the search ended before all that should be was trained; empty if it did not.
        """
        self._ended = ""
        if self.filters.scale == "detector":
            self._match(screened)
        probed = self._probe(generation, screened, entries)
        drawn = self._draw(generation, probed, entries, self.sizes.max_overfit, "for whole detectors")
        overfitted = self._overfit(generation, drawn, screened, entries[0].overfit if entries else None)
        self._proxy(generation, overfitted, screened)
        return self._ended

    def default(self, purpose: Purpose, horizon: int | None = None) -> list[Outcome]:
        """The default losses' trainings for a purpose, one a seed."""
        seeds = self.default_seeds if purpose == "proxy" else [self.seed]
        jobs = [(self.task.default, seed) for seed in seeds]
        return list(self.trials.run(jobs, purpose=purpose, what="default losses", horizon=horizon))

    def _match(self, screened: Screened) -> None:
        """Weights the candidates so that their gradients match the default loss's in the detector."""
        waiting = [c for c in screened.candidates if c.stage == "simulation"]
        part = PARTS.index(self.part)
        norms = self.trials.trainer.gradient_norms([self.task.default, *(self._pair(c, 1.0) for c in waiting)])
        reference, *own = (pair[part] for pair in norms)
        for candidate, norm in zip(waiting, own, strict=True):
            if math.isfinite(norm) and norm > 0.0:
                candidate.weight = float(f"{reference / norm:.4g}")
            else:
                candidate.reason = f"the norm of its gradient on a calibration batch is {norm:g}"

    def _probe(self, generation: int, screened: Screened, entries: Sequence[Entry]) -> list[Candidate]:
        """Trains heads on fixed features; returns who reaches the default loss's share at each horizon, best first.

        The AP of the heads tells classification losses apart, the gain in prediction-space simulation regression losses
        (docs/benchmarks.md), so they are ranked by the product.
        """
        waiting = [c for c in screened.candidates if c.stage == "simulation" and not c.reason]
        if "probe" in self.filters.skip:
            return self._unjudged(sorted(waiting, key=_by_promise), "probe")
        self._draw(generation, sorted(waiting, key=_by_promise), entries, self.sizes.max_probe, "for the heads")
        going = [c for c in waiting if not c.reason]
        tried = [(c, float(f"{c.weight * factor:.4g}")) for c in going for factor in self.filters.weights]
        what = f"{self.name} generation {generation}: heads on fixed features"
        horizons = self.trials.trainer.horizons("probe")
        for horizon in horizons:
            if self._over():
                for candidate in dict.fromkeys(c for c, _ in tried):
                    candidate.reason = self._not_trained("probe")
                tried = []
            (default,) = self.default("probe", horizon)
            last = horizon == horizons[-1]
            tolerance = self.filters.probe_tolerance if last else self.filters.early_probe_tolerance
            bar = tolerance * default.ap
            jobs = [(self._pair(c, weight), self.seed) for c, weight in tried]
            outcomes = list(self.trials.run(jobs, purpose="probe", what=what, horizon=horizon))
            best: dict[Candidate, tuple[float, float]] = {}
            for (candidate, weight), outcome in zip(tried, outcomes, strict=True):
                candidate.seconds += outcome.seconds
                best[candidate] = max(best.get(candidate, (-1.0, weight)), (outcome.ap, weight))
                if not outcome.ap >= bar:
                    self._forget(candidate, weight, "probe")
            tried = [job for job, outcome in zip(tried, outcomes, strict=True) if outcome.ap >= bar]
            for candidate, (ap, weight) in best.items():
                if ap < bar:
                    candidate.reason = f"AP {ap:.3f}" if ap >= 0.0 else "training failed"
                    candidate.reason += (
                        f" with heads on fixed features after {horizon} steps, below {bar:.3f} of "
                        f"{tolerance:g} of the default loss"
                    )
                if ap >= 0.0:
                    candidate.probe, candidate.weight = ap, weight if last else candidate.weight
        passed = list(dict.fromkeys(c for c, _ in tried))
        for candidate in passed:
            candidate.stage = "probe"
        self.progress.counts(self.name, generation, screened.counts())
        return sorted(passed, key=_by_promise)

    def _draw(
        self, generation: int, candidates: list[Candidate], entries: Sequence[Entry], most: int, whereto: str
    ) -> list[Candidate]:
        """Those that the strategy chooses of candidates ranked by promise; the others leave with a reason."""
        if self.sizes.strategy == RANKED:
            drawn = candidates[:most]
        else:
            space, units = self.task.space(self.part), self.task.box_units
            rng = generator(self.seed, self.name, generation)
            drawn = choose(
                self.strategy, candidates, entries, most, space=space, units=units, rng=rng, tried=self.tried
            )
        left = set(candidates) - set(drawn)
        for candidate in left:
            candidate.reason = (
                f"not among the {most} that the strategy {self.sizes.strategy!r} chose of its generation {whereto}"
            )
        return drawn

    def _overfit(
        self, generation: int, drawn: list[Candidate], screened: Screened, best_overfit: float | None
    ) -> list[Candidate]:
        """Model optimisation simulation: trains on one image per category; returns who beats the bar, best first."""
        if "overfit" in self.filters.skip:
            return self._unjudged(drawn, "overfit")
        if best_overfit is None:
            tolerance, whose = self.filters.overfit_tolerance, "the default loss"
            best_overfit = self.default("overfit")[0].ap
        else:
            tolerance, whose = self.filters.later_overfit_tolerance, "the best loss so far"
        bar = tolerance * best_overfit
        what = f"{self.name} generation {generation}: one image per category"
        for candidate, outcome in self._trained(drawn, "overfit", what):
            candidate.overfit = outcome.ap
            if not candidate.reason and outcome.ap < bar:
                candidate.reason = (
                    f"AP {outcome.ap:.3f} on one image per category, below {bar:.3f} of {tolerance:g} of {whose}"
                )
            if not candidate.reason:
                candidate.stage = "overfit"
            self.progress.counts(self.name, generation, screened.counts())
        passed = [c for c in drawn if c.stage == "overfit"]
        return sorted(passed, key=_by_promise)

    def _unjudged(self, candidates: list[Candidate], stage: Filter) -> list[Candidate]:
        """Passes all candidates through a stage that the search does without; they stay in their order."""
        for candidate in candidates:
            candidate.stage = stage
        return candidates

    def _proxy(self, generation: int, overfitted: list[Candidate], screened: Screened) -> None:
        """Proxy task, by successive halving; who reaches its end is trained with further seeds.

        An early AP by itself is mostly noise, so the better half is that by all stages so far.
        """
        for candidate in overfitted[self.sizes.max_proxy :]:
            candidate.reason = f"not among the best {self.sizes.max_proxy} of its generation on one image per category"
        going = overfitted[: self.sizes.max_proxy]
        horizons = self.trials.trainer.horizons("proxy")
        for horizon in horizons:
            what = f"{self.name} generation {generation}: proxy task, {horizon} steps"
            for candidate, outcome in self._trained(going, "proxy", what, horizon=horizon):
                candidate.proxy = outcome.ap
                if not candidate.reason:
                    candidate.curve.append((horizon, outcome.ap))
            going = sorted((c for c in going if not c.reason), key=_by_promise)
            if horizon != horizons[-1]:
                half = (len(going) + 1) // 2
                for candidate in going[half:]:
                    candidate.reason = f"not among the better half of its generation after {horizon} steps"
                    self._forget(candidate, candidate.weight, "proxy")
                going = going[:half]
        for candidate in going:
            candidate.aps = [candidate.proxy]
        for seed in range(self.seed + 1, self.seed + self.sizes.proxy_seeds):
            what = f"{self.name} generation {generation}: proxy task, seed {seed}"
            for candidate, outcome in self._trained(going, "proxy", what, seed=seed):
                candidate.aps.append(outcome.ap)
        for candidate in going:
            if not candidate.reason:
                candidate.proxy, candidate.stage = statistics.fmean(candidate.aps), "proxy"
        self.progress.counts(self.name, generation, screened.counts())

    def _trained(
        self,
        candidates: list[Candidate],
        purpose: Purpose,
        what: str,
        *,
        horizon: int | None = None,
        seed: int | None = None,
    ) -> Iterator[tuple[Candidate, Outcome]]:
        """Trains the candidates and yields each with its outcome; one that fails is given the reason.

        When the search ends, so are those whose outcomes are not there yet, and they are not yielded.
        """
        seed = self.seed if seed is None else seed
        jobs = [(self._pair(c, c.weight), seed) for c in candidates]
        with contextlib.closing(self.trials.run(jobs, purpose=purpose, what=what, horizon=horizon)) as outcomes:
            for candidate in candidates:
                if self._over():
                    candidate.reason = self._not_trained(purpose)
                    continue
                outcome = next(outcomes)
                candidate.seconds += outcome.seconds
                if outcome.failure:
                    candidate.reason = f"{purpose} training: {outcome.failure}"
                yield candidate, outcome

    def _over(self) -> bool:
        """Whether the search ends here; it stays so to the end of the generation."""
        self._ended = self._ended or self.ends.come
        return bool(self._ended)

    def _not_trained(self, purpose: Purpose) -> str:
        return f"no {purpose} training, because the search ended: {self._ended}"

    def _forget(self, candidate: Candidate, weight: float, purpose: Purpose) -> None:
        self.trials.trainer.forget(self._pair(candidate, weight), purpose=purpose, seed=self.seed)

    def _pair(self, candidate: Candidate, weight: float) -> LossPair:
        """The default losses with this branch's one replaced."""
        return self.task.replaced(self.part, candidate.formula, weight)


def _by_promise(candidate: Candidate) -> tuple:
    return -candidate.promise, len(candidate.formula), to_authors(candidate.formula)
