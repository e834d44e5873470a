"""One branch of the search: generations of formulas for one of the two losses, the other one fixed.

A generation is a function of the settings, the seed and the hall of fame so far; its trainings and its result are
recalled from the ledger.  A search that was interrupted therefore goes on where it stopped and ends as if it had not.
"""

import dataclasses
import itertools
import math
import pathlib
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
from cse_jax.trials import LossPair, Trials
from cse_jax.variation import offspring


@dataclasses.dataclass
class BranchConfig:
    """Sizes of one branch.

    Attributes:
      generations: E, generations; 0 leaves the branch out.
      population: N0, formulas of the first generation.
      offspring: N, formulas of each later generation.
      optimisations: most candidates a generation that are trained on one image per category.
      proxies: K, most candidates a generation that are trained on the proxy task.
      parents: P, members of the hall of fame that breed.
      crossover, mutation: shares of offspring made by each; the rest is new random formulas.
      seed_known: whether hand-made losses are the parents of a part of the first population.
      screened: folder of ``launch/screen.py`` whose shortest losses are a half of the first population; empty for none.
    """

    generations: int = 3
    population: int = 10_000
    offspring: int = 2_000
    optimisations: int = 10
    proxies: int = 5
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
      match_gradient: weight every candidate so that its gradient matches the default loss's.
      min_gain: least gain in prediction-space simulation, as a share of the default loss's.
      verify_tolerance: least AP on one image per category in the first generation, as a share of the default loss's.
      later_tolerance: likewise in later generations, as a share of the best loss's so far (1 as published).
      max_nodes: largest formula.
    """

    sign_flip: bool = True
    match_gradient: bool = True
    min_gain: float = 0.5
    verify_tolerance: float = 0.8
    later_tolerance: float = 1.0
    max_nodes: int = 40


@dataclasses.dataclass(frozen=True)
class Famous:
    """A member of the hall of fame."""

    formula: Expression
    weight: float
    ap: float
    verify_ap: float
    generation: int


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
        self.fame: list[Famous] = []

    def pair(self, formula: Expression, weight: float) -> LossPair:
        """The default losses with this branch's one replaced."""
        if self.space == self.base.box.space:
            return dataclasses.replace(self.base, box=formula, box_weight=weight * self.base.box_weight)
        return dataclasses.replace(self.base, cls=formula, cls_weight=weight * self.base.cls_weight)

    def generations(self) -> Iterator[dict[str, int]]:
        """Runs the branch; yields each generation's counts.  ``fame`` is the hall of fame so far, best first."""
        seen = self._known_fingerprints() if self.config.generations else {}
        for generation in range(self.config.generations):
            recorded = self.ledger.generation(self.space.name, generation)
            counts, result = recorded if recorded is not None else self._generation(generation, seen)
            seen |= result["fingerprints"]
            self.fame += [self._famous(row) for row in result["fame"]]
            self.fame.sort(key=lambda f: (-f.ap, len(f.formula), to_authors(f.formula)))
            self.monitor.generation_done(self.space.name, generation, counts, self.fame)
            yield counts

    def _known_fingerprints(self) -> dict[str, str]:
        known = zoo.known(self.space)
        verdicts = verify(list(known.values()), self.space, units=self.units)
        return {verdict.fingerprint: name for name, verdict in zip(known, verdicts, strict=True)}

    def _famous(self, row: dict) -> Famous:
        return Famous(parse(row["formula"], self.space), row["weight"], row["ap"], row["verify_ap"], row["generation"])

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
            match_gradient=self.cascade.match_gradient,
            min_gain=self.cascade.min_gain,
            units=self.units,
            seed=self.seed,
        )
        each = (time.monotonic() - started) / len(tokens)
        for candidate in screened.candidates:
            candidate.seconds = each
        self.monitor.counts(self.space.name, generation, screened.counts())
        optimised = self._optimise(generation, screened)
        self._train(generation, optimised, screened)
        counts = screened.counts()
        result = {
            "fame": [
                {
                    "formula": to_authors(c.formula),
                    "weight": c.weight,
                    "ap": c.proxy,
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

    def _optimise(self, generation: int, screened: Screened) -> list[Candidate]:
        """Model optimisation simulation: trains on one image per category; returns who beats the bar, best first."""
        if self.fame:
            tolerance = self.cascade.later_tolerance
            bar, whose = tolerance * self.fame[0].verify_ap, f"{tolerance:g} of the best loss so far"
        else:
            (default,) = self.trials.run([(self.base, self.seed)], purpose="verify", what="default losses")
            bar, whose = (
                self.cascade.verify_tolerance * default.ap,
                f"{self.cascade.verify_tolerance:g} of the default loss",
            )
        waiting = [c for c in screened.candidates if c.stage == "simulated"]
        for candidate in waiting[self.config.optimisations :]:
            candidate.reason = "not drawn: this generation's trainings on one image per category were used up"
        drawn = waiting[: self.config.optimisations]
        what = f"{self.space.name} generation {generation}: one image per category"
        for candidate in self._scored(drawn, "verify", "optimisation", what):
            if not candidate.reason and candidate.optimisation < bar:
                candidate.reason = (
                    f"AP {candidate.optimisation:.3f} on one image per category, below {bar:.3f} of {whose}"
                )
            if not candidate.reason:
                candidate.stage = "optimised"
            self.monitor.counts(self.space.name, generation, screened.counts())
        passed = [c for c in drawn if c.stage == "optimised"]
        return sorted(passed, key=lambda c: (-c.optimisation, len(c.formula), to_authors(c.formula)))

    def _train(self, generation: int, optimised: list[Candidate], screened: Screened) -> None:
        """Proxy task: trains the best."""
        for candidate in optimised[self.config.proxies :]:
            candidate.reason = f"not among the best {self.config.proxies} of its generation"
        chosen = optimised[: self.config.proxies]
        what = f"{self.space.name} generation {generation}: proxy task"
        for candidate in self._scored(chosen, "proxy", "proxy", what):
            if not candidate.reason:
                candidate.stage = "trained"
            self.monitor.counts(self.space.name, generation, screened.counts())

    def _scored(self, candidates: list[Candidate], purpose: str, score: str, what: str) -> Iterator[Candidate]:
        """Trains the candidates and yields each with its score, or with the reason why it has none."""
        jobs = [(self.pair(c.formula, c.weight), self.seed) for c in candidates]
        outcomes = self.trials.run(jobs, purpose=purpose, what=what)
        for candidate, outcome in zip(candidates, outcomes, strict=True):
            setattr(candidate, score, outcome.ap)
            candidate.seconds += outcome.seconds
            if outcome.failure:
                candidate.reason = f"{purpose} training: {outcome.failure}"
            yield candidate

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
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in vars(candidate).items()
            if name != "formula"
        }
