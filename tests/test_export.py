"""Exported losses: simplified without becoming another loss, and executed as code against the engine."""

import concurrent.futures
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy
from extras import need
from populations import random_expressions

import cse_jax
from cse_jax import export
from cse_jax.export import simplification
from cse_jax.export.definitions import definitions
from cse_jax.export.notation import symbols, to_sympy
from cse_jax.export.simplification import Simplified, difference_on_grid, simplify
from cse_jax.language import interpreter, spaces, zoo
from cse_jax.language import program as programs
from cse_jax.language.spaces import SPACES, trajectories
from cse_jax.sampling.random_trees import Shape

ALL_SPACES = pytest.mark.parametrize("space", SPACES.values(), ids=str)
KNOWN = [(space, name) for space in SPACES.values() for name in zoo.known(space)]
ALL_KNOWN = pytest.mark.parametrize(("space", "name"), KNOWN, ids=[f"{s}-{n}" for s, n in KNOWN])


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


_run = jax.jit(interpreter.value_and_gradients, static_argnums=0)


def grid_inputs(space, units="pixels"):
    return dict(zip((v.name for v in space.variables), trajectories(space, units).inputs, strict=True))


def engine(expression, inputs):
    """Value as the exports give it (per row, or per element), and the gradient of its sum."""
    space = expression.space
    value, gradients = _run(space, programs.compile_expression(expression), inputs)
    return np.asarray(value.sum(-1) if space.per_row else value), {k: np.asarray(v) for k, v in gradients.items()}


def execute(code):
    module = {}
    exec(compile(code, "exported", "exec"), module)  # what a user would import
    return module


def assert_same(ours, theirs, rtol=1e-9):
    """Equal where the engine is finite; tiny values may differ by the rounding of the largest."""
    finite = np.isfinite(theirs)
    atol = rtol * np.abs(theirs[finite]).max(initial=0.0)
    np.testing.assert_allclose(np.broadcast_to(ours, theirs.shape)[finite], theirs[finite], rtol=rtol, atol=atol)


def test_b_reg_simplifies_to_the_published_fraction():
    loss = export.prepare(zoo.find("B_reg", spaces.BOX))
    names = symbols(loss.formula)
    i, u, e = names["I"], names["U"], names["E"]
    published = (3 * e * u + 12 * e + 3 * i + 3 * u + 18) / (-3 * e * u + i * u + u**2 - 15 * e + 5 * i + 5 * u)
    assert sympy.cancel(to_sympy(loss.formula).doit()) == sympy.cancel(published)
    assert len(loss.formula) == 27 < len(loss.original) and "simplified from" in loss.note
    assert export.FORMATS["text"](loss) == "3 * (e * u + 4 * e + i + u + 6) / ((u + 5) * (i + u - 3 * e))"


def test_a_reg_simplifies_to_the_published_sum():
    loss = export.prepare(zoo.find("A_reg", spaces.BOX))
    names = symbols(loss.formula)
    i, u, e = names["I"], names["U"], names["E"]
    assert sympy.simplify(to_sympy(loss.formula).doit() - ((1 - i / u) + (1 - (i + 2) / e))) == 0
    assert export.FORMATS["text"](loss) == "2 - i / u - (i + 2) / e"


@ALL_KNOWN
def test_simplified_losses_are_the_same_losses(space, name):
    loss = export.prepare(zoo.find(name, space))
    assert len(loss.formula) <= len(loss.original) + 2
    inputs = grid_inputs(space)
    value, gradients = engine(loss.original, inputs)
    simple_value, simple_gradients = engine(loss.formula, inputs)
    assert_same(simple_value, value)
    for variable in space.differentiable:
        assert_same(simple_gradients[variable], gradients[variable])


def test_a_formula_that_is_never_done_stays_as_it_is(monkeypatch):
    """In any thread, and whatever profiles it stays."""
    monkeypatch.setattr(simplification, "SECONDS", 0.3)
    fraction = "i"
    for k in range(16):
        fraction = f"({'uei'[k % 3]} / ({fraction} + e * {k % 3 + 1}) + u)"
    formula = cse_jax.parse(f"1 - i / {fraction}", spaces.BOX)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        found = pool.submit(simplification._forms_in_time, formula).result(timeout=60)
        assert not found[1] and pool.submit(sys.getprofile).result() is None
    monkeypatch.setattr(simplification, "_forms_in_time", lambda _: ([], False))
    assert simplify(formula) == Simplified(formula, "as it was found; SymPy found no simpler form in 0.3 seconds")


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("log(i * u) - log(u)", "log(i)"),  # at i = 0 the 1e-20 inside the logarithms is all there is
        ("log(exp(e))", "e"),  # exp stops at 88
        ("sqrt(i * i) * i / i", "i"),  # 0 / 1e-20 has no slope of 1
        ("sqrt(i) * i / i", "sqrt(i)"),  # whose slope is infinite at i = 0, where 0 times infinity is 0
    ],
)
def test_a_simpler_form_that_is_another_loss_is_refused(text, refused):
    formula = cse_jax.parse(text, spaces.BOX)
    loss = export.prepare(formula)
    assert loss.note.startswith(f"not simplified to {refused}: the ") and "instead of" in loss.note
    assert loss.formula == formula or not difference_on_grid(formula, loss.formula)
    assert str(loss.formula) != refused


