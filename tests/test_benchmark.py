"""The benchmarks run, in their smallest size; what they print is no claim here."""

import json
import re
import subprocess
import sys

import pytest
from extras import need
from scripts import ROOT, functions, run, start

from benchmarks import accelerator, input_pipeline
from benchmarks.report import Report


def benchmark(path, *flags, alone=False):
    """Runs a suite, alone in a process if it changes what others in this one need; exit code, output and tables."""
    command = ["benchmark", "--size=smallest", "--rounds=1", f"--json={path}", *flags]
    code, output = start(*command).finish(timeout=600) if alone else run(*command)
    found = json.loads(path.read_text()) if path.exists() else {"planned": {}, "tables": {}}
    for title, names in found["planned"].items():
        assert len(found["tables"][title]) == len(names), output
    return code, output, found["tables"]


@pytest.mark.slow
def test_losses(tmp_path):
    code, output, tables = benchmark(tmp_path / "out.json", "--suite=losses")
    assert code == 0, output
    assert [row["loss"] for row in tables["Training step"]] == ["focal + GIoU"]
    for row in tables["Going over to another loss"]:
        assert row["compilations"] == 0 and row["as code: compile, s"] > 0.1
    assert all(row["ratio"] > 0 for row in tables["Training step"]) and "as data, MiB" in output


@pytest.fixture(scope="module")
def rates(tmp_path_factory):
    """What the suite of screening measures, by engine."""
    code, output, tables = benchmark(tmp_path_factory.mktemp("screening") / "out.json", "--suite=screening")
    assert code == 0, output
    return {row["engine"]: row for row in tables["Candidates per second, judged in float64"]}


@pytest.mark.slow
def test_screening(rates):
    assert rates["ours: end to end, coarse to fine"]["per second"] > 0
    peer = rates["DEAP + PyTorch, one at a time"]
    assert peer["per second"] or "pip install" in peer["note"]


@pytest.mark.slow
def test_screening_beside_its_peers(rates):
    for package in ("deap", "torch", "kozax"):
        need(package)
    peers = [row for engine, row in rates.items() if not engine.startswith("ours")]
    assert len(peers) >= 3 and all(row["per second"] > 0 and not row["note"].startswith("not inst") for row in peers)
    assert rates["DEAP + PyTorch, one at a time"]["same verdicts"] == "16 of 16"


@pytest.mark.slow
def test_simulation(tmp_path):
    code, output, tables = benchmark(tmp_path / "out.json", "--suite=simulation")
    assert code == 0, output
    simulated, tried, together = tables.values()
    assert [row["space"] for row in simulated] == ["box"] and simulated[0]["per second"] > 0
    assert [row["at once"] for row in tried] == [4]
    for row in tried:
        assert row["ratio"] == pytest.approx(row["ours"] / row["one at a time, compiled for each"])
    assert all(0.0 <= row["idle"] <= 1.0 for row in tried)
    assert [row["detectors"] for row in together] == [1] and together[0]["memory, MiB"] > 0


@pytest.mark.slow
def test_detectors(tmp_path):
    code, output, tables = benchmark(tmp_path / "out.json", "--suite=detectors", alone=True)  # registers operators
    assert code == 0, output
    speed, memory, shares = tables.values()
    assert {row["precision"] for row in speed} == {"float32"}
    works = [("fasterrcnn", work) for work in ("inference", "training step")]
    for rows in (speed, memory):
        assert [(row["detector"].removesuffix("_resnet50_fpn"), row["work"]) for row in rows] == works
    for row in speed:
        assert row["ours"] > 0 and row["ours: compile, s"] > 0
        assert row["torchvision is"] == "not installed" or row["ours / torchvision"] > 0
    assert all(row["ours, compiled"] > 0 for row in memory)
    assert all(row["ms"] > 0 and row["share"] > 0 for row in shares)
    assert {row["part"] for row in shares} >= {"NMS", "RoIAlign", "assignment", "loss"}


