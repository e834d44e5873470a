"""The loss language against golden values, and the parser against whatever can be typed."""

import dataclasses
import functools
import itertools
import json
import pickle
import random

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from populations import descendants, random_expressions

import cse_jax
from cse_jax.errors import InputError
from cse_jax.language import branching, interpreter, operators, selecting, tiling, zoo
from cse_jax.language import graph as graphs
from cse_jax.language import program as programs
from cse_jax.language.canonical import canonical
from cse_jax.language.expression import Expression
from cse_jax.language.operators import OPERATORS, Operator
from cse_jax.language.population import decode, encode, hashes
from cse_jax.language.spaces import SPACES
from cse_jax.sampling.random_trees import Shape
from cse_jax.sampling.variation import MUTATIONS, crossover, mutate, offspring
from cse_jax.screening.verification import Property

ALL_SPACES = pytest.mark.parametrize("space", SPACES.values(), ids=str)


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def pool(space):
    """Random formulas, the shortest first."""
    return sorted(random_expressions(space, 4096, shape=Shape(min_height=0, max_height=7)), key=len)


@pytest.fixture(scope="module", autouse=True)
def filled_pools(float64):
    """Beartype's checks draw random numbers, which hypothesis forbids within strategies."""
    for space in SPACES.values():
        pool(space)


@st.composite
def expressions(draw):
    """Random formulas of any space."""
    formulas = pool(draw(st.sampled_from(list(SPACES.values()))))
    return formulas[draw(st.integers(0, len(formulas) - 1))]


def inputs_for(space, rng):
    """Random inputs as a detector would feed them."""
    if space.name == "box":
        intersection = rng.uniform(0.0, 50.0, 9)
        union = intersection + rng.uniform(0.1, 50.0, 9)
        return {"I": intersection, "U": union, "E": union + rng.uniform(0.0, 50.0, 9)}
    logits = rng.normal(0.0, 3.0, (6, 4))
    labels = np.eye(4)[rng.integers(0, 4, 6)]
    iou = np.broadcast_to(rng.uniform(0.1, 1.0, (6, 1)), labels.shape)
    values = {"X": logits, "Y": labels, "Z": iou, "Q": iou * labels, "PY": labels, "NY": 1.0 - labels}
    return {v.name: values[v.name] for v in space.variables}


def golden_cases(golden):
    for name, space in SPACES.items():
        for case in golden[name]["cases"]:
            yield space, case


def compared(entries, shape):
    """Golden numbers, and where they are to be compared; a null stands for a value that is not finite."""
    flat = np.array(entries, dtype=object).reshape(-1)
    skip = np.array([entry == "skip" for entry in flat])
    numbers = np.array([np.nan if entry is None or entry == "skip" else entry for entry in flat], float)
    return numbers.reshape(shape), ~skip.reshape(shape)


def agree(ours, golden, where):
    finite = np.isfinite(golden)
    close = np.isclose(ours, golden, rtol=1e-7, atol=1e-9) | (~finite & ~np.isfinite(ours))
    return bool((close | ~where).all())


@ALL_SPACES
def test_golden_values_and_gradients(space, golden):
    """The tolerance is the golden file's own: 1e-7 relative plus 1e-9 absolute."""
    inputs = {name: jnp.asarray(value) for name, value in golden[space.name]["inputs"].items()}
    moving_names = golden[space.name]["grad_wrt"]
    assert len(golden[space.name]["cases"]) == 60

    @jax.jit
    def compiled(program, moving):
        return interpreter.evaluate(space, program, inputs | moving)

    compiled_gradient = jax.jit(jax.grad(lambda moving, program: compiled(program, moving).sum()))
    for case in golden[space.name]["cases"]:
        expression = cse_jax.parse(case["formula"], space)
        moving = {name: inputs[name] for name in moving_names}
        shape = tuple(case["shape"])
        value, where = compared(case["value"], shape)
        traced = expression.evaluate(inputs)
        assert agree(np.asarray(traced).reshape(shape), value, where), case["formula"]
        per_row = np.asarray(compiled(programs.compile_expression(expression), moving))
        if space.class_axis:
            per_row, value = per_row.sum(-1), value.sum(-1) if value.ndim == 2 else value
        assert agree(per_row, value, np.isfinite(value)), case["formula"]
        gradients = jax.grad(lambda moving, e=expression: e.evaluate(inputs | moving).sum())(moving)
        from_program = compiled_gradient(moving, programs.compile_expression(expression))
        for name, entries in zip(moving_names, case["grad"], strict=True):
            expected, where = compared(entries, inputs[name].shape)
            assert agree(np.asarray(gradients[name]), expected, where), (case["formula"], name)
            assert agree(np.asarray(from_program[name]), expected, where), (case["formula"], name)


