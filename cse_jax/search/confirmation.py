"""A confirmation: the rows of a finished search's final table, trained again with seeds that nothing has used yet.

The detector and the data may be other ones than the search's, as long as the detector takes losses of the same space.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cse_jax.errors import InputError
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import BOX
from cse_jax.search.comparison import Contestant, Role, Row, compare
from cse_jax.search.config import SearchConfig
from cse_jax.search.ledger import Ledger
from cse_jax.search.progress import Progress
from cse_jax.search.task import PARTS, LossPair, Task
from cse_jax.search.trainer import Trainer
from cse_jax.search.trials import Trials


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """What a confirmation found.

    Attributes:
      seeds: of its trainings.
      table: as a search's final table.
    """

    seeds: tuple[int, ...]
    table: list[Row]


def contestants(result: Mapping[str, Any], task: Task) -> list[Contestant]:
    """The rows of a search's final table, for a detector.

    A weight is a factor on the detector's usual one, so it changes where another detector has another usual weight.

    Args:
      result: the search's ``result.json``.
      task: what is to be known of the detector.

    Raises:
      InputError: nothing was discovered, or the detector takes losses of another space.
    """
    discovered(result, task)  # there is one
    return [Contestant(row["name"], Role(row["role"]), _losses(row, result, task)) for row in result["table"]]


def discovered(result: Mapping[str, Any], task: Task) -> LossPair:
    """The pair of losses that a search ended with, for a detector; weights as of ``contestants``.

    Args:
      result, task: as of ``contestants``.

    Raises:
      InputError: as ``contestants``.
    """
    if not result["discovered"]:
        raise InputError("the search discovered no losses")
    own = result["discovered"]["cls"]["space"]
    if own != task.cls_space.name:
        raise InputError(f"the search was for the space {own}; this detector takes {task.cls_space.name}")
    return _losses(result["discovered"], result, task)


def _losses(row: Mapping[str, Any], result: Mapping[str, Any], task: Task) -> LossPair:
    usual = {part: result["table"][0][part]["weight"] for part in PARTS}
    return LossPair(
        parse(row["cls"]["authors"], task.cls_space),
        parse(row["box"]["authors"], BOX),
        task.default.cls_weight * (row["cls"]["weight"] / usual["cls"]),
        task.default.box_weight * (row["box"]["weight"] / usual["box"]),
    )


def run(
    result: Mapping[str, Any],
    count: int,
    *,
    trainer: Trainer,
    ledger: Ledger,
    progress: Progress,
    workers: int = 1,
    time_limit: float = 0.0,
) -> Confirmation:
    """Trains the rows with fresh seeds, or recalls their trainings; more seeds later add to those that are done.

    Args:
      result: the search's ``result.json``.
      count: of seeds.
      trainer: trains a detector.
      ledger: the confirmation's own.
      progress: hears of it.
      workers, time_limit: as of ``Trials``.

    Raises:
      InputError: as ``contestants``.
    """
    rows = contestants(result, trainer.task)
    seeds = SearchConfig(seed=result["config"]["search"]["seed"]).confirmation_seeds(count)
    progress.expect({"final": len(rows) * count})
    trials = Trials(trainer, ledger, progress, workers=workers, time_limit=time_limit)
    signal = result["prior_variance"]
    table = compare(rows, seeds, trials=trials, signal=float("nan") if signal is None else signal)
    return Confirmation(tuple(seeds), table)
