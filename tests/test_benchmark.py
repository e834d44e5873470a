"""The benchmarks run, in their smallest size; what they print is no claim here."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from extras import need
from micro import QUICK

ROOT = pathlib.Path(__file__).resolve().parents[1]


def benchmark(path, *flags):
    command = [sys.executable, "launch/benchmark.py", "--size=smallest", "--rounds=1", f"--json={path}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | QUICK, timeout=600)
    return done, json.loads(path.read_text())["tables"] if path.exists() else {}


@pytest.mark.slow
def test_losses(tmp_path):
    done, tables = benchmark(tmp_path / "out.json", "--suite=losses")
    assert done.returncode == 0, done.stderr
    assert [row["loss"] for row in tables["Training step"]] == ["focal + GIoU", "CE + GIoU"]
    for row in tables["Going over to another loss"]:
        assert row["compilations"] == 0 and row["as code: compile, s"] > 0.1
    assert all(row["ratio"] > 0 for row in tables["Training step"]) and "as data, MiB" in done.stdout


@pytest.mark.slow
def test_screening(tmp_path):
    done, tables = benchmark(tmp_path / "out.json", "--suite=screening")
    assert done.returncode == 0, done.stderr
    rates = {row["engine"]: row for row in tables["Candidates per second, judged in float64"]}
    assert rates["ours: end to end, coarse to fine"]["per second"] > 0
    peer = rates["DEAP + PyTorch, one at a time"]
    assert peer["per second"] or "pip install" in peer["note"]


@pytest.mark.slow
def test_screening_beside_its_peers(tmp_path):
    for package in ("deap", "torch", "kozax"):
        need(package)
    _, tables = benchmark(tmp_path / "out.json", "--suite=screening")
    rates = {row["engine"]: row for row in tables["Candidates per second, judged in float64"]}
    peers = [row for engine, row in rates.items() if not engine.startswith("ours")]
    assert len(peers) >= 3 and all(row["per second"] > 0 and not row["note"].startswith("not inst") for row in peers)
    assert rates["DEAP + PyTorch, one at a time"]["same verdicts"] == "16 of 16"


@pytest.mark.slow
def test_simulation(tmp_path):
    done, tables = benchmark(tmp_path / "out.json", "--suite=simulation")
    assert done.returncode == 0, done.stderr
    simulated, tried, together = tables.values()
    assert [row["space"] for row in simulated] == ["box"] and simulated[0]["per second"] > 0
    assert [row["at once"] for row in tried] == [4, 1, 1]
    for row in tried:
        assert row["ratio"] == pytest.approx(row["ours"] / row["one at a time, compiled for each"])
    assert all(0.0 <= row["idle"] <= 1.0 for row in tried[:2])
    assert [row["detectors"] for row in together] == [1] and together[0]["memory, MiB"] > 0


@pytest.mark.slow
def test_detectors(tmp_path):
    done, tables = benchmark(tmp_path / "out.json", "--suite=detectors")
    assert done.returncode == 0, done.stderr
    speed, memory, shares = tables.values()
    works = [(name, work) for name in ("fasterrcnn", "fcos") for work in ("inference", "training step")]
    for rows in (speed, memory):
        assert [(row["detector"].removesuffix("_resnet50_fpn"), row["work"]) for row in rows] == works
    for row in speed:
        assert row["ours"] > 0 and row["ours: compile, s"] > 0
        assert row["torchvision is"] == "not installed" or row["ours / torchvision"] > 0
    assert all(row["ours, compiled"] > 0 for row in memory)
    assert all(row["ms"] > 0 and row["share"] > 0 for row in shares)
    assert {row["part"] for row in shares} >= {"NMS", "RoIAlign", "assignment", "loss"}


def test_unknown_suites_are_refused(tmp_path):
    done, _ = benchmark(tmp_path / "out.json", "--suite=speed")
    assert done.returncode != 0 and "losses" in done.stderr + done.stdout