@ALL_SPACES
def test_published_losses_survive_both_notations(space):
    for expression in zoo.known(space).values():
        assert cse_jax.parse(str(expression), space) == expression
        assert cse_jax.parse(cse_jax.to_authors(expression), space) == expression


def test_published_strings_are_verbatim():
    text = "Neg(Dot(Mul(Y,Add(1,Sin(Z))),Log(Softmax(X))))"
    assert cse_jax.to_authors(zoo.published(cse_jax.spaces.MULTI_CLASS)["A_cls"]) == text
    assert str(cse_jax.parse(text, cse_jax.spaces.MULTI_CLASS)) == "-dot(y * (1 + sin(w)), log(softmax(x)))"


@hypothesis.given(expressions())
def test_printing_reads_back(expression):
    assert cse_jax.parse(str(expression), expression.space) == expression
    assert cse_jax.parse(cse_jax.to_authors(expression), expression.space) == expression


@hypothesis.given(expressions())
def test_canonical_form_is_idempotent_and_no_longer(expression):
    once = canonical(expression)
    assert canonical(once) == once
    assert len(once) <= len(expression) + sum(token in ("Sub", "Neg", "Add") for token in expression.tokens)


@hypothesis.given(expressions(), st.randoms(use_true_random=False))
def test_canonical_form_ignores_operand_order(expression, rng):
    def swapped(name, *operands):
        order = operands[::-1] if name in ("Add", "Mul", "Dot") and rng.random() < 0.5 else operands
        return (name, *sum(order, ()))

    other = Expression(expression.fold(lambda token: (token,), swapped), expression.space)
    assert canonical(other) == canonical(expression)


@hypothesis.given(expressions(), st.integers(0, 2**31))
def test_canonical_form_keeps_the_value(expression, seed):
    """Regrouping sums changes rounding only: compared where terms don't cancel to less than 1e-6 of their size."""
    inputs = inputs_for(expression.space, np.random.default_rng(seed))
    before, after = (np.asarray(e.evaluate(inputs)) for e in (expression, canonical(expression)))
    usual = np.isfinite(before) & (np.abs(before) < 1e6)
    hypothesis.assume(not _near_a_pole(expression, inputs))
    np.testing.assert_allclose(after[usual], before[usual], rtol=1e-6, atol=1e-6)


def _near_a_pole(expression, inputs):
    """Whether a divisor, logarithm or square root sees a value so small that rounding decides the result."""
    small = []

    def node(name, *operands):
        watched = {"Div": operands[-1:], "Log": operands, "Sqrt": operands}.get(name, ())
        small.extend(bool((np.abs(np.asarray(value)) < 1e-6).any()) for value in watched)
        large = {"Exp", "Sin", "Cos"}
        small.extend(bool((np.abs(np.asarray(operands[0])) > 1e3).any()) for _ in [0] if name in large)
        return OPERATORS[name].fn(*operands)

    shape = next(iter(inputs.values())).shape
    arrays = {name: jnp.asarray(value) for name, value in inputs.items()}
    expression.fold(lambda token: arrays[token] if token in arrays else jnp.full((*shape[:-1], 1), float(token)), node)
    return any(small)


@hypothesis.given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text):
    for space in SPACES.values():
        try:
            assert isinstance(cse_jax.parse(text, space), Expression)
        except cse_jax.FormulaError as error:
            assert 0 <= error.position <= len(text)


@pytest.mark.parametrize(
    "text", ["(" * 50_000, "(" * 5_000, "-" * 15_000 + "x", "log(" * 3_000, "x" + "+x" * 9_000, "exp(x))" * 900]
)
def test_large_text_neither_hangs_nor_overflows(text):
    try:
        cse_jax.parse(text, cse_jax.spaces.BINARY_CLASS)
    except cse_jax.FormulaError as error:
        assert "character" in str(error)


@pytest.mark.parametrize(
    ("text", "position", "hint"),
    [
        ("log(sigmod(x))", 4, "did you mean 'sigmoid'"),
        ("Neg(Lg(X))", 4, "did you mean 'Log'"),
        ("x + z", 4, "no variable 'z'"),
        ("x + 4", 4, "constant 4 is not in space"),
        ("log(x", 5, "not closed"),
        ("log(x, y)", 0, "takes 1 operand, found 2"),
        ("x y", 2, "expected an operator"),
        ("x +", 3, "ends where an operand is expected"),
        ("", 0, "ends where an operand is expected"),
        ("x $ y", 2, "unexpected character"),
        ("log", 0, "needs its operands"),
        ("x(y)", 0, "is a variable"),
        ("__import__('os')", 0, "no operator '__import__'|unexpected character"),
    ],
)
def test_errors_name_position_and_remedy(text, position, hint):
    with pytest.raises(cse_jax.FormulaError, match=hint) as error:
        cse_jax.parse(text, cse_jax.spaces.BINARY_CLASS)
    if "__" not in text:
        assert error.value.position == position


