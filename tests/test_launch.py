"""The scripts as a user runs them: a whole search, kills, exports, and bad input."""

import base64
import importlib.util
import io
import json
import os
import random
import signal
import socket
import time

import numpy as np
import pytest
from micro import FLAGS
from PIL import Image
from scripts import functions, run, start

from cse_jax import loss_table
from cse_jax.language import spaces
from cse_jax.search.ray_trainer import RayTrainer
from cse_jax.search.task import Task

pytestmark = pytest.mark.batches
SMALL = [
    "--config=configs/search/default.py",
    *FLAGS,
    "--config.search.classification.generations=0",
    "--config.search.regression.generations=1",
    "--config.search.regression.population=300",
    "--config.search.regression.max_probe=8",
    "--config.search.regression.max_overfit=2",
    "--config.search.regression.max_proxy=2",
    "--config.search.regression.proxy_seeds=1",
    "--config.search.filters.early_probe_tolerance=0.0",
    "--config.search.filters.probe_tolerance=0.0",
    "--config.search.filters.overfit_tolerance=0.0",
    "--config.search.final.seeds=1",
    "--config.search.final.fit_weights=(2.0,)",
    "--config.train.batch_size=4",
    "--config.train.warmup_steps=2",
    "--config.schedule.probe_images=12",
    "--config.schedule.probe_at_once=4",
    "--config.detector.towers=1",
    "--config.detector.norm_groups=4",
    "--config.schedule.start=6",
    "--config.schedule.overfit=8",
    "--config.schedule.probe=(4, 8)",
    "--config.schedule.proxy=(6, 12)",
    "--config.schedule.final=12",
    "--config.data.digit_scenes.train_images=60",
    "--config.data.digit_scenes.select_images=12",
    "--config.data.digit_scenes.test_images=12",
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    code, output = run("search", *SMALL, f"--workdir={workdir}", data_dir=data_dir)
    assert code == 0, output
    return workdir, output


def outcome(workdir):
    """What must not depend on interruptions: halls of fame and final table, formula for formula, score for score."""
    result = json.loads((workdir / "result.json").read_text())
    return result["hall_of_fame"], result["table"], result["funnel"]


@pytest.mark.slow
def test_a_search_leaves_everything_behind(finished):
    workdir, output = finished
    names = {path.name for path in workdir.iterdir()}
    assert {"config.json", "versions.json", "ledger.sqlite", "result.json", "report.md", "report.html"} <= names
    assert "checkpoints" in names and "no verdict yet" not in (workdir / "report.html").read_text()
    assert "Funnel" in output and "Hall of fame" in output and "Test split" in output and "Report:" in output
    config = json.loads((workdir / "config.json").read_text())
    assert config["schedule"]["final"] == 12
    result = json.loads((workdir / "result.json").read_text())
    assert result["versions"]["jax"] and result["device"] and len(result["table"]) >= 3
    final = [path for path in (workdir / "checkpoints").iterdir() if path.name.startswith("final-")]
    assert final and not [path for path in final if path.suffix == ".partial"]
    drawn = json.loads((workdir / "pictures.json").read_text())["rows"]
    titles = [picture["title"].split(", ")[1] for picture in drawn[0]]
    assert titles == ["as labelled", "default losses", *["discovered losses"][: bool(result["discovered"])]]
    first = base64.b64decode(drawn[0][0]["jpeg"])
    assert Image.open(io.BytesIO(first)).size == (288, 288) and "as labelled" in drawn[0][0]["alt"]


def signal_after(process, lines, delay, number):
    """Sends a signal some time after a running script's k-th line; returns all that it said."""
    while process.poll() is None and process.said().count("\n") < lines:
        time.sleep(0.02)
    time.sleep(delay)
    os.killpg(process.pid, number)
    return process.finish(timeout=120)[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # Ray's, from JAX's process
def test_a_killed_search_ends_the_same_whoever_trains(finished, tmp_path, data_dir, monkeypatch):
    """Kills the real process (SIGKILL) at a random moment of its life; others train the rest, bit for bit the same."""
    process = start("search", *SMALL, "--workers=inline:1", f"--workdir={tmp_path}", data_dir=data_dir)
    signal_after(process, 4, random.Random(0).uniform(0.0, 1.0), signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    asked, ask = set(), RayTrainer.ask
    monkeypatch.setattr(RayTrainer, "ask", lambda self, *task, **about: asked.add(task[0]) or ask(self, *task, **about))
    has_ray = importlib.util.find_spec("ray") is not None  # else the two threads of the default train
    workers = ["--workers=ray:2"] if has_ray else []
    code, output = run("search", *SMALL, *workers, f"--workdir={tmp_path}", data_dir=data_dir)
    assert code == 0, output
    assert ("train" in asked) == has_ray
    assert outcome(tmp_path)[0]["box"] and outcome(tmp_path) == outcome(finished[0])


def together(workdir, data_dir):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        flags = [f"--coordinator=localhost:{free.getsockname()[1]}", "--processes=2", f"--workdir={workdir}"]
    return [start("search", *SMALL, *flags, f"--process={k}", data_dir=data_dir) for k in range(2)]


@pytest.mark.slow
def test_processes_end_together_and_find_what_one_finds(finished, tmp_path, data_dir):
    """One is terminated while it trains; the same commands resume, with the same result as one process."""
    first, second = together(tmp_path, data_dir)
    while first.poll() is None and " heads on fixed features" not in first.said():
        time.sleep(0.02)
    second.terminate()
    code, output = first.finish(timeout=60)
    assert code == 1 and "The search stopped: process 1 has ended" in output and "Traceback" not in output, output
    code, output = second.finish(timeout=60)
    assert code == 130 and "Interrupted. Nothing finished is lost" in output and "Traceback" not in output
    assert not (tmp_path / "result.json").exists()
    first, second = together(tmp_path, data_dir)
    (code, output), (other, said) = first.finish(), second.finish(timeout=20)
    assert (code, other) == (0, 0), output + said
    assert "Process 1 of 2 trains for process 0" in said and "Report:" not in said
    assert outcome(tmp_path) == outcome(finished[0])


@pytest.mark.slow
def test_an_error_of_the_program_leaves_its_traceback_in_a_file(tmp_path, data_dir, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("something broke below\nin two lines")

    monkeypatch.setattr("detectors.training.search_trainer.fit", broken)
    code, output = run("search", *SMALL, f"--workdir={tmp_path / 'run'}", data_dir=data_dir)
    said = "an error in the program (RuntimeError: something broke below). The traceback is in"
    assert code == 1 and said in output and "Traceback" not in output, output
    assert "in two lines" in (tmp_path / "run" / "error.txt").read_text()
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "nothing of it is recorded"


@pytest.mark.slow
def test_another_config_in_the_same_folder_is_refused(finished, data_dir):
    workdir, _ = finished
    code, output = run("search", *SMALL, "--config.schedule.final=13", f"--workdir={workdir}", data_dir=data_dir)
    assert code == 1 and "config.schedule.final: 12 -> 13" in output and "--workdir" in output
    assert json.loads((workdir / "config.json").read_text())["schedule"]["final"] == 12


@pytest.mark.slow
def test_export_prints_the_winner(finished):
    workdir, _ = finished
    result = json.loads((workdir / "result.json").read_text())
    branches = [branch for branch, hall in result["hall_of_fame"].items() if hall["entries"]]
    code, output = run("export", f"--workdir={workdir}", "--rank=1", "--nosimplify")
    if not branches:
        assert code != 0 and "no candidate" in output
        return
    assert code == 0, output
    for branch in branches:
        best = result["hall_of_fame"][branch]["entries"][0]
        assert best["text"] in output and best["authors"] in output and best["latex"] in output
        code, source = run("export", f"--workdir={workdir}", f"--space={branch}", "--format=numpy")
        assert code == 0 and f"WEIGHT = {best['weight']!r}" in source and "def loss(" in source, source
        assert f"rank 1 of the {branch} branch" in source
    code, output = run("export", f"--workdir={workdir}", "--rank=99")
    assert code != 0 and "--rank=99 is beyond" in output


@pytest.mark.slow
def test_what_a_search_found_trains_a_detector(finished, tmp_path, data_dir):
    workdir, _ = finished
    found = json.loads((workdir / "result.json").read_text())["discovered"]
    options = [f"--search={workdir}", "--config.steps=2", "--config.evaluate_epochs=0", f"--workdir={tmp_path / 'run'}"]
    code, output = run("train", *FLAGS, *SMALL[-3:], *options, data_dir=data_dir)
    if not found:
        assert code == 1 and "discovered no losses" in output
        return
    assert code == 0, output
    losses = json.loads((tmp_path / "run" / "result.json").read_text())["losses"]
    for part in ("cls", "box"):
        assert (losses[part], losses[f"{part}_weight"]) == (
            found[part]["authors"],
            pytest.approx(found[part]["weight"]),
        )
    for flag, said in (
        ("--config.loss.cls=CE", "either --search or fields of --config.loss"),
        (
            "--config=configs/train/faster_rcnn_digits.py",
            "was for the space binary_class; this detector takes multi_class",
        ),
    ):
        code, output = run("train", f"--search={workdir}", flag)
        assert code == 1 and said in output


def test_a_comparison_says_how_its_tuned_pair_was_chosen():
    note = functions("compare")["_note"]
    tuned = note([0, 1], own_starts=False)
    assert tuned.endswith("but that the tuned pair was chosen on the select split, with the seeds 0, 1.")
    assert "tuned" not in note((), own_starts=False) and "start" not in note((), own_starts=False)


def test_a_comparison_takes_the_best_losses_of_a_table():
    of_table, known = functions("compare")["_of_table"], loss_table.load("fcos_digits")
    found = of_table("fcos_digits", 2, Task(spaces.BINARY_CLASS))
    assert [name.partition(":")[0] for name, _ in found] == ["box 2", "box 1", "cls 2", "cls 1"], "the best one is last"
    for part, (_, losses) in (("box", found[1]), ("cls", found[3])):
        (row,) = [loss for loss in known.of(part) if loss.formula == getattr(losses, part)]
        assert getattr(losses, f"{part}_weight") == row.weight
        aps = [np.mean([curve.select[-1] for curve in loss.trainings.values()]) for loss in known.of(part)]
        assert np.nanmax(aps) == np.mean([curve.select[-1] for curve in row.trainings.values()])
    boxes = of_table("fcos_digits", 2, Task(spaces.MULTI_CLASS))
    assert [name.partition(":")[0] for name, _ in boxes] == ["box 2", "box 1"], "those of its space"


@pytest.mark.slow
def test_a_comparison_says_what_its_trainings_begin_with(tmp_path, data_dir):
    arguments = ["compare", *SMALL, "--pair=| 1 - i / u", "--own_starts"]
    for wrong in ("--split=select", "--config.schedule.start=0"):
        code, output = run(*arguments, wrong, f"--workdir={tmp_path / 'wrong'}", data_dir=data_dir)
        assert code == 1 and "--own_starts is of the test split, and of trainings with a start" in output, output
    for flags, said in ((["--seeds=2"], "all begin with one start: "), (["--seeds=2", "--own_starts"], "of its own")):
        folder = tmp_path / f"run{len(flags)}"
        code, output = run(*arguments[:-1], *flags, f"--workdir={folder}", data_dir=data_dir)
        assert code == 0 and said in (folder / "compare.md").read_text(), output
    assert len(list((tmp_path / "run2" / "checkpoints").glob("features-seed*"))) == 2
    code, output = run(*arguments[:-1], "--seeds=2", f"--workdir={folder}", data_dir=data_dir)
    assert code == 1 and "own_starts" in output, "those that began otherwise are not taken"


@pytest.mark.slow
def test_pairs_are_compared_and_further_ones_added(tmp_path, data_dir):
    first = ["compare", *SMALL, f"--workdir={tmp_path / 'run'}"]
    code, output = run(*first, "--pair=| 1 - i / u", "--seeds=2", data_dir=data_dir)
    assert code == 0 and "The last pair (| 1 - i / u)" in output, output
    one = json.loads((tmp_path / "run" / "compare.json").read_text())
    further = ["--pair=| 1 - i / u", "--pair=half = CE x0.5 | ciou_loss", "--seeds=2"]
    code, output = run(*first, *further, "--config.train.learning_rate=0.5", data_dir=data_dir)
    assert code == 1 and "other settings (config.train.learning_rate" in output, output
    code, output = run(*first, *further, "--config.search.regression.max_probe=9", data_dir=data_dir)
    assert code == 0, "how a search would go on is nothing to its trainings"
    two = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert [row["name"] for row in two["table"]] == ["the default", "| 1 - i / u", "half"]
    assert [row["ap"] for row in two["table"][:2]] == [row["ap"] for row in one["table"]]
    assert two["table"][2]["cls"]["weight"] == 0.5 and two["table"][2]["box"]["text"] == "ciou_loss"
    for wrong, message in (
        ("CE", "is no pair of losses: write classification | box"),
        ("CE x1e999 |", "is no factor: write a positive number"),
        ("nothing | GIoU", "the cls loss 'nothing'"),
    ):
        code, output = run(*first, f"--pair={wrong}", data_dir=data_dir)
        assert code == 1 and message in output and "Traceback" not in output, output


@pytest.mark.slow
def test_a_search_is_confirmed_with_fresh_seeds(finished, data_dir, monkeypatch):
    """By a script of its own, with the search's own config; the search's flag then finds nothing left to train."""
    workdir, _ = finished
    result = json.loads((workdir / "result.json").read_text())
    code, output = run("confirm", f"--workdir={workdir}", "--seeds=2", data_dir=data_dir)
    if not result["discovered"]:
        assert code == 1 and "discovered no losses" in output
        return
    assert code == 0, output
    folder = workdir / "confirm" / result["config"]["name"]
    confirmed = json.loads((folder / "confirm.json").read_text())
    assert confirmed["config"] == result["config"] and len(confirmed["seeds"]) == 2
    assert all(row["image_error"] >= 0.0 for row in confirmed["table"])
    assert "over images" in (folder / "confirm.md").read_text()
    assert "all begin with one start" in result["scope"] and "one start" not in confirmed["scope"]
    assert "start of its own" in confirmed["note"]
    assert len(list((folder / "checkpoints").glob("features-seed*"))) == 2
    assert [row["name"] for row in confirmed["table"]] == [row["name"] for row in result["table"]]
    assert confirmed["conclusion"] in output and str(folder / "confirm.md") in output
    written = (folder / "confirm.json").read_bytes()
    code, output = run("search", *SMALL, "--confirm=2", f"--workdir={workdir}", data_dir=data_dir)
    assert code == 0 and confirmed["conclusion"] in output, output
    assert (folder / "confirm.json").read_bytes() == written
    monkeypatch.setattr("confirming._image_errors", lambda _, found: [0.0] * len(found.table))  # takes long to compile
    for flag, expected, said in (
        ("--config.search.regression.generations=3", 0, confirmed["conclusion"]),
        ("--config.schedule.final=14", 1, "config.schedule.final: 12 -> 14): give this confirmation a name of its own"),
    ):
        code, output = run("confirm", f"--workdir={workdir}", "--seeds=2", *SMALL, flag, data_dir=data_dir)
        assert code == expected and said in output, output
    code, output = run("confirm", f"--workdir={workdir}", "--config=configs/search/faster_rcnn.py", data_dir=data_dir)
    assert code == 1 and "was for the space binary_class; this detector takes multi_class" in output, output


@pytest.mark.slow
def test_a_search_on_real_images_keeps_the_test_split_apart(test_data, tmp_path, data_dir):
    real = ["--config=configs/search/fcos_bccd.py", f"--config.data.root={test_data / 'bccd'}"]
    for changed, said in (
        ("--config.data.select_images=0", "keep images of train for that, --config.data.select_images="),
        ("--config.detector.classes=2", "has 3 categories, the detector 2: set --config.detector.classes=3"),
    ):
        code, output = run("search", *real, changed, f"--workdir={tmp_path / 'run'}", data_dir=data_dir)
        assert code == 1 and said in output.replace("\n", " "), output


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("search", ["--confg=x"], "Unknown command line flag 'confg'"),
        ("search", ["stray"], "unknown argument 'stray'"),
        ("search", [*SMALL, "--workdir=/proc/nowhere"], "cannot write to the work folder /proc/nowhere"),
        ("export", ["--formula=1 - i / v", "--space=box"], "space box has no variable 'v'"),
        ("export", ["--formula=x"], "--formula needs --space"),
        ("export", [], "give either --workdir or --formula"),
        ("export", ["--workdir=/nonexistent"], "there is no ledger at /nonexistent"),
        ("train", ["--search=/nonexistent"], "there is no /nonexistent/result.json"),
        ("confirm", [], "--workdir names the folder of a finished search"),
        ("confirm", ["--workdir=/nonexistent"], "is /nonexistent the folder of a finished search? The flag"),
    ],
)
def test_bad_input_is_named(script, arguments, said):
    code, output = run(script, *arguments)
    assert code != 0 and said in output, output
    assert "Traceback" not in output, output


def test_a_comparison_needs_something_to_compare(tmp_path):
    code, output = run("compare", f"--workdir={tmp_path / 'run'}")
    assert code == 1 and "give a --pair, a --table, or --tuned" in output, output


def test_export_of_a_formula():
    code, output = run("export", "--formula=B_reg", "--space=box", "--format=authors")
    assert code == 0 and "\nNeg(Div(Add(Div(Neg(Add(Neg(E),Add(1,I)))" in output
    code, output = run("export", "--formula=Sub(1,Div(I,U))", "--space=box")
    assert code == 0 and "1 - i / u" in output and r"1 - \frac{i}{u}" in output


def test_an_unbuildable_data_set_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, output = run("search", *SMALL, f"--workdir={tmp_path / 'run'}", data_dir=blocked / "data")
    assert code == 1 and str(blocked) in output and "Traceback" not in output, output
