"""Weights of torchvision and timm for our detectors: tables of names, checked against the parameter tree.

A table says for each of our parameters what it is called elsewhere and how its axes are permuted.  Nothing is loaded
unless everything fits.  Nothing is downloaded; the user gives the path of a file.
"""

import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cse_jax.errors import InputError, UserError
from detectors.models.detector import Detector
from detectors.models.faster_rcnn import FasterRCNN
from detectors.models.fcos import FCOS
from detectors.models.mask_rcnn import MaskRCNN
from detectors.models.mobilenet import BLOCKS as MOBILENET_BLOCKS
from detectors.models.mobilenet import LAST_POINTWISE, MobileNetV1
from detectors.models.resnet import ResNet
from detectors.weights.recognising import classes, recognised
from detectors.weights.tensor_files import read_tensors

_TORCHVISION = "https://download.pytorch.org/models/"
_NAMES = {FasterRCNN: "torchvision's Faster R-CNN", MaskRCNN: "torchvision's Mask R-CNN", FCOS: "torchvision's FCOS"}


class WeightsError(UserError, ValueError):
    """Weights that do not fit a model; the message lists every mismatch."""


class MissingWeightsError(UserError, FileNotFoundError):
    """A file of weights that does not exist; the message says where to get it."""


class Row(NamedTuple):
    """Parameters of ours and where their values come from.

    Attributes:
      ours: path of a parameter, with ``*`` for each index.
      theirs: gives for these indices the name elsewhere, or all names that it has had over the years.
      turn: makes our array from theirs.
    """

    ours: str
    theirs: Callable[..., str | tuple[str, ...]]
    turn: Callable[[np.ndarray], np.ndarray] = lambda array: array

    def names(self, *indices: int) -> tuple[str, ...]:
        """The names elsewhere of the parameter with these indices, the one to prefer first."""
        return _as_tuple(self.theirs(*indices))


CLASSIFIER = r"(fc\..*|.*\.num_batches_tracked)"  # tensors that a backbone does not need


def load_resnet(backbone: ResNet, path: str | os.PathLike) -> None:
    """Fills a ResNet in place with torchvision's or timm's weights of ImageNet; their classifier is left out.

    Args:
      backbone: a network with batch norms, made or abstract (``nnx.eval_shape``).
      path: a .safetensors or .pth file.

    Raises:
      MissingWeightsError: there is no such file; the message says where to get it.
      TensorFileError: the file cannot be read.
      WeightsError: names or shapes do not fit.
    """
    where = f"{_TORCHVISION}resnet50-0676ba61.pth or resnet101-63fe2227.pth, or timm/resnet50.a1_in1k on Hugging Face"
    _load(backbone, path, RESNET, where, skip=CLASSIFIER)


def load_mobilenet(backbone: MobileNetV1, path: str | os.PathLike) -> None:
    """Fills a MobileNetV1 in place with Keras's weights of ImageNet, except for its last pointwise convolution.

    Args:
      backbone: made or abstract (``nnx.eval_shape``).
      path: an .npz file of ``conv1.kernel``, ``conv_dw_1.depthwise_kernel``, ``conv_pw_1_bn.gamma`` and so on.

    Raises:
      As ``load_resnet``.
    """
    where = "Keras's mobilenet_1_0_224_tf_no_top.h5, its arrays saved with numpy.savez"
    beyond = "|".join(str(number) for number in range(len(backbone.blocks) + 1, len(MOBILENET_BLOCKS) + 1))
    skip = rf"conv_pw_{len(MOBILENET_BLOCKS)}[_.].*|conv_(dw|pw)_({beyond or 'none'})[_.].*"
    _load(backbone, path, MOBILENET, where, skip=skip, stays=LAST_POINTWISE)


def load_faster_rcnn(model: FasterRCNN, path: str | os.PathLike) -> None:
    """Fills a Faster R-CNN in place with weights of torchvision's ``fasterrcnn_resnet50_fpn``.

    Args:
      model: of ``torchvision_settings.fasterrcnn_resnet50_fpn``, made or abstract (``nnx.eval_shape``).
      path: a .safetensors or .pth file.

    Raises:
      As ``load_resnet``.
    """
    _load(model, path, faster_rcnn_table(model), f"{_TORCHVISION}fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")