def test_a_formula_of_another_space_is_refused():
    with pytest.raises(cse_jax.FormulaError, match="space box has no operator 'softmax'"):
        cse_jax.parse("softmax(i)", cse_jax.spaces.BOX)
    with pytest.raises(cse_jax.FormulaError, match="space binary_class has no variable 'i'"):
        cse_jax.parse("1 - i / u", cse_jax.spaces.BINARY_CLASS)


@ALL_SPACES
def test_missing_inputs_are_named(space):
    with pytest.raises(InputError, match=f"needs the inputs .*'{space.variables[0].symbol}'.*; given were"):
        zoo.default(space).evaluate({})


def test_tokens_must_form_one_formula():
    space = cse_jax.spaces.BOX
    for tokens in (("Add", "I"), ("I", "I"), ("Softmax", "I"), ()):
        with pytest.raises(ValueError, match="lacks|after the end|not part"):
            Expression(tokens, space)


WAYS = {"branching": branching, "selecting": selecting}


def run_in(module, monkeypatch):
    """Has what is traced from now on run in one of the ways."""
    monkeypatch.setattr(interpreter, "_way", lambda: module)
    monkeypatch.setattr(selecting, "BRANCHING", 0)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Both ways to run a program: that of a CPU and that of an accelerator."""
    run_in(WAYS[request.param], monkeypatch)
    return WAYS[request.param]


def ways(space, inputs, monkeypatch):
    """Value and gradients of a program as a function compiled for each way to run it."""
    runs = []
    for module in WAYS.values():
        run_in(module, monkeypatch)
        runs.append(jax.jit(lambda program: interpreter.value_and_gradients(space, program, inputs)))
        runs[-1](programs.compile_expression(cse_jax.parse("1", space)))  # all programs have its shape
    return runs


@pytest.mark.slow
def test_an_accelerator_branches_for_a_single_program(monkeypatch):
    space, rng = cse_jax.spaces.MULTI_CLASS, np.random.default_rng(2)
    program = programs.compile_expression(zoo.find("A_cls", space))
    inputs = {v.name: jnp.asarray(rng.uniform(0.1, 1.0, (5, 7, 4))) for v in space.variables}
    answers = []
    for module in (branching, selecting):
        monkeypatch.setattr(interpreter, "_way", lambda module=module: module)
        answers.append(interpreter.value_and_gradients(space, program, inputs))
        answers.append(jax.vmap(lambda i: interpreter.value_and_gradients(space, program, i))(inputs))
    for other in answers[1:]:
        jax.tree.map(np.testing.assert_array_equal, answers[0], other)
    text = str(jax.make_jaxpr(lambda i: interpreter.value_and_gradients(space, program, i))(inputs))
    assert "cond[" in text


@pytest.mark.slow
@ALL_SPACES
def test_programs_equal_traced_formulas(space, monkeypatch):
    """Both ways to run them. 1e-9 relative leaves room for another order of operations in float64.

    Compared are the entries that float64 determines: finite in value and gradient, the same when the inputs change in
    their 15th digit, without a square root of almost 0, and with no part above 1e15, as what is divided by 0 has.
    """
    inputs = {name: jnp.asarray(value) for name, value in inputs_for(space, np.random.default_rng(0)).items()}
    runs = ways(space, inputs, monkeypatch)
    shape = Shape(min_height=0, max_height=12, max_nodes=64)
    formulas = sorted(random_expressions(space, 200, shape=shape), key=len)[3::4]
    assert max(map(len, formulas)) > 60 and max(f.height for f in formulas) > 10
    noise = np.random.default_rng(1)
    off = {
        n: np.stack([a * (1.0 + 4e-15 * noise.choice([-1.0, 1.0], a.shape)) for _ in range(4)])
        for n, a in inputs.items()
    }
    with_nearby = {n: jnp.concatenate([a[None], off[n]]) for n, a in inputs.items()}
    checked = 0
    for expression in formulas:
        determined = _determined(expression, inputs)
        expected, expected_gradients = _traced(expression, with_nearby)
        for run in runs:
            value, gradients = run(programs.compile_expression(expression))
            if space.class_axis and _narrow(expression):
                value = value.sum(-1, keepdims=True)
            of_each = [(gradients[n], expected_gradients[n]) for n in space.differentiable]
            for ours, theirs in [(value, expected), *of_each]:
                stable = np.isfinite(theirs[0]) & (np.abs(theirs[0]) < 1e12) & determined
                stable &= np.isclose(theirs[1:], theirs[0], rtol=1e-11, atol=1e-14).all(0)
                np.testing.assert_allclose(np.asarray(ours)[stable], theirs[0][stable], rtol=1e-9, atol=1e-12)
                checked += stable.mean() / (1 + len(space.differentiable)) / len(runs)
    assert checked > 32


def _traced(expression, inputs):
    moving = {name: inputs[name] for name in expression.space.differentiable}
    value, pullback = jax.vjp(lambda moving: expression.evaluate(inputs | moving), moving)
    return jax.device_get((value, pullback(jnp.ones_like(value))[0]))


def _determined(expression, inputs):
    """By row, and by class where no operator joins them."""
    good = [np.ones(next(iter(inputs.values())).shape, bool)]

    def node(name, *operands):
        value = OPERATORS[name].fn(*operands)
        good.append(~(np.abs(value) > 1e15) & np.isfinite(value))
        if name == "Sqrt":
            good.append(np.asarray(operands[0]) > 1e-12)
        return value

    expression.fold(lambda token: inputs[token] if token in inputs else jnp.full((1,), float(token)), node)
    everywhere = functools.reduce(np.logical_and, good)
    joined = any(OPERATORS[token].class_axis for token in expression.tokens if token in OPERATORS)
    return everywhere.all(-1, keepdims=True) if joined else everywhere


@ALL_SPACES
def test_a_formula_travels_without_what_was_derived_from_it(space):
    expression = zoo.default(space)
    fresh = pickle.dumps(Expression(expression.tokens, space))
    cse_jax.verify([expression], space)
    assert expression.height and space.table
    used = pickle.dumps(expression)
    assert len(used) <= len(fresh) < 5_000 and pickle.loads(used) == expression


def _narrow(expression):
    return not bool(programs.compile_expression(expression).wide)


def test_tiles_and_cotangents_don_t_change_the_gradient(monkeypatch, way):
    """Inputs that don't fill the last tile, and a cotangent that differs along the class axis of a softmax."""
    space = cse_jax.spaces.BINARY_CLASS
    monkeypatch.setattr(branching, "TILE", 20)
    monkeypatch.setattr(tiling, "BUDGET", 20_000)
    rng = np.random.default_rng(0)
    inputs = {v.name: jnp.asarray(rng.uniform(0.1, 1.0, (3, 7, 4))) for v in space.variables}
    expression = cse_jax.parse("y * log(softmax(x)) + q * exp(x) / (1 + sigmoid(x))", space)
    cotangent = jnp.asarray(rng.normal(size=(3, 7, 4)))

    def traced(x):
        return expression.evaluate(inputs | {"X": x})

    def as_data(x):
        return interpreter.evaluate(space, programs.compile_expression(expression), inputs | {"X": x})

    (value, gradient), (expected, expected_gradient) = (
        (out, pullback(cotangent)[0]) for out, pullback in (jax.vjp(fn, inputs["X"]) for fn in (as_data, traced))
    )
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9)


