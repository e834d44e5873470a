"""The training script as a user runs it: named losses, a kill, another config, and bad input."""

import json
import os
import signal
import socket
import time

import numpy as np
import pytest
from micro import FLAGS
from orbax.checkpoint import v1 as orbax
from scripts import run, start

from detectors.evaluation import inference

SMALL = [
    *FLAGS,
    "--config.train.batch_size=4",
    "--config.steps=30",
    "--config.save_every=10",
    "--config.evaluate_epochs=2",
    "--config.data.digit_scenes.train_images=20",
    "--config.data.digit_scenes.select_images=10",
    "--config.data.digit_scenes.test_images=12",
]
LOSSES = ["--config.loss.cls=varifocal_loss(alpha=0.5)", "--config.loss.box=diou_loss", "--config.loss.box_weight=2"]
TWO_STAGE = ["--config=configs/train/faster_rcnn_digits.py", "--config.loss.box=l1_loss", "--config.loss.cls=CEI"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def signalled(number, *arguments, workdir, data_dir):
    """Sends a signal as soon as there is a checkpoint to resume from."""
    process = start("train", *arguments, f"--workdir={workdir}", data_dir=data_dir)
    deadline = time.monotonic() + 120.0
    while not (workdir / "partial").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    return process.finish()


@pytest.mark.slow
def test_a_killed_training_ends_the_same(tmp_path, data_dir):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, output = run("train", *SMALL, *LOSSES, f"--workdir={whole}", data_dir=data_dir)
    assert code == 0, output
    assert "varifocal_loss(alpha=0.5) (weight 1), box diou_loss (weight 2)" in output
    assert "step 30/30: loss " in output and "epoch 6, select split: AP " in output and "test split: AP " in output

    code, output = signalled(signal.SIGKILL, *SMALL, *LOSSES, workdir=killed, data_dir=data_dir)
    assert code == -signal.SIGKILL and not (killed / "result.json").exists(), output
    code, output = run("train", *SMALL, *LOSSES, f"--workdir={killed}", data_dir=data_dir)
    assert code == 0, output
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, killed)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    expected = {"cls": "varifocal_loss(alpha=0.5)", "box": "diou_loss", "cls_weight": 1.0, "box_weight": 2.0}
    assert results[0]["losses"] == expected and 0.0 <= results[0]["test"]["boxes"]["ap"] <= 1.0
    assert inference.label_names(11, tuple, whole) == (*"0123456789", "")
    assert (whole / "last").is_dir() and (whole / "best").is_dir() and not (killed / "partial").exists()
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (whole, killed)
    ]
    for line in (line for log in logs for line in log):
        for noisy in ("images_per_second", "data_seconds", "memory_mib"):
            line.pop(noisy, None)
    assert logs[0] == logs[1], "loss for loss and score for score"
    assert [line["step"] for line in logs[0] if "evaluation" in line] == [10, 20, 30]

    assert "is finished" in run("train", *SMALL, *LOSSES, f"--workdir={whole}", data_dir=data_dir)[1]
    code, output = run("train", *SMALL, *LOSSES, "--config.seed=1", f"--workdir={whole}", data_dir=data_dir)
    assert code == 1 and "config.seed: 0 -> 1" in output and "--workdir" in output
    anew = ["--noresume", "--config.steps=1", "--config.evaluate_epochs=0"]
    code, output = run("train", *SMALL, *anew, f"--workdir={killed}", data_dir=data_dir)
    assert code == 0 and json.loads((killed / "result.json").read_text())["steps"] == 1, output
    assert not (killed / "best").exists()


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path, data_dir):
    """Each reads its share of a batch; what they find is written once."""
    short = [*SMALL, "--config.steps=6", "--config.save_every=4", "--config.evaluate_epochs=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    code, output = run("train", *short, f"--workdir={one}", data_dir=data_dir)
    assert code == 0, output
    with socket.socket() as free:
        free.bind(("localhost", 0))
        together = [f"--coordinator=localhost:{free.getsockname()[1]}", "--processes=2", f"--workdir={two}"]
    processes = [start("train", *short, *together, f"--process={k}", data_dir=data_dir) for k in range(2)]
    for code, output in (process.finish() for process in processes):
        assert code == 0, output
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one, two)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for name in ("loss", "cls", "box", "gradient_norm"):
        losses = [[line[name] for line in log if name in line] for log in logs]
        np.testing.assert_allclose(*losses, rtol=2e-5)
    models = [orbax.load(str(folder / "last")) for folder in (one, two)]
    assert models[0].keys() == models[1].keys() and len(models[0]) > 10
    for name in models[0].keys() - {"checksums"}:
        np.testing.assert_allclose(models[0][name], models[1][name], atol=1e-4)
    assert not (two / "partial").exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume(tmp_path, data_dir):
    """In Faster R-CNN's training under a loss on encoded offsets."""
    options = [*TWO_STAGE, *SMALL, "--config.steps=100000"]
    code, output = signalled(signal.SIGINT, *options, workdir=tmp_path / "run", data_dir=data_dir)
    assert code == 130 and "The same command resumes" in output and "Traceback" not in output, output
    assert "CEI (weight 1), box l1_loss (weight 1)" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.loss.cls=varifocl_loss"], "did you mean the loss 'varifocal_loss'"),
        (["--config.loss.box=1 - i / v"], "space box has no variable 'v'"),
        (["--config.loss.cls=focal_loss(gama=1)"], "no hyper-parameter 'gama'; did you mean 'gamma'"),
        (["--workdir=/proc/nowhere"], "cannot write to the work folder /proc/nowhere"),
        (["stray"], "unknown argument 'stray'"),
    ],
)
def test_bad_input_is_named(arguments, said):
    code, output = run("train", *arguments)
    assert code != 0 and said in output and "Traceback" not in output, output
