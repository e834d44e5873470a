"""A discovered loss as a folder to hand on."""

import json
import runpy
import sys

import pytest
import recorded_searches
from scripts import run

from cse_jax import export
from cse_jax.language import spaces, zoo
from cse_jax.reporting import loss_package


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    recorded_searches.write(folder)
    return folder


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """A package's modules are forgotten after its test."""
    for name in ("loss_numpy", "loss_jax", "loss_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)


def test_the_script_writes_a_package_that_passes_its_test(folder, tmp_path, monkeypatch):
    out = tmp_path / "box_loss"
    code, output = run("export", f"--workdir={folder}", "--space=box", f"--out={out}")
    assert code == 0, output
    names = {path.name for path in out.iterdir()}
    assert {*loss_package.FILES.values(), "README.md", "test_loss.py", "points.json"} <= names
    readme = (out / "README.md").read_text()
    result = json.loads((folder / "result.json").read_text())
    best = result["hall_of_fame"]["box"]["entries"][0]
    assert best["text"] in readme and f"by seed: {best['aps'][0]:.4f} {best['aps'][1]:.4f}" in readme
    assert result["conclusion"] in readme and "partly luck" in readme
    runpy.run_path(str(out / "test_loss.py"))["test_numpy"](monkeypatch)
    points = json.loads((out / "points.json").read_text())
    points["values"][-1] *= 1.001
    (out / "points.json").write_text(json.dumps(points))
    with pytest.raises(AssertionError):
        runpy.run_path(str(out / "test_loss.py"))["test_numpy"](monkeypatch)


@pytest.mark.parametrize(
    ("name", "space"), [("A_cls", spaces.MULTI_CLASS), ("B_cls", spaces.BINARY_CLASS), ("B_reg", spaces.BOX)]
)
def test_known_losses_pass_the_test_of_their_package(name, space, tmp_path, monkeypatch):
    row = {"proxy": 0.4, "aps": "[0.4]", "weight": 1.0, "branch": space.name, "authors": ""}
    loss = export.prepare(zoo.find(name, space), simplified=False)
    loss_package.write(tmp_path / "loss", loss, row, None, units=space.units[0])
    runpy.run_path(str(tmp_path / "loss" / "test_loss.py"))["test_numpy"](monkeypatch)
    assert "has not come to its end" in (tmp_path / "loss" / "README.md").read_text()


def test_a_loss_that_was_not_compared_says_so(folder, tmp_path):
    out = tmp_path / "second"
    code, output = run("export", f"--workdir={folder}", "--space=box", "--rank=2", f"--out={out}", "--nosimplify")
    assert code == 0, output
    assert "not in the pair that the search compares" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--space=box"], "is no empty folder; choose another --out"),
        ([], "--out is for one loss: choose --space=binary_class or --space=box"),
        (["--space=box", "--format=jax"], "--out writes all formats"),
    ],
)
def test_bad_input_is_named(folder, arguments, said):
    code, output = run("export", f"--workdir={folder}", f"--out={folder}", *arguments)
    assert code == 1 and said in output and "Traceback" not in output, output
