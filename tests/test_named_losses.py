"""The library's losses by name: what a text means, and that a detector trains under each as the library defines it."""

import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.smallest import faster_rcnn_smallest, fcos_smallest
from cse_jax import losses as library
from cse_jax.language import spaces, zoo
from detectors import named_losses
from detectors.losses import (
    DetectionLosses,
    LossTerm,
    binary_class_loss,
    box_loss,
    multi_class_loss,
    resolve,
    resolve_pair,
    term,
)
from detectors.models import build_detector
from detectors.models.faster_rcnn import FasterRCNN
from detectors.models.fcos import FCOS
from detectors.named_losses import LossError, NamedLoss
from detectors.ops import boxes as box_ops
from detectors.ops.padding import Pyramid
from detectors.ops.points import assign_points, pyramid_points
from detectors.structures import Batch
from detectors.training.step import TrainConfig, jit_detector

MULTI, BINARY, BOX = spaces.MULTI_CLASS, spaces.BINARY_CLASS, spaces.BOX
SIZE, CLASSES = 64, 3
TINY = {"fcos": fcos_smallest(CLASSES), "faster_rcnn": faster_rcnn_smallest(CLASSES)}
QUICK = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


# Values


def class_data(rng, n=40, c=5):
    labels = np.eye(c)[rng.integers(0, c, n)] * (np.arange(n) % 3 > 0)[:, None]
    iou = rng.uniform(0.1, 1.0, n)
    arrays = dict(logits=rng.normal(0.0, 2.0, (n, c)), labels=labels, quality=iou[:, None] * labels, iou=iou)
    return {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}


def box_data(rng, n=40):
    target = np.concatenate([corner := rng.uniform(0.0, 20.0, (n, 2)), corner + rng.uniform(10.0, 30.0, (n, 2))], -1)
    offsets = rng.normal(0.0, 1.0, (2, n, 4))
    arrays = dict(predicted=target + rng.uniform(-4.0, 4.0, (n, 4)), target=target)
    arrays |= dict(predicted_offsets=offsets[0], target_offsets=offsets[1])
    return {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}


MASK = jnp.arange(40) % 4 > 0


def in_detector(loss, space, data, *, alpha=0.25):
    """The loss through the function that the space's detectors call."""
    if space is BOX:
        return box_loss(loss, **data, mask=MASK)
    inputs = {name: data[name] for name in ("logits", "labels")}
    if space is MULTI:
        return multi_class_loss(loss, **inputs, iou=data["iou"])
    return binary_class_loss(loss, **inputs, quality=data["quality"], mask=MASK, alpha=alpha)


def data_of(space, seed=0):
    rng = np.random.default_rng(seed)
    return box_data(rng) if space is BOX else class_data(rng)


NAMES = [(space, name) for space in (MULTI, BINARY, BOX) for name in named_losses.names(space)]


def test_every_loss_of_the_library_has_its_space():
    assert sorted(name for _, name in NAMES) == sorted(library.__all__)
    for space, name in NAMES:
        loss = resolve(f" {name} ", space, 0.5)
        assert isinstance(loss, NamedLoss) and loss.function is getattr(library, name) and loss.weight == 0.5
        assert loss.options == ()


OFFSETS = ("l1_loss", "smooth_l1_loss", "balanced_l1_loss", "ghm_r_loss")
READS = {  # in the library's order
    "iou_weighted_cross_entropy": ("logits", "labels", "iou"),
    "cse_autoloss_a_cls": ("logits", "labels", "iou"),
    "iou_weighted_binary_cross_entropy": ("logits", "labels", "quality"),
    "cse_autoloss_b_cls": ("logits", "labels", "quality"),
    "quality_focal_loss": ("logits", "quality"),
    "varifocal_loss": ("logits", "quality"),
} | dict.fromkeys(
    ["l1_loss", "smooth_l1_loss", "balanced_l1_loss", "ghm_r_loss"], ("predicted_offsets", "target_offsets")
)