@pytest.mark.parametrize("count", [40, 700])
def test_numbers_that_floats_don_t_hold_are_not_written(count):
    formula = cse_jax.parse("i / u" + " * 3" * count, spaces.BOX)
    assert simplify(formula).formula.space == spaces.BOX


def test_an_iou_of_0_is_a_point_where_losses_differ():
    loss = export.prepare(cse_jax.parse("y * w / (softmax(x) * w)", spaces.MULTI_CLASS))  # 0 / 1e-20 there
    assert loss.note.startswith("not simplified to")


@pytest.mark.slow
@ALL_SPACES
def test_random_formulas_stay_the_same_loss_or_stay_as_they_are(space):
    changed = 0
    for expression in random_expressions(space, 12, 5, Shape(max_height=5)):
        loss = export.prepare(expression)
        changed += loss.formula != expression
        assert not difference_on_grid(expression, loss.formula)
    assert changed


@ALL_KNOWN
@pytest.mark.parametrize("framework", ["numpy", "jax", "pytorch"])
def test_exported_code_is_the_engine_s_loss(space, name, framework):
    """Within 1e-9: stable logarithms leave out 1e-20 next to arguments of at least 6e-6 on the grid."""
    if framework == "pytorch":
        need("torch")
    code = export.FORMATS[framework](export.prepare(zoo.find(name, space), weight=2.5, provenance="a test"))
    for units in space.units:
        compare_code(code, framework, zoo.find(name, space), grid_inputs(space, units))
    assert execute(code)["WEIGHT"] == 2.5
    assert "a test" in code and all(v.meaning.split("[")[0] in code for v in space.variables)


def compare_code(code, framework, expression, inputs):
    space = expression.space
    value, gradients = engine(expression, inputs)
    loss = execute(code)["loss"]
    if framework == "numpy":
        assert_same(loss(*inputs.values()), value)
    elif framework == "jax":
        moving = tuple(inputs[n] for n in space.differentiable)

        def total(*moving):
            given = inputs | dict(zip(space.differentiable, moving, strict=True))
            return jnp.sum(loss(*(jnp.asarray(given[v.name]) for v in space.variables)))

        assert_same(np.asarray(loss(*inputs.values())), value)
        found = jax.grad(total, argnums=tuple(range(len(moving))))(*moving)
        for n, gradient in zip(space.differentiable, found, strict=True):
            assert_same(np.asarray(gradient), gradients[n])
    else:
        torch = need("torch")
        tensors = {n: torch.tensor(np.array(a), requires_grad=n in space.differentiable) for n, a in inputs.items()}
        result = loss(*tensors.values())
        assert_same(result.detach().numpy(), value)
        result.sum().backward()
        for n in space.differentiable:
            gradient = tensors[n].grad
            assert_same(np.zeros(1) if gradient is None else gradient.numpy(), gradients[n])


@ALL_SPACES
def test_random_formulas_as_numpy_code(space):
    """Every operator is met.

    Left out are formulas that come near a pole and, of areas, sines of exponentials, which rounding decides.
    """
    inputs, used = grid_inputs(space), set()
    for expression in random_expressions(space, 150, 2, Shape(max_height=5)):
        value, _ = engine(expression, inputs)
        if not np.isfinite(value).all() or not 1e-9 < np.abs(value).max() < 1e6:
            continue
        waves = "Exp" in expression.tokens and not {"Sin", "Cos"}.isdisjoint(expression.tokens)
        if not space.class_axis and waves:
            continue
        with np.errstate(all="ignore"):
            found = execute(export.FORMATS["numpy"](export.prepare(expression, simplified=False)))["loss"](
                *inputs.values()
            )
        assert_same(found, value, rtol=1e-7)
        used |= set(expression.tokens)
    assert used >= set(space.operators)


