"""Searches side by side, by kind: what their ledgers say of how fast each found a good loss."""

import contextlib
import csv
import dataclasses
import itertools
import sqlite3
import xml.etree.ElementTree as ElementTree

import pytest
import recorded_searches
from scripts import run

from cse_jax.errors import InputError
from cse_jax.reporting import searches_report
from cse_jax.reporting.page import facts
from cse_jax.reporting.searches_report import Curve


def test_a_curve_counts_every_loss_that_began_to_train(tmp_path):
    known = facts.read(tmp_path / "a", recorded_searches.write(tmp_path / "a"))
    gains = [0.42 - 0.41, 0.305 - 0.41, 0.42 - 0.41, 0.4125 - 0.41]  # of recorded_searches.FOUND, beside the default
    found = searches_report.curve(known)
    assert found.gains == pytest.approx(gains), "without the control that was trained before"
    assert found.best == tuple(itertools.accumulate(found.gains, max)) and list(found.minutes) == sorted(found.minutes)
    failed = searches_report.curve(dataclasses.replace(known, begun=[*known.begun, 90, 91]))
    assert failed.gains == pytest.approx([*gains, -0.41, -0.41]), "what did not come to the end has found nothing"


def test_gains_are_paired_by_seed(tmp_path):
    """The default losses have trained with two seeds, the losses that were found with the first of them only."""
    task = recorded_searches.write(tmp_path / "a", finished=False)
    with contextlib.closing(sqlite3.connect(tmp_path / "a" / "ledger.sqlite")) as db, db:
        db.execute("delete from trainings where seed = 1 and not (cls = ? and box = ?)", _texts(task))
    found = searches_report.curve(facts.read(tmp_path / "a", task))
    alone = [ap for part in ("cls", "box") for _, _, (ap, _) in recorded_searches.FOUND[part]]
    assert found.gains == pytest.approx([ap - 0.40 for ap in alone])


def _texts(task):
    return str(task.default.cls), str(task.default.box)


def test_a_search_without_a_loss_is_named(tmp_path):
    known = facts.read(tmp_path / "a", recorded_searches.write(tmp_path / "a"))
    with pytest.raises(InputError, match=f"the search in {tmp_path / 'a'} has trained no losses yet"):
        searches_report.curve(dataclasses.replace(known, begun=()))


def test_kinds_are_summed_up(tmp_path):
    quick = [Curve("q0", (0.0, 0.02), (1.0, 2.0), 0.01), Curve("q1", (-0.004, 0.01, 0.0), (1.0, 2.0, 4.0), 0.03)]
    slow = [Curve("s0", (-0.4, -0.4), (1.0, 2.0), float("nan"))]
    searches_report.write(tmp_path, {"quick": quick, "slow": slow})
    text = (tmp_path / "searches.md").read_text()
    assert "| 1 | -0.002 (-0.004 to +0.000) | -0.400 (-0.400 to -0.400) |" in text
    assert "| 3 | +0.010 (+0.010 to +0.010), 1 of 2 |  |" in text, "of the searches that went so far"
    assert "| good: within 0.005 AP |" in text, "in the unit of all others"
    assert "| quick | 2 | 5 | 5 (first: 1, 1) | 4 (first: 1, 2) | +0.020 (+0.010 to +0.030) | 3.0 |" in text
    assert "| slow | 1 | 2 | 0 (first: never) | 0 (first: never) |  | 2.0 |" in text
    assert "| quick: 5 of 5 | slow: 0 of 2 | 0.048 | 0.048 |" in text, "1 of the 21 ways to choose 2 of 7"
    with open(tmp_path / "searches.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["best_so_far"] for row in rows if row["folder"] == "q1"] == ["-0.00400", "0.01000", "0.01000"]
    drawn = ElementTree.parse(tmp_path / "searches.svg").getroot()
    assert [each.text for each in drawn.iter() if each.get("class") == "legend"] == ["quick", "slow"]


def test_the_script_groups_by_name_and_refuses_other_tasks(tmp_path):
    for name in ("run_0", "run_1"):
        recorded_searches.write(tmp_path / name)
    recorded_searches.write(tmp_path / "other", text=" two")
    found = f"--searches={tmp_path}/run_*,{tmp_path}/other"
    code, output = run("compare_searches", found, f"--workdir={tmp_path / 'out'}")
    assert code == 0 and "| trial | 2 |" in output and "| trial two | 1 |" in output
    assert (tmp_path / "out" / "searches.svg").is_file()
    config = tmp_path / "run_1" / "config.json"
    config.write_text(config.read_text().replace('"population": 10000', '"population": 99'))
    result = tmp_path / "run_1" / "result.json"
    result.write_text(result.read_text().replace('"population": 10000', '"population": 99'))
    code, output = run("compare_searches", found, f"--workdir={tmp_path / 'out'}")
    assert code == 1 and "have one name, trial, and differ in config.search.classification.population" in output, output
    code, output = run("compare_searches", f"--searches={tmp_path}/nothing*")
    assert code == 1 and f"'{tmp_path}/nothing*' names no folder" in output
    code, output = run("compare_searches")
    assert code == 1 and "--searches is missing" in output
