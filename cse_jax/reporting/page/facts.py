"""What a page says of a search: its result, or what the ledger of an unfinished one holds."""

import dataclasses
import datetime
import functools
import itertools
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cse_jax import workdir
from cse_jax.language.expression import Expression
from cse_jax.language.parsing import parse
from cse_jax.reporting.report import funnel_as_data, hall_as_data
from cse_jax.search import hall_of_fame, tuning
from cse_jax.search.branch import branch_name
from cse_jax.search.ledger_reader import Generations, LedgerReader, Reason
from cse_jax.search.task import PARTS, Part, Task


@dataclasses.dataclass(frozen=True)
class Trained:
    """A loss that was trained on the proxy task to its end.

    Attributes:
      place: how many losses had begun to train whole detectors when this one did.
      minutes: of all trainings that had ended when it did.
      ap: mean over its seeds.
      gain: that less the default losses' with the same seeds; NaN if they lack one.
      name: the formulas of the pair.
      kind: ``"default"``, ``"control"`` or the name of the branch.
    """

    place: int
    minutes: float
    ap: float
    gain: float
    name: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a page says.

    Attributes:
      folder: of the search.
      task: of its detector.
      result: as ``report.result_dict`` makes it; of an unfinished search, without what the end brings.
      finished: whether it has come to its end.
      status: of a search that runs, what it does now; empty otherwise.
      rejected: of each branch, how many formulas failed each property of the verification first.
      reasons: why the others went no further.
      trained: on the proxy task, in the order in which they ended.
      begun: places of the losses that the search itself has begun to train in whole detectors, in order.
      written: when the page was.
      proposed: of each branch, what became of the formulas that were proposed, in the authors' notation.
    """

    folder: pathlib.Path
    task: Task
    result: dict[str, Any]
    finished: bool
    status: str
    rejected: dict[str, dict[str, int]]
    reasons: list[Reason]
    trained: list[Trained]
    begun: Sequence[int]
    written: str
    proposed: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the search."""
        return self.result.get("name") or self.folder.name

    def default_ap(self, hall: Mapping[str, Any]) -> float | None:
        """Of the default losses with the seeds of a hall of fame; results of before have it with all seeds only."""
        return hall.get("default_ap", self.result["default_proxy_ap"])

    @functools.cached_property
    def parts(self) -> dict[str, Part]:
        """Which loss each branch searches."""
        return {name: part for name, (part, _) in branches(self.task).items()}

    def formula(self, branch: str, entry: dict[str, Any]) -> Expression:
        """The formula of an entry of a hall of fame."""
        return parse(entry["authors"], self.task.space(self.parts[branch]))


def branches(task: Task) -> dict[str, tuple[Part, bool]]:
    """The branches that a search may have: which loss each searches, and whether it is the control."""
    return {
        branch_name(task.space(part), control=control): (part, control)
        for control, part in itertools.product((False, True), PARTS)
    }


def read(folder: pathlib.Path, task: Task, *, running: bool = False, status: str = "") -> Facts:
    """What a folder says of its search.

    Args:
      folder: of the search.
      task: of its detector.
      running: whether the search is in progress, so that a result in the folder is of an earlier time.
      status: what it does now.

    Raises:
      LedgerError: there is no ledger, or none that this version reads.
      WorkdirError: a file of the folder is damaged.
    """
    finished = not running and (folder / "result.json").is_file()
    with LedgerReader(folder / "ledger.sqlite") as ledger:
        generations = ledger.generations()
        result = workdir.read_result(folder) if finished else _unfinished(folder, ledger, task, generations)
        trained, begun = _trained(ledger, task)
        return Facts(
            folder=folder,
            task=task,
            result=result,
            finished=finished,
            status=status,
            rejected={
                branch: _summed([of_generation["rejected"] for _, of_generation in rows])
                for branch, rows in generations.items()
            },
            reasons=ledger.reasons(),
            trained=trained,
            begun=begun,
            proposed={
                branch: {text: said for _, result in rows for text, said in result.get("proposed", {}).items()}
                for branch, rows in generations.items()
            },
            written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        )