def load_mask_rcnn(model: MaskRCNN, path: str | os.PathLike) -> None:
    """Fills a Mask R-CNN in place with weights of torchvision's ``maskrcnn_resnet50_fpn``, as ``load_faster_rcnn``."""
    _load(model, path, mask_rcnn_table(model), f"{_TORCHVISION}maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth")


def load_fcos(model: FCOS, path: str | os.PathLike) -> None:
    """Fills an FCOS in place with weights of torchvision's ``fcos_resnet50_fpn``, as ``load_faster_rcnn``."""
    _load(model, path, FCOS_TABLE, f"{_TORCHVISION}fcos_resnet50_fpn_coco-99b0c9b7.pth")


def load_whole(model: Detector, path: str | os.PathLike) -> None:
    """Fills a detector in place with torchvision's weights of it, as ``load_faster_rcnn`` and the others.

    Raises:
      MissingWeightsError, TensorFileError, WeightsError: as these.
      InputError: torchvision has no such detector.
    """
    loaders: dict[type[Detector], Callable[..., None]] = {
        FCOS: load_fcos,
        FasterRCNN: load_faster_rcnn,
        MaskRCNN: load_mask_rcnn,
    }
    load = loaders.get(type(model))
    if load is None:
        known = ", ".join(kind.__name__ for kind in loaders)
        raise InputError(f"{path}: torchvision has no weights of {type(model).__name__}; they are for {known}")
    load(model, path)


def assign(
    model: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    table: tuple[Row, ...],
    *,
    skip: str = r".*\.num_batches_tracked",
    stays: str = "",
) -> None:
    """Fills a model in place with named tensors.

    Args:
      model: made, or abstract (``nnx.eval_shape``).
      tensors: by their names elsewhere.
      table: what each parameter of the model is called there.
      skip: pattern of tensors that the model does not need.
      stays: pattern of our parameters that keep their values.

    Raises:
      WeightsError: there are parameters without tensor, tensors without parameter, or shapes that differ; one message
        lists them all.
    """
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    left = {name for name in tensors if not re.fullmatch(skip, name)}
    filled, problems = [], []
    for path, variable in nnx.to_flat_state(state):
        name = "/".join(map(str, path))
        if re.fullmatch(stays, name):
            continue
        row, indices = _find(table, name)
        if row is None:
            problems.append(f"unknown: {name} has no row in the table of names")
            continue
        names = row.names(*indices)
        found = next((candidate for candidate in names if candidate in tensors), None)
        if found is None:
            problems.append(f"missing: {' or '.join(names)} (for {name})")
            continue
        left.discard(found)
        try:
            array = row.turn(tensors[found])
        except ValueError:  # the array has too few axes to be turned; reported below as a wrong shape
            array = None
        if array is None or array.shape != variable.shape:
            problems.append(
                f"wrong shape: {found} is {tensors[found].shape}, {name} needs {variable.shape} once turned"
            )
            continue
        filled.append((path, variable.replace(jnp.asarray(array, variable.dtype))))
    problems += [f"unexpected: {name}" for name in sorted(left)]
    if problems:
        raise WeightsError("\n  ".join([f"{len(problems)} weights do not fit {type(model).__name__}:", *problems]))
    nnx.update(model, nnx.from_flat_state(filled))


def _load(model: nnx.Module, path: str | os.PathLike, table: tuple[Row, ...], where: str, **options) -> None:
    path = pathlib.Path(path)
    if not path.is_file():
        raise MissingWeightsError(f"no weights at {path}; get them from {where}, and give the path of the file")
    tensors = read_tensors(path)
    try:
        assign(model, tensors, table, **options)
    except WeightsError as error:
        raise WeightsError(f"{path}: {_mistaken(model, tensors, where) or error}") from error


