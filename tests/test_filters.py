"""The benchmark of the filters, on a table whose answer is known."""

import pytest

from benchmarks import filters
from benchmarks.report import Report
from cse_jax.language import zoo
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import BOX
from cse_jax.loss_table import LossTable
from cse_jax.loss_table.table import Curve, TableLoss, save

GOOD, BAD = 0.7, 0.3


def loss(origin, ap, number, overfit=1.0):
    formula = zoo.default(BOX) if origin == "GIoU" else parse(f"i * {number} - u", BOX)
    trainings = {seed: Curve((ap,), (ap,), "", 1.0) for seed in (0, 1)}
    return TableLoss("box", formula, origin, scores={"overfit 80": overfit}, trainings=trainings)


def table(rejected_good=0):
    """10 that pass, 4 of them good, of which the overfit stage keeps 5 with all good ones; 5 weak; 20 rejected."""
    rows = [loss("GIoU", GOOD, 0)]
    rows += [loss("generated", GOOD if k < 4 else BAD, 1, overfit=1.0 if k < 5 else 0.1) for k in range(10)]
    rows += [loss("weak", GOOD if k < 1 else BAD, 2) for k in range(5)]
    rows += [loss("rejected: monotone", GOOD if k < rejected_good else BAD, 3) for k in range(20)]
    return LossTable((10,), rows)


def needed(held, distance=0.0):
    rows = filters.rows(held, "box", (0.01, 0.5))
    return {row["filters"]: row for row in rows if row["AP below the default at most"] == distance}


def test_the_expected_number_of_trainings_is_the_inverse_of_the_share_of_good_ones():
    found = needed(table())
    assert list(found) == ["none", "verification", "and simulation", "and overfit"], "the table has no probe"
    assert found["and overfit"]["trainings"] == pytest.approx(5 / 4)
    assert found["and simulation"]["trainings"] == pytest.approx(10 / 4)
    assert found["verification"]["trainings"] == pytest.approx(1 / (0.5 * 0.4 + 0.5 * 0.2))
    assert found["none"]["trainings"] == pytest.approx(1 / (0.01 * 0.3))
    assert needed(table(rejected_good=1))["none"]["trainings"] == pytest.approx(1 / (0.01 * 0.3 + 0.99 * 0.05))
    assert all(row["at least"] <= row["trainings"] <= row["at most"] for row in found.values())
    # None of 20: up to 16.8 % may be good (Clopper and Pearson, two-sided).
    assert found["none"]["at least"] < 1 / (0.99 * 0.168)
    assert (found["none"]["losses"], found["none"]["good"]) == (35, 5)


def test_a_table_that_no_filter_has_rejected_anything_of_says_nothing(tmp_path):
    held = LossTable((10,), table().losses[:11])
    save(held, tmp_path / "table.parquet")
    said = []
    report = Report({}, said.append, None)
    filters.measure(report, size="smallest", rounds=1, table=str(tmp_path / "table.parquet"))
    assert not report.tables and "lacks box losses that some filter rejects" in said[-1]


@pytest.mark.slow
def test_random_formulas_say_how_often_each_kind_is_drawn():
    verified, simulated = filters._shares(BOX, 2_000)
    assert 0.01 < verified < 0.1 and 0.3 < simulated < 1.0