def test_constant_parts_and_narrow_results_are_written_out():
    code = export.FORMATS["numpy"](export.prepare(cse_jax.parse("x * log(1 - sigmoid(1))", spaces.BINARY_CLASS)))
    assert "1.3132616875182" in code and "def log" not in code
    code = export.FORMATS["numpy"](export.prepare(cse_jax.parse("-dot(y, log(softmax(x)))", spaces.BINARY_CLASS)))
    x, y = np.zeros((2, 4)), np.eye(4)[:2]
    np.testing.assert_allclose(execute(code)["loss"](x, y, y, 1 - y), np.full((2, 4), np.log(4.0) / 4))


@pytest.mark.parametrize("framework", ["numpy", "jax", "pytorch"])
def test_constant_parts_need_not_be_finite(framework):
    infinite = " * ".join(["exp(3 * 3 * 3 * 3 * 3)"] * 9)
    i = torch.ones(2) if framework == "pytorch" and (torch := need("torch")) else np.ones(2)
    for text, expected in (("i + log(1 - 2)", np.nan), (f"i / ({infinite})", 0.0), (f"-({infinite}) * i", -np.inf)):
        loss = export.prepare(cse_jax.parse(text, spaces.BOX), simplified=False)
        found = execute(export.FORMATS[framework](loss))["loss"](i, i, i)
        np.testing.assert_array_equal(np.asarray(found), [expected] * 2)


@ALL_SPACES
def test_a_number_is_no_loss_to_write(space):
    for format in ("jax", "numpy", "pytorch", "torch_module", "mmdet"):
        with pytest.raises(cse_jax.InputError, match=r"the formula 1 \+ 1 is a number, whatever is predicted"):
            export.FORMATS[format](export.prepare(cse_jax.parse("1 + 1", space), simplified=False))


@pytest.mark.parametrize("framework", ["numpy", "jax", "pytorch"])
def test_exported_losses_are_finite_at_extreme_logits(framework):
    """The engine's 1e-20 would cut off at 46; the exported focal loss goes on and keeps its gradient."""
    x, y = np.array([[-80.0, 80.0]]), np.array([[1.0, 0.0]])
    if framework == "pytorch":
        torch = need("torch")
        x, y = torch.tensor(x, requires_grad=True), torch.tensor(y)
    loss = execute(export.FORMATS[framework](export.prepare(zoo.find("focal", spaces.BINARY_CLASS))))["loss"]
    value = loss(x, y, y, 1 - y)
    if framework == "pytorch":
        value.sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), [[-1.0, 1.0]])
        value = value.detach().numpy()
    np.testing.assert_allclose(np.asarray(value), [[80.0, 80.0]])


@pytest.mark.parametrize("framework", ["numpy", "jax", "pytorch"])
@pytest.mark.parametrize("name", ["alf", "erf", "gd", "sigmoid", "tanh"])
def test_curves_of_what_is_divided_by_0_have_ends_in_float32(name, framework):
    """The verification takes float64, in which the square of 1e20 is finite."""
    expression = cse_jax.parse(f"{name}(x / ny)", spaces.BINARY_CLASS)
    x, y = np.array([[-2.0, 2.0]], np.float32), np.ones((1, 2), np.float32)
    expected = [[-1.0 if name == "tanh" else 0.0, 1.0]]
    value, gradients = engine(expression, {"X": x, "Q": y, "PY": y, "NY": 0 * y})
    np.testing.assert_allclose(value, expected, rtol=0, atol=np.finfo(np.float32).eps)
    np.testing.assert_array_equal(gradients["X"], [[0.0, 0.0]])
    arrays = [torch.tensor(a) for a in (x, y)] if framework == "pytorch" and (torch := need("torch")) else [x, y]
    loss = execute(export.FORMATS[framework](export.prepare(expression)))["loss"]
    # gd adds to 1 a product that is -1 but for its rounding, which differs between libraries and their versions.
    found = loss(arrays[0], arrays[1], arrays[1], 0 * arrays[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=np.finfo(np.float32).eps)


@ALL_KNOWN
def test_sympy_s_and_the_authors_notation(space, name):
    loss = export.prepare(zoo.find(name, space))
    rebuilt = execute(export.FORMATS["sympy"](loss))["loss"]
    expected, t = to_sympy(loss.formula).doit(), sympy.Symbol("t", real=True)
    for symbol, form in definitions(loss.formula).items():
        expected = expected.replace(sympy.Function(symbol), lambda operand, form=form: form.subs(t, operand))
    assert sympy.simplify(rebuilt - expected) == 0
    assert export.FORMATS["authors"](loss) == cse_jax.to_authors(loss.original)


@pytest.fixture
def loss_module(monkeypatch):
    """The loss of an exported file for MMDetection, of which there is here only what such a file imports."""
    torch = need("torch")

    class Registry:
        def register_module(self, *, force):
            assert force
            return lambda cls: cls

    def weight_reduce_loss(loss, weight=None, reduction="mean", avg_factor=None):
        loss = loss if weight is None else loss * weight
        if avg_factor is not None and reduction == "mean":
            return loss.sum() / avg_factor
        return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]

    heads = dict.fromkeys(("Shared2FCBBoxHead", "RetinaHead", "ATSSHead", "FCOSHead"), torch.nn.Module)
    for name, attributes in (
        ("mmdet", {}),
        ("mmdet.models", {}),
        ("mmdet.models.dense_heads", heads),
        ("mmdet.models.losses", {"accuracy": None}),
        ("mmdet.models.losses.utils", {"weight_reduce_loss": weight_reduce_loss}),
        ("mmdet.models.roi_heads", {}),
        ("mmdet.models.roi_heads.bbox_heads", heads),
        ("mmdet.registry", {"MODELS": Registry()}),
        ("mmdet.structures", {}),
        ("mmdet.structures.bbox", {"bbox_overlaps": None}),
    ):
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    def loss_module(name, space, **about):
        found = execute(export.FORMATS["mmdet"](export.prepare(zoo.find(name, space), **about)))
        (loss,) = (found[name] for name in found if re.fullmatch(r"Searched\w+Loss[0-9a-f]{8}", name))
        return loss

    return loss_module


