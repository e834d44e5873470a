"""The page of a search: what it holds, and that nothing that others wrote gets into it as anything but text."""

import base64
import contextlib
import dataclasses
import html.parser
import io
import json
import math
import os
import pathlib
import re
import sqlite3
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import recorded_searches
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from scripts import functions, run

from cse_jax.language import spaces, zoo
from cse_jax.language.expression import to_authors
from cse_jax.language.parsing import parse
from cse_jax.reporting import page
from cse_jax.reporting.live_page import LivePage
from cse_jax.reporting.monitor import Monitor
from cse_jax.reporting.page import (
    behaviour,
    chart,
    compare,
    facts,
    family_tree,
    front,
    funnel,
    hall_of_fame,
    markup,
    pictures,
    provenance,
    sweeps,
)
from cse_jax.search.branch import branch_name
from cse_jax.search.ledger import CANDIDATES
from cse_jax.search.ledger_reader import Reason, kind_of_reason
from cse_jax.search.task import Task

HOSTILE = "<script>alert('1')</script>\"&amp;]]><!--"
SECTIONS = ("verdict", "table", "fame", "front", "pictures", "trained", "family", "behaviour", "funnel", "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, recorded_searches.write(folder)


@pytest.fixture(scope="module")
def text(finished):
    return page.write(*finished).read_text()


def parsed(text):
    """The page as XML, which is stricter than HTML."""
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def words(element):
    return " ".join("".join(element.itertext()).split())


def section(root, name):
    (found,) = (element for element in root.iter("section") if element.get("id") == name)
    return found


class Links(html.parser.HTMLParser):
    """What a browser would load or go to, and what it would run."""

    def __init__(self, text):
        super().__init__()
        self.found, self.run = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        self.run += [name for name, _ in attrs if name.startswith("on")] + [tag] * (tag in ("script", "iframe", "link"))


def test_a_page_has_all_sections_and_their_figures(finished, text):
    folder, _ = finished
    root, result = parsed(text), json.loads((folder / "result.json").read_text())
    assert [element.get("id") for element in root.iter("section")] == list(SECTIONS)
    assert result["conclusion"] in words(section(root, "verdict")) and "95 % interval" in result["conclusion"]
    table = words(section(root, "table"))
    low, high = result["table"][0]["against"]["interval"]
    assert f"{low:+.3f} to {high:+.3f}" in table and "seed 2: it diverged" in table
    fame = words(section(root, "fame"))
    for _, branch in zip(range(2), result["hall_of_fame"].values(), strict=True):
        assert all(entry["text"] in fame for entry in branch["entries"])
    assert "MathML" in text and "± " in fame
    assert "gain n is too low" in words(section(root, "funnel")) and "20,000" in words(section(root, "funnel"))
    assert "monotone" in words(section(root, "funnel")) and "9,000" in words(section(root, "funnel"))
    assert '"select_images"' in words(section(root, "run"))


def test_a_page_loads_nothing_and_runs_nothing(text):
    links = Links(text)
    assert links.found and not links.run
    assert all(link.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,")) for link in links.found)
    assert not re.search(r"url\(|@import", text)
    assert {link[1:] for link in links.found if link[0] == "#"} <= {
        element.get("id") for element in parsed(text).iter()
    }
    assert set(re.findall(r"https?://[^\"'\s<]*", text)) == {"http://www.w3.org/1998/Math/MathML"}


def test_figures_and_tables_are_there_for_all_readers(text):
    root = parsed(text)
    assert root.get("lang") == "en" and next(root.iter("title")).text == "Search trial"
    drawings = [element for element in root.iter("svg") if element.get("role") == "img"]
    assert len(drawings) == 2 + 2 + 2 * (5 + 7), "fronts, trainings, and of two losses of each branch the curves"
    for drawing in drawings:
        assert drawing.get("aria-label") and drawing.find("title").text
    for table in root.iter("table"):
        assert table.find("caption").text and table.find("thead/tr/th").get("scope") == "col"
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_what_others_wrote_is_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"<b>&?#%20\xff")  # which is no UTF-8
    task = recorded_searches.write(folder, text=HOSTILE)
    text = page.write(folder, task).read_text()
    assert parsed(text) is not None and not Links(text).run and "alert" in text
    both = tmp_path / "compare.html"
    page.write_comparison(both, [(folder, task), (folder, task)])
    assert parsed(both.read_text()) is not None and not Links(both.read_text()).run


@settings(max_examples=30, deadline=None)
@given(st.text())
def test_texts_come_back_as_they_were(said):
    made = markup.tag("p", said, markup.tag("b", said), title=said)
    root = ElementTree.fromstring(made)
    kept = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", said)
    ends = kept.replace("\r\n", "\n").replace("\r", "\n")  # as XML reads them
    assert (root.text or "") == ends == (root.find("b").text or "")
    assert root.get("title") == re.sub(r"\s", " ", ends) or not kept.isascii() or "\n" in ends or "\t" in ends


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=20))
def test_sections_hold_any_text(said):
    known = facts.Facts(
        folder=pathlib.Path(said),
        task=recorded_searches.TASK,
        result={"funnel": [], "config": {said: said}, "versions": {said: said}, "device": said, "command": said},
        finished=False,
        status=said,
        rejected={said: {said: 1}},
        reasons=[Reason(said, said, said, 1)],
        trained=[],
        begun=(),
        written=said,
    )
    known.result["funnel"] = [dict.fromkeys(recorded_searches.STAGES, 1) | {"branch": said, "generation": 0}]
    for made in (provenance.section(known), funnel.section(known)):
        ElementTree.fromstring(made)