@pytest.mark.parametrize(("space", "name"), NAMES, ids=lambda value: str(value))
def test_a_detector_sees_the_librarys_values(space, name):
    data = data_of(space)
    usual = ("predicted", "target") if space is BOX else ("logits", "labels")
    options = {} if space is MULTI else {"mask": MASK}
    expected = getattr(library, name)(*(data[key] for key in READS.get(name, usual)), **options)
    expected = expected[0] if isinstance(expected, tuple) else expected
    if space is BOX:
        expected = expected.reshape(40, -1).sum(-1)
    ours = in_detector(resolve(name, space, 3.0), space, data)
    np.testing.assert_allclose(ours, 3.0 * expected, rtol=1e-6)
    if space is not MULTI:
        assert not ours[~MASK].any() and ours[MASK].any()


@functools.cache
def value_and_gradient(space):
    moving = "predicted" if space is BOX else "logits"

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(data, loss, alpha):
        def total(x):
            values = in_detector(loss, space, data | {moving: x}, alpha=alpha)
            return values.sum(), values

        return jax.grad(total, has_aux=True)(data[moving])

    return run


@pytest.mark.parametrize(
    ("space", "text", "formula", "alpha"),
    [
        (MULTI, "cross_entropy", "CE", None),
        (MULTI, "poly1_cross_entropy(epsilon=0)", "CE", None),
        (MULTI, "iou_weighted_cross_entropy", "CEI", None),
        (MULTI, "cse_autoloss_a_cls", "A_cls", None),
        (BINARY, "focal_loss", "focal", 0.25),
        (BINARY, "focal_loss(alpha=0.4, gamma=2)", "focal", 0.4),
        (BINARY, "cse_autoloss_b_cls(alpha=0.25)", "B_cls", 0.25),
        (BINARY, "cse_autoloss_b_cls", "2 * B_cls", 0.5),
        (BINARY, "binary_cross_entropy", "2 * CE", 0.5),
        (BINARY, "iou_weighted_binary_cross_entropy", "2 * CEI", 0.5),
        (BOX, "iou_loss", "IoU", None),
        (BOX, "log_iou_loss", "-log IoU", None),
        (BOX, "giou_loss", "GIoU", None),
        (BOX, "cse_autoloss_a_reg", "A_reg", None),
        (BOX, "cse_autoloss_b_reg", "B_reg", None),
    ],
)
def test_a_loss_and_its_formula_agree(space, text, formula, alpha):
    """Also that the balance outside of formulas, 0.5 on either side where the factor is 2, is not applied twice."""
    weight = 2.0 if formula.startswith("2 * ") else 1.0
    as_data = term(zoo.find(formula.removeprefix("2 * "), space), weight)
    data = data_of(space, seed=1)
    ours, theirs = (value_and_gradient(space)(data, loss, alpha or 0.0) for loss in (resolve(text, space), as_data))
    np.testing.assert_allclose(ours[1], theirs[1], rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-3, atol=1e-5)


def test_ghm_counts_no_masked_row():
    for space, name, rows in ((BINARY, "ghm_c_loss", ("logits",)), (BOX, "ghm_r_loss", ("predicted_offsets",))):
        data, loss = data_of(space), resolve(name, space)
        changed = data | {row: jnp.where(MASK[:, None], data[row], np.nan) for row in rows}
        np.testing.assert_array_equal(in_detector(loss, space, data), in_detector(loss, space, changed))


# Text


def test_hyper_parameters_are_used():
    loss = resolve("balanced_l1_loss(alpha=1, gamma=1.0)", BOX)
    assert loss.options == (("alpha", 1), ("gamma", 1.0))
    data = data_of(BOX)
    expected = library.balanced_l1_loss(data["predicted_offsets"], data["target_offsets"], alpha=1.0, gamma=1.0)
    np.testing.assert_allclose(in_detector(loss, BOX, data)[MASK], expected.sum(-1)[MASK], rtol=1e-6)
    assert resolve("focal_loss(alpha=None)", BINARY).options == (("alpha", None),)
    assert resolve("poly1_cross_entropy(epsilon=-0.5)", MULTI).options == (("epsilon", -0.5),)
    assert resolve("focal_loss(gamma=2.0)", BINARY).options == resolve("focal_loss()", BINARY).options == ()