@pytest.mark.parametrize("text", ["sqrt(relu(x))", "sqrt(x * y)", "sqrt(ny) + sigmoid(x)", "x * sqrt(ny) / ny"])
def test_gradients_are_finite_where_the_true_gradient_is(text, way):
    """``sqrt`` has an infinite gradient at 0, but each formula is constant or smooth in x here."""
    space = cse_jax.spaces.BINARY_CLASS
    inputs = {"X": jnp.array([-1.0, 2.0]), "PY": jnp.array([0.0, 1.0])}
    inputs |= {"Q": inputs["PY"], "NY": jnp.array([1.0, 0.0]) if "/" not in text else jnp.ones(2)}
    _, gradients = interpreter.value_and_gradients(
        space, programs.compile_expression(cse_jax.parse(text, space)), inputs
    )
    assert np.isfinite(gradients["X"]).all()


def test_logarithms_go_on_where_the_authors_stop(way):
    space, x = cse_jax.spaces.BINARY_CLASS, jnp.float32([[-80.0, 0.0], [17.5, 0.0], [80.0, 0.0]])
    inputs = {v.name: jnp.zeros_like(x) for v in space.variables} | {"X": x}
    run = jax.jit(lambda program: interpreter.value_and_gradients(space, program, inputs))
    for text, reference in (
        ("log(sigmoid(x))", jax.nn.log_sigmoid),
        ("log(1 - sigmoid(x))", lambda x: jax.nn.log_sigmoid(-x)),
        ("log(1 + -sigmoid(x))", lambda x: jax.nn.log_sigmoid(-x)),
        ("log(-sigmoid(x) + 1)", lambda x: jax.nn.log_sigmoid(-x)),
        ("log(softmax(x))", jax.nn.log_softmax),
    ):
        expression = cse_jax.parse(text, space)
        value, gradients = run(programs.compile_expression(expression))
        assert np.isclose(reference(x), -80.0).any()
        np.testing.assert_allclose(value, reference(x), rtol=1e-6, err_msg=text)
        np.testing.assert_allclose(gradients["X"], jax.grad(lambda x, f=reference: f(x).sum())(x), rtol=1e-6)
        np.testing.assert_allclose(expression.evaluate(inputs), reference(x), rtol=1e-6)
        authors, _ = run(programs.compile_expression(expression, stable=False))
        assert np.isclose(authors, np.log(1e-20)).any(), text