def test_a_search_that_runs_has_a_page_that_loads_itself_again(tmp_path):
    folder = tmp_path / "running"
    task = recorded_searches.write(folder, finished=False)
    live = LivePage(Monitor(Console(file=io.StringIO()), steps={}), folder, task)
    live.activity("default losses, proxy task", 2, 3)
    text = (folder / page.NAME).read_text()
    assert 'http-equiv="refresh"' in text and "default losses, proxy task 2/3" in text
    root = parsed(text)
    assert "is running" in words(section(root, "verdict")) and "no verdict yet" in words(section(root, "verdict"))
    with pytest.raises(KeyboardInterrupt), live:
        raise KeyboardInterrupt
    stopped = (folder / page.NAME).read_text()
    assert 'http-equiv="refresh"' not in stopped and "has not come to its end" in stopped


def test_an_unfinished_search_shows_the_hall_of_fame_that_its_result_will_have(finished, tmp_path):
    folder, task = finished
    whole = facts.read(folder, task)
    part = facts.read(folder, task, running=True)
    assert not part.finished and part.result["table"] == []
    for key in ("funnel", "hall_of_fame"):
        assert json.loads(json.dumps(part.result[key])) == whole.result[key]
    assert part.result["default_proxy_ap"] == pytest.approx(0.41)


def test_a_hall_of_fame_stands_beside_the_default_with_its_seeds(finished):
    known = facts.read(*finished)
    hall = known.result["hall_of_fame"]["box"]
    assert "the default losses reach 0.410" in hall_of_fame.about(known, hall)
    assert "the default losses reach 0.400" in hall_of_fame.about(known, hall | {"default_ap": 0.4})
    of_before = {key: value for key, value in hall.items() if key != "default_ap"}
    assert "the default losses reach 0.410" in hall_of_fame.about(known, of_before)


def test_pages_of_a_running_search_are_seldom(finished, monkeypatch):
    written = []
    monkeypatch.setattr(page, "write", lambda *args, **options: written.append(options))
    live = LivePage(Monitor(Console(file=io.StringIO()), steps={}), *finished)
    for _ in range(1000):
        live.activity("proxy task")
    assert len(written) == 1


def test_a_page_that_cannot_be_written_does_not_stop_the_search(tmp_path):
    console = Console(file=io.StringIO())
    live = LivePage(Monitor(console, steps={}), tmp_path / "nowhere", recorded_searches.TASK)
    for _ in range(3):
        live.activity("proxy task")
    assert console.file.getvalue().count("is not written any more") == 1