def test_mmdet_box_loss(loss_module):
    torch = need("torch")
    module = loss_module("GIoU", spaces.BOX, weight=2.0)
    pred = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 5.0], [9.0, 9.0, 9.0, 9.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 1.0, 6.0, 4.0], [0.0, 0.0, 1.0, 1.0]])
    loss = module(reduction="none")(pred, target)
    by_hand = [0.0, 1 - 3 / 17 + (20 - 17) / 20, 1 + (81 - 1) / 81]
    np.testing.assert_allclose(loss.detach().numpy(), 2.0 * np.array(by_hand), rtol=1e-5, atol=1e-6)
    mean = module()(pred, target, weight=torch.ones(3, 4), avg_factor=6.0)
    np.testing.assert_allclose(mean.item(), loss.sum().item() / 6, rtol=1e-6)
    mean.backward()
    assert torch.isfinite(pred.grad).all()
    none = module()(pred, target, weight=torch.zeros(3, 4), avg_factor=1.0)
    assert none.item() == 0.0


def test_mmdet_rows_without_weight_do_nothing(loss_module):
    """Rows of anchors without an object have a target without area, where a formula may be infinite."""
    torch = need("torch")
    pred = torch.tensor([[0.0, 0.0, 4.0, 4.0], [5.0, 5.0, 8.0, 8.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0, 4.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    module = loss_module("exp(u / i) * exp(u / i)", spaces.BOX, simplified=False)()
    loss = module(pred, target, weight=torch.tensor([1.0, 0.0]), avg_factor=1.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(pred.grad).all() and (pred.grad[1] == 0).all()


def test_mmdet_binary_loss(loss_module):
    torch = need("torch")
    module = loss_module("CEI", spaces.BINARY_CLASS)
    logits, labels = torch.tensor([[0.3, -1.0], [2.0, 0.5]]), torch.tensor([1, 2])
    quality = torch.tensor([0.7, 0.0])
    loss = module(reduction="none", alpha=0.25)(logits, (labels, quality))
    p = 1 / (1 + np.exp(-logits.numpy()))
    expected = -0.75 * np.log(1 - p)
    expected[0, 1] = -0.25 * 0.7 * np.log(p[0, 1])
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)
    weighted = module()(logits, labels, weight=torch.tensor([0.0, 1.0]), avg_factor=1.0)
    np.testing.assert_allclose(weighted.item(), expected[1].sum(), rtol=1e-5)


def test_mmdet_multi_class_loss(loss_module):
    torch = need("torch")
    logits, labels = torch.tensor([[0.3, -1.0, 0.1], [2.0, 0.5, 0.0]]), torch.tensor([1, 2])
    module = loss_module("CEI", spaces.MULTI_CLASS)(reduction="none", use_sigmoid=False)  # of the base's config
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(module(logits, labels).numpy(), plain.numpy(), rtol=1e-5)
    with_iou = module(logits, labels, iou=torch.tensor([0.5, 0.1]))  # the second row is background
    np.testing.assert_allclose(with_iou.numpy(), plain.numpy() * [0.5, 1.0], rtol=1e-5)