def test_no_gradient_out_of_masked_infinities(way):
    """The gradient of sqrt is infinite at 0; a label of 0 in front of it makes the true gradient 0."""
    space = cse_jax.spaces.BINARY_CLASS
    inputs = {"X": jnp.array([-1.0, 2.0]), "PY": jnp.array([0.0, 1.0])}
    inputs |= {"Q": inputs["PY"], "NY": 1.0 - inputs["PY"]}
    program = programs.compile_expression(cse_jax.parse("y * sqrt(relu(x)) + sqrt(ny)", space))
    _, gradients = interpreter.value_and_gradients(space, program, inputs)
    np.testing.assert_allclose(gradients["X"], [0.0, 0.5 / np.sqrt(2.0)])


@ALL_SPACES
def test_a_batch_of_programs_equals_each_alone(space, way):
    """Up to rounding: the code for a batch may order operations otherwise."""
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    inputs = {name: jnp.asarray(value) for name, value in inputs_for(space, np.random.default_rng(1)).items()}
    batch = [programs.compile_expression(expression) for expression in random_expressions(space, 12, seed=1)]

    def both(program):
        gradient = jax.grad(lambda moving: interpreter.evaluate(space, program, inputs | moving).sum())
        return interpreter.evaluate(space, program, inputs), gradient({n: inputs[n] for n in space.differentiable})

    together = jax.jit(jax.vmap(both))(programs.stack(batch))
    for k, program in enumerate(batch):
        alone = jax.jit(both)(program)
        jax.tree.map(lambda a, b: equal(a[k], b), together, alone)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [100, 20_000, 1 << 30])
def test_accelerators_run_a_batch_like_a_cpu(budget, monkeypatch):
    """In parts of programs and elements, nested ``vmap`` of programs, images or both; labels are the same for all.

    1e-12 leaves room for another order of operations.
    """
    space, rng = cse_jax.spaces.MULTI_CLASS, np.random.default_rng(2)
    batch = [programs.compile_expression(expression) for expression in random_expressions(space, 6, seed=3)]
    stacked = jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), programs.stack(batch))
    inputs = {v.name: jnp.asarray(rng.uniform(0.1, 1.0, (5, 7, 4))) for v in space.variables}
    logits = jnp.asarray(rng.normal(size=(2, 5, 7, 4)))

    def both(program, x, inputs):
        value, pullback = jax.vjp(lambda x: interpreter.evaluate(space, program, inputs | {"X": x}), x)
        return value, pullback(jnp.cos(jnp.arange(value.size).reshape(value.shape)))[0]

    over_images = jax.vmap(both, (None, 0, 0))
    over_programs = jax.vmap(over_images, (0, None, None))
    nested = jax.vmap(over_programs, (0, 0, None))
    answers = []
    for module in (branching, selecting):
        monkeypatch.setattr(interpreter, "_way", lambda module=module: module)
        monkeypatch.setattr(tiling, "BUDGET", budget)
        answers.append(jax.jit(nested)(stacked, logits, inputs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), *answers)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@ALL_SPACES
def test_programs_are_lowered_for_accelerators_without_branches(space, platform, monkeypatch):
    monkeypatch.setattr(interpreter, "_way", lambda: selecting)
    programs_of_four = programs.stack([programs.compile_expression(zoo.default(space))] * 4)
    inputs = {v.name: jax.ShapeDtypeStruct((6, 3), jnp.float32) for v in space.variables}
    run = jax.jit(jax.vmap(lambda program, inputs: interpreter.value_and_gradients(space, program, inputs), (0, None)))
    text = jax.export.export(run, platforms=[platform])(programs_of_four, inputs).mlir_module()
    assert "stablehlo.while" in text and "stablehlo.case" not in text


def test_an_accelerator_s_memory_is_bounded(monkeypatch):
    """32 candidates, each with logits of its own, of FCOS on 16 images of 400 x 672 pixels with 80 classes.

    The half beside the budget is what XLA fuses when it optimises, unlike in tests.  Inputs and results, which the
    caller has, are not there once more.
    """
    monkeypatch.setattr(interpreter, "_way", lambda: selecting)
    space, shape = cse_jax.spaces.BINARY_CLASS, (16, 5_600, 80)
    program = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((32, *a.shape), a.dtype), programs.compile_expression(zoo.find("B_cls", space))
    )
    array = jax.ShapeDtypeStruct(shape, jnp.float32)

    def run(program, x, labels):
        inputs = {"X": x, "Q": labels, "PY": labels, "NY": labels}
        return interpreter.value_and_gradients(space, program, inputs)

    compiled = jax.jit(jax.vmap(run, (0, None, None))).lower(program, array, array).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < tiling.BUDGET * 1.6 < memory.output_size_in_bytes