def test_a_fault_of_the_page_is_kept_with_its_place(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "write", lambda *_, **__: {}["missing"])
    console = Console(file=io.StringIO(), width=1000)
    LivePage(Monitor(console, steps={}), tmp_path, finished[1]).activity("proxy task")
    assert "KeyError: 'missing'" in (tmp_path / "page_error.txt").read_text()
    assert "page_error.txt" in console.file.getvalue()


def test_what_was_trained_is_told_apart(finished):
    known = facts.read(*finished)
    kinds = [loss.kind for loss in known.trained]
    assert kinds == ["default", "control", "binary_class", "binary_class", "box", "box"]
    assert [loss.ap for loss in known.trained][:3] == pytest.approx([0.41, 0.415, 0.42])
    assert [loss.place for loss in known.trained] == [0, 1, 2, 3, 4, 5]
    assert known.trained[-1].minutes == pytest.approx(15 / 60), "heads that were trained take their time, too"


def test_tuned_hyper_parameters_are_a_control_and_no_find(tmp_path):
    known = facts.read(tmp_path / "run", recorded_searches.write(tmp_path / "run", finished=False, tuned=True))
    control = [loss.ap for loss in known.trained if loss.kind == "control"]
    assert control == pytest.approx([0.415, 0.43]), "a find with another weight of the other loss is neither"
    assert [loss.kind for loss in known.trained].count("binary_class") == 2 and len(known.begun) == 4


def test_what_the_random_search_finds_as_well_is_the_search_s(tmp_path):
    task = recorded_searches.write(tmp_path / "run", finished=False)
    others = ", ".join(CANDIDATES.texts[1:] + CANDIDATES.numbers)
    again = f"insert into candidates (branch, {others}) select ?, {others} from candidates where branch = 'box'"
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite")) as db, db:
        db.execute(again, (branch_name(spaces.BOX, control=True),))
    known = facts.read(tmp_path / "run", task)
    assert [loss.kind for loss in known.trained].count("box") == 2 and len(known.begun) == 4


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("same gradient as 1 - i / u", "same gradient as another loss"),
        (
            "simulation: gain -0.42 of the default loss's, below 0.5",
            "simulation: gain n of the default loss's, below n",
        ),
        (
            "the norm of its gradient on a calibration batch is nan",
            "the norm of its gradient on a calibration batch is n",
        ),
        ("not among the 8 that the strategy 'a2c' chose", "not among the n that the strategy 'a2c' chose"),
        ("loss 1.5e-07 at step 3", "loss n at step n"),
    ],
)
def test_reasons_are_of_a_kind(reason, kind):
    assert kind_of_reason(reason) == kind


def test_the_front_and_its_pick():
    sizes, aps = [12, 30, 9, 12], [0.74, 0.745, 0.70, 0.73]
    assert front.on_front(sizes, aps) == [2, 0, 1]
    said = front.explained(sizes, aps, 0.004)
    assert (
        "12 nodes and AP 0.740" in said
        and "0.745 with 30 nodes" in said
        and "0.005 is within the noise (0.006)" in said
    )
    assert "highest AP of all" in front.explained([5, 9], [0.8, 0.7], 0.001)


@pytest.mark.parametrize(("space", "units"), [(spaces.BINARY_CLASS, "strides"), (spaces.MULTI_CLASS, "pixels")])
def test_logits_are_swept_as_the_losses_see_them(space, units):
    positive, *_, negative = sweeps.sweeps(space, units)
    loss = zoo.find("CE", space)
    found = sweeps.curve(loss, 2.0, positive)
    assert found.at_end and found.optimum == 8.0 and (found.gradient < 0.0).all()
    assert np.allclose(np.gradient(found.value, positive.x)[1:-1], found.gradient[1:-1], atol=5e-3)
    assert sweeps.curve(loss, 1.0, negative).optimum == -8.0


def test_optimum_of_a_loss_that_knows_the_iou():
    sweep = next(s for s in sweeps.sweeps(spaces.BINARY_CLASS, "strides") if s.name == "IoU 0.6")
    loss = parse("-(q * log(sigmoid(x)) + (1 - q) * log(1 - sigmoid(x)))", spaces.BINARY_CLASS)
    assert sweeps.curve(loss, 1.0, sweep).optimum == pytest.approx(math.log(0.6 / 0.4), abs=0.06)


