"""What exports say beside the formula: units, balance, normaliser, weight, and what functions of it are."""

import dataclasses
import json

import numpy as np
import pytest
import sympy
from ledgers import with_a_loss
from scripts import run

import cse_jax
import search_run
from cse_jax import export
from cse_jax.export import definitions
from cse_jax.language import operators, spaces, zoo
from detectors.models.atss import atss_tiny
from detectors.models.faster_rcnn import faster_rcnn_tiny
from detectors.models.fcos import fcos_tiny

SOURCES = ("jax", "numpy", "pytorch", "mmdet", "torch_module", "torchvision", "transformers")


def prepared(name, space, **about):
    return export.prepare(zoo.find(name, space), simplified=False, **about)


@pytest.mark.parametrize(
    ("detector", "units", "weight", "normaliser"),
    [
        (faster_rcnn_tiny(), "in pixels", 20.0, "sampled RoIs"),
        (fcos_tiny(), "in strides", 2.0, "points' weights"),
        (atss_tiny(), "in pixels", 4.0, "anchors' weights"),
    ],
    ids=["two-stage", "fcos", "atss"],
)
def test_units_and_weight_are_those_of_the_search_s_detector(tmp_path, detector, units, weight, normaliser):
    """A ledger holds factors on the detector's usual weight, which is 10 in R-CNN."""
    folder = with_a_loss(tmp_path / "run", authors="Sub(1,Div(Sub(I,1),U))")
    config = dataclasses.asdict(search_run.SearchRun(detector=detector))
    (folder / "config.json").write_text(json.dumps(config))
    code, output = run("export", f"--workdir={folder}", "--space=box", "--format=pytorch")
    assert code == 0 and units in output and f"WEIGHT = {weight!r}" in output and normaliser in output, output


def test_a_folder_without_a_known_config_says_what_is_not_known(tmp_path):
    code, output = run("export", f"--workdir={with_a_loss(tmp_path / 'run')}", "--space=box", "--format=pytorch")
    assert code == 0 and "tells no known detector" in output and "WEIGHT = 2.0" in output


@pytest.mark.parametrize("format", SOURCES)
def test_source_says_units_and_balance(format):
    assert "whatever the unit" in export.FORMATS[format](prepared("GIoU", spaces.BOX))
    assert "pixels in R-CNN" in export.FORMATS[format](prepared("A_reg", spaces.BOX))
    assert "in strides" in export.FORMATS[format](prepared("A_reg", spaces.BOX, units="strides"))
    assert "0.25 and" in export.FORMATS[format](prepared("focal", spaces.BINARY_CLASS))
    code = export.FORMATS[format](prepared("CE", spaces.MULTI_CLASS, normaliser="their number"))
    assert "Normaliser: their number." in code and "Units" not in code


@pytest.mark.parametrize(
    ("format", "mark"),
    [
        ("text", "where erf(t) = "),
        ("latex", r"erf}\left(t\right) = "),
        ("mathml", "<mi>erf</mi>"),
        ("pytorch", "where erf(t)"),
    ],
)
def test_functions_of_another_meaning_are_defined_wherever_they_stand(format, mark):
    assert mark in export.FORMATS[format](prepared("B_cls", spaces.BINARY_CLASS))
    assert "where" not in export.FORMATS["text"](prepared("focal", spaces.BINARY_CLASS))


@pytest.mark.parametrize("name", ["Sgdf", "Salf", "Serf", "Serfc"])
def test_definitions_are_what_the_engine_computes(name):
    expression = cse_jax.parse(f"{name}(X)", spaces.BINARY_CLASS)
    ((symbol, form),) = definitions.definitions(expression).items()
    code = export.FORMATS["sympy"](export.prepare(expression))
    module = {}
    exec(code, module)
    for x in (-3.0, -0.5, 0.0, 0.7, 4.0):
        (value,) = expression.evaluate({"x": np.array([x])})
        assert abs(float(form.subs(sympy.Symbol("t", real=True), x)) - float(value)) < 1e-6
        assert abs(float(module["loss"].subs(module["x"], x)) - float(value)) < 1e-6
    assert symbol == operators.OPERATORS[name].symbol