def _mistaken(model: nnx.Module, tensors: Mapping[str, np.ndarray], where: str) -> str:
    """What the file is of, if it is not of such a model at all; else empty."""
    what, wanted = recognised(tensors), _NAMES.get(type(model), "")
    config: Any = getattr(model, "config", None)
    if isinstance(model, ResNet):
        wanted = f"ResNet-{sum(config.depths) * (3 if config.bottleneck else 2) + 2}"
    if what and wanted and what not in (wanted, "a ResNet"):
        return f"holds the weights of {what}, not of {wanted}; get those from {where}"
    found = classes(tensors)
    if what == wanted and found is not None and found != config.classes:
        return f"its detector has {found} labels, the config's {config.classes}: set detector.classes and the names"
    return ""


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _find(table: tuple[Row, ...], name: str) -> tuple[Row | None, tuple[int, ...]]:
    for row in table:
        match = re.fullmatch(re.escape(row.ours).replace(r"\*", r"(\d+)"), name)
        if match:
            return row, tuple(map(int, match.groups()))
    return None, ()


# How axes are permuted: PyTorch has outputs first, then inputs, then height and width.


def _conv(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0)


def _transposed_conv(array: np.ndarray) -> np.ndarray:
    """A kernel with inputs first, which PyTorch applies mirrored in height and width."""
    return array.transpose(2, 3, 0, 1)[::-1, ::-1]


def _linear(array: np.ndarray) -> np.ndarray:
    return array.transpose()


def _point(array: np.ndarray) -> np.ndarray:
    """A 1x1 convolution as a linear layer."""
    return array.reshape(array.shape[:2]).transpose()


def _background_last(array: np.ndarray) -> np.ndarray:
    return np.roll(array, -1, axis=0)


def _without_background(array: np.ndarray) -> np.ndarray:
    return array[1:]


def _after(first: Callable, second: Callable) -> Callable:
    return lambda array: second(first(array))


# The tables.


def _layer(ours: str, theirs: Callable[..., str | tuple[str, ...]], kernel: Callable, rows: Callable = lambda a: a):
    """The rows of a layer with kernel and bias; ``rows`` picks among its outputs."""

    def named(suffix: str) -> Callable[..., tuple[str, ...]]:
        def names(*indices: int) -> tuple[str, ...]:
            return tuple(f"{name}.{suffix}" for name in _as_tuple(theirs(*indices)))

        return names

    return (
        Row(f"{ours}/kernel", named("weight"), _after(rows, kernel)),
        Row(f"{ours}/bias", named("bias"), rows),
    )


def _norm(ours: str, theirs: Callable[..., str], *, statistics: bool = True) -> tuple[Row, ...]:
    names = {"scale": "weight", "bias": "bias"}
    if statistics:
        names |= {"mean": "running_mean", "var": "running_var"}
    return tuple(Row(f"{ours}/{our}", lambda *i, their=their: f"{theirs(*i)}.{their}") for our, their in names.items())


def _within(ours: str, theirs: str, table: tuple[Row, ...]) -> tuple[Row, ...]:
    """A table with prefixes before the names on both sides."""

    def prefixed(row: Row) -> Row:
        return Row(ours + row.ours, lambda *i: tuple(theirs + name for name in row.names(*i)), row.turn)

    return tuple(map(prefixed, table))


RESNET = (
    Row("stem/kernel", lambda: "conv1.weight", _conv),
    *_norm("stem_norm", lambda: "bn1"),
    Row("stages/*/*/convs/*/kernel", lambda s, b, k: f"layer{s + 1}.{b}.conv{k + 1}.weight", _conv),
    *_norm("stages/*/*/norms/*", lambda s, b, k: f"layer{s + 1}.{b}.bn{k + 1}"),
    Row("stages/*/*/shortcut/kernel", lambda s, b: f"layer{s + 1}.{b}.downsample.0.weight", _conv),
    *_norm("stages/*/*/shortcut_norm", lambda s, b: f"layer{s + 1}.{b}.downsample.1"),
)