@pytest.mark.parametrize("space", [spaces.BINARY_CLASS, spaces.MULTI_CLASS, spaces.BOX], ids=str)
def test_the_gradient_over_an_area_is_that_along_its_rows(space):
    over = sweeps.area(space, "strides")
    loss = zoo.find("GIoU" if space == spaces.BOX else "varifocal" if "varifocal" in zoo.known(space) else "CE", space)
    found = sweeps.gradients(loss, 2.0, "strides")
    assert found.shape == (len(over.y), len(over.sweep.x) // len(over.y))
    row = {"box": 15}.get(space.name, 12)  # which is not scaled, or has an IoU of 0.6
    line = sweeps.sweeps(space, "strides")[0 if space == spaces.BOX else 1]
    along = np.interp(over.sweep.x[: found.shape[1]], line.x, sweeps.curve(loss, 2.0, line).gradient)
    assert over.y[row] == pytest.approx(0.0 if space == spaces.BOX else 0.6)
    assert np.allclose(found[row][1:-1], along[1:-1], atol=0.02 * abs(along).max())


def test_a_heat_map_is_clear_where_nothing_differs():
    def shown(values):
        limits = {"x": (0.0, 1.0), "y": (0.0, 1.0), "x_label": "x", "y_label": "y"}
        made = chart.heat_map("t", np.array(values), **limits, largest=2.0, legend=("above", "below"))
        (address,) = re.findall('base64,([^"]*)', made)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(address))))

    pixels = shown([[0.0, 1.0], [-4.0, math.nan]])
    assert pixels[1, :, 3].tolist() == [0, 128] and pixels[0, :, 3].tolist() == [255, 0], "the lowest row is the first"
    assert pixels[1, 1, 0] > pixels[1, 1, 2] and pixels[0, 0, 0] < pixels[0, 0, 2]


def test_the_family_tree(finished, text):
    found = section(parsed(text), "family")
    assert "its parents were not recorded" in words(found)
    known = facts.read(*finished)
    entries = known.result["hall_of_fame"]["box"]["entries"]
    giou = to_authors(zoo.default(spaces.BOX))
    entries[0]["origin"] = ["crossover", entries[1]["authors"], giou]
    entries[1]["origin"] = ["mutation", entries[0]["authors"]]  # no ledger says so, but no page hangs of it
    made = family_tree.section(known)
    root = ElementTree.fromstring(made)
    assert "a crossover of" in words(root) and "GIoU, a known loss" in words(root) and "as above" in words(root)
    assert len(list(root.iter("ul"))) == 2 + 2, "two trees, and two levels of parents"


def test_pictures_of_test_images(finished, tmp_path):
    folder = tmp_path / "run"
    task = recorded_searches.write(folder, text=HOSTILE)
    assert "There are no pictures" in page.write(folder, task).read_text()
    picture = {"title": HOSTILE, "alt": f"image 1: {HOSTILE}", "jpeg": HOSTILE}
    (folder / pictures.FILE).write_text(json.dumps({"about": HOSTILE, "rows": [[picture, picture]]}))
    text = page.write(folder, task).read_text()
    images = list(section(parsed(text), "pictures").iter("img"))
    assert [image.get("alt") for image in images] == [f"image 1: {HOSTILE}"] * 2 and not Links(text).run
    assert "There are no pictures" in page.write(folder, task, running=True).read_text(), "they may be of before"


@pytest.mark.parametrize("units", spaces.BOX.units)
def test_boxes_are_best_where_they_match(units):
    shift, scale, aspect = sweeps.sweeps(spaces.BOX, units)
    for sweep in (shift, scale, aspect):
        found = sweeps.curve(zoo.default(spaces.BOX), 1.0, sweep)
        assert found.optimum == 0.0 and not found.at_end
    half = sweeps.curve(zoo.find("IoU", spaces.BOX), 1.0, shift).value[np.argmin(abs(shift.x - 0.5))]
    assert half == pytest.approx(1.0 - 1.0 / 3.0, abs=1e-6), "half a side away, a third of the union is shared"


