"""The log of a training: every step once, whatever interrupted it, and figures that JSON can hold."""

import json
import math
import sys

import pytest
from extras import need

from detectors.evaluation.coco import Metrics
from detectors.evaluation.scores import Scores
from detectors.training.log import TrainingLog


def metrics(loss, **changes):
    return {"loss": loss, "cls": loss / 2, "finite": True, "learning_rate": 0.1, "data_seconds": 0.01} | changes


def scores(ap):
    return Scores(Metrics(ap, 0.4, 0.1, 0.1, 0.1, math.nan, {"cat": math.nan}), None, None, {"cat": 3})


def make(folder, **changes):
    return TrainingLog(folder, **(dict(steps=40, epoch_steps=10, batch_size=4) | changes))


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_lines_of_steps_and_evaluations(tmp_path, capsys):
    log = make(tmp_path)
    log.progress(10, metrics(2.0))
    assert log.evaluated(10, scores(0.2))
    log.progress(20, metrics(1.0))
    log.progress(40, metrics(0.5))
    first, second, third, _ = lines(tmp_path)
    assert (first["step"], first["epoch"], first["loss"], first["images_per_second"]) == (10, 1.0, 2.0, None)
    assert first["memory_mib"] > 0 and first["data_seconds"] == 0.01 and "finite" not in first
    boxes = second["evaluation"]["boxes"]
    assert (boxes["ap"], boxes["ap_large"], boxes["per_category"]) == (0.2, None, {"cat": None})
    assert "masks" not in second["evaluation"]
    assert third["images_per_second"] is None, "the evaluation's time is not that of steps"
    said = capsys.readouterr().out
    assert "step 10/40: loss 2.0000, cls 1.0000, lr 0.1" in said and "epoch 1, select split: AP 0.2000" in said
    assert "images/s, data 10 ms" in said and " MiB, 0:00:00 left" in said


def test_the_best_evaluation_is_known_after_an_interruption(tmp_path):
    log = make(tmp_path)
    assert log.evaluated(10, scores(0.3))
    assert not log.evaluated(20, scores(0.2))
    assert log.evaluated(30, scores(0.5))
    again = make(tmp_path)  # from the checkpoint after step 20
    assert again.evaluated(30, scores(0.5)), "what comes after the checkpoint is forgotten"
    assert not again.evaluated(40, scores(0.4))
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 40]


def test_steps_after_the_checkpoint_are_dropped_and_a_torn_line_too(tmp_path):
    log = make(tmp_path)
    for step in (10, 20, 30):
        log.progress(step, metrics(1.0))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    again = make(tmp_path)
    again.progress(20, metrics(3.0))
    again.progress(30, metrics(4.0))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 1.0), (20, 3.0), (30, 4.0)]


def test_an_undefined_ap_is_never_the_best(tmp_path):
    assert not make(tmp_path).evaluated(10, scores(math.nan))


def test_tensorboard_is_told_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'cse_jax\[tensorboard\]'"):
        make(tmp_path, tensorboard=True)


def test_tensorboard(tmp_path):
    need("tensorboardX")
    make(tmp_path, tensorboard=True).progress(10, metrics(2.0))
    assert list((tmp_path / "tensorboard").iterdir())
