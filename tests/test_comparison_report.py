"""What a comparison leaves behind: JSON, Markdown, CSV and a figure that say the same."""

import csv
import dataclasses
import html
import json
import math
import xml.etree.ElementTree as ET

import markdown_it
import numpy as np
import pytest

from cse_jax.language import spaces
from cse_jax.reporting import comparison_report, forest_plot
from cse_jax.reporting.forest_plot import Interval
from cse_jax.search.comparison import Contestant, Role, Row, gains, judged
from cse_jax.search.confirmation import Confirmation
from cse_jax.search.pairs import read_pair
from cse_jax.search.statistics import Verdict, against_each
from cse_jax.search.task import Task

TASK = Task(spaces.BINARY_CLASS)
ABOUT = {"title": "Pairs, trial", "split": "test", "note": "", "versions": {}, "device": "none", "config": {}}
SEEDS = (3, 4, 5, 6)
TEXTS = ("| GIoU", "CE, worse = CE |", "| IoU", "same = focal |", "failed = CEI |", "last = B_cls | B_reg")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    found = []
    for k, text in enumerate(TEXTS):
        name, losses = read_pair(text, TASK)
        aps = (0.7 + np.arange(4) * 0.01 + rng.normal(0.0, 0.001, 4) - 0.05 * (k == 1)).tolist()
        if losses == TASK.default:
            aps = found[0].aps if found else aps
        if "failed" in name:
            aps[2] = math.nan
        contestant = Contestant(name, Role.DISCOVERED if k == len(TEXTS) - 1 else Role.RIVAL, losses)
        failures = ("seed 5: not finite",) if "failed" in name else ()
        mean, std = (math.nan, math.nan) if failures else (float(np.mean(aps)), float(np.std(aps, ddof=1)))
        found.append(Row(contestant.name, contestant.role, losses, tuple(aps), mean, std, failures))
    return judged(found)


def test_gains_are_differences_to_the_first_row(rows):
    found = gains(rows)
    assert found[0] is None and found[3] is None, "the same losses"
    assert found[1].verdict == Verdict.WORSE and found[1].difference == pytest.approx(-0.05, abs=0.005)
    assert found[4].verdict == Verdict.FAILED and math.isnan(found[4].difference)
    table = np.array([rows[k].aps for k in (0, 1, 2, 5)])
    for own, other in zip((found[1], found[2], found[5]), against_each(table, 0, [1, 2, 3]), strict=True):
        assert own.difference == -other.difference and own.p == other.p
        assert (own.low, own.high) == (-other.high, -other.low)


def test_the_files_say_the_same(rows, tmp_path):
    data = comparison_report.write(tmp_path, Confirmation(SEEDS, rows), about=ABOUT)
    assert json.loads((tmp_path / "compare.json").read_text()) == data
    with (tmp_path / "compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["losses"] for line in lines] == [row.name for row in rows]
    assert lines[1]["losses"] == "CE, worse" and lines[1]["verdict"] == "worse"
    assert float(lines[1]["difference"]) == data["gains"][1]["difference"]
    assert lines[4]["seed_5"] == "" and lines[4]["verdict"] == "not compared"
    text = (tmp_path / "compare.md").read_text()
    gain = data["gains"][1]
    assert f"| CE, worse | {rows[1].mean:.3f} ± {rows[1].std:.3f} | {gain['difference']:+.3f} |" in text
    assert "(compare.svg)" in text
    figure = ET.parse(tmp_path / "compare.svg").getroot()
    labels = [part.text for part in figure.iter("{http://www.w3.org/2000/svg}title")]
    assert labels[1:] == ["CE, worse", "| IoU", "failed", "last"]


@pytest.mark.parametrize("name", ["| (1-i/u)*(1-i/u)*2", "_a_ of B_cls", "<b> `c` [d](e) \\f ~~g~~ &amp;"])
def test_names_are_text_in_the_report(rows, tmp_path, name):
    named = judged([dataclasses.replace(row, name=name) for row in rows])
    comparison_report.write(tmp_path, Confirmation(SEEDS, named), about=ABOUT)
    shown = markdown_it.MarkdownIt().enable(["table", "strikethrough"]).render((tmp_path / "compare.md").read_text())
    cells = [
        "".join(row.find("td").itertext())
        for row in ET.fromstring(f"<r>{shown}</r>").iter("tr")
        if row.find("td") is not None
    ]
    assert cells == [name] * 2 * len(rows), "in both tables"
    assert html.escape(f"The last pair ({name}) is", quote=False) in shown.replace("&quot;", '"')


def test_one_seed_has_no_intervals(rows, tmp_path):
    single = [dataclasses.replace(row, aps=row.aps[:1], mean=row.aps[0], std=math.nan, failures=()) for row in rows]
    comparison_report.write(tmp_path, Confirmation(SEEDS[:1], judged(single)), about=ABOUT)
    figure = ET.parse(tmp_path / "compare.svg").getroot()
    texts = [part.text for part in figure.findall(".//{*}text")]
    assert "AP, test split, one seed, noise unknown" in texts and not any("intervals" in text for text in texts)
    places = sorted(float(dot.get("cx")) for dot in figure.findall(".//{*}circle"))
    assert places[-1] - places[0] > 350.0, "the axis is as long as the differences"


def test_the_figure_shows_what_excludes_zero(tmp_path):
    unknown = Interval("e", *[math.nan] * 3)
    lines = [Interval("a <b> & c", 0.02, 0.01, 0.03), Interval("d" * 60, 0.0, -0.01, 0.01), unknown]
    forest_plot.save(tmp_path / "plot.svg", lines, title="t", axis="AP")
    groups = ET.parse(tmp_path / "plot.svg").getroot().findall("{*}g")
    drawn = {group.find("{*}title").text: group for group in groups}
    assert [group.get("class") for group in drawn.values()] == ["shown", None, None]
    first = drawn["a <b> & c"]
    line, dot = first.find("{*}line"), first.find("{*}circle")
    assert float(line.get("x1")) < float(dot.get("cx")) < float(line.get("x2"))
    assert drawn["e"].find("{*}circle") is None, "what was not compared has no mark"
    forest_plot.save(tmp_path / "none.svg", [], title="t", axis="AP")
    ET.parse(tmp_path / "none.svg")
