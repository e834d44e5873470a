"""One branch of the search: generations of formulas for one of the two losses, the other one fixed.

A generation is a function of the settings, the seed and the hall of fame so far; its trainings and its result are
recalled from the ledger.  A search that was interrupted therefore goes on where it stopped and ends as if it had not.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import time
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Int

from cse_jax import zoo
from cse_jax.expression import Expression
from cse_jax.gate import verify
from cse_jax.generation import Shape, random_population
from cse_jax.ledger import Ledger
from cse_jax.monitor import Monitor
from cse_jax.parsing import parse
from cse_jax.population import encode
from cse_jax.printing import to_authors
from cse_jax.screening import Candidate, Screened, passed, screen
from cse_jax.spaces import Space
from cse_jax.survivors import read_survivors
from cse_jax.trials import LossPair, Outcome, Trials, with_loss
from cse_jax.uncertainty import ranked, seed_noise, standard_error
from cse_jax.variation import offspring

SCALES = ("prediction", "detector", "none")


@dataclasses.dataclass
class BranchConfig:
    """Sizes of one branch.

    Attributes:
      generations: E, generations; 0 leaves the branch out.
      population: N0, formulas of the first generation.
      offspring: N, formulas of each later generation.
      probes: most candidates a generation whose heads are trained on fixed features.
      optimisations: most candidates a generation that are trained on one image per category.
      proxies: K, most candidates a generation that begin the proxy task; the better half of them goes on from each of
        its horizons.
      proxy_seeds: trainings of each candidate that reaches the end of the proxy task.
      parents: P, members of the hall of fame that breed.
      crossover, mutation: shares of offspring made by each; the rest is new random formulas.
      seed_known: whether hand-made losses are the parents of a part of the first population.
      screened: folder of ``launch/screen.py`` whose shortest losses are a half of the first population; empty for none.
    """

    generations: int = 3
    population: int = 10_000
    offspring: int = 2_000
    probes: int = 256
    optimisations: int = 10
    proxies: int = 5
    proxy_seeds: int = 2
    parents: int = 3
    crossover: float = 0.3
    mutation: float = 0.3
    seed_known: bool = True
    screened: str = ""


@dataclasses.dataclass
class CascadeConfig:
    """Thresholds of the filters.

    Attributes:
      sign_flip: keep candidates whose negation converges.
      scale: factor on every candidate: ``"prediction"`` matches its gradient to the default loss's on simulated
        predictions, ``"detector"`` in the output layers that the default losses have trained, on a batch of the data;
        ``"none"`` leaves it as it is.
      weights: further factors tried on fixed features; a candidate keeps the one that scores best there.
      min_gain: least gain in prediction-space simulation, as a share of the default loss's.
      early_tolerance: least AP of heads on fixed features at all horizons but the last, as a share of the default
        loss's at the same one.
      probe_tolerance: likewise at the last.
      verify_tolerance: least AP on one image per category in the first generation, as a share of the default loss's.
      later_tolerance: likewise in later generations, as a share of the best loss's so far (1 as published).
      max_nodes: largest formula.
    """

    sign_flip: bool = True
    scale: str = "prediction"
    weights: tuple[float, ...] = (1.0,)
    min_gain: float = 0.5
    early_tolerance: float = 0.5
    probe_tolerance: float = 0.8
    verify_tolerance: float = 0.8
    later_tolerance: float = 1.0
    max_nodes: int = 40


@dataclasses.dataclass(frozen=True)
class Famous:
    """A member of the hall of fame.

    Attributes:
      formula, weight: the loss.
      aps: on the select split at the end of the proxy task, by seed.
      verify_ap: on one image per category.
      generation: where it was found.
      curve: (steps, AP of the first seed) at each horizon of the proxy task.
    """

    formula: Expression
    weight: float
    aps: tuple[float, ...]
    verify_ap: float
    generation: int
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def ap(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.aps)


class Branch:
    """The search of one of the two losses, the other one fixed at its default."""

    def __init__(
        self,
        space: Space,
        base: LossPair,
        config: BranchConfig,
        cascade: CascadeConfig,
        *,
        trials: Trials,
        ledger: Ledger,
        monitor: Monitor,
        seed: int,
        units: str,
    ) -> None:
        self.space, self.base, self.config, self.cascade = space, base, config, cascade
        self.trials, self.ledger, self.monitor, self.seed, self.units = trials, ledger, monitor, seed, units
        self.shape = Shape(max_nodes=cascade.max_nodes)
        self.reference = zoo.default(space)
        if cascade.scale not in SCALES:
            raise ValueError(f"search.cascade.scale is {cascade.scale!r}; use {', '.join(map(repr, SCALES))}")
        self.fame: list[Famous] = []
        self.error = math.nan  # standard error of a famous loss's AP

    def pair(self, formula: Expression, weight: float) -> LossPair:
        """The default losses with this branch's one replaced."""
        return with_loss(self.base, formula, weight)

    def generations(self) -> Iterator[dict[str, int]]:
        """Runs the branch; yields each generation's counts.  ``fame`` is the hall of fame so far, best first."""
        seen = self._known_fingerprints() if self.config.generations else {}
        for generation in range(self.config.generations):
            recorded = self.ledger.generation(self.space.name, generation)
            counts, result = recorded if recorded is not None else self._generation(generation, seen)
            seen |= result["fingerprints"]
            self.fame += [self._famous(row) for row in result["fame"]]
            self._rank()
            self.monitor.generation_done(self.space.name, generation, counts, self.fame)
            yield counts

    def _rank(self) -> None:
        """Orders the hall of fame; the noise is that of all losses trained so far, the default among them."""
        default = [outcome.ap for outcome in self._default("proxy")]
        noise = seed_noise([default, *(famous.aps for famous in self.fame)])
        self.error = standard_error(noise, self.config.proxy_seeds)
        self.fame = ranked(
            self.fame,
            score=lambda famous: famous.ap,
            error=self.error,
            complexity=lambda famous: (len(famous.formula), to_authors(famous.formula)),
        )
        self.ledger.record_fame(self.space.name, [to_authors(famous.formula) for famous in self.fame])

    def _default(self, purpose: str, horizon: int | None = None) -> list[Outcome]:
        """The default losses' trainings for a purpose."""
        jobs = [(self.base, seed) for seed in default_seeds(self.seed, purpose, self.config.proxy_seeds)]
        return list(self.trials.run(jobs, purpose=purpose, what="default losses", horizon=horizon))

    def _known_fingerprints(self) -> dict[str, str]:
        known = zoo.known(self.space)
        verdicts = verify(list(known.values()), self.space, units=self.units)
        return {verdict.fingerprint: name for name, verdict in zip(known, verdicts, strict=True)}

    def _famous(self, row: dict) -> Famous:
        curve = tuple(map(tuple, row["curve"]))
        formula = parse(row["formula"], self.space)
        return Famous(formula, row["weight"], tuple(row["aps"]), row["verify_ap"], row["generation"], curve)

    def _generation(self, generation: int, seen: dict[str, str]) -> tuple[dict[str, int], dict]:
        """One turn of the loop; recorded in the ledger when it is complete."""
        started = time.monotonic()
        self.monitor.activity(f"{self.space.name} generation {generation}: screening")
        tokens = self._population(generation)
        screened = screen(
            tokens,
            self.space,
            reference=self.reference,
            seen=seen,
            sign_flip=self.cascade.sign_flip,
            match_gradient=self.cascade.scale == "prediction",
            min_gain=self.cascade.min_gain,
            units=self.units,
            seed=self.seed,
        )
        each = (time.monotonic() - started) / len(tokens)
        for candidate in screened.candidates:
            candidate.seconds = each
        self.monitor.counts(self.space.name, generation, screened.counts())
        if self.cascade.scale == "detector":
            self._match(screened)
        probed = self._probe(generation, screened)
        optimised = self._optimise(generation, probed, screened)
        self._train(generation, optimised, screened)
        counts = screened.counts()
        result = {
            "fame": [
                {
                    "formula": to_authors(c.formula),
                    "weight": c.weight,
                    "aps": c.aps,
                    "curve": c.curve,
                    "verify_ap": c.optimisation,
                    "generation": generation,
                }
                for c in screened.candidates
                if c.stage == "trained"
            ],
            "fingerprints": {c.fingerprint: str(c.formula) for c in screened.candidates if passed(c, "distinct")},
            "rejected": screened.rejected,
        }
        rows = [self._row(generation, number, candidate) for number, candidate in enumerate(screened.candidates)]
        self.ledger.record_generation(self.space.name, generation, rows, counts, result)
        return counts, result

    def _population(self, generation: int) -> Int[np.ndarray, "n m"]:
        name = zlib.crc32(f"{self.space.name}/{generation}".encode())
        key = jax.random.fold_in(jax.random.key(self.seed), np.uint32(name))
        if generation:
            parents, count = [famous.formula for famous in self.fame[: self.config.parents]], self.config.offspring
            return self._bred(key, parents, count)
        screened = self._screened()
        known = list(zoo.hand_made(self.space).values()) if self.config.seed_known else []
        bred = self._bred(key, known, self.config.population - len(screened))
        return np.concatenate([encode(screened, self.space, width=bred.shape[1]), bred]) if screened else bred

    def _bred(self, key: jax.Array, parents: list[Expression], count: int) -> Int[np.ndarray, "n m"]:
        """Descendants of the parents, or random formulas where there are none."""
        if not parents:
            return np.asarray(random_population(key, self.space, self.shape, count))
        rates = {"crossover_rate": self.config.crossover, "mutation_rate": self.config.mutation}
        tokens = encode(parents, self.space)
        return np.asarray(offspring(key, tokens, self.space, self.shape, count, **rates))

    def _screened(self) -> list[Expression]:
        """The shortest losses of a screening of this space, at most half a population."""
        if not self.config.screened:
            return []
        rows = read_survivors(pathlib.Path(self.config.screened), self.space)
        formulas = (parse(row["authors"], self.space) for row in rows)
        return list(itertools.islice(filter(self.shape.allows, formulas), self.config.population // 2))

    def _match(self, screened: Screened) -> None:
        """Weights the candidates so that their gradients match the default loss's in the detector."""
        waiting = [c for c in screened.candidates if c.stage == "simulated"]
        part = 1 if self.space == self.base.box.space else 0
        norms = self.trials.trainer.gradient_norms([self.base, *(self.pair(c.formula, 1.0) for c in waiting)])
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
        for candidate in waiting[self.config.probes :]:
            candidate.reason = "not drawn: this generation's trainings of heads were used up"
        going = waiting[: self.config.probes]
        tried = [(c, float(f"{c.weight * factor:.4g}")) for c in going for factor in self.cascade.weights]
        what = f"{self.space.name} generation {generation}: heads on fixed features"
        horizons = self.trials.trainer.horizons("probe")
        for horizon in horizons:
            (default,) = self._default("probe", horizon)
            last = horizon == horizons[-1]
            tolerance = self.cascade.probe_tolerance if last else self.cascade.early_tolerance
            bar = tolerance * default.ap
            jobs = [(self.pair(c.formula, weight), self.seed) for c, weight in tried]
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
        self.monitor.counts(self.space.name, generation, screened.counts())
        return sorted(passed, key=_by_promise)

    def _optimise(self, generation: int, probed: list[Candidate], screened: Screened) -> list[Candidate]:
        """Model optimisation simulation: trains on one image per category; returns who beats the bar, best first."""
        if self.fame:
            tolerance = self.cascade.later_tolerance
            bar, whose = tolerance * self.fame[0].verify_ap, f"{tolerance:g} of the best loss so far"
        else:
            tolerance = self.cascade.verify_tolerance
            bar, whose = tolerance * self._default("verify")[0].ap, f"{tolerance:g} of the default loss"
        for candidate in probed[self.config.optimisations :]:
            candidate.reason = f"not among the best {self.config.optimisations} of its generation on fixed features"
        drawn = probed[: self.config.optimisations]
        what = f"{self.space.name} generation {generation}: one image per category"
        for candidate, outcome in self._trained(drawn, "verify", what):
            candidate.optimisation = outcome.ap
            if not candidate.reason and outcome.ap < bar:
                candidate.reason = f"AP {outcome.ap:.3f} on one image per category, below {bar:.3f} of {whose}"
            if not candidate.reason:
                candidate.stage = "optimised"
            self.monitor.counts(self.space.name, generation, screened.counts())
        passed = [c for c in drawn if c.stage == "optimised"]
        return sorted(passed, key=_by_promise)

    def _train(self, generation: int, optimised: list[Candidate], screened: Screened) -> None:
        """Proxy task, by successive halving; who reaches its end is trained with further seeds.

        An early AP by itself is mostly noise, so the better half is that by all stages so far.
        """
        for candidate in optimised[self.config.proxies :]:
            candidate.reason = f"not among the best {self.config.proxies} of its generation on one image per category"
        going = optimised[: self.config.proxies]
        horizons = self.trials.trainer.horizons("proxy")
        for horizon in horizons:
            what = f"{self.space.name} generation {generation}: proxy task, {horizon} steps"
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
        for seed in range(self.seed + 1, self.seed + self.config.proxy_seeds):
            what = f"{self.space.name} generation {generation}: proxy task, seed {seed}"
            for candidate, outcome in self._trained(going, "proxy", what, seed=seed):
                candidate.aps.append(outcome.ap)
        for candidate in going:
            if not candidate.reason:
                candidate.proxy, candidate.stage = statistics.fmean(candidate.aps), "trained"
        self.monitor.counts(self.space.name, generation, screened.counts())

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
        jobs = [(self.pair(c.formula, c.weight), seed) for c in candidates]
        outcomes = self.trials.run(jobs, purpose=purpose, what=what, horizon=horizon)
        for candidate, outcome in zip(candidates, outcomes, strict=True):
            candidate.seconds += outcome.seconds
            if outcome.failure:
                candidate.reason = f"{purpose} training: {outcome.failure}"
            yield candidate, outcome

    def _forget(self, candidate: Candidate, weight: float, purpose: str) -> None:
        self.trials.trainer.forget(self.pair(candidate.formula, weight), purpose=purpose, seed=self.seed)

    def _row(self, generation: int, number: int, candidate: Candidate) -> dict:
        return {
            "branch": self.space.name,
            "generation": generation,
            "number": number,
            "formula": str(candidate.formula),
            "authors": to_authors(candidate.formula),
            "nodes": len(candidate.formula),
            "seed": self.seed,
        } | {
            name: json.dumps(value) if isinstance(value, list) else None if value != value else value
            for name, value in vars(candidate).items()
            if name != "formula"
        }


def default_seeds(seed: int, purpose: str, proxy_seeds: int) -> list[int]:
    """Seeds of the default losses' trainings: at least two for the proxy task, to know the noise."""
    return [seed + k for k in range(max(2, proxy_seeds))] if purpose == "proxy" else [seed]


def _by_promise(candidate: Candidate) -> tuple:
    return -candidate.promise, len(candidate.formula), to_authors(candidate.formula)