def test_a_loss_that_is_finite_nowhere_has_curves(finished):
    known = facts.read(*finished)
    loss = parse("log(-1 - i)", spaces.BOX)
    assert {curve.lowest for curve in sweeps.curves(loss, 1.0, "pixels")} == {"finite nowhere"}
    entry = known.result["hall_of_fame"]["box"]["entries"][0]
    entry |= {"text": str(loss), "authors": to_authors(loss)}
    assert "finite nowhere" in words(ElementTree.fromstring(behaviour.section(known)))


def test_lines_have_gaps_where_a_loss_is_not_finite():
    series = [chart.Series("a", [0.0, 1.0, 2.0, 3.0], [1.0, math.nan, math.inf, 1e300])]
    drawn = chart.chart("t", series, x_label="x", y_label="y", y_limits=(0.0, 2.0))
    (path,) = (e.get("d") for e in ElementTree.fromstring(drawn).iter("path") if e.get("d").count("M") == 2)
    assert "nan" not in drawn and "inf" not in path and len(path) < 60


@pytest.mark.parametrize(("ends", "whole"), [((0.0, 1.0), False), ((-8.3, 8.3), False), ((11.9, 13.1), True)])
def test_ticks_are_round_and_within(ends, whole):
    found = chart.ticks(*ends, whole=whole)
    assert 2 <= len(found) <= 6 and all(ends[0] <= value <= ends[1] for value in found)
    assert not whole or all(value == int(value) for value in found)


@pytest.mark.parametrize(("places", "shown"), [((0.43101, 0.43112), "0.43105"), ((12_000, 12_003), "12001")])
def test_ticks_that_are_near_have_labels_that_differ(places, shown):
    drawn = chart.chart("t", [chart.Series("a", places, places)], x_label="x", y_label="y")
    labels = [each.text for each in ElementTree.fromstring(drawn).iter("text")][:-2]
    assert shown in labels and max(map(labels.count, labels)) <= 2, "once on either axis"


def test_the_page_is_made_again_from_the_folder(finished, tmp_path):
    folder, _ = finished
    (folder / page.NAME).unlink(missing_ok=True)
    code, output = run("report", f"--workdir={folder}")
    assert code == 0 and (folder / page.NAME).is_file(), output
    out = tmp_path / "both.html"
    code, output = run("report", f"--compare={folder},{folder}", f"--out={out}")
    assert code == 0, output
    assert [element.get("id") for element in parsed(out.read_text()).iter("section")] == ["found", "tables", "settings"]


def test_the_task_of_a_search_is_in_its_folder(finished, tmp_path):
    folder = tmp_path / "run"
    recorded_searches.write(folder)
    recorded = functions("recorded")
    described = json.loads((folder / "versions.json").read_text())
    described["task"] |= {"box_units": "pixels", "box_weight": 10.0}
    (folder / "versions.json").write_text(json.dumps(described))
    assert recorded["task"](folder) == Task(spaces.BINARY_CLASS, "pixels", 10.0)
    del described["task"]  # as in folders of before
    (folder / "versions.json").write_text(json.dumps(described))
    assert recorded["task"](folder) == recorded_searches.TASK


def test_searches_of_other_data_are_not_compared(finished, tmp_path):
    known = facts.read(*finished)
    config = json.loads(json.dumps(known.result["config"]))
    config["data"]["select_images"] = -1
    other = dataclasses.replace(known, result=known.result | {"config": config})
    assert "cannot be compared" in compare.sections([known, other])
    assert "cannot be compared" not in compare.sections([known, known])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either --workdir or --compare"),
        (["--workdir=/nonexistent"], "there is no /nonexistent/config.json; is /nonexistent the folder of a search?"),
        (["--compare=/nonexistent"], "--compare=/nonexistent names fewer than two folders"),
    ],
)
def test_bad_folders_are_named(arguments, said):
    code, output = run("report", *arguments)
    assert code == 1 and said in output and "Traceback" not in output, output