def test_formulas_are_read_as_before():
    for text in ("GIoU", "1 - i / u", " Sub(1,Div(I,U)) ", "-log(i / u)"):
        assert isinstance(resolve(text, BOX, 2.0), LossTerm)


@pytest.mark.parametrize(
    ("space", "text", "said"),
    [
        (
            BINARY,
            "varifocl_loss",
            "did you mean the loss 'varifocal_loss'.*ghm_c_loss.*by name are focal, CE",
        ),
        (BINARY, "varifocal", "did you mean the loss 'varifocal_loss'"),
        (BOX, "DIoU_loss", "did you mean the loss 'diou_loss'"),
        (BOX, "focal_los(gamma=2)", "the library losses of space box are iou_loss"),
        (BINARY, "diou_loss", "diou_loss does not fit space binary_class: it is a loss of space box; .*varifocal_loss"),
        (
            BOX,
            "ciou_loss(miniou=0)",
            "no hyper-parameter 'miniou'; did you mean 'min_iou'; .* takes min_iou=0.5",
        ),
        (BOX, "giou_loss(beta=1)", "giou_loss has no hyper-parameter 'beta'; giou_loss takes no hyper-parameters"),
        (BOX, "l1_loss(mask=None)", "no hyper-parameter 'mask'"),
        (BINARY, "ghm_c_loss(momentum=0.75)", "no hyper-parameter 'momentum'.*ghm_c_loss takes bins=30"),
        (BINARY, "ghm_c_loss(bins=0)", "bins is 0; give a whole number above 0, such as 30"),
        (BINARY, "ghm_c_loss(bins=2.5)", "bins is 2.5"),
        (BINARY, "focal_loss(gamma='2')", "gamma is '2'; give a finite number, such as 2.0"),
        (BINARY, "focal_loss(gamma=None)", "gamma is None"),
        (BINARY, "focal_loss(gamma=1e999)", "gamma is inf"),
        (BINARY, "focal_loss(gamma=True)", "gamma is True"),
        (BINARY, "focal_loss(1.5)", r"write name\(keyword=number, ...\); focal_loss takes alpha=0.25, gamma=2.0"),
        (BINARY, "focal_loss(gamma=1, gamma=2)", "twice|cannot read"),
        (BINARY, "focal_loss(**{})", "cannot read"),
        (BINARY, "focal_loss(gamma=__import__('os').getpid())", "cannot read"),
        (BINARY, "focal_loss(gamma=1) + focal_loss(gamma=2)", "cannot read"),
        (BINARY, "focal_loss(gamma=1)(gamma=2)", "cannot read"),
        (BINARY, "focal_loss(gamma=" + "(" * 3000 + ")" * 3000 + ")", "cannot read"),
        (BOX, "1 - i / v", "^space box has no variable 'v'"),
        (BOX, "lag(i)", "^space box has no operator 'lag'"),
        (BOX, "", "the formula ends"),
    ],
)
def test_errors_name_the_text_and_what_to_do(space, text, said):
    with pytest.raises(ValueError, match=f"(?s){said}") as caught:
        resolve(text, space)
    assert isinstance(caught.value, LossError) or said.startswith(("^", "the formula"))


def test_a_pair_has_the_usual_losses_and_weights():
    def weights(**options):
        pair = resolve_pair(MULTI, usual_box_weight=10.0, **options)
        return float(pair.cls.weight), float(pair.box.weight)

    assert weights() == weights(box="diou_loss") == weights(box="1 - i / u") == (1.0, 10.0)
    assert weights(box="l1_loss") == (1.0, 1.0)
    assert weights(box="smooth_l1_loss(beta=0.5)", box_weight=3.0, cls_weight=2.0) == (2.0, 3.0)
    pair = resolve_pair(MULTI)
    for ours, formula in ((pair.cls, zoo.default(MULTI)), (pair.box, zoo.default(BOX))):
        jax.tree.map(np.testing.assert_array_equal, ours, term(formula))


# Detectors.  The network is compiled once; each pair of losses only compiles what follows the head.