def along_classes(name, arity, fn):
    """A class-axis operator as a user adds it."""
    return Operator(name, name.lower(), arity, fn, sympy=lambda sp, *operands: 0, code="", class_axis=True)


USER_OPERATORS = (
    along_classes("Lse", 1, lambda x: jax.nn.logsumexp(x, -1, keepdims=True)),
    along_classes("Top", 1, lambda x: jnp.max(x, -1, keepdims=True)),
    along_classes("Centred", 1, lambda x: x - jnp.mean(x, -1, keepdims=True)),
    along_classes("Lsm", 1, lambda x: jax.nn.log_softmax(x, -1)),
    along_classes("Apart", 2, lambda a, b: jnp.sum((a - b) ** 2, -1, keepdims=True)),
    along_classes("Shared", 2, lambda a, b: a / (1.0 + jnp.sum(b * b, -1, keepdims=True))),
)


@pytest.fixture
def class_axis_space():
    """A space without Add, Sub and Mul, most of whose operators act along the class axis."""
    before = dict(OPERATORS)
    for operator in USER_OPERATORS:
        operators.add(operator)
    names = ("Neg", "Softmax", "Dot", "Sig", "Tanh", "Softplus", *(operator.name for operator in USER_OPERATORS))
    yield dataclasses.replace(cse_jax.spaces.MULTI_CLASS, operators=names, further_operators=())
    OPERATORS.clear()
    OPERATORS.update(before)


def by_engine(formulas, space, inputs, tangent, monkeypatch):
    """Loss per row, and its derivative along a change of X: traced, by the program in both ways, and by the graph."""
    runs = ways(space, inputs, monkeypatch)
    leaves = graphs.leaf_values(space, np.stack([inputs[v.name] for v in space.variables]))
    change = np.zeros_like(leaves)
    change[space.leaves.index("X")] = tangent
    graph, roots, wide = graphs.from_tokens(encode(formulas, space), space)
    from_graph = jax.device_get(graphs.evaluate(space, graph, roots, leaves, change))
    for k, formula in enumerate(formulas):
        value, derivative = jax.jvp(lambda x, f=formula: f.evaluate(inputs | {"X": x}), (inputs["X"],), (tangent,))
        program = programs.compile_expression(formula)
        assert bool(program.wide) == bool(wide[k]) == (value.shape[-1] > 1)
        yield (
            formula,
            (value.sum(-1), derivative.sum(-1)),
            *((losses.sum(-1), (gradients["X"] * tangent).sum(-1)) for losses, gradients in (r(program) for r in runs)),
            [a[k].sum(-1) if wide[k] else a[k, :, 0] for a in from_graph],
        )


@pytest.mark.slow
def test_engines_agree_on_operators_along_the_class_axis(class_axis_space, monkeypatch):
    """Operands have a class axis, or none (as a dot product), or are one of each."""
    space, rng = class_axis_space, np.random.default_rng(0)
    inputs = {name: jnp.asarray(value) for name, value in inputs_for(space, rng).items()}
    tangent = jnp.asarray(rng.normal(size=inputs["X"].shape))
    texts = [
        f"{row.symbol}({', '.join(operands)})"
        for row in space.table
        if row.class_axis
        for operands in itertools.product(("dot(x, w)", "tanh(x)", "2"), repeat=row.arity)
    ]
    formulas = [cse_jax.parse(text, space) for text in (*texts, *(f"dot({text}, x)" for text in texts))]
    formulas += random_expressions(space, 100, shape=Shape(max_height=5))
    for formula, traced, *others in by_engine(formulas, space, inputs, tangent, monkeypatch):
        for found, expected in itertools.product(others, [traced]):
            for ours, theirs in zip(found, expected, strict=True):
                atol = 1e-12 * (1.0 + np.abs(theirs).max())
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=atol, err_msg=str(formula))


def test_operators_of_a_user_reject_what_is_no_loss_of_one_row(class_axis_space):
    """Over one value per row, a softmax is constant and so is the distance to the mean."""
    for text in ("softmax(dot(y, x))", "centred(dot(y, x))", "lsm(dot(y, x))", "-top(dot(y, x))"):
        verdict = cse_jax.verify([cse_jax.parse(text, class_axis_space)], class_axis_space)[0]
        assert verdict.failed is (Property.RISES if "top" in text else Property.DEPENDS), text


