"""The table of trained losses, and its Parquet file: one row per loss, with all of its trainings."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cse_jax.errors import UserError
from cse_jax.language.expression import Expression, to_authors, to_infix
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import SPACES
from cse_jax.search.task import Part
from cse_jax.workdir import irregular, writing

FORMAT = 1
REJECTED = "rejected"  # the kind of an origin, before the property that fails


class LossTableError(UserError, RuntimeError):
    """A table that can't be read or continued; the message says why."""


class Curve(NamedTuple):
    """One training.

    Attributes:
      select, test: AP on either split at each horizon of the table; NaN after a failure.
      failure: empty, or why the loss could not be trained.
      seconds: of the training and its evaluations.
    """

    select: tuple[float, ...]
    test: tuple[float, ...]
    failure: str
    seconds: float


@dataclasses.dataclass
class TableLoss:
    """A loss of a table.

    Attributes:
      part: which loss of a detector; the other one is the default.
      formula: the loss.
      origin: where it comes from: the name of a known loss, ``"hand-made"``, ``"generated"``, ``"weak"`` for a
        generated one that the simulation rejects, or ``"rejected: "`` and the property that it fails.
      weight: factor that matches its gradient to the default loss's; 1 for known losses.
      scores: by stage, higher is better; NaN where a stage could not judge it.
      trainings: by seed.
    """

    part: Part
    formula: Expression
    origin: str
    weight: float = 1.0
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    trainings: dict[int, Curve] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The origin without the property that fails."""
        return self.origin.partition(":")[0]

    @property
    def is_rejected(self) -> bool:
        """Whether the verification rejects it."""
        return self.kind == REJECTED


@dataclasses.dataclass
class LossTable:
    """Losses of one detector on one data set, trained.

    Attributes:
      horizons: steps at which every training is scored.
      losses: in the order in which they are trained; of each part the known ones first.
      about: config, versions and device, as plain data.
    """

    horizons: tuple[int, ...]
    losses: list[TableLoss]
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    def of(self, part: Part) -> list[TableLoss]:
        """The losses of a part that have been trained."""
        return [loss for loss in self.losses if loss.part == part and loss.trainings]

    def aps(self, part: Part, seeds: Sequence[int], *, split: str = "test") -> Float[np.ndarray, "n s h"]:
        """AP of the losses of a part at each horizon; 0 where a training failed, NaN where there is none."""
        failed = (0.0,) * len(self.horizons)
        missing = (math.nan,) * len(self.horizons)
        rows = [
            [
                missing if seed not in loss.trainings
                else failed if loss.trainings[seed].failure
                else getattr(loss.trainings[seed], split)
                for seed in seeds
            ]
            for loss in self.of(part)
        ]  # fmt: skip
        return np.array(rows, float).reshape(-1, len(seeds), len(self.horizons))

    def seeds(self, part: Part) -> list[int]:
        """The seeds with which at least half of the trained losses of a part were trained."""
        losses = self.of(part)
        all_seeds = sorted({seed for loss in losses for seed in loss.trainings})
        return [seed for seed in all_seeds if 2 * sum(seed in loss.trainings for loss in losses) >= len(losses)]


def save(table: LossTable, path: pathlib.Path) -> None:
    """Writes a table; the file appears complete or not at all."""
    import pyarrow
    from pyarrow import parquet

    rows = [_row(loss) for loss in table.losses]
    about = {"format": FORMAT, "horizons": table.horizons, "about": table.about}
    schema = _schema().with_metadata({"cse_jax": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        parquet.write_table(
            pyarrow.Table.from_pylist(rows, schema=schema), file, compression="zstd", write_page_checksum=True
        )


def read(path: pathlib.Path) -> LossTable:
    """Reads a table.

    Raises:
      LossTableError: there is no such file, it is none of this format, or it is damaged.
    """
    from pyarrow import parquet

    if path.exists() and not path.is_file():
        raise LossTableError(str(irregular(path)))
    try:
        stored = parquet.read_table(path, page_checksum_verification=True)
        about = json.loads(stored.schema.metadata[b"cse_jax"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LossTableError(f"{path} is not a table of trained losses: {error}") from error
    if about["format"] != FORMAT:
        raise LossTableError(f"{path} has format {about['format']}, and this version of cse_jax reads {FORMAT}")
    return LossTable(tuple(about["horizons"]), [_loss(row) for row in stored.to_pylist()], about["about"])


def _schema() -> Any:
    import pyarrow as pa

    aps = pa.list_(pa.float32())
    training = {"seed": pa.int32(), "failure": pa.string(), "seconds": pa.float32(), "select": aps, "test": aps}
    score = {"stage": pa.string(), "score": pa.float32()}
    texts = {name: pa.string() for name in ("part", "space", "formula", "authors", "origin")}
    return pa.schema(
        texts
        | {
            "weight": pa.float64(),
            "scores": pa.list_(pa.struct(score)),
            "trainings": pa.list_(pa.struct(training)),
        }
    )


def _row(loss: TableLoss) -> dict[str, Any]:
    return {
        "part": loss.part,
        "space": loss.formula.space.name,
        "formula": to_infix(loss.formula),
        "authors": to_authors(loss.formula),
        "origin": loss.origin,
        "weight": loss.weight,
        "scores": [{"stage": stage, "score": score} for stage, score in loss.scores.items()],
        "trainings": [{"seed": seed} | curve._asdict() for seed, curve in loss.trainings.items()],
    }


def _loss(row: dict[str, Any]) -> TableLoss:
    if row["space"] not in SPACES:
        raise LossTableError(f"the table holds a loss of space {row['space']!r}; known are {', '.join(SPACES)}")
    formula = parse(row["authors"], SPACES[row["space"]])
    scores = {each["stage"]: each["score"] for each in row["scores"]}
    trainings = {}
    for each in row["trainings"]:
        trainings[each["seed"]] = Curve(tuple(each["select"]), tuple(each["test"]), each["failure"], each["seconds"])
    return TableLoss(row["part"], formula, row["origin"], row["weight"], scores, trainings)