_PYRAMID = (
    *_within("backbone/", "backbone.body.", RESNET),
    *_layer("fpn/lateral/*", lambda k: tuple(f"backbone.fpn.inner_blocks.{k}{dot}" for dot in (".0", "")), _conv),
    *_layer("fpn/output/*", lambda k: tuple(f"backbone.fpn.layer_blocks.{k}{dot}" for dot in (".0", "")), _conv),
    *_layer("fpn/extra/*", lambda k: f"backbone.fpn.extra_blocks.p{k + 6}", _conv),
)


def _keras_norm(ours: str, theirs: Callable[..., str]) -> tuple[Row, ...]:
    names = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
    return tuple(Row(f"{ours}/{our}", lambda *i, their=their: f"{theirs(*i)}.{their}") for our, their in names.items())


MOBILENET = (
    Row("stem/kernel", lambda: "conv1.kernel"),
    *_keras_norm("stem_norm", lambda: "conv1_bn"),
    Row("blocks/*/depthwise/kernel", lambda b: f"conv_dw_{b + 1}.depthwise_kernel", lambda a: a.transpose(0, 1, 3, 2)),
    *_keras_norm("blocks/*/depthwise_norm", lambda b: f"conv_dw_{b + 1}_bn"),
    Row("blocks/*/pointwise/kernel", lambda b: f"conv_pw_{b + 1}.kernel"),
    *_keras_norm("blocks/*/pointwise_norm", lambda b: f"conv_pw_{b + 1}_bn"),
)


def faster_rcnn_table(model: FasterRCNN) -> tuple[Row, ...]:
    """Names in torchvision's Faster R-CNN; the model says how RoIs are flattened."""
    size, channels = model.config.roi.size, model.config.fpn.channels

    def flattened(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, channels, size, size).transpose(2, 3, 1, 0).reshape(-1, array.shape[0])

    return (
        *_PYRAMID,
        *_layer("rpn/conv", lambda: ("rpn.head.conv.0.0", "rpn.head.conv"), _conv),
        *_layer("rpn/objectness", lambda: "rpn.head.cls_logits", _conv),
        *_layer("rpn/deltas", lambda: "rpn.head.bbox_pred", _conv),
        *_layer("roi/fc1", lambda: "roi_heads.box_head.fc6", flattened),
        *_layer("roi/fc2", lambda: "roi_heads.box_head.fc7", _linear),
        *_layer("roi/cls", lambda: "roi_heads.box_predictor.cls_score", _linear, _background_last),
        *_layer("roi/box", lambda: "roi_heads.box_predictor.bbox_pred", _linear, lambda array: array[4:]),
    )


def mask_rcnn_table(model: MaskRCNN) -> tuple[Row, ...]:
    """Names in torchvision's Mask R-CNN."""
    predictor = "roi_heads.mask_predictor"
    return (
        *faster_rcnn_table(model),
        *_layer(
            "mask/convs/*",
            lambda k: (f"roi_heads.mask_head.{k}.0", f"roi_heads.mask_head.mask_fcn{k + 1}"),
            _conv,
        ),
        *_layer("mask/double", lambda: f"{predictor}.conv5_mask", _transposed_conv),
        *_layer("mask/logits", lambda: f"{predictor}.mask_fcn_logits", _point, _without_background),
    )


def _tower(ours: str, theirs: str) -> tuple[Row, ...]:
    return (
        *_layer(f"{ours}/convs/*", lambda k: f"{theirs}.conv.{3 * k}", _conv),
        *_norm(f"{ours}/norms/*", lambda k: f"{theirs}.conv.{3 * k + 1}", statistics=False),
    )


FCOS_TABLE = (
    *_PYRAMID,
    *_tower("cls_tower", "head.classification_head"),
    *_tower("box_tower", "head.regression_head"),
    *_layer("cls", lambda: "head.classification_head.cls_logits", _conv, _without_background),
    *_layer("box", lambda: "head.regression_head.bbox_reg", _conv),
    *_layer("centreness", lambda: "head.regression_head.bbox_ctrness", _conv),
)
