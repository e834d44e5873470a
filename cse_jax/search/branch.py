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

from cse_jax.atlas.survivors import read_survivors
from cse_jax.language import zoo
from cse_jax.language.expression import Expression, to_authors
from cse_jax.language.parsing import parse
from cse_jax.language.population import encode
from cse_jax.language.spaces import Space
from cse_jax.reporting.monitor import Monitor
from cse_jax.sampling.random_trees import Shape, random_population
from cse_jax.sampling.variation import offspring
from cse_jax.screening.funnel import Candidate, passed, screen
from cse_jax.screening.verification import verify
from cse_jax.search.ledger import Ledger
from cse_jax.search.racing import Cascade, FilterConfig
from cse_jax.search.statistics import ranked, seed_noise, standard_error
from cse_jax.search.trials import LossPair, Trials


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


@dataclasses.dataclass(frozen=True)
class HallOfFameEntry:
    """A member of the hall of fame.

    Attributes:
      formula, weight: the loss.
      aps: on the select split at the end of the proxy task, by seed.
      overfit: on one image per category.
      generation: where it was found.
      curve: (steps, AP of the first seed) at each horizon of the proxy task.
    """

    formula: Expression
    weight: float
    aps: tuple[float, ...]
    overfit: float
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
        cascade: FilterConfig,
        *,
        trials: Trials,
        ledger: Ledger,
        monitor: Monitor,
        seed: int,
        units: str,
        name: str = "",
    ) -> None:
        """Prepares a branch; a control has a ``name`` other than the space's."""
        self.name = name or space.name
        self.space, self.config, self.filters, self.ledger, self.monitor = space, config, cascade, ledger, monitor
        self.seed, self.units = seed, units
        self.cascade = Cascade(self.name, space, base, config, cascade, trials=trials, monitor=monitor, seed=seed)
        self.shape = Shape(max_nodes=cascade.max_nodes)
        self.reference = zoo.default(space)
        self.fame: list[HallOfFameEntry] = []
        self.error = math.nan  # standard error of a famous loss's AP

    def generations(self) -> Iterator[dict[str, int]]:
        """Runs the branch; yields each generation's counts.  ``fame`` is the hall of fame so far, best first."""
        seen = self._known_fingerprints() if self.config.generations else {}
        for generation in range(self.config.generations):
            recorded = self.ledger.generation(self.name, generation)
            counts, result = recorded if recorded is not None else self._generation(generation, seen)
            seen |= result["fingerprints"]
            self.fame += [self._famous(row) for row in result["fame"]]
            self._rank()
            self.monitor.generation_done(self.name, generation, counts, self.fame)
            yield counts

    def _rank(self) -> None:
        """Orders the hall of fame; the noise is that of all losses trained so far, the default among them."""
        default = [outcome.ap for outcome in self.cascade.default("proxy")]
        noise = seed_noise([default, *(famous.aps for famous in self.fame)])
        self.error = standard_error(noise, self.config.proxy_seeds)
        self.fame = ranked(
            self.fame,
            score=lambda famous: famous.ap,
            error=self.error,
            complexity=lambda famous: (len(famous.formula), to_authors(famous.formula)),
        )
        if self.name == self.space.name:  # a control's losses are not what a search has found
            self.ledger.record_hall_of_fame(self.name, [to_authors(famous.formula) for famous in self.fame])

    def _known_fingerprints(self) -> dict[str, str]:
        known = zoo.known(self.space)
        verdicts = verify(list(known.values()), self.space, units=self.units)
        return {verdict.fingerprint: name for name, verdict in zip(known, verdicts, strict=True)}

    def _famous(self, row: dict) -> HallOfFameEntry:
        curve = tuple(map(tuple, row["curve"]))
        formula = parse(row["formula"], self.space)
        return HallOfFameEntry(formula, row["weight"], tuple(row["aps"]), row["overfit"], row["generation"], curve)

    def _generation(self, generation: int, seen: dict[str, str]) -> tuple[dict[str, int], dict]:
        """One turn of the loop; recorded in the ledger when it is complete."""
        started = time.monotonic()
        self.monitor.activity(f"{self.name} generation {generation}: screening")
        tokens = self._population(generation)
        screened = screen(
            tokens,
            self.space,
            reference=self.reference,
            seen=seen,
            sign_flip=self.filters.sign_flip,
            match_gradient=self.filters.scale == "prediction",
            simulation_tolerance=self.filters.simulation_tolerance,
            units=self.units,
            seed=self.seed,
        )
        each = (time.monotonic() - started) / len(tokens)
        for candidate in screened.candidates:
            candidate.seconds = each
        self.monitor.counts(self.name, generation, screened.counts())
        self.cascade.run(generation, screened, self.fame[0].overfit if self.fame else None)
        counts = screened.counts()
        result = {
            "fame": [
                {
                    "formula": to_authors(c.formula),
                    "weight": c.weight,
                    "aps": c.aps,
                    "curve": c.curve,
                    "overfit": c.optimisation,
                    "generation": generation,
                }
                for c in screened.candidates
                if c.stage == "trained"
            ],
            "fingerprints": {c.fingerprint: str(c.formula) for c in screened.candidates if passed(c, "distinct")},
            "rejected": screened.rejected,
        }
        rows = [self._row(generation, number, candidate) for number, candidate in enumerate(screened.candidates)]
        self.ledger.record_generation(self.name, generation, rows, counts, result)
        return counts, result

    def _population(self, generation: int) -> Int[np.ndarray, "n m"]:
        name = zlib.crc32(f"{self.name}/{generation}".encode())
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

    def _row(self, generation: int, number: int, candidate: Candidate) -> dict:
        return {
            "branch": self.name,
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
