"""What the README shows works as it stands there."""

import ast
import pathlib
import re

import pytest
from extras import need

import cse_jax

pytestmark = pytest.mark.computes
README = (pathlib.Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def imports_of(block):
    return "\n".join(
        ast.unparse(node) for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)
    )


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_imports_of_examples(block):
    if "matplotlib" in block:
        need("matplotlib")
    exec(imports_of(block), {})


@pytest.mark.slow
def test_the_example_of_the_public_functions(tmp_path, monkeypatch, capsys):
    need("matplotlib").use("agg")
    (block,) = (block for block in BLOCKS if "cse_jax.screen(" in block)
    assert len([line for line in block.splitlines() if line]) <= 25 and max(map(len, block.splitlines())) <= 120
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "losses.png").stat().st_size > 10_000
    assert names["screened"].counts()["generated"] == 100_000 and names["screened"].survivors
    assert abs(names["shift"]) < 0.5 < 12.0, "the found loss moves the box onto its target"
    assert "generated" in capsys.readouterr().out


def test_the_public_names_are_there_and_documented():
    for name in cse_jax.__all__:
        assert getattr(cse_jax, name).__doc__, name
    for name in ("parse", "simplify", "export", "evaluate", "verify", "simulate", "screen", "losses", "operators"):
        assert name in cse_jax.__all__
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        cse_jax.serach  # noqa: B018


def test_formulas_take_the_symbols_that_they_print():
    loss = cse_jax.parse("Sub(1,Div(I,U))", cse_jax.spaces.BOX)
    assert str(loss) == "1 - i / u"
    assert cse_jax.evaluate(loss, {"i": 1.0, "u": 4.0}) == cse_jax.evaluate(loss, {"I": 1.0, "U": 4.0}) == 0.75
    with pytest.raises(cse_jax.InputError, match="u"):
        cse_jax.evaluate(loss, {"i": 1.0})
