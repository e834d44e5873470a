"""The filters that train: heads on fixed features, one image per category, the proxy task halved at each horizon."""

import dataclasses
import math
import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cse_jax.language.expression import Expression, to_authors
from cse_jax.language.spaces import Space
from cse_jax.reporting.monitor import Monitor
from cse_jax.screening.funnel import Candidate, Screened
from cse_jax.search.trials import LossPair, Outcome, Trials, with_loss

if TYPE_CHECKING:
    from cse_jax.search.branch import BranchConfig

SCALES = ("prediction", "detector", "none")


@dataclasses.dataclass
class FilterConfig:
    """Thresholds of the filters.

    Attributes:
      sign_flip: keep candidates whose negation converges.
      scale: factor on every candidate: ``"prediction"`` matches its gradient to the default loss's on simulated
        predictions, ``"detector"`` in the output layers that the default losses have trained, on a batch of the data;
        ``"none"`` leaves it as it is.
      weights: further factors tried on fixed features; a candidate keeps the one that scores best there.
      simulation_tolerance: least gain in prediction-space simulation, as a share of the default loss's.
      early_probe_tolerance: least AP of heads on fixed features at all horizons but the last, as a share of the default
        loss's at the same one.
      probe_tolerance: likewise at the last.
      overfit_tolerance: least AP on one image per category in the first generation, as a share of the default loss's.
      later_overfit_tolerance: likewise in later generations, as a share of the best loss's so far (1 as published).
      max_nodes: largest formula.
    """

    sign_flip: bool = True
    scale: str = "prediction"
    weights: tuple[float, ...] = (1.0,)
    simulation_tolerance: float = 0.5
    early_probe_tolerance: float = 0.5
    probe_tolerance: float = 0.8
    overfit_tolerance: float = 0.8
    later_overfit_tolerance: float = 1.0
    max_nodes: int = 40


