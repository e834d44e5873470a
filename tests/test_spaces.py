"""Spaces and operators as a user adds them: the documented example, and what is refused."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import cse_jax
from cse_jax.atlas.stream import screen_batches
from cse_jax.atlas.survivors import Survivors, read_survivors
from cse_jax.language import operators, spaces, zoo
from cse_jax.language.canonical import canonical
from cse_jax.language.spaces import Path, trajectories

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "centreness.py"


@pytest.fixture
def operator_table(monkeypatch):
    monkeypatch.setattr(operators, "OPERATORS", operators.OPERATORS)
    before = dict(operators.OPERATORS)
    yield
    operators.OPERATORS.clear()
    operators.OPERATORS.update(before)


@pytest.fixture
def centreness(operator_table):
    return spaces.find(str(EXAMPLE))


def run(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_example_screens_its_own_space():
    code, out, err = run(EXAMPLE)
    assert code == 0, err
    assert "CE: passes" in out and "Brier: passes" in out
    assert "random formulas converge" in out and "softplus(x) - t * x" in out


def test_the_example_s_space_is_exported():
    arguments = (f"--space={EXAMPLE}", "--formula=sqr(sigmoid(x) - t)")
    code, out, err = run("launch/export.py", *arguments, "--format=numpy")
    assert code == 0, err
    module = {}
    exec(compile(out, "exported", "exec"), module)
    np.testing.assert_allclose(module["loss"](np.array([0.0, 2.0]), np.array([0.5, 0.0])), [0.0, 0.775803], rtol=1e-5)
    code, _, err = run("launch/export.py", *arguments, "--format=mmdet")
    assert code == 1 and "MMDetection has no loss of space centreness" in err


def test_a_new_operator_and_new_constants_work_throughout(centreness):
    space = centreness
    formula = cse_jax.parse("0.5 * sqr(sigmoid(x) - t)", space)
    assert formula == zoo.find("Brier", space) == cse_jax.parse(cse_jax.to_authors(formula), space)
    x, t = np.array([0.3, -1.0]), np.array([0.2, 0.9])
    with jax.enable_x64(True):
        from cse_jax.language import interpreter, program

        value, gradients = interpreter.value_and_gradients(
            space, program.compile_expression(formula), {"X": jax.numpy.asarray(x), "T": jax.numpy.asarray(t)}
        )
    p = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(value, 0.5 * (p - t) ** 2, rtol=1e-12)
    np.testing.assert_allclose(gradients["X"], (p - t) * p * (1 - p), rtol=1e-12)
    assert not cse_jax.verify([cse_jax.parse("sqr(x - t)", space)], space)[0].passed


def row(**changes):
    fields = {
        "name": "Cube",
        "symbol": "cube",
        "arity": 1,
        "fn": lambda x: x**3,
        "sympy": lambda sp, a: a**3,
        "code": "a**3",
    }
    return operators.Operator(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Log"}, "the name 'Log' is taken"),
        ({"symbol": "exp"}, "the name 'exp' is taken"),
        ({"symbol": "^"}, "is no name; signs can't be added"),
        ({"symbol": "lambda"}, "is no name"),
        ({"arity": 3}, "arity must be 1 or 2"),
        ({"fn": lambda x: x.sum(-1, keepdims=True)}, r"fn makes shape \(2, 1\).*; it must keep the shape"),
        ({"fn": lambda x: x.sum(-1), "class_axis": True}, r"fn makes shape \(2,\).*; it must keep the shape"),
    ],
)
def test_operators_that_can_t_be_read_are_refused(changes, message, operator_table):
    with pytest.raises(ValueError, match=message):
        operators.add(row(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operators": ("Add", "Cube")}, "no operator 'Cube'; add its row"),
        ({"differentiable": ("V",)}, "differentiable .* must be some of"),
        ({"constants": (1, -2)}, "must be above 0"),
        ({"constants": (2, 3)}, "with 1 among them"),
        ({"constants": (1, float("inf"))}, "must be above 0"),
        ({"constants": (1, 2, 1.0)}, "a number twice"),
        ({"variables": (spaces.Variable("I", "i'", "i", ""), *spaces.BOX.variables[1:])}, '"i\'" is no name'),
        ({"operators": ()}, "operators is empty"),
        ({"losses": {}}, "losses is empty"),
        ({"further_operators": ("Dot",)}, "has no class axis"),
    ],
)
def test_malformed_spaces_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(spaces.BOX, **changes)


def test_constants_are_read_as_they_are_printed():
    space = dataclasses.replace(spaces.BINARY_CLASS, constants=(1.0, 2.5, 1e-6, 3e16, 1e300))
    for token in space.leaves:
        for formula in (f"x / {token}", f"Div(X,{token})"):
            read = cse_jax.parse(formula, space)
            assert read.tokens[2] == token and cse_jax.parse(str(read), space) == read
    assert space.leaves[-5:-1] == ("1", "2.5", "1e-06", "3" + 16 * "0")
    stable = cse_jax.parse("log(1 - sigmoid(x))", space).steps()
    assert stable == zoo.find("log(1 - sigmoid(x))", spaces.BINARY_CLASS).steps(), "not rounded"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: dataclasses.replace(p, tangents={}), "nothing moves"),
        (lambda p: dataclasses.replace(p, inputs=dict(p.inputs) | {"W": 1.0}), "inputs must be"),
        (lambda p: dataclasses.replace(p, inputs=dict(p.inputs) | {"U": np.ones(3)}), "U has shape"),
        (lambda p: dataclasses.replace(p, inputs=dict(p.inputs) | {"U": p.inputs["U"] * np.inf}), "U is not finite"),
    ],
)
def test_malformed_paths_are_refused(change, message):
    good = spaces.BOX.paths("pixels")
    bad = dataclasses.replace(spaces.BOX, paths=lambda units: [*good[:2], change(good[2])])
    with pytest.raises(ValueError, match=message) as error:
        trajectories(bad)
    assert isinstance(good[2], Path) and good[2].name in str(error.value)


@pytest.mark.slow
def test_a_space_without_signs_or_sums_is_screened(tmp_path):
    names = ("Sub", "Mul", "Div", "Tanh")
    space = dataclasses.replace(
        spaces.BOX, name="bare", operators=names, further_operators=(), losses={"IoU": "1 - i / u"}, published={}
    )
    screened = cse_jax.screen(space, 20_000)
    assert screened.survivors and not any(candidate.flipped for candidate in screened.candidates)
    survivors = Survivors(tmp_path, space, {"space": space.name})
    survivors.add(next(screen_batches(space, iter([0]), per_operator=1)))
    survivors.flush()
    assert not any(row["flipped"] for row in read_survivors(tmp_path, space))


def test_operands_of_a_user_s_commutative_operator_have_one_order(operator_table):
    larger = {"name": "Larger", "symbol": "larger", "fn": jax.numpy.maximum, "code": "xp.maximum(a, b)"}
    operators.add(row(**larger, arity=2, commutative=True, sympy=lambda sp, a, b: sp.Max(a, b)))
    space = dataclasses.replace(spaces.BOX, further_operators=("Larger",))
    one, other = (cse_jax.parse(text, space) for text in ("larger(i, u)", "larger(u, i)"))
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize("flat", [lambda paths: [], lambda paths: [dataclasses.replace(paths[0], rises=False)]])
def test_a_space_that_would_verify_nothing_is_refused(flat):
    space = dataclasses.replace(spaces.BOX, paths=lambda units: flat(spaces.BOX.paths(units)))
    with pytest.raises(cse_jax.InputError, match="space box has no path that rises"):
        cse_jax.verify([zoo.default(space)], space)


@pytest.mark.parametrize(
    ("text", "message"), [("boxes", "no search space 'boxes'"), ("nowhere.py", "no search space"), ("", "no search")]
)
def test_unknown_spaces_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        spaces.find(text)


def test_a_file_without_a_space_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("SPACE = 3\n")
    with pytest.raises(ValueError, match="defines no SPACE"):
        spaces.find(str(tmp_path / "empty.py"))
