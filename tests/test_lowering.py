"""What XLA gets for accelerators: programs from abstract shapes, lowered here without a device."""

import ast
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from micro import library_losses
from scripts import ROOT

from benchmarks.analysis import batch_of
from benchmarks.smallest import FEATURES, faster_rcnn_smallest, fcos_smallest
from cse_jax.atlas import probes, stream
from cse_jax.language import graph, population, program, spaces, zoo
from cse_jax.language.spaces import box
from cse_jax.sampling import random_trees, variation
from cse_jax.screening import simulation, sizes, verification
from cse_jax.screening.coarse import CoarseGrid
from detectors.evaluation import inference
from detectors.losses import resolve_pair
from detectors.models import build_detector, torchvision_settings
from detectors.models.atss import atss_tiny
from detectors.models.cascade_rcnn import cascade_rcnn_tiny
from detectors.models.detector import abstract_detector
from detectors.models.mask_rcnn import mask_rcnn_tiny
from detectors.structures import Batch
from detectors.training.batched import jit_many, stack_losses
from detectors.training.step import TrainConfig, jit_detector

BOTH = ("cuda", "tpu")
GPU = ("cuda",)  # all that computes in float64, which a TPU leaves to its host
FEWEST = {
    "fcos": fcos_smallest(3),
    "faster_rcnn": faster_rcnn_smallest(3),
    "atss": dataclasses.replace(atss_tiny(3), **FEATURES, towers=1, norm_groups=4),
    "cascade_rcnn": dataclasses.replace(cascade_rcnn_tiny(3), **FEATURES),
    "mask_rcnn": dataclasses.replace(mask_rcnn_tiny(3), **FEATURES),
}
OPTIONS = {"fcos": dict(accumulate=2), "atss": dict(optimiser="adamw", gradient_clip=1.0)}  # the others: the average
SPACES = [spaces.BOX, spaces.MULTI_CLASS, spaces.BINARY_CLASS]
each_space = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
NUMBER = jax.ShapeDtypeStruct((), jnp.int32)


def compiled_functions() -> Iterator[tuple[str, str]]:
    """File and name of all that is compiled: of the function that is decorated, or else within which it is compiled.

    Benchmarks, which time what nobody else runs, are left out.
    """

    def below(node: ast.AST, name: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef):
            name = node.name
        if {getattr(node, "attr", ""), getattr(node, "id", "")} & {"jit", "pmap"}:
            yield name
        for child in ast.iter_child_nodes(node):
            yield from below(child, name)

    for path in [
        *(ROOT / "cse_jax").rglob("*.py"),
        *(ROOT / "detectors").rglob("*.py"),
        *(ROOT / "launch").glob("*.py"),
    ]:
        file = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        if re.search("jit|pmap", text) and file != "detectors/compiling.py":  # which is how the others are compiled
            for name in below(ast.parse(text), ""):
                yield file, name


def covers(file: str, *names: str) -> Callable:
    """Says of a test which functions of a file it lowers."""

    def told(test: Callable) -> Callable:
        test.covers = [*getattr(test, "covers", []), *((file, name) for name in names)]
        return test

    return told