def test_no_gradient_out_of_infinities_without_a_class_axis(monkeypatch):
    """A dot product of two dot products is a product: where it holds 0 times an infinite derivative, that is 0."""
    space = cse_jax.spaces.MULTI_CLASS
    inputs = {"X": jnp.array([[-1.0, -2.0]]), "Y": jnp.array([[0.0, 1.0]]), "Z": jnp.ones((1, 2))}
    formula = cse_jax.parse("dot(sqrt(relu(dot(x, w))), relu(dot(x, w)))", space)
    ((_, _, *others),) = by_engine([formula], space, inputs, jnp.ones((1, 2)), monkeypatch)
    for value, derivative in others:
        assert value == 0.0 and derivative == 0.0


def test_formulas_take_inputs_by_symbol_or_name():
    space = cse_jax.spaces.BOX
    formula = cse_jax.parse("1 - i / u", space)
    by_name, by_symbol = {"I": np.ones(2), "U": np.array([2.0, 4.0])}, {"i": np.ones(2), "u": np.array([2.0, 4.0])}
    for inputs in (by_name, by_symbol, {"I": np.ones(2), "u": by_symbol["u"]}, by_symbol | {"e": np.ones(2, int)}):
        np.testing.assert_allclose(formula.evaluate(inputs), [0.5, 0.75])
    with pytest.raises(InputError, match="'I' is given twice"):
        formula.evaluate(by_symbol | by_name)
    with pytest.raises(InputError, match="no input 'v'; it has i, u, e"):
        formula.evaluate(by_symbol | {"v": np.ones(2)})


def test_too_long_a_formula_names_the_capacity():
    expression = cse_jax.parse("-" * 70 + "x", cse_jax.spaces.BINARY_CLASS)
    with pytest.raises(ValueError, match="70 instructions; the capacity is 64"):
        programs.compile_expression(expression)


@pytest.mark.slow
@ALL_SPACES
def test_variation_keeps_limits_and_seed(space):
    shape = Shape(max_nodes=25, height_limit=7)
    parents = [e for e in zoo.known(space).values() if shape.allows(e)]
    first, second = (descendants(parents, 300, 7, shape) for _ in range(2))
    assert first == second
    assert all(shape.allows(child) and child.variables & set(space.differentiable) for child in first)
    assert len({child.tokens for child in first}) > 150
    assert descendants(parents, 300, 8, shape) != first


def test_offspring_know_their_parents():
    parents = list(zoo.known(cse_jax.spaces.BOX).values())
    rates = {"crossover_rate": 0.3, "mutation_rate": 0.5}
    tokens, origins = offspring(
        jax.random.key(0), encode(parents, cse_jax.spaces.BOX), cse_jax.spaces.BOX, Shape(), 2000, **rates
    )
    kind, mother, father = np.asarray(origins).T
    shares = np.bincount(kind, minlength=3) / 2000
    assert np.allclose(shares, (0.3, 0.5, 0.2), atol=0.1)
    assert (
        ((mother >= 0) == (kind < 2)).all()
        and ((father >= 0) == (kind == 0)).all()
        and (mother != father)[kind < 2].all()
    )
    children = decode(np.asarray(tokens), cse_jax.spaces.BOX)
    first = [(child, parents[m]) for child, k, m in zip(children, kind, mother, strict=True) if k == 1]
    other = [(child, parents[m - 1]) for child, k, m in zip(children, kind, mother, strict=True) if k == 1]
    common = [np.mean([child.tokens[0] == parent.tokens[0] for child, parent in pairs]) for pairs in (first, other)]
    assert common[0] > common[1] + 0.1, "a mutation mostly leaves the root"


@pytest.mark.slow
@ALL_SPACES
def test_crossover_and_mutation_change_the_parent(space):
    mother, father = list(zoo.hand_made(space).values())[:2]
    mothers, fathers = (np.repeat(encode([parent], space), 400, axis=0) for parent in (mother, father))
    crossed = decode(crossover(jax.random.key(3), mothers, fathers, space, Shape()), space)
    assert mother not in crossed and len(set(crossed)) > 20
    parts = _parts(father)
    for child in set(crossed):  # what differs is one sub-formula of the father, unless the mother was mutated
        head = next(k for k, (a, b) in enumerate(zip(child.tokens, mother.tokens, strict=False)) if a != b)
        assert any(_at(child.tokens, start) in parts for start in range(head + 1))
    mutated = decode(mutate(jax.random.key(3), mothers, space, Shape()), space)
    assert mother not in mutated and len(set(mutated)) > 100


def _parts(expression):
    return {_at(expression.tokens, start) for start in range(len(expression))}


def _at(tokens, start):
    """The sub-formula that starts at a token."""
    missing, end = 1, start
    while missing:
        missing += (OPERATORS[tokens[end]].arity if tokens[end] in OPERATORS else 0) - 1
        end += 1
    return tokens[start:end]