def _summed(counts: list[dict[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _unfinished(folder: pathlib.Path, ledger: LedgerReader, task: Task, generations: Generations) -> dict[str, Any]:
    """The parts of a result that a ledger has before the end, in the same form."""
    described = workdir.read_description(folder)
    default_aps = _default_aps(ledger, task)
    halls = {}
    for branch, (part, control) in branches(task).items():
        rows = [row for _, result in generations.get(branch, []) for row in result["hall_of_fame"]]
        if rows:
            entries = [hall_of_fame.from_row(row, task.space(part)) for row in rows]
            seeds = len(entries[0].aps)
            ranked, error = hall_of_fame.rank(entries, default_aps[: max(2, seeds)], seeds)
            beside = statistics.fmean(default_aps[:seeds]) if default_aps else math.nan
            halls[branch] = hall_as_data(ranked, error, beside, control=control)
    return described | {
        "name": described["config"].get("name"),
        "funnel": funnel_as_data({branch: [counts for counts, _ in rows] for branch, rows in generations.items()}),
        "hall_of_fame": halls,
        "default_proxy_ap": statistics.fmean(default_aps) if default_aps else None,
        "table": [],
    }


def _default_aps(ledger: LedgerReader, task: Task) -> list[float]:
    """Of the default losses at the end of the proxy task, by seed."""
    of_default = [row for row in ledger.trainings("proxy") if _pair(row) == _default(task) and row["ap"] is not None]
    last = max((row["steps"] for row in of_default), default=0)
    return [row["ap"] for row in sorted(of_default, key=lambda row: row["seed"]) if row["steps"] == last]


def _trained(ledger: LedgerReader, task: Task) -> tuple[list[Trained], list[int]]:
    """The losses that reached the end of the proxy task, and the places of the search's own that began to train.

    Those of winners together are no new losses.
    """
    default, settings = _default(task), {str(formula) for formula in tuning.settings(task.cls_space).values()}
    kinds = {
        (part, row["formula"]): branch
        for branch, (part, _) in reversed(branches(task).items())  # what both have found is the search's
        for row in ledger.rows(
            "select formula from candidates where stage in ('probe', 'overfit', 'proxy') and branch = ?", branch
        )
    }
    own = {branch for branch, (_, control) in branches(task).items() if not control}
    places: dict[tuple, int] = {}
    ended: dict[tuple, tuple[dict[int, float], float]] = {}
    rows = ledger.trainings("probe", "overfit", "proxy")
    last = max((row["steps"] for row in rows if row["purpose"] == "proxy"), default=0)
    minutes = 0.0
    for row in rows:
        pair = _pair(row)
        minutes += row["seconds"] / 60.0
        if pair != default and row["purpose"] != "probe":
            places.setdefault(pair, len(places) + 1)
        if row["purpose"] == "proxy" and row["steps"] == last and row["ap"] is not None:
            aps, _ = ended.get(pair, ({}, 0.0))
            ended[pair] = (aps | {row["seed"]: row["ap"]}, minutes)

    def kind_of(pair: tuple) -> str:
        if pair == default:
            return "default"
        for k, part in enumerate(PARTS):  # of a branch's losses, the other one is the default with its usual weight
            if (part, pair[k]) in kinds and pair[1 - k :: 2] == default[1 - k :: 2]:
                return kinds[part, pair[k]]
        return "control" if pair[0] in settings and pair[1] == default[1] else ""

    found = []
    beside, _ = ended.get(default, ({}, 0.0))
    for pair, (aps, minutes) in ended.items():
        if kind := kind_of(pair):
            name = f"{pair[2]:.3g} * ({pair[0]}) | {pair[3]:.3g} * ({pair[1]})"
            ap, gain = (math.fsum(each) / len(aps) for each in (aps.values(), _gains(aps, beside)))
            found.append(Trained(places.get(pair, 0), minutes, ap, gain, name, kind))
    return found, [place for pair, place in places.items() if kind_of(pair) in own]


def _gains(aps: Mapping[int, float], default: Mapping[int, float]) -> list[float]:
    """A loss's APs less the default losses', by seed."""
    return [ap - default.get(seed, math.nan) for seed, ap in aps.items()]


def _pair(row: Any) -> tuple[str, str, float, float]:
    return row["cls"], row["box"], row["cls_weight"], row["box_weight"]


def _default(task: Task) -> tuple[str, str, float, float]:
    default = task.default
    return str(default.cls), str(default.box), default.cls_weight, default.box_weight