def batch_of(*, size=(SIZE, SIZE)) -> Batch:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0.0, 30.0, (2, 4, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10.0, 30.0, (2, 4, 2))], -1).astype(np.float32)
    boxes[:, 2] = [2.0, 2.0, 62.0, 60.0]  # for the coarser level
    return Batch(
        image=rng.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32),
        image_size=np.tile(np.float32(size), (2, 1)),
        boxes=boxes,
        labels=rng.integers(0, CLASSES, (2, 4)).astype(np.int32),
        valid=np.tile(np.arange(4) < 3, (2, 1)),
        image_id=np.arange(2, dtype=np.int32),
        real=np.ones(2, bool),
    )


class Head(NamedTuple):
    """A detector cut behind its head."""

    outputs: tuple  # of the untrained network
    pull_back: object  # gradients of the outputs -> gradients of the parameters
    losses: object  # (outputs, DetectionLosses) -> (cls, box)


STRIDES = TINY["fcos"].fpn.strides(TINY["fcos"].backbone.strides)
POINTS = pyramid_points((SIZE, SIZE), STRIDES, TINY["fcos"].range_limits)


@functools.cache
def cut(name: str) -> Head:
    config, batch = TINY[name], batch_of()
    _, build = build_detector(config)
    graph = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))[0]
    state = jax.jit(lambda key: nnx.split(build(nnx.Rngs(key)))[1], compiler_options=QUICK)(jax.random.key(0))
    if name == "fcos":

        def head(model):
            return model._heads(batch.image, batch.image_size)

        def losses(outputs, losses, batch=batch):
            given = types.SimpleNamespace(config=config, strides=STRIDES, _heads=lambda *_: outputs)
            parts = FCOS.loss(given, batch, losses, key=jax.random.key(0))[1]
            return parts["cls"], parts["box"]

    else:
        sampled = sampled_rois()

        def head(model):
            return model.roi(model.features(batch.image, batch.image_size), sampled[0], model.strides)

        def losses(outputs, losses):
            given = types.SimpleNamespace(config=config, strides=(), roi=lambda *_: outputs)
            return FasterRCNN._roi_loss(given, Pyramid([], []), losses, sampled)

    def run(state):
        return head(nnx.merge(graph, state))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def pull_back(gradients):
        return jax.vjp(run, state)[1](gradients)[0]

    return Head(jax.jit(run, compiler_options=QUICK)(state), pull_back, losses)


def sampled_rois():
    batch, rng = batch_of(), np.random.default_rng(9)
    jitter = rng.uniform(-4.0, 4.0, (2, 60, 4)).astype(np.float32)
    proposals = np.repeat(batch.boxes, 15, axis=1) + jitter
    keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(0), k))(jnp.arange(2))
    sample = functools.partial(FasterRCNN._sample, types.SimpleNamespace(config=TINY["faster_rcnn"]))
    return jax.jit(jax.vmap(sample), compiler_options=QUICK)(proposals, np.ones((2, 60), bool), batch, keys)