@pytest.fixture(autouse=True)
def accelerated(monkeypatch):
    """All takes the form of accelerators, which is the same for GPUs and TPUs but for what computes in float64."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def lowered(function: Callable, *arguments, platforms=BOTH) -> export.Exported:
    """The program of a function, which may be compiled itself or call what is."""
    jitted = function if isinstance(function, jax.stages.Wrapped) else jax.jit(lambda *given: function(*given))
    return export.export(jitted, platforms=platforms)(*arguments)


@pytest.fixture
def lowers(request):
    """Lowers functions for accelerators, and sees in the end that those that the test covers were among them."""
    programs = []

    def lower(function: Callable, *arguments, platforms=BOTH) -> export.Exported:
        program = lowered(function, *arguments, platforms=platforms)
        assert program.platforms == platforms
        programs.append(program.mlir_module_serialized)
        return program

    yield lower
    for _, name in request.function.covers:
        assert any(name.encode() in text for text in programs), name


def test_all_that_is_compiled_is_lowered_here():
    covered = {name for test in globals().values() for name in getattr(test, "covers", [])}
    assert set(compiled_functions()) == covered


def test_only_float64_and_sizes_tell_a_tpu_from_a_gpu():
    """Else a program lowered in the form of GPUs would not be that of TPUs."""
    files = [*(ROOT / "cse_jax").rglob("*.py"), *(ROOT / "detectors").rglob("*.py")]
    telling = {path.name for path in files if re.search(r"""["'](gpu|cuda|tpu)["']""", path.read_text())}
    assert telling == {"float64.py", "sizes.py", "compiling.py"}  # the last one chooses options of the compiler


@pytest.mark.slow
@pytest.mark.parametrize("name", FEWEST)
@covers("detectors/training/step.py", "step", "found")
def test_training_and_inference(name, lowers):
    detector, build = build_detector(FEWEST[name])
    masks = jax.ShapeDtypeStruct((2, 8, 16, 24), bool) if name == "mask_rcnn" else None
    batch = batch_of(2, 64, 96)._replace(masks=masks)
    config = TrainConfig(batch_size=2, **OPTIONS.get(name, dict(ema=0.9)))
    functions = jit_detector(build, config, devices=jax.devices()[:1])
    state = jax.eval_shape(functions.init, 0)
    lowers(functions.step, state, batch, resolve_pair(detector.cls_space), NUMBER, NUMBER)
    lowers(functions.predict, state, batch.image, batch.image_size)


@covers("detectors/training/step.py", "init")
def test_the_start_of_a_training(lowers):
    config = TrainConfig(optimiser="adamw", ema=0.9)
    lowers(jit_detector(build_detector(FEWEST["fcos"])[1], config, devices=jax.devices()[:1]).init, NUMBER)


@covers("detectors/evaluation/inference.py", "predict")
def test_inference_with_the_labels_of_other_data(lowers):
    structure, state = nnx.split(abstract_detector(build_detector(FEWEST["fcos"])[1]))
    predict = inference.predictor_of_any(structure, np.array([1, 0, -1], np.int32))
    batch = batch_of(2, 64, 96)
    lowers(predict, state, batch.image, batch.image_size)


def side_by_side(name: str, *, heads: bool):
    """What trains detectors side by side, or their output layers, with the shapes that it takes."""
    detector, build = build_detector(FEWEST[name])
    own = dict(own=detector.is_output) if heads else {}
    many = jit_many(build, TrainConfig(batch_size=2, compute="bfloat16"), **own)
    _, *model = nnx.split(abstract_detector(build), nnx.Param, ...)
    state = jax.eval_shape(functools.partial(many.init, count=3), tuple(model))
    return many, tuple(model), state, stack_losses([resolve_pair(detector.cls_space)] * 3), batch_of(2, 64, 96)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcos", "faster_rcnn"])
@covers("detectors/training/batched.py", "repeated", "advance", "found")
def test_heads_side_by_side(name, lowers):
    many, model, state, losses, batch = side_by_side(name, heads=True)
    lowers(functools.partial(many.init, count=3), model)
    step = lowers(many.step, state, batch, losses, NUMBER, NUMBER)
    predict = lowers(many.predict, state, batch.image, batch.image_size)
    assert "bf16" in step.mlir_module() and "bf16" in predict.mlir_module()


@pytest.mark.slow
@covers("detectors/training/batched.py", "gradient")
def test_gradients_of_heads_side_by_side(lowers):
    many, _, state, losses, batch = side_by_side("fcos", heads=True)
    lowers(many.gradient, state, batch, losses, NUMBER)


@pytest.mark.slow
@covers("detectors/training/batched.py", "advance", "found")
def test_whole_detectors_side_by_side(lowers):
    many, _, state, losses, batch = side_by_side("fcos", heads=False)
    lowers(many.step, state, batch, losses, NUMBER, NUMBER)
    lowers(many.predict, state, batch.image, batch.image_size)


@each_space
@covers("cse_jax/screening/simulation.py", "_simulate_batch")
def test_simulation(space, lowers):
    default = program.compile_expression(zoo.default(space))
    batch = program.stack([default] * sizes.sizes().simulated)
    lowers(simulation._simulate_batch, space, "pixels", 0, batch)


@each_space
@covers("cse_jax/sampling/random_trees.py", "random_block")
@covers("cse_jax/sampling/variation.py", "_offspring", "crossover", "_mutate")
@covers("cse_jax/language/population.py", "structure", "_hashes")
def test_populations(space, lowers):
    key, shape, share = jax.random.key(0), random_trees.Shape(), jax.ShapeDtypeStruct((), jnp.float32)
    tokens = population.encode([zoo.default(space)], space, width=shape.max_nodes).repeat(8, 0)
    lowers(random_trees.random_block, key, space, shape, 8)
    lowers(variation._offspring, key, tokens, NUMBER, space, shape, 8, share, share)
    lowers(variation.crossover, key, tokens, tokens, space, shape)
    lowers(variation._mutate, key, tokens, jnp.arange(2), space, shape)
    lowers(population.structure, tokens, space)
    with jax.enable_x64(True):
        lowers(population._hashes, tokens, space, platforms=GPU)


def no_grid(space, units, paths, points) -> CoarseGrid:
    """A coarse grid of the right shape, whose paths were not chosen."""
    values = graph.leaf_values(space, np.ones((len(space.variables), paths * points, *[3] * space.class_axis)))
    return CoarseGrid(values, np.linspace(0, 12, points).round().astype(int))


@each_space
@covers("cse_jax/sampling/random_graphs.py", "grow")
@covers("cse_jax/language/graph.py", "evaluate")
@covers("cse_jax/atlas/stream.py", "grow_and_filter", "_may_pass")
def test_screening(space, lowers, monkeypatch):
    monkeypatch.setattr(stream, "coarse_grid", no_grid)
    cut, grid = sizes.sizes(), no_grid(space, "pixels", *sizes.FINER)
    each = stream._on_all_devices.__wrapped__(space, "pixels", cut.per_operator, cut.width, 40)
    graphs = graph.from_tokens(population.encode([zoo.default(space)], space), space, width=64)
    with jax.enable_x64(True):
        lowers(each, NUMBER, jax.ShapeDtypeStruct((jax.local_device_count(),), jnp.int32), platforms=GPU)
        lowers(stream._may_pass, space, grid, *graphs, grid.leaves, platforms=GPU)


@each_space
@covers("cse_jax/atlas/probes.py", "apply", "digests")
def test_enumeration(space, lowers, monkeypatch):
    monkeypatch.setattr(probes, "coarse_grid", no_grid)
    monkeypatch.setattr(probes, "probes_of", functools.cache(probes.probes_of.__wrapped__))
    with jax.enable_x64(True):
        points, operands = probes.probes_of(space, "pixels").leaves.shape[1:], sizes.sizes().operands
        values = jax.ShapeDtypeStruct((operands, *points), jnp.float64)
        wide = jax.ShapeDtypeStruct((operands,), bool)
        lowers(probes.digests, space, "pixels", 1, values, None, wide, platforms=GPU)
        lowers(probes.digests, space, "pixels", 2, values, values, wide, platforms=GPU)
        division = [row.name for row in space.table].index("Div")
        lowers(probes.apply, space, division, (values, values), wide, platforms=GPU)


@each_space
@covers("cse_jax/screening/verification.py", "_judge_values", "_judge_with_gradients", "_behaviours", "_locate")
def test_verification(space, lowers):
    cut, tokens = sizes.sizes(), population.encode([zoo.default(space)], space)
    for function in ("_judge_values", "_judge_with_gradients", "_behaviours", "_locate"):
        tile, count = (cut.tile, cut.batch) if function == "_judge_values" else (cut.gradient_tile, cut.gradient_batch)
        shared, roots, wide = graph.from_tokens(tokens, space, width=tile)
        given = shared, roots.repeat(count), wide.repeat(count)
        with jax.enable_x64(True):
            lowers(getattr(verification, function), space, space.units[-1], *given, platforms=GPU)


@covers("cse_jax/language/spaces/box.py", "_on_all_motions")
def test_paths_of_boxes(lowers):
    with jax.enable_x64(True):
        for tangent in (False, True):
            lowers(box._on_all_motions, np.ones((5, 2)), np.ones(13), tangent, platforms=GPU)


def training_step(config, batch: Batch, **options) -> str:
    """The program of a training step for a GPU."""
    detector, build = build_detector(config)
    functions = jit_detector(build, TrainConfig(batch_size=len(batch.image_id), **options), devices=jax.devices()[:1])
    state, losses = jax.eval_shape(functions.init, 0), library_losses(detector)
    return lowered(functions.step, state, batch, losses, NUMBER, NUMBER, platforms=GPU).mlir_module()


def test_maps_of_features_get_their_gradient_by_one_scatter():
    """RoIAlign's, in float32; in bfloat16 sums would be inexact, and sixteen would fill sixteen pyramids."""
    config = faster_rcnn_smallest(3)
    config = dataclasses.replace(config, roi=dataclasses.replace(config.roi, pool_as_product=False))
    program = training_step(config, batch_of(2, 64, 96), compute="bfloat16")
    scattered = re.findall(r'"stablehlo\.scatter"\(.*?\}\) : \(tensor<([^>]*)>', program, re.DOTALL)
    assert [shape for shape in scattered if f"x{config.fpn.channels}x" in shape] == ["2x480x16xf32"]
    assert len(scattered) <= 6, "the others are of the sampled anchors and RoIs"


@pytest.mark.parametrize(
    "settings", [torchvision_settings.fasterrcnn_resnet50_fpn, torchvision_settings.fcos_resnet50_fpn]
)
def test_anchors_are_no_constants_of_the_program(settings):
    """As such the 268,000 of Faster R-CNN with R50-FPN were 17 of 19 MB of a step's text; the loss has all of them."""
    config = settings()
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, depths=(1, 1, 1, 1)))
    detector, build = build_detector(config)
    structure, state = nnx.split(abstract_detector(build))

    def loss(state, batch):
        return nnx.merge(structure, state).loss(batch, library_losses(detector), key=jax.random.key(0))

    program = lowered(jax.jit(loss), state, batch_of(16, 800, 1344), platforms=GPU).mlir_module()
    assert len(program) < 1e6, f"{len(program) / 1e6:.1f} MB"
    assert max(len(line) for line in program.splitlines() if "stablehlo.constant" in line) < 10_000


def test_asked_for_exact_products_all_are():
    """JAX_DEFAULT_MATMUL_PRECISION=highest, in the detector that has most kinds of products."""
    with jax.default_matmul_precision("highest"):
        program = training_step(faster_rcnn_smallest(3), batch_of(2, 64, 96))
    products = [line for line in program.splitlines() if "stablehlo.dot" in line or "stablehlo.convolution" in line]
    assert len(products) > 50 and all(line.count("HIGHEST") == 2 for line in products)