def test_accelerator_gathers_what_the_suites_have_measured(tmp_path):
    """Its own process, in which JAX would find no device, starts those that measure."""
    (tmp_path / "suite.py").write_text(
        """
import json, os, sys, time
flags = dict(argument.removeprefix("--").split("=") for argument in sys.argv[1:])
assert flags["size"] == "smallest" and flags["rounds"] == "3" and os.environ["JAX_COMPILATION_CACHE_DIR"]
suite, found = flags["suite"], {"planned": {}, "notes": [], "tables": {}}
if suite != "detectors":
    found["planned"] = {f"Times of {suite}": ["a", "b"][: 1 if suite == "scaling" else 2], f"Memory of {suite}": ["c"]}
    found["tables"] = {f"Times of {suite}": [{"loss": "a|b", "ms": 1.5}]}
if suite == "scaling":
    found["tables"]["Memory of scaling"] = [{"MiB": 7}]
open(flags["json"], "w").write(json.dumps(found))
if suite == "losses":
    time.sleep(60)
if suite == "detectors":
    sys.exit("no memory\\nleft")
"""
    )
    code = f"""
import os, pathlib, sys
os.environ["JAX_PLATFORMS"] = "nowhere"
import jax
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, "launch")
sys.argv = ["benchmark.py", "--suite=accelerator", "--size=smallest", "--markdown={tmp_path}/section.md"]
import benchmark
from benchmarks import accelerator
accelerator._BENCHMARK = pathlib.Path("{tmp_path}/suite.py")
accelerator._PARTS = {{"losses": 3, "scaling": 60, "detectors": 60}}
benchmark.script.run(benchmark.main)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    section = (tmp_path / "section.md").read_text()
    assert section.startswith("## cpu\n\naccelerator, size smallest, 3 rounds; cpu (")
    for suite in ("scaling", "losses"):
        assert f"**Times of {suite}**\n\n| loss | ms |\n| --- | --- |\n| a\\|b | 1.5 |\n" in section
    missing = re.sub(r"\d+ s\b", "N s", section[section.index("**Not measured**") :]).splitlines()
    assert missing[2:] == [
        "| table | rows | why |",
        "| --- | --- | --- |",
        "| Times of losses | b | suite losses: ended at its limit of N s |",
        "| Memory of losses | c | suite losses: ended at its limit of N s |",
        "| all of the suite detectors | all | suite detectors: failed after N s with exit status 1: no memory left |",
    ]


def test_the_parts_of_the_accelerators_suite_fit_its_time():
    assert accelerator._PARTS.keys() <= functions("benchmark")["SUITES"].keys()
    assert sum(accelerator._PARTS.values()) <= accelerator._SECONDS


def test_strategies(tmp_path):
    code, output = run("benchmark", "--suite=strategies", "--rounds=1", f"--table={tmp_path / 'none.parquet'}")
    assert code == 1 and "none.parquet is not a table" in output and "Traceback" not in output


def test_unknown_suites_are_refused():
    code, output = run("benchmark", "--suite=speed")
    assert code != 0 and "losses" in output


def measured_input():
    report = Report({}, print)
    input_pipeline.measure(report, size="smallest", rounds=1)
    ((row,),) = report.tables.values()
    assert row["by"] == "2 threads" and row["ours"] > 0
    return row


def test_input_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.torch_loader", None)
    row = measured_input()
    assert row["torch's DataLoader"] is None and "torch is not installed" in row["note"]


@pytest.mark.slow
def test_input_beside_torch():
    need("torch")
    row = measured_input()
    assert row["its processes"] == 2 and row["ours / torch's"] == row["ours"] / row["torch's DataLoader"] > 0


def test_convolutions(tmp_path):
    code, output, tables = benchmark(tmp_path / "out.json", "--suite=convolutions")
    assert code == 0, output
    assert [title.removeprefix("Convolutions: ") for title in tables] == [
        "forward",
        "gradient in images",
        "gradient in kernel",
    ]
    assert all(row["ours, ms"] > 0 and row["ratio"] > 0 for rows in tables.values() for row in rows)


def test_scaling(tmp_path):
    code, output, tables = benchmark(tmp_path / "out.json", "--suite=scaling")
    assert code == 0, output
    cost, threads, busy, stages = tables.values()
    assert all(row["each, ms"] > 0 for row in cost) and threads[0]["per second"] <= threads[0]["ideal"]
    for row in busy:
        assert 0 < row["1000 workers"] <= row["1 workers"] <= 1.0
    assert all(row["1000 workers"] < row["1 workers"] for row in stages), "a stage has fewer trainings than workers"


@pytest.mark.slow
def test_analysis(tmp_path):
    code, output, tables = benchmark(tmp_path / "out.json", "--suite=analysis")
    assert code == 0, output
    memory, estimates, instructions = tables.values()
    assert memory[0]["fits"] == "yes" and 0.0 < memory[0]["temporaries"] < memory[0]["total"] <= memory[0]["budget"]
    assert estimates[0]["GFLOP"] > 0.0 and estimates[0]["H100, at least, ms"] > 0.0
    assert [row["pass"] for row in instructions] == ["forward", "backward"]
    assert all(row[kind] > 5 * row[f"{kind} of one"] for row in instructions for kind in ("FLOP", "transcendentals"))