def pairs():
    for name, space in (("fcos", BINARY), ("faster_rcnn", MULTI)):
        cls, box = named_losses.names(space), named_losses.names(BOX)
        yield from ((name, cls[k % len(cls)], box[k]) for k in range(len(box)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cls", "box"), list(pairs()))
def test_a_training_step_under_every_loss(name, cls, box):
    head = cut(name)
    losses = resolve_pair(build_detector(TINY[name])[0].cls_space, cls=cls, box=box)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(outputs, losses):
        def total(outputs):
            parts = head.losses(outputs, losses)
            return sum(parts), parts

        return jax.grad(total, has_aux=True)(outputs)

    gradients, before = both(head.outputs, losses)
    assert np.isfinite(before).all() and before[0] > 0.0
    for gradient in jax.tree.leaves(gradients)[:2]:  # class logits; distances or deltas
        assert np.isfinite(gradient).all() and np.any(gradient)
    to_weights = [np.asarray(leaf) for leaf in jax.tree.leaves(head.pull_back(gradients)) if leaf.dtype == np.float32]
    assert all(np.isfinite(gradient).all() for gradient in to_weights)
    assert sum(gradient.any() for gradient in to_weights) > len(to_weights) / 2


@pytest.mark.parametrize("box", named_losses.names(BOX))
def test_perfect_offsets_of_the_own_class_have_no_loss(box):
    """Whatever the other classes' offsets and those of background RoIs are."""
    head = cut("faster_rcnn")
    rois, labels, positive, _, targets, _ = sampled_rois()
    own = box_ops.encode_deltas(rois, targets, TINY["faster_rcnn"].roi.stds)
    is_own = (np.arange(CLASSES) == labels[..., None]) & positive[..., None]
    deltas = jnp.where(is_own[..., None], own[:, :, None], 3.0)
    losses = DetectionLosses(resolve("cross_entropy", MULTI), resolve(box, BOX))
    run = jax.jit(lambda deltas: head.losses((head.outputs[0], deltas), losses)[1], compiler_options=QUICK)
    perfect, wrong = run(deltas), run(jnp.where(is_own[..., None], deltas + 2.0, deltas))
    assert wrong > perfect
    if not box.startswith("cse_"):
        np.testing.assert_allclose(perfect, 0.0, atol=1e-4)


def test_coordinate_losses_of_fcos_are_in_strides():
    """Distances one stride too long on every side cost 4 under L1, on every level alike."""
    head, batch = cut("fcos"), batch_of()
    logits, _, centreness = head.outputs
    inside = np.ones(len(POINTS.xy), bool)
    assign = jax.vmap(lambda *truth: assign_points(POINTS, *truth, inside, radius=TINY["fcos"].radius))
    targets = assign(batch.boxes, batch.labels, batch.valid)
    assert len(np.unique(POINTS.level[np.asarray(targets.positive).any(0)])) == 2
    perfect = box_ops.encode_ltrb(POINTS.xy, targets.boxes) / POINTS.stride[:, None]
    perfect = jnp.where(targets.positive[..., None], perfect, 7.0)
    for text, too_long, expected in (("l1_loss", 1.0, 4.0), ("l1_loss", 0.0, 0.0), ("giou_loss", 0.0, 0.0)):
        losses = DetectionLosses(resolve("focal_loss", BINARY), resolve(text, BOX))
        box = head.losses((logits, perfect + too_long, centreness), losses)[1]
        np.testing.assert_allclose(box, expected, atol=1e-5)


def test_ghm_ignores_the_padding_and_is_a_mean():
    """FCOS divides the others by its few positives, which would make this one hundreds of times its paper's."""
    head, size = cut("fcos"), (SIZE, 20.0)
    logits, *rest = head.outputs
    losses = DetectionLosses(resolve("ghm_c_loss", BINARY), resolve("giou_loss", BOX))
    beyond = (POINTS.xy[:, 0] >= 32.0)[None, :, None]
    run = jax.jit(lambda logits: head.losses((logits, *rest), losses, batch_of(size=size))[0])
    assert run(logits) == run(jnp.where(beyond, logits + 5.0, logits))
    assert 0.1 < run(logits) < 5.0


def test_a_weight_compiles_nothing():
    """A whole training step; counts compilations by JAX's own log of them."""
    detector, build = build_detector(TINY["fcos"])
    functions = jit_detector(build, TrainConfig(warmup_steps=2))
    names = dict(cls="varifocal_loss", box="smooth_l1_loss")
    losses = [resolve_pair(detector.cls_space, **names, box_weight=weight) for weight in (1.0, 2.0)]
    length, seed, batch = jnp.int32(9), jnp.int32(0), batch_of()
    state, before = functions.step(functions.init(0), batch, losses[0], length, seed)
    fresh = functions.init(0)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    try:
        _, after = functions.step(fresh, batch, losses[1], length, seed)
        jax.block_until_ready(after)
    finally:
        jax.monitoring.clear_event_listeners()
    assert "/jax/core/compile/backend_compile_duration" not in compiled
    np.testing.assert_allclose(after["box"], 2.0 * before["box"], rtol=1e-6)
    assert before["finite"] and after["finite"] and before["cls"] == after["cls"] and before["box"] > 0.0