@ALL_SPACES
def test_each_kind_of_mutation_does_what_it_says(space):
    """Found by what a child has in common with its parent, a formula with constants and distinct parts."""
    text = {"box": "1 - i / u + exp(e / (u + 2))"}.get(space.name, "w * 2 - dot(x, exp(x) + 1)")
    text = {"binary_class": "q * 2 - y * (exp(x) + 1)"}.get(space.name, text)
    parent = cse_jax.parse(text, space)
    parents = np.repeat(encode([parent], space), 600, axis=0)
    for kind in MUTATIONS:
        children = set(decode(mutate(jax.random.key(0), parents, space, Shape(), kinds=(kind,)), space))
        lengths = {len(child) - len(parent) for child in children}
        changed = [sum(a != b for a, b in zip(child.tokens, parent.tokens, strict=False)) for child in children]
        if kind in ("point", "constant"):
            assert lengths == {0} and set(changed) == {1}
        if kind == "constant":
            assert {t for c in children for t in c.tokens} - set(parent.tokens) <= set(map(str, space.constants))
            assert len(children) == 2 * (len(space.constants) - 1)
        if kind == "hoist":
            own = [set(c.tokens) <= set(parent.tokens) and len(c) < len(parent) for c in children]
            assert np.mean(own) > 0.9  # the others are new, after as many attempts as there may be
        if kind == "wrap":
            assert lengths == {1, 2}
        if kind == "subtree":
            assert min(lengths) < 0 < max(lengths) <= 15


@ALL_SPACES
def test_random_formulas_follow_ramped_half_and_half_growth(space):
    """Against the same law written for one formula at a time."""
    rng, shape = random.Random(0), Shape()
    by_hand = [_grown_by_hand(rng, space, shape) for _ in range(20_000)]
    by_hand = [tokens for tokens in by_hand if set(tokens) & set(space.differentiable)]
    ours = [e.tokens for e in random_expressions(space, 20_000)]
    for share in (
        lambda tokens: len(tokens) / 40,
        lambda tokens: len(tokens) > 20,
        lambda tokens: tokens[0] in ("Add", "Sub", "Mul", "Div", "Dot"),
        lambda tokens: sum(t in space.leaves[: len(space.variables)] for t in tokens) / len(tokens),
        lambda tokens: sum(t in space.leaves[len(space.variables) :] for t in tokens) / len(tokens),
    ):
        one, two = ([share(tokens) for tokens in formulas] for formulas in (ours, by_hand))
        error = np.hypot(np.std(one) / np.sqrt(len(one)), np.std(two) / np.sqrt(len(two)))
        assert abs(np.mean(one) - np.mean(two)) < 5.0 * error
    assert {t for tokens in ours for t in tokens} == {*space.leaves, *space.operators}


def _grown_by_hand(rng, space, shape):
    height, full = rng.randint(shape.min_height, shape.max_height), rng.random() < 0.5
    share = len(space.leaves) / (len(space.leaves) + len(space.operators))
    tokens, pending = [], [height]
    while pending and len(tokens) < shape.max_nodes:
        left = pending.pop()
        if left == 0 or (not full and tokens and rng.random() < share):
            variable = rng.random() < 0.8
            tokens.append(rng.choice(space.variables).name if variable else str(rng.choice(space.constants)))
        else:
            tokens.append(rng.choice(space.operators))
            pending += [left - 1] * OPERATORS[tokens[-1]].arity
    return () if pending else tuple(tokens)


@ALL_SPACES
def test_hashes_are_those_of_the_canonical_form(space):
    """Joined are only formulas whose canonical forms differ by a sign below ``abs`` or in a product."""
    formulas = random_expressions(space, 20_000)[:2000]
    forms = [canonical(e) for e in formulas]
    of_formulas, of_forms = (hashes(encode(each, space), space).tolist() for each in (formulas, forms))
    assert of_formulas == of_forms
    by_hash = {}
    for value, form in zip(of_forms, forms, strict=True):
        by_hash.setdefault(value, set()).add(form)
    joined = [group for group in by_hash.values() if len(group) > 1]
    assert len(by_hash) > 1000 and len(joined) < 10
    inputs = {name: jnp.asarray(value) for name, value in inputs_for(space, np.random.default_rng(0)).items()}
    for group in joined:
        values = [np.asarray(e.evaluate(inputs)) for e in group]
        for value in values[1:]:
            np.testing.assert_allclose(value, values[0], rtol=1e-12)
    other = [cse_jax.parse(text, space) for text in ("1 + 2 - 2", "1", "1 - 2", "2 - 1", "-(2 - 1)")]
    first, *rest, last = hashes(encode(other, space), space).tolist()
    assert len({first, *rest}) == 4 and last == rest[1]


def test_golden_file_is_complete(golden):
    assert sum(1 for _ in golden_cases(golden)) == 180
    assert json.dumps(golden)
