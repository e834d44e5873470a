"""Folders of searches that were written without a search: a ledger, a description and a result, for reports."""

import dataclasses
import json
import math
import pathlib
import statistics
from typing import Any

from cse_jax import workdir
from cse_jax.language import spaces, zoo
from cse_jax.language.expression import to_authors
from cse_jax.language.parsing import parse
from cse_jax.reporting import report
from cse_jax.screening.candidate import STAGES, Candidate
from cse_jax.search import hall_of_fame, tuning
from cse_jax.search.branch import BranchResult, Plan, branch_name
from cse_jax.search.comparison import Role, Row, judged, mean_std
from cse_jax.search.ledger import CANDIDATES, Ledger
from cse_jax.search.pipeline import SearchResult
from cse_jax.search.task import LossPair, Task
from cse_jax.search.trainer import Purpose
from cse_jax.search.trials import training_key
from detectors.models.fcos import FCOS
from detectors.training.search_trainer import task_of
from search_run import SearchRun

TASK: Task = task_of(FCOS)
FOUND = {  # in the hall of fame: formula, weight, AP of both seeds
    "cls": [
        ("-(q * log(sigmoid(x)) + ny * log(1 - sigmoid(x)))", 0.5, (0.41, 0.43)),
        ("ny * x - y * x", 2.0, (0.3, 0.31)),
    ],
    "box": [("e / u - i / u", 1.5, (0.40, 0.44)), ("exp(1 - i / u)", 0.7, (0.41, 0.415))],
}


def write(folder: pathlib.Path, *, text: str = "", finished: bool = True, tuned: bool = False) -> Task:
    """Writes a search's folder; the task of its detector.

    Args:
      folder: to make.
      text: stands wherever a ledger, a config or a result can hold any.
      finished: whether there is a result.
      tuned: whether hyper-parameters were searched: a setting with a formula of its own, and one with a found formula.
    """
    folder.mkdir(parents=True)
    about = workdir.describe(SearchRun(name=f"trial{text}")) | {"device": f"none{text}"}
    with Ledger(folder / "ledger.sqlite", identity=about) as ledger:
        workdir.write_description(folder, about | {"command": f"python launch/search.py{text}", "task": TASK.as_data()})
        for seed, ap in enumerate((0.40, 0.42)):
            _train(ledger, TASK.default, seed, ap)
        _train(ledger, TASK.replaced("box", TASK.default.box, 2.0), 0, 0.415)
        branches = [_branch(ledger, Plan(part, SearchRun().search.regression), text) for part in ("cls", "box")]
        if tuned:
            formulas = (
                tuning.settings(TASK.cls_space)["PolyLoss-1, epsilon 2"],
                parse(FOUND["cls"][0][0], TASK.cls_space),
            )
            for formula, ap in zip(formulas, (0.43, 0.44), strict=True):
                _train(ledger, TASK.replaced("box", TASK.default.box, 2.0, TASK.replaced("cls", formula, 0.5)), 0, ap)
    if finished:
        result = SearchResult(branches, 0.41, _pair(branches), _table(_pair(branches), text))
        extra = {"name": f"trial{text}", "scale": "raw", "seeding": "yes", "seconds": 60.0}
        report.write_result(folder, report.result_dict(result, about=about | extra))
    return TASK


def _branch(ledger: Ledger, plan: Plan, text: str) -> BranchResult:
    space = TASK.space(plan.part)
    name = branch_name(space, control=plan.control)
    candidates = [rejected(space.name, f"gain {gain} is too low{text}") for gain in (0.25, 0.5)]
    for formula, weight, aps in FOUND[plan.part]:
        candidate = Candidate(parse(formula, space), "proxy", weight=weight, aps=list(aps), overfit=0.9)
        candidate.proxy, candidate.curve = sum(aps) / 2, [(20, aps[0])]
        losses = TASK.replaced(plan.part, candidate.formula, weight)
        _train(ledger, losses, 0, 0.3, purpose="probe")
        for seed, ap in enumerate(aps):
            _train(ledger, losses, seed, ap)
        candidates.append(candidate)
    rows = [hall_of_fame.to_row(c, 0) for c in candidates if c.passed("proxy")]
    counts = dict.fromkeys(STAGES, 2) | {"generated": 20_000}
    ledger.record_generation(
        name,
        0,
        [candidate_row(name, number, candidate) for number, candidate in enumerate(candidates)],
        counts,
        {"hall_of_fame": rows, "fingerprints": {}, "rejected": {"monotone": 9_000, "rises": 8}},
    )
    entries, error = hall_of_fame.rank([hall_of_fame.from_row(row, space) for row in rows], [0.40, 0.42], 2)
    ledger.record_hall_of_fame(name, [to_authors(entry.formula) for entry in entries])
    return BranchResult(name, plan, space, (counts,), tuple(entries), error, statistics.fmean((0.40, 0.42)))


def rejected(space: str, reason: str) -> Candidate:
    """A candidate that went no further than ``distinct``."""
    return Candidate(zoo.default(spaces.SPACES[space]), "distinct", reason)


def candidate_row(branch: str, number: int, candidate: Candidate) -> dict[str, Any]:
    """A candidate as the ledger takes it."""
    row = {name: None if value != value else value for name, value in vars(candidate).items()}
    row |= {"curve": json.dumps(candidate.curve), "aps": json.dumps(candidate.aps), "formula": str(candidate.formula)}
    row |= {"branch": branch, "generation": 0, "number": number, "seed": 0}
    row |= {"authors": to_authors(candidate.formula), "nodes": len(candidate.formula)}
    return {field: row[field] for field in (*CANDIDATES.texts, *CANDIDATES.numbers)}


def _train(ledger: Ledger, losses: LossPair, seed: int, ap: float, purpose: Purpose = "proxy") -> None:
    plain = dataclasses.asdict(losses) | {"cls": str(losses.cls), "box": str(losses.box)}
    about = {"purpose": purpose, "seed": seed, "steps": 20, "ap": ap, "failure": "", "metrics": {}, "seconds": 1.0}
    ledger.record_training({"key": training_key(losses, purpose, seed, 20)} | plain | about)


def _pair(branches: list[BranchResult]) -> LossPair:
    losses = TASK.default
    for branch in branches:
        best = branch.entries[0]
        losses = TASK.replaced(branch.plan.part, best.formula, best.weight, losses)
    return losses


def _table(found: LossPair, text: str) -> list[Row]:
    def row(name: str, role: Role, losses: LossPair, *aps: float) -> Row:
        failures = (f"seed 2: it diverged{text}",) if any(map(math.isnan, aps)) else ()
        return Row(f"{name}{text}", role, losses, aps, *mean_std(aps), failures)

    tamed = TASK.replaced("cls", TASK.default.cls, 0.5)
    return judged(
        [
            row("focal + GIoU (default)", Role.DEFAULT, TASK.default, 0.50, 0.51, 0.53),
            row("focal x0.5 + GIoU (fitted)", Role.FITTED, tamed, 0.50, 0.51, math.nan),
            row("discovered cls + discovered box", Role.DISCOVERED, found, 0.55, 0.57, 0.58),
        ]
    )
