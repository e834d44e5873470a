"""One branch of the search: generations of formulas for one of the two losses, the other one fixed.

A generation is a function of the settings, the seed and the hall of fame so far; its trainings and its result are
recalled from the ledger.  A search that was interrupted therefore resumes where it stopped, on a CPU with the same
result; on a GPU a training that was cut off may end otherwise (docs/design.md, "Devices and rounding").
"""

import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from cse_jax.atlas.survivors import read_survivors
from cse_jax.language import zoo
from cse_jax.language.expression import Expression, to_authors
from cse_jax.language.parsing import parse
from cse_jax.language.population import decode, encode, hashes
from cse_jax.language.spaces import Space
from cse_jax.sampling.random_trees import random_population
from cse_jax.sampling.variation import offspring
from cse_jax.screening.candidate import Candidate
from cse_jax.screening.funnel import Screened, screen_population
from cse_jax.screening.verification import verify
from cse_jax.search import hall_of_fame
from cse_jax.search.ancestry import Population, without_parents, written
from cse_jax.search.choosing import Tried
from cse_jax.search.config import BranchConfig, SearchConfig
from cse_jax.search.ends import Ends
from cse_jax.search.grammar import grammar
from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.ledger import Ledger
from cse_jax.search.progress import Progress
from cse_jax.search.racing import Race
from cse_jax.search.task import Part
from cse_jax.search.trials import Trials

Counts = dict[str, int]  # candidates left after each stage


@dataclasses.dataclass(frozen=True)
class Plan:
    """A branch that a search runs.

    Attributes:
      part: the loss that is searched.
      sizes: how much.
      control: whether it is the random search that a search must beat.
    """

    part: Part
    sizes: BranchConfig
    control: bool = False


@dataclasses.dataclass(frozen=True)
class BranchResult:
    """What a branch has found.

    Attributes:
      name: of the branch.
      plan: what was run.
      space: of its formulas.
      funnel: candidates left after each stage, by generation.
      entries: the hall of fame, best first.
      standard_error: of an entry's AP, from the noise between seeds.
      default_ap: of the default losses on the proxy task, mean over the entries' seeds; NaN before any generation.
      ended: where and why it ended before its time; empty if it did not.
    """

    name: str
    plan: Plan
    space: Space
    funnel: tuple[Counts, ...]
    entries: tuple[Entry, ...]
    standard_error: float
    default_ap: float
    ended: str = ""


def branch_name(space: Space, *, control: bool) -> str:
    """What ledger and report call the branch that searches a space."""
    return f"{space.name} (random search)" if control else space.name


