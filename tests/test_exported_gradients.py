"""Exported code where gradients are in danger: it follows the engine, whose 0 times infinity is 0."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extras import need
from populations import random_expressions

import cse_jax
from cse_jax import export, loss_table
from cse_jax.language import interpreter, spaces, zoo
from cse_jax.language import program as programs
from cse_jax.sampling.random_trees import Shape

FRAMEWORKS = pytest.mark.parametrize("framework", ["jax", "pytorch"])
_run = jax.jit(interpreter.value_and_gradients, static_argnums=0)


def box_inputs():
    """Areas of boxes that are disjoint, equal, touching, within each other and without area, in pixels and strides."""
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4.5], [4, 0, 8, 4], [9, 9, 30, 11], [2, 2, 2, 3], [1, 1, 3, 2]])
    pairs = np.array(list(itertools.product(boxes, boxes)))
    pairs = np.concatenate([pairs, pairs / 8, pairs * 40])
    a, b = pairs[:, 0], pairs[:, 1]
    inner = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0).prod(-1)
    outer = (np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2])).prod(-1)
    own = [(box[:, 2:] - box[:, :2]).prod(-1) for box in (a, b)]
    return {"I": inner, "U": sum(own) - inner + 1e-7, "E": outer + 1e-7}


def logit_inputs(space):
    """Logits up to 80 beside every label, with qualities of 0, 0.4 and 1."""
    logits = np.array(list(itertools.product([-80.0, -3.0, 0.0, 80.0], repeat=3)))
    inputs = []
    for label, quality in itertools.product(range(3), (0.0, 0.4, 1.0)):
        y = np.broadcast_to(np.eye(3)[label], logits.shape)
        w = np.full_like(logits, quality)
        given = {"X": logits, "Y": y, "Z": w} if space.per_row else {"X": logits, "Q": w * y, "PY": y, "NY": 1 - y}
        inputs.append(given)
    return {name: np.concatenate([given[name] for given in inputs]) for name in inputs[0]}


INPUTS = {
    "box": box_inputs(),
    **{s.name: logit_inputs(s) for s in (spaces.MULTI_CLASS, spaces.BINARY_CLASS)},
}


def engine(expression, inputs):
    space = expression.space
    value, gradients = _run(space, programs.compile_expression(expression), inputs)
    return np.asarray(value.sum(-1) if space.per_row else value), {n: np.asarray(g) for n, g in gradients.items()}


def executed(loss, framework):
    """The module that an export is."""
    if framework == "pytorch":
        need("torch")
    return loaded(export.FORMATS[framework](loss))


@functools.cache
def loaded(code):
    module = {}
    exec(compile(code, "exported", "exec"), module)
    return module


def exported(expression, inputs, framework):
    module, space = executed(export.prepare(expression, simplified=False), framework), expression.space
    if framework == "jax":
        moving = {name: inputs[name] for name in space.differentiable}
        value, pullback = jax.vjp(lambda moving: module["loss"](*(inputs | moving).values()), moving)
        return np.asarray(value), {n: np.asarray(g) for n, g in pullback(jnp.ones_like(value))[0].items()}
    torch = need("torch")
    tensors = {n: torch.tensor(np.array(a), requires_grad=n in space.differentiable) for n, a in inputs.items()}
    value = module["loss"](*tensors.values())
    if value.requires_grad:
        value.sum().backward()
    gradients = {n: tensors[n].grad for n in space.differentiable}
    return value.detach().numpy(), {
        n: np.zeros(inputs[n].shape) if g is None else g.numpy() for n, g in gradients.items()
    }


def assert_follows(expression, framework, *, dtype, rtol):
    """Finite wherever the engine is; equal, up to what rounding does to sums of what is large."""
    inputs = {n: a.astype(dtype) for n, a in INPUTS[expression.space.name].items()}
    value, gradients = engine(expression, inputs)
    our_value, our_gradients = exported(expression, inputs, framework)
    for theirs, ours in [(value, our_value), *((gradients[n], our_gradients[n]) for n in gradients)]:
        finite = np.isfinite(theirs)
        ours = np.broadcast_to(ours, theirs.shape)
        assert np.isfinite(ours[finite]).all(), str(expression)
        if rtol:
            atol = 1e-9 + rtol * np.abs(theirs[finite]).max(initial=0.0)
            np.testing.assert_allclose(ours[finite], theirs[finite], rtol, atol, err_msg=str(expression))


@pytest.mark.slow
@FRAMEWORKS
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradients_of_box_losses_are_finite_where_the_engine_s_are(framework, dtype):
    texts = ["log(i / u)", "sqrt(i) / u", "i / i", "sqrt(i * i)", "abs(i - u) / i", "sqrt(abs(e - u))", "i * log(i)"]
    formulas = [cse_jax.parse(text, spaces.BOX) for text in texts]
    formulas += [*zoo.known(spaces.BOX).values(), *random_expressions(spaces.BOX, 30, 11, Shape(max_height=5))]
    with jax.enable_x64(dtype == "float64"):
        for expression in formulas:
            if not {"Sin", "Cos", "Exp"} & set(expression.tokens):  # of 1e6 they are decided by rounding
                assert_follows(expression, framework, dtype=dtype, rtol=1e-6 if dtype == "float64" else 0)


@pytest.mark.slow
@FRAMEWORKS
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("space", [spaces.MULTI_CLASS, spaces.BINARY_CLASS], ids=str)
def test_gradients_of_classification_losses_are_finite_where_the_engine_s_are(space, framework, dtype):
    texts = ["abs(x)", "sqrt(abs(x))", "relu(x) * log(abs(x))", "x / x", "exp(x) * sqrt(softplus(x))"]
    formulas = [cse_jax.parse(text, space) for text in texts]
    formulas += [*zoo.known(space).values(), *random_expressions(space, 20, 12, Shape(max_height=5))]
    with jax.enable_x64(dtype == "float64"):
        for expression in formulas:
            if not {"Softmax", "Div"} <= set(expression.tokens):  # rounding decides whether 1 less a softmax is 0
                assert_follows(expression, framework, dtype=dtype, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("space", spaces.SPACES.values(), ids=str)
@pytest.mark.parametrize("framework", ["jax", "numpy", "pytorch"])
def test_half_precision_is_computed_in_float32(space, framework):
    for expression in zoo.known(space).values():
        module = executed(export.prepare(expression), framework)
        for half in ("float16", "bfloat16"):
            inputs = [jnp.asarray(np.minimum(a, 2e4), half) for a in INPUTS[space.name].values()]
            if framework == "pytorch":
                torch = need("torch")
                inputs = [torch.tensor(np.asarray(a, np.float32)).to(getattr(torch, half)) for a in inputs]
                found, wide = module["loss"](*inputs), module["loss"](*(a.float() for a in inputs))
            else:
                inputs = inputs if framework == "jax" else [np.asarray(a) for a in inputs]
                found, wide = module["loss"](*inputs), module["loss"](*(a.astype(np.float32) for a in inputs))
            assert str(found.dtype).endswith("float32") and (found == wide)[found == found].all()


def test_plain_arithmetic_stays_where_nothing_is_infinite():
    """A chain rule of its own costs readers and time, so it is written only where it is needed."""
    for name, space, chained in (
        ("GIoU", spaces.BOX, False),
        ("A_reg", spaces.BOX, False),
        ("focal", spaces.BINARY_CLASS, False),
        ("-log IoU", spaces.BOX, True),
    ):
        code = export.FORMATS["pytorch"](export.prepare(zoo.find(name, space)))
        assert ("@chained" in code) == chained, name


@pytest.mark.slow
def test_gradients_of_box_losses_of_our_tables():
    """In PyTorch, in four types, of every third formula."""
    found = not_finite(passing_losses(spaces.BOX)[::3])
    assert all(count["formulas"] > 100 and count["exported"] == 0 for count in found.values())
    assert 0 < found["float64"]["without the chain rule"] < found["float32"]["without the chain rule"]


def not_finite(expressions):
    """How many formulas have other than finite gradients in PyTorch, by type; without the chain rule in the wider two.

    In half precision those of float32 are rounded, so that what is too large for it is infinite.
    """
    torch, space = need("torch"), spaces.BOX
    counts = {dtype: collections.Counter() for dtype in ("float64", "float32", "bfloat16", "float16")}
    for expression in expressions:
        code = export.FORMATS["pytorch"](export.prepare(expression, simplified=False))
        plain = code.replace("@chained", "")
        for dtype, count in counts.items():
            kept = np.minimum if dtype == "float16" else lambda a, _: a
            inputs = {n: torch.tensor(kept(a, 2e4)).to(getattr(torch, dtype)) for n, a in INPUTS[space.name].items()}
            wide = "float64" if dtype == "float64" else "float32"
            exact = {n: a.to(getattr(torch, wide)) for n, a in inputs.items()}
            with jax.enable_x64(wide == "float64"):
                _, expected = engine(expression, {n: a.numpy() for n, a in exact.items()})
            wrong = is_wrong(code, inputs, exact, expected)
            count.update({"formulas": 1, "exported": wrong})
            if dtype == wide:
                without = wrong if plain == code else is_wrong(plain, inputs, exact, expected)
                count.update({"without the chain rule": without})
    return counts


def passing_losses(space):
    """The losses of the tables, and the known ones, that pass the gate in any unit."""
    listed = {loss.formula for name in loss_table.available() for loss in loss_table.load(name).losses}
    found = sorted({*(e for e in listed if e.space == space), *zoo.known(space).values()}, key=str)
    verdicts = zip(*(cse_jax.verify(found, space, units=units) for units in space.units), strict=True)
    return [e for e, judged in zip(found, verdicts, strict=True) if any(verdict.passed for verdict in judged)]


def is_wrong(code, inputs, exact, expected):
    """Whether gradients are not finite where the engine's are, and in half precision those in float32 could be."""
    names, wide = list(expected), gradients(code, exact, list(expected))
    given = wide if inputs[names[0]].dtype == exact[names[0]].dtype else gradients(code, inputs, names)
    largest = need("torch").finfo(inputs[names[0]].dtype).max
    return any(
        (~np.isfinite(wide[n]) & np.isfinite(expected[n])).any()
        or (~np.isfinite(given[n]) & (np.abs(wide[n]) < largest / 2)).any()
        for n in names
    )


def gradients(code, inputs, names):
    """Those of an exported file for PyTorch."""
    module = loaded(code)
    tensors = {n: a.clone().requires_grad_(n in names) for n, a in inputs.items()}
    module["loss"](*tensors.values()).sum().backward()
    found = {n: tensors[n].grad for n in names}
    return {n: np.zeros(inputs[n].shape) if g is None else g.double().numpy() for n, g in found.items()}