class Cascade:
    """Takes the candidates of a generation that passed the screening through trainings; each leaves with a reason."""

    def __init__(
        self,
        name: str,
        space: Space,
        base: LossPair,
        sizes: "BranchConfig",
        config: FilterConfig,
        *,
        trials: Trials,
        monitor: Monitor,
        seed: int,
    ) -> None:
        if config.scale not in SCALES:
            raise ValueError(f"search.cascade.scale is {config.scale!r}; use {', '.join(map(repr, SCALES))}")
        self.name, self.space, self.base, self.sizes, self.config = name, space, base, sizes, config
        self.trials, self.monitor, self.seed = trials, monitor, seed

    def run(self, generation: int, screened: Screened, best_overfit: float | None) -> None:
        """Weights and trains the candidates that were simulated; the last stage of each says how far it came.

        Args:
          generation: its number.
          screened: the candidates, changed in place.
          best_overfit: AP of the best loss so far on one image per category; None before there is one.
        """
        if self.config.scale == "detector":
            self._match(screened)
        probed = self._probe(generation, screened)
        optimised = self._optimise(generation, probed, screened, best_overfit)
        self._train(generation, optimised, screened)

    def default(self, purpose: str, horizon: int | None = None) -> list[Outcome]:
        """The default losses' trainings for a purpose, one a seed."""
        jobs = [(self.base, seed) for seed in default_seeds(self.seed, purpose, self.sizes.proxy_seeds)]
        return list(self.trials.run(jobs, purpose=purpose, what="default losses", horizon=horizon))

    def _match(self, screened: Screened) -> None:
        """Weights the candidates so that their gradients match the default loss's in the detector."""
        waiting = [c for c in screened.candidates if c.stage == "simulated"]
        part = 1 if self.space == self.base.box.space else 0
        norms = self.trials.trainer.gradient_norms([self.base, *(self._pair(c.formula, 1.0) for c in waiting)])
        reference, *own = (pair[part] for pair in norms)
        for candidate, norm in zip(waiting, own, strict=True):
            if math.isfinite(norm) and norm > 0.0:
                candidate.weight = float(f"{reference / norm:.4g}")
            else:
                candidate.reason = f"the norm of its gradient on a calibration batch is {norm:g}"

    def _probe(self, generation: int, screened: Screened) -> list[Candidate]:
        """Trains heads on fixed features; returns who reaches the default loss's share at each horizon, best first.

        The AP of the heads tells classification losses apart, the gain in prediction-space simulation regression losses
        (``configs/search/calibration.py``), so they are ranked by the product.
        """
        waiting = [c for c in screened.candidates if c.stage == "simulated" and not c.reason]
        for candidate in waiting[self.sizes.probes :]:
            candidate.reason = "not drawn: this generation's trainings of heads were used up"
        going = waiting[: self.sizes.probes]
        tried = [(c, float(f"{c.weight * factor:.4g}")) for c in going for factor in self.config.weights]
        what = f"{self.name} generation {generation}: heads on fixed features"
        horizons = self.trials.trainer.horizons("probe")
        for horizon in horizons:
            (default,) = self.default("probe", horizon)
            last = horizon == horizons[-1]
            tolerance = self.config.probe_tolerance if last else self.config.early_probe_tolerance
            bar = tolerance * default.ap
            jobs = [(self._pair(c.formula, weight), self.seed) for c, weight in tried]
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
            candidate.stage = "probed"
        self.monitor.counts(self.name, generation, screened.counts())
        return sorted(passed, key=_by_promise)

    def _optimise(
        self, generation: int, probed: list[Candidate], screened: Screened, best_overfit: float | None
    ) -> list[Candidate]:
        """Model optimisation simulation: trains on one image per category; returns who beats the bar, best first."""
        if best_overfit is None:
            tolerance, whose = self.config.overfit_tolerance, "the default loss"
            best_overfit = self.default("verify")[0].ap
        else:
            tolerance, whose = self.config.later_overfit_tolerance, "the best loss so far"
        bar = tolerance * best_overfit
        for candidate in probed[self.sizes.optimisations :]:
            candidate.reason = f"not among the best {self.sizes.optimisations} of its generation on fixed features"
        drawn = probed[: self.sizes.optimisations]
        what = f"{self.name} generation {generation}: one image per category"
        for candidate, outcome in self._trained(drawn, "verify", what):
            candidate.optimisation = outcome.ap
            if not candidate.reason and outcome.ap < bar:
                candidate.reason = (
                    f"AP {outcome.ap:.3f} on one image per category, below {bar:.3f} of {tolerance:g} of {whose}"
                )
            if not candidate.reason:
                candidate.stage = "optimised"
            self.monitor.counts(self.name, generation, screened.counts())
        passed = [c for c in drawn if c.stage == "optimised"]
        return sorted(passed, key=_by_promise)

    def _train(self, generation: int, optimised: list[Candidate], screened: Screened) -> None:
        """Proxy task, by successive halving; who reaches its end is trained with further seeds.

        An early AP by itself is mostly noise, so the better half is that by all stages so far.
        """
        for candidate in optimised[self.sizes.proxies :]:
            candidate.reason = f"not among the best {self.sizes.proxies} of its generation on one image per category"
        going = optimised[: self.sizes.proxies]
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
                candidate.proxy, candidate.stage = statistics.fmean(candidate.aps), "trained"
        self.monitor.counts(self.name, generation, screened.counts())

    def _trained(
        self,
        candidates: list[Candidate],
        purpose: str,
        what: str,
        *,
        horizon: int | None = None,
        seed: int | None = None,
    ) -> Iterator[tuple[Candidate, Outcome]]:
        """Trains the candidates and yields each with its outcome; one that fails is given the reason."""
        seed = self.seed if seed is None else seed
        jobs = [(self._pair(c.formula, c.weight), seed) for c in candidates]
        outcomes = self.trials.run(jobs, purpose=purpose, what=what, horizon=horizon)
        for candidate, outcome in zip(candidates, outcomes, strict=True):
            candidate.seconds += outcome.seconds
            if outcome.failure:
                candidate.reason = f"{purpose} training: {outcome.failure}"
            yield candidate, outcome

    def _forget(self, candidate: Candidate, weight: float, purpose: str) -> None:
        self.trials.trainer.forget(self._pair(candidate.formula, weight), purpose=purpose, seed=self.seed)

    def _pair(self, formula: Expression, weight: float) -> LossPair:
        """The default losses with this branch's one replaced."""
        return with_loss(self.base, formula, weight)


def default_seeds(seed: int, purpose: str, proxy_seeds: int) -> list[int]:
    """Seeds of the default losses' trainings: at least two for the proxy task, to know the noise."""
    return [seed + k for k in range(max(2, proxy_seeds))] if purpose == "proxy" else [seed]


def _by_promise(candidate: Candidate) -> tuple:
    return -candidate.promise, len(candidate.formula), to_authors(candidate.formula)
