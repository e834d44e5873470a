"""Known losses against plain NumPy written from the papers, published numbers, and the same losses as formulas."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cse_jax import losses
from cse_jax.language import spaces, zoo

EPS = 1e-7


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


# --- one way to call all of them

# The arguments of each: x logits or predictions, y labels, w IoU, q quality, t targets.
SOFTMAX = {
    "cross_entropy": "xy",
    "iou_weighted_cross_entropy": "xyw",
    "poly1_cross_entropy": "xy",
    "cse_autoloss_a_cls": "xyw",
}
SIGMOID = {
    "binary_cross_entropy": "xy",
    "iou_weighted_binary_cross_entropy": "xyq",
    "focal_loss": "xy",
    "quality_focal_loss": "xq",
    "varifocal_loss": "xq",
    "ghm_c_loss": "xy",
    "cse_autoloss_b_cls": "xyq",
}
COORDINATES = dict.fromkeys(["l1_loss", "smooth_l1_loss", "balanced_l1_loss", "ghm_r_loss"], "xt")
SEARCHED = ["cse_autoloss_a_reg", "cse_autoloss_b_reg"]
PER_BOX = ["iou_loss", "log_iou_loss", "giou_loss", "diou_loss", "ciou_loss", *SEARCHED]
BOXES = dict.fromkeys([*PER_BOX, "bounded_iou_loss"], "xt")
ALL = SOFTMAX | SIGMOID | COORDINATES | BOXES


def call(name, data, **kwargs):
    """The loss, without the state of GHM."""
    result = getattr(losses, name)(*(data[key] for key in ALL[name]), **kwargs)
    return result[0] if isinstance(result, tuple) else result


def class_data(rng, n=24, c=5):
    y = np.eye(c)[rng.integers(0, c, n)] * (rng.uniform(size=(n, 1)) < 0.7)
    w = rng.uniform(0.05, 1.0, n)
    return {"x": rng.normal(0.0, 3.0, (n, c)).clip(-12.0, 12.0), "y": y, "w": w, "q": w[:, None] * y}


def box_data(rng, n=24):
    """Boxes of some 50 pixels: overlapping mostly, disjoint at times."""
    corner, size = rng.uniform(0.0, 40.0, (2, n, 2)), rng.uniform(5.0, 60.0, (2, n, 2))
    x, t = np.concatenate([corner, corner + size], axis=-1)
    return {"x": x, "t": t}


def data_for(name, rng):
    if name in SOFTMAX | SIGMOID:
        return class_data(rng)
    return box_data(rng) if name in BOXES else {key: rng.normal(0.0, 1.0, (24, 4)) for key in ("x", "t")}


def as_jax(data, dtype=None):
    return {key: jnp.asarray(value, dtype) for key, value in data.items()}


def value_and_gradient(name, data, **kwargs):
    def total(x):
        loss = call(name, data | {"x": x}, **kwargs)
        return loss.sum(), loss

    gradient, loss = jax.grad(total, has_aux=True)(data["x"])
    return np.asarray(loss), np.asarray(gradient)


def test_the_table_above_holds_every_loss():
    assert set(ALL) == set(losses.__all__)
    for name in losses.__all__:
        parameters = inspect.signature(getattr(losses, name)).parameters.values()
        optional = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert {"mask", "weights"} <= optional
        assert all(p.default is p.empty for p in parameters if p.kind is not p.KEYWORD_ONLY)


# --- references


def _bce(x, q):
    p = 1.0 / (1.0 + np.exp(-x))
    return -(q * np.log(p) + (1.0 - q) * np.log(1.0 - p))


def _nll(x, y):
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    return -(y * np.log(p)).sum(-1)


def _poly1(d):
    p = np.exp(d["x"]) / np.exp(d["x"]).sum(-1, keepdims=True)
    return _nll(d["x"], d["y"]) - 1.0 * (d["y"] * (1.0 - p)).sum(-1)


def _focal(d):
    p = 1.0 / (1.0 + np.exp(-d["x"]))
    pt = np.where(d["y"] == 1.0, p, 1.0 - p)
    return -np.where(d["y"] == 1.0, 0.25, 0.75) * (1.0 - pt) ** 2 * np.log(pt)


def _varifocal(d):
    p, q = 1.0 / (1.0 + np.exp(-d["x"])), d["q"]
    return np.where(q > 0.0, q * _bce(d["x"], q), -0.75 * p**2 * np.log(1.0 - p))


def _b_cls(d):
    x, q, p = d["x"], d["q"], 1.0 / (1.0 + np.exp(-d["x"]))
    scaled_erf = (scipy.special.erf(np.sqrt(np.pi) / 4.0 / (1.0 + np.exp(d["y"] - 1.0))) + 1.0) / 2.0
    angle = np.pi / 4.0 * x  # gd(z) = asin(tanh z), the other textbook form
    scaled_gd = (2.0 / np.pi * np.arcsin(np.tanh(angle)) + 1.0) / 2.0
    return -(q * (1.0 + scaled_erf) * np.log(p) + (scaled_gd - q) * (p - q) * np.log(1.0 - p))


def _harmonised(norms, values, bins):
    """Edges and loops as in MMDetection, its sum over the batch undone."""
    edges = np.arange(bins + 1) / bins
    edges[-1] = 1e3
    weights, occupied = np.zeros_like(values), 0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (norms >= low) & (norms < high)
        if inside.any():
            occupied += 1
            weights[inside] = values.size / inside.sum()
    return weights / occupied * values


def _ghm_c(d, bins=30):
    return _harmonised(np.abs(1.0 / (1.0 + np.exp(-d["x"])) - d["y"]), _bce(d["x"], d["y"]), bins)


def _ghm_r(d, bins=10):
    difference = d["x"] - d["t"]
    root = np.sqrt(difference**2 + 0.02**2)
    return _harmonised(np.abs(difference) / root, root - 0.02, bins)


def _smooth(difference, beta):
    return np.where(difference < beta, 0.5 * difference**2 / beta, difference - 0.5 * beta)


def _balanced(d):
    alpha, gamma = 0.5, 1.5
    b = np.exp(gamma / alpha) - 1.0
    difference = np.abs(d["x"] - d["t"])
    inside = alpha / b * (b * difference + 1.0) * np.log(b * difference + 1.0) - alpha * difference
    return np.where(difference < 1.0, inside, gamma * difference + gamma / b - alpha)


def areas(d):
    """i, u + 1e-7, e + 1e-7, box by box."""
    rows = []
    for (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) in zip(d["x"], d["t"], strict=True):
        i = max(min(ax2, bx2) - max(ax1, bx1), 0.0) * max(min(ay2, by2) - max(ay1, by1), 0.0)
        u = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - i
        e = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
        rows.append((i, u + EPS, e + EPS))
    return np.array(rows).T


def _iou(d):
    i, u, _ = areas(d)
    return i / u


def _diou(d):
    x, t = d["x"], d["t"]
    rho2 = sum(((x[:, k] + x[:, k + 2]) / 2.0 - (t[:, k] + t[:, k + 2]) / 2.0) ** 2 for k in (0, 1))
    c2 = sum((np.maximum(x[:, k + 2], t[:, k + 2]) - np.minimum(x[:, k], t[:, k])) ** 2 for k in (0, 1))
    return 1.0 - _iou(d) + rho2 / (c2 + EPS)


def _aspect(boxes, targets):
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    target_w, target_h = (targets[:, 2:] - targets[:, :2]).T
    return 4.0 / np.pi**2 * (np.arctan(target_w / target_h) - np.arctan(w / h)) ** 2


def _ciou(d, min_iou=0.5):
    v = _aspect(d["x"], d["t"])
    return _diou(d) + np.where(_iou(d) > min_iou, v / (1.0 - _iou(d) + v), 0.0) * v


def _bounded(d):
    x, t = d["x"], d["t"]
    out = np.zeros_like(x)
    for k in (0, 1):
        side, target_side = x[:, k + 2] - x[:, k], t[:, k + 2] - t[:, k]
        shift = np.abs((x[:, k] + x[:, k + 2]) / 2.0 - (t[:, k] + t[:, k + 2]) / 2.0)
        place = np.maximum(0.0, (target_side - 2.0 * shift) / (target_side + 2.0 * shift + 1e-3))
        scale = np.minimum(target_side / (side + 1e-3), side / (target_side + 1e-3))
        out[:, k], out[:, k + 2] = _smooth(1.0 - place, 0.2), _smooth(1.0 - scale, 0.2)
    return out


def _giou(d):
    i, u, e = areas(d)
    return 1.0 - (i / u - (e - u) / e)


def _a_reg(d):
    i, u, e = areas(d)
    return (1.0 - i / u) + (1.0 - (i + 2.0) / e)


def _b_reg(d):
    i, u, e = areas(d)
    return (3 * e * u + 12 * e + 3 * i + 3 * u + 18) / (-3 * e * u + i * u + u**2 - 15 * e + 5 * i + 5 * u)


REFERENCES = {
    "cross_entropy": lambda d: _nll(d["x"], d["y"]),
    "iou_weighted_cross_entropy": lambda d: d["w"] * _nll(d["x"], d["y"]),
    "poly1_cross_entropy": _poly1,
    "cse_autoloss_a_cls": lambda d: (1.0 + np.sin(d["w"])) * _nll(d["x"], d["y"]),
    "binary_cross_entropy": lambda d: _bce(d["x"], d["y"]),
    "iou_weighted_binary_cross_entropy": lambda d: np.where(d["y"] == 1.0, d["q"], 1.0) * _bce(d["x"], d["y"]),
    "focal_loss": _focal,
    "quality_focal_loss": lambda d: np.abs(d["q"] - 1.0 / (1.0 + np.exp(-d["x"]))) ** 2 * _bce(d["x"], d["q"]),
    "varifocal_loss": _varifocal,
    "ghm_c_loss": _ghm_c,
    "cse_autoloss_b_cls": _b_cls,
    "l1_loss": lambda d: np.abs(d["x"] - d["t"]),
    "smooth_l1_loss": lambda d: _smooth(np.abs(d["x"] - d["t"]), 1.0),
    "balanced_l1_loss": _balanced,
    "ghm_r_loss": _ghm_r,
    "iou_loss": lambda d: 1.0 - _iou(d),
    "log_iou_loss": lambda d: -np.log(np.maximum(_iou(d), 1e-6)),
    "bounded_iou_loss": _bounded,
    "giou_loss": _giou,
    "diou_loss": _diou,
    "ciou_loss": _ciou,
    "cse_autoloss_a_reg": _a_reg,
    "cse_autoloss_b_reg": _b_reg,
}


@pytest.mark.parametrize("name", ALL)
def test_value_is_that_of_the_paper(name, float64):
    # rtol: ``1 - sig(x)`` in the references loses 1e-11 at |x| = 12.  atol: eps in CIoU's trade-off and arctan.
    data = data_for(name, np.random.default_rng(0))
    np.testing.assert_allclose(call(name, as_jax(data)), REFERENCES[name](data), rtol=1e-9, atol=2e-8)


def test_hyper_parameters(float64):
    rng = np.random.default_rng(1)
    d, r, b = class_data(rng), data_for("l1_loss", rng), box_data(rng)
    p = 1.0 / (1.0 + np.exp(-d["x"]))
    pt = np.where(d["y"] == 1.0, p, 1.0 - p)
    cases = [
        ("focal_loss", d, {"alpha": None, "gamma": 0.5}, -((1.0 - pt) ** 0.5) * np.log(pt)),
        ("focal_loss", d, {"alpha": None, "gamma": 0.0}, _bce(d["x"], d["y"])),
        ("poly1_cross_entropy", d, {"epsilon": 0.0}, _nll(d["x"], d["y"])),
        ("quality_focal_loss", d, {"beta": 1.0}, np.abs(d["q"] - p) * _bce(d["x"], d["q"])),
        ("varifocal_loss", d, {"alpha": 1.0, "gamma": 0.0}, np.where(d["q"] > 0.0, d["q"], 1.0) * _bce(d["x"], d["q"])),
        ("ghm_c_loss", d, {"bins": 10}, _ghm_c(d, bins=10)),
        ("cse_autoloss_b_cls", d, {"alpha": 0.25}, np.where(d["y"] == 1.0, 0.25, 0.75) * _b_cls(d)),
        ("smooth_l1_loss", r, {"beta": 0.3}, _smooth(np.abs(r["x"] - r["t"]), 0.3)),
        ("ghm_r_loss", r, {"bins": 4}, _ghm_r(r, bins=4)),
        ("ciou_loss", b, {"min_iou": -1.0}, _ciou(b, min_iou=-1.0)),
    ]
    for name, data, kwargs, expected in cases:
        np.testing.assert_allclose(call(name, as_jax(data), **kwargs), expected, rtol=1e-9, atol=2e-8, err_msg=name)


# --- published numbers


@pytest.fixture(scope="module")
def published(test_data):
    table = json.loads((test_data / "eval_refs" / "unit_refs.json").read_text())
    return lambda start: next(value for key, value in table.items() if key.startswith(start))


def test_focal_loss_of_mmcv(published):
    case = published("focal loss (mmcv")
    for rows, ids, expected in zip(case["x"], case["y"], case["sigmoid_loss"], strict=True):
        logits = jnp.asarray(rows, jnp.float32)
        labels = jax.nn.one_hot(jnp.asarray(ids), logits.shape[1])
        np.testing.assert_allclose(losses.focal_loss(logits, labels).sum() / len(rows), expected, rtol=1e-6)
    logits, labels = jnp.asarray(case["x"][0], jnp.float32), jax.nn.one_hot(jnp.asarray(case["y"][0]), 2)
    gradient = jax.grad(lambda x: losses.focal_loss(x, labels).sum() / 2.0)(logits)
    np.testing.assert_allclose(gradient, case["sigmoid_grad0"], rtol=1e-4)


def test_giou_of_mmdetection(published):
    case = published("giou aligned")
    loss = losses.giou_loss(jnp.asarray(case["a"], jnp.float32), jnp.asarray(case["b"], jnp.float32))
    np.testing.assert_allclose(1.0 - loss, case["giou"], atol=5e-5)  # printed with four digits


# --- the same losses as formulas


@pytest.mark.parametrize(
    ("name", "space", "formula", "kwargs"),
    [
        ("cross_entropy", spaces.MULTI_CLASS, "CE", {}),
        ("iou_weighted_cross_entropy", spaces.MULTI_CLASS, "CEI", {}),
        ("cse_autoloss_a_cls", spaces.MULTI_CLASS, "A_cls", {}),
        ("binary_cross_entropy", spaces.BINARY_CLASS, "CE", {}),
        ("iou_weighted_binary_cross_entropy", spaces.BINARY_CLASS, "CEI", {}),
        ("focal_loss", spaces.BINARY_CLASS, "focal", {"alpha": None}),
        ("cse_autoloss_b_cls", spaces.BINARY_CLASS, "B_cls", {}),
        ("iou_loss", spaces.BOX, "IoU", {}),
        ("log_iou_loss", spaces.BOX, "-log IoU", {}),
        ("giou_loss", spaces.BOX, "GIoU", {}),
        ("cse_autoloss_a_reg", spaces.BOX, "A_reg", {}),
        ("cse_autoloss_b_reg", spaces.BOX, "B_reg", {}),
    ],
)
def test_agrees_with_the_formula(name, space, formula, kwargs, float64):
    """Both add 1e-7 to union and enclosure; the language alone adds 1e-20 to logarithms and divisors.

    That is below float64's resolution for all values here.  What remains is the language's ``log(1 - sigmoid(x))``,
    which loses 1e-11 at |x| = 12.  ``-log IoU`` is compared where boxes overlap: its floor is 1e-6 here, 1e-20 there.
    """
    d = data_for(name, np.random.default_rng(2))
    if space is spaces.BOX:
        if name == "log_iou_loss":
            d = {key: value[_iou(d) > 1e-6] for key, value in d.items()}
        inputs = dict(zip("IUE", areas(d), strict=True))
    else:
        w = np.broadcast_to(d["w"][:, None], d["x"].shape)
        values = {"X": d["x"], "Y": d["y"], "Z": w, "Q": d["q"], "PY": d["y"], "NY": 1.0 - d["y"]}
        inputs = {v.name: values[v.name] for v in space.variables}
    expected = np.asarray(zoo.find(formula, space).evaluate(inputs))
    if space is spaces.MULTI_CLASS:
        expected = expected[:, 0]
    np.testing.assert_allclose(call(name, as_jax(d), **kwargs), expected, rtol=1e-10, atol=1e-15)


# --- gradients and edge cases


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("ghm_c_loss", "ghm_r_loss", "ciou_loss")])
def test_gradient_is_the_slope(name, float64):
    """Central differences; the losses left out hold a factor constant and are tested on their own."""
    data = as_jax(data_for(name, np.random.default_rng(3)))
    direction = np.random.default_rng(4).normal(size=data["x"].shape)
    _, gradient = value_and_gradient(name, data)
    ahead, behind = (call(name, data | {"x": data["x"] + s * direction}).sum() for s in (1e-6, -1e-6))
    np.testing.assert_allclose((gradient * direction).sum(), (ahead - behind) / 2e-6, rtol=1e-5)


def test_ciou_holds_the_trade_off_constant(float64):
    d = box_data(np.random.default_rng(5), n=200)
    v = _aspect(d["x"], d["t"])
    trade_off = np.where(_iou(d) > 0.5, v / (1.0 - _iou(d) + v), 0.0)
    assert (trade_off > 0.0).sum() > 2
    direction = np.random.default_rng(6).normal(size=d["x"].shape)
    _, gradient = value_and_gradient("ciou_loss", as_jax(d))
    moved = [d["x"] + s * direction for s in (1e-6, -1e-6)]
    ahead, behind = (_diou({"x": x, "t": d["t"]}) + trade_off * _aspect(x, d["t"]) for x in moved)
    np.testing.assert_allclose((gradient * direction).sum(-1), (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [*SOFTMAX, *SIGMOID])
def test_large_logits_in_float32(name):
    x = np.array([[80.0, -80.0, 0.0], [-80.0, 80.0, -80.0], [80.0, 80.0, 80.0], [-80.0, -80.0, -80.0]])
    y = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for w in (0.0, 0.5, 1.0):
        data = as_jax({"x": x, "y": y, "w": np.full(4, w), "q": w * y}, jnp.float32)
        loss, gradient = value_and_gradient(name, data)
        assert loss.dtype == gradient.dtype == np.float32
        assert np.isfinite(loss).all() and np.isfinite(gradient).all()
    if name in ("cross_entropy", "binary_cross_entropy"):
        np.testing.assert_allclose(loss.reshape(4, -1)[1, 0], 160.0 if name in SOFTMAX else 80.0, rtol=1e-6)


EDGE_BOXES = {
    "identical": ([10.0, 20.0, 30.0, 60.0], [10.0, 20.0, 30.0, 60.0]),
    "identical, side 1": ([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]),
    "disjoint": ([0.0, 0.0, 10.0, 10.0], [900.0, 700.0, 1000.0, 800.0]),
    "touching": ([0.0, 0.0, 10.0, 10.0], [10.0, 0.0, 20.0, 10.0]),
    "no area predicted": ([5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 10.0, 10.0]),
    "no area in the target": ([0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 5.0]),
    "no area in either": ([5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]),
    "one line": ([5.0, 0.0, 5.0, 10.0], [5.0, 0.0, 5.0, 10.0]),
    "corners exchanged": ([10.0, 10.0, 0.0, 0.0], [0.0, 0.0, 10.0, 10.0]),
    "size of a large image": ([0.0, 0.0, 4096.0, 4096.0], [1.0, 1.0, 4095.0, 4000.0]),
}


@pytest.mark.parametrize("name", [*COORDINATES, *BOXES])
def test_edge_boxes_in_float32(name):
    x, t = np.array(list(EDGE_BOXES.values())).swapaxes(0, 1)
    loss, gradient = value_and_gradient(name, as_jax({"x": x, "t": t}, jnp.float32))
    assert loss.dtype == gradient.dtype == np.float32
    finite = np.isfinite(loss.reshape(len(x), -1)).all(-1) & np.isfinite(gradient).all(-1)
    assert finite.all(), np.array(list(EDGE_BOXES))[~finite]


@pytest.mark.parametrize("name", [*COORDINATES, *BOXES])
def test_identical_boxes_are_the_minimum(name):
    """0, but for the two losses that have areas beside numbers: -2/s^2 and, at side 1, -6.5."""
    boxes = jnp.asarray([[10.0, 20.0, 11.0, 21.0]])
    loss = call(name, {"x": boxes, "t": boxes})
    expected = {"cse_autoloss_a_reg": -2.0, "cse_autoloss_b_reg": -6.5}.get(name, 0.0)
    np.testing.assert_allclose(loss, np.full(loss.shape, expected), atol=1e-5)


@pytest.mark.parametrize("name", ["iou_weighted_cross_entropy", "cse_autoloss_a_cls"])
def test_no_gradient_into_the_iou(name):
    d = as_jax(class_data(np.random.default_rng(7)))
    assert not jax.grad(lambda w: call(name, d | {"w": w}).sum())(d["w"]).any()


@pytest.mark.parametrize(
    "name", ["iou_weighted_binary_cross_entropy", "quality_focal_loss", "varifocal_loss", "cse_autoloss_b_cls"]
)
def test_no_gradient_into_the_quality(name):
    d = as_jax(class_data(np.random.default_rng(7)))
    assert not jax.grad(lambda q: call(name, d | {"q": q}).sum())(d["q"]).any()


# --- mask, weights, batch axes


@pytest.mark.parametrize("name", ALL)
def test_mask_equals_the_subset_whatever_the_rest_holds(name):
    rng = np.random.default_rng(8)
    data, mask = data_for(name, rng), rng.uniform(size=24) < 0.5
    padded = {key: np.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, np.nan) for key, value in data.items()}
    weights = np.where(mask, rng.uniform(0.5, 2.0, 24), np.inf)
    loss, gradient = value_and_gradient(name, as_jax(padded), mask=jnp.asarray(mask), weights=jnp.asarray(weights))
    subset = as_jax({key: value[mask] for key, value in data.items()})
    expected, expected_gradient = value_and_gradient(name, subset, weights=jnp.asarray(weights[mask]))
    np.testing.assert_allclose(loss[mask], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient[mask], expected_gradient, rtol=1e-5, atol=1e-7)
    assert not loss[~mask].any() and not gradient[~mask].any()


@pytest.mark.parametrize("name", ALL)
def test_nothing_but_masked_rows(name):
    data = as_jax(data_for(name, np.random.default_rng(9)))
    loss, gradient = value_and_gradient(name, data, mask=jnp.zeros(24, bool))
    assert not loss.any() and not gradient.any()  # NaN counts as any


@pytest.mark.parametrize("name", ALL)
def test_weights_multiply_and_batch_axes_are_free(name):
    rng = np.random.default_rng(10)
    data, weights = as_jax(data_for(name, rng)), jnp.asarray(rng.uniform(0.5, 2.0, 24), jnp.float32)
    plain = call(name, data)
    assert plain.shape == ((24,) if name in [*SOFTMAX, *PER_BOX] else data["x"].shape)
    expected = plain * weights.reshape(-1, *[1] * (plain.ndim - 1))
    batched = {key: value.reshape(2, 12, *value.shape[1:]) for key, value in data.items()}
    got = call(name, batched, weights=weights.reshape(2, 12))
    assert got.shape[:2] == (2, 12)
    np.testing.assert_allclose(got.reshape(plain.shape), expected, rtol=1e-6, atol=1e-7)


# --- gradient density


def test_ghm_mean_is_the_loss_of_the_paper(float64):
    """The sum of BCE over the counts, over the number of bins that hold any."""
    d = class_data(np.random.default_rng(11))
    loss, counts = losses.ghm_c_loss(jnp.asarray(d["x"]), jnp.asarray(d["y"]))
    index = np.floor(np.abs(1.0 / (1.0 + np.exp(-d["x"])) - d["y"]) * 30.0).astype(int)
    np.testing.assert_array_equal(counts, np.bincount(index.ravel(), minlength=30))
    expected = (_bce(d["x"], d["y"]) / np.asarray(counts)[index]).sum() / (counts > 0).sum()
    np.testing.assert_allclose(loss.mean(), expected, rtol=1e-12)


def test_ghm_momentum_is_carried_by_the_caller(float64):
    """Bins average over steps from 0 on; a bin that a step leaves empty keeps its value."""
    step = jax.jit(lambda x, counts: losses.ghm_r_loss(x, jnp.zeros_like(x), momentum=0.75, counts=counts))
    near, far = jnp.full((3, 4), 1e-4), jnp.full((2, 4), 5.0)
    _, counts = step(near, jnp.zeros(10))
    np.testing.assert_allclose(counts, [3.0] + [0.0] * 9)
    _, counts = step(far, counts)
    np.testing.assert_allclose(counts, [3.0] + [0.0] * 8 + [2.0])
    loss, counts = step(near, counts)
    np.testing.assert_allclose(counts, [0.75 * 3.0 + 0.25 * 12.0] + [0.0] * 8 + [2.0])
    np.testing.assert_allclose(loss, 12.0 / counts[0] * (np.sqrt(1e-8 + 4e-4) - 0.02) * np.ones((3, 4)), rtol=1e-9)


def test_ghm_gives_every_bin_the_same_gradient(float64):
    """Harmonised: many easy entries together pull no more than few hard ones, per unit of gradient norm."""
    d = as_jax(class_data(np.random.default_rng(12), n=400))
    _, gradient = value_and_gradient("ghm_c_loss", d)
    norms = np.abs(jax.nn.sigmoid(d["x"]) - d["y"])
    index = np.floor(norms * 30.0).astype(int)
    pull = np.bincount(index.ravel(), np.abs(gradient).ravel(), minlength=30)
    mean_norm = np.bincount(index.ravel(), norms.ravel(), minlength=30) / np.bincount(index.ravel(), minlength=30)
    np.testing.assert_allclose(pull / mean_norm, np.full(30, 2000.0 / 30.0), rtol=1e-9)