class Branch:
    """The search of one of the two losses, the other one fixed at its default."""

    def __init__(
        self,
        plan: Plan,
        config: SearchConfig,
        *,
        trials: Trials,
        ledger: Ledger,
        progress: Progress,
        ends: Ends,
        tried: Sequence[Tried] = (),
        proposals: Sequence[Expression] = (),
    ) -> None:
        """Prepares a branch of a search."""
        task = trials.trainer.task
        self.plan, self.sizes, self.filters, self.seed = plan, plan.sizes, config.filters, config.seed
        self.space, self.units = task.space(plan.part), task.box_units
        self.name = branch_name(self.space, control=plan.control)
        self.ledger, self.progress, self.ends, self.proposals = ledger, progress, ends, proposals
        self.race = Race(
            self.name, plan.part, plan.sizes, config, trials=trials, progress=progress, ends=ends, tried=tried
        )
        self.shape, self.template = grammar(self.sizes, self.space, max_nodes=self.filters.max_nodes)
        self.entries: list[Entry] = []
        self.standard_error = self.default_ap = math.nan
        self.funnel: list[Counts] = []
        self.ended = ""

    def generations(self) -> Iterator[int | None]:
        """Runs the branch, or as much of it as its ends allow.

        Proposals that no generation has judged are one of their own, before the next that is bred.

        Yields:
          Of each finished generation, its number among those that are bred; None for proposals.
        """
        seen = self._known_fingerprints() if self.sizes.generations or self.proposals else {}
        proposals, bred = list(self.proposals), 0
        for generation in itertools.count():
            recorded = self.ledger.generation(self.name, generation)
            if recorded is not None and recorded[1].get("ended") and not self.ends.come:
                self.ledger.forget_generation(self.name, generation)  # it is made again from its trainings
                if self.entries:
                    self._rank()  # so that what the generations before have found can be read meanwhile
                again = [parse(text, self.space) for text in recorded[1].get("proposed", ())]
                proposals = list(dict.fromkeys(again + proposals))
                recorded = None
            number = None if (proposals if recorded is None else "proposed" in recorded[1]) else bred
            place = "the proposals" if number is None else f"generation {bred + 1} of {self.sizes.generations}"
            if recorded is None:
                if number == self.sizes.generations:
                    return
                if self.ended or self.ends.come:
                    self.ended = self.ended or f"before {place}, as {self.ends.come}"
                    return
                recorded = self._generation(generation, number, proposals, seen)
                proposals = []
            counts, result = recorded
            judged = {parse(text, self.space) for text in result.get("proposed", ())}
            proposals = [formula for formula in proposals if formula not in judged]
            self.ended = f"in {place}, as {result['ended']}" if "ended" in result else ""
            seen |= result["fingerprints"]
            self.entries += [hall_of_fame.from_row(row, self.space) for row in result["hall_of_fame"]]
            self._rank()
            self.funnel.append(counts)
            self.progress.generation_done(self.name, generation, counts, self.entries)
            if not self.plan.control:
                self.ends.found(self.name, self.entries)
            yield number
            bred += number is not None

    @property
    def result(self) -> BranchResult:
        """What was found so far."""
        found = tuple(self.funnel), tuple(self.entries), self.standard_error, self.default_ap, self.ended
        return BranchResult(self.name, self.plan, self.space, *found)

    def _rank(self) -> None:
        """Orders the hall of fame; the noise is that of all losses trained so far, the default among them."""
        seeds = self.sizes.proxy_seeds
        default = [outcome.ap for outcome in self.race.default("proxy")][: max(2, seeds)]
        self.entries, self.standard_error = hall_of_fame.rank(self.entries, default, seeds)
        self.default_ap = statistics.fmean(default[:seeds])
        if not self.plan.control:  # whose losses are not what the search has found
            self.ledger.record_hall_of_fame(self.name, [to_authors(entry.formula) for entry in self.entries])

    def _known_fingerprints(self) -> dict[str, str]:
        known = zoo.known(self.space)
        verdicts = verify(list(known.values()), self.space, units=self.units)
        return {verdict.fingerprint: name for name, verdict in zip(known, verdicts, strict=True)}

    def _generation(
        self, generation: int, bred: int | None, proposals: Sequence[Expression], seen: dict[str, str]
    ) -> tuple[Counts, dict[str, Any]]:
        """One turn of the loop; recorded in the ledger when it is complete.

        Args:
          generation: its number.
          bred: its number among those that are bred; None if it judges the proposals.
          proposals: such formulas.
          seen: fingerprints of losses that are not new, with their names.
        """
        started = time.monotonic()
        self.progress.activity(f"{self.name} generation {generation}: screening")
        population = written(proposals, self.space, "proposed") if bred is None else self._population(bred)
        tokens = population.tokens
        screened = screen_population(
            tokens,
            self.space,
            seen=seen,
            sign_flip=self.filters.sign_flip,
            match_gradient=self.filters.scale == "prediction",
            simulation_tolerance=self.filters.simulation_tolerance,
            units=self.units,
            seed=self.seed,
            skip=self.filters.skip,
        )
        each = (time.monotonic() - started) / len(tokens)
        for candidate in screened.candidates:
            candidate.seconds = each
        self.progress.counts(self.name, generation, screened.counts())
        ended = self.race.run(generation, screened, self.entries)
        counts, candidates = screened.counts(), screened.candidates
        result = {
            "hall_of_fame": [
                hall_of_fame.to_row(c, generation, population.origin(c.row), self._searched(population, c.row))
                for c in candidates
                if c.passed("proxy")
            ],
            "fingerprints": {c.fingerprint: str(c.formula) for c in candidates if c.passed("distinct")},
            "rejected": screened.rejected,
        }
        if ended:
            result["ended"] = ended
        if bred is None:
            result["proposed"] = self._judged(proposals, screened)
        rows = [self._row(generation, number, candidate) for number, candidate in enumerate(candidates)]
        self.ledger.record_generation(self.name, generation, rows, counts, result)
        return counts, result

    def _judged(self, proposals: Sequence[Expression], screened: Screened) -> dict[str, str]:
        """What became of each proposal, by its formula in the authors' notation; it is said, too."""
        numbers = hashes(encode(proposals, self.space), self.space).tolist()
        candidates = {numbers[candidate.row]: candidate for candidate in screened.candidates}
        verdicts = verify(proposals, self.space, sign_flip=self.filters.sign_flip, units=self.units)
        found = {}
        for formula, number, verdict in zip(proposals, numbers, verdicts, strict=True):
            candidate = candidates.get(number)
            if candidate is None:
                said = verdict.reason
            elif candidate.reason:
                said = f"passed {candidate.stage}, then: {candidate.reason}"
            else:
                said = f"reached the end of the proxy task with AP {candidate.proxy:.3f}"
            found[to_authors(formula)] = said
            self.progress.say(f"Proposal {formula}: {said}.")
        return found

    def _population(self, bred: int) -> Population:
        name = zlib.crc32(f"{self.name}/{bred}".encode())
        key = jax.random.fold_in(jax.random.key(self.seed), np.uint32(name))
        best = [
            (entry.formula, parse(entry.searched, self.space) if entry.searched else None)
            for entry in self.entries[: self.sizes.parents]
        ]
        if bred:
            return self._bred(key, best, self.sizes.offspring)
        screened = self._screened()
        known = zoo.hand_made(self.space).values() if self.sizes.seed_known else ()
        usual = [(formula, self.template.part_of(formula) if self.template else None) for formula in known]
        rest = self._bred(key, usual + best, self.sizes.population - len(screened))
        return rest.behind(written(screened, self.space, "screened")) if screened else rest

    def _bred(self, key: jax.Array, parents: Sequence[tuple[Expression, Expression | None]], count: int) -> Population:
        """Offspring of the parents, or random formulas where there are none.

        Args:
          key: of ``jax.random``.
          parents: whole formulas, each with its searched part; one without cannot breed in a template.
          count: how many.
        """
        breeding = [(whole, part if self.template else whole) for whole, part in parents]
        breeding = [(whole, part) for whole, part in breeding if part is not None]
        if breeding:
            rates = {"crossover_rate": self.sizes.crossover, "mutation_rate": self.sizes.mutation}
            tokens = encode([part for _, part in breeding], self.space)
            found = offspring(key, tokens, self.space, self.shape, count, **rates)
            tokens, origins = (np.asarray(array) for array in found)
            made = Population(tokens, origins, [to_authors(whole) for whole, _ in breeding])
        else:
            made = without_parents(np.asarray(random_population(key, self.space, self.shape, count)), "random")
        return made._replace(tokens=self.template.filled(made.tokens)) if self.template else made

    def _searched(self, population: Population, row: int) -> str:
        """Of a formula, the part in place of the template's ``?``, in the authors' notation; empty without one."""
        (formula,) = decode(population.tokens[[row]], self.space)
        part = self.template.part_of(formula) if self.template else None
        return to_authors(part) if part else ""

    def _screened(self) -> list[Expression]:
        """The shortest losses of a screening of this space, at most half a population."""
        if not self.sizes.screened:
            return []
        rows = read_survivors(pathlib.Path(self.sizes.screened), self.space)
        formulas = (parse(row["authors"], self.space) for row in rows)
        return list(itertools.islice(filter(self.shape.allows, formulas), self.sizes.population // 2))

    def _row(self, generation: int, number: int, candidate: Candidate) -> dict[str, Any]:
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
            if name not in ("formula", "row")
        }
