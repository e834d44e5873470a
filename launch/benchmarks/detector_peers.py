"""torchvision's detectors on the images, boxes and settings of ours: for comparison with ``detectors``.

Its ``fasterrcnn_resnet50_fpn`` and ``fcos_resnet50_fpn`` are put together from the same parts as its own functions of
those names do, with frozen batch norms and three trained stages, in eager mode.  The packages are optional:
``pip install torch torchvision``.  A torchvision for CUDA beside a torch for CPU lacks its compiled operators; NMS is
then done in NumPy and RoIAlign by ``grid_sample``, and the tables say so.
"""

import importlib
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from detectors.structures import Batch

# Outputs that get a spread over an image, and a middle: of the first of them (the background where there is one), of
# the others.  With those of random weights no score would pass a threshold, and nothing would be left to suppress.
_OUTPUTS = {
    "rpn.head.cls_logits": (2.0, 0.0, 0.0),
    "rpn.head.bbox_pred": (0.3, 0.0, 0.0),
    "roi_heads.box_predictor.cls_score": (2.0, 6.0, 0.0),
    "roi_heads.box_predictor.bbox_pred": (1.0, 0.0, 0.0),
    "head.classification_head.cls_logits": (1.5, -30.0, -7.0),
    "head.regression_head.bbox_reg": (1.0, 2.0, 2.0),
    "head.regression_head.bbox_ctrness": (1.0, 0.0, 0.0),
}
_LIBRARY = []  # the registered operators live as long as this holds them


class Peer(NamedTuple):
    """torchvision's side of the comparison.

    Attributes:
      works: what is timed, by name: a training step, and inference, which returns the number of detections.
      memory: most that PyTorch had allocated during each, MiB; ``None`` on a CPU.
      version: of torchvision, and what it lacks; or that it is not installed.
      conditions: of the measurement, or why there is none.
    """

    works: dict[str, Callable[[], int]]
    memory: dict[str, float | None]
    version: str
    conditions: str


def build(
    name: str,
    batch: Batch,
    *,
    depths: tuple[int, ...],
    classes: int,
    proposals: tuple[int, int],
    samples: int,
    learning_rate: float,
    precision: str,
    file: pathlib.Path,
) -> Peer:
    """torchvision's detector of that name, its weights written to a file for ours.

    Args:
      name: ``"fasterrcnn_resnet50_fpn"`` or ``"fcos_resnet50_fpn"``.
      batch: images, which are neither resized nor normalised any more, and boxes, all of them valid.
      depths: blocks per stage of the ResNet.
      classes: categories without background.
      proposals: of the region proposal network per image, in training and at test.
      samples: RoIs per image in the loss.
      learning_rate: of SGD with momentum 0.9 and weight decay 1e-4.
      precision: ``"float32"``, or ``"bfloat16"`` by automatic mixed precision.
      file: where to write the weights.
    """
    try:
        import torch

        compiled = _import_torchvision(torch)
    except ImportError as error:
        why = f"torchvision is not installed: pip install torch torchvision ({error}); our weights are random"
        return Peer({}, {}, "not installed", why)
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.set_num_threads(os.cpu_count())
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32, which is JAX's default on GPUs that have it
        torch.backends.cudnn.benchmark = True  # XLA chooses among cuDNN's algorithms by trying, too
    torch.manual_seed(0)
    first_stage = dict(zip(("rpn_post_nms_top_n_train", "rpn_post_nms_top_n_test"), proposals, strict=True))
    options = first_stage | {"box_batch_size_per_image": samples} if name.startswith("faster") else {}
    model = _detector(name, depths, classes, sides=batch.image.shape[1:3], **options).to(device)
    images = list(torch.tensor(np.asarray(batch.image).transpose(0, 3, 1, 2), device=device))
    boxes, labels = (torch.tensor(np.asarray(array), device=device) for array in (batch.boxes, batch.labels))
    targets = [{"boxes": b, "labels": own} for b, own in zip(boxes, labels.long() + 1, strict=True)]
    _give_outputs_a_spread(torch, model, images)
    torch.save(model.state_dict(), file)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, learning_rate, momentum=0.9, weight_decay=1e-4)

    def finish():
        if on_gpu:
            torch.cuda.synchronize()

    def lower():
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def step():
        optimiser.zero_grad()
        with lower():
            loss = sum(model.train()(images, targets).values())
        loss.backward()
        optimiser.step()
        finish()

    def predict():
        with torch.inference_mode(), lower():
            found = model.eval()(images)
        finish()
        return sum(len(one["boxes"]) for one in found)

    def peak(work):
        if not on_gpu:
            return None
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 2**20

    works = {"training step": step, "inference": predict}
    memory = {name: peak(works[name]) for name in reversed(works)}  # inference first: a step leaves gradients behind
    where = "CUDA, TF32, cudnn.benchmark" if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    version = importlib.import_module("torchvision").__version__ + ("" if compiled else ", NMS and RoIAlign in Python")
    conditions = f"torchvision {version}; torch {torch.__version__}, eager, {precision}, {where}"
    return Peer(works, memory, version, conditions)


def _detector(name: str, depths: tuple[int, ...], classes: int, *, sides: tuple[int, int], **options):
    """As torchvision's function of that name makes it, with random weights."""
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.resnet import Bottleneck, ResNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    body = ResNet(Bottleneck, list(depths), norm_layer=FrozenBatchNorm2d)
    for block in body.modules():
        if isinstance(block, Bottleneck):  # else frozen norms of random weights let features grow with every block
            block.bn3.weight.fill_(0.2)
    options |= dict(min_size=min(sides), max_size=max(sides), image_mean=[0.0] * 3, image_std=[1.0] * 3)
    if name == "fasterrcnn_resnet50_fpn":
        return detection.FasterRCNN(_resnet_fpn_extractor(body, 3), classes + 1, **options)
    levels = dict(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    return detection.FCOS(_resnet_fpn_extractor(body, 3, **levels), classes + 1, **options)


def _give_outputs_a_spread(torch, model, images) -> None:
    layers = dict(model.eval().named_modules())
    for name in _OUTPUTS.keys() & layers.keys():
        layer, outputs = layers[name], []
        spread, first, middle = _OUTPUTS[name]
        handle = layer.register_forward_hook(lambda _, __, output: outputs.append(output.transpose(0, 1).flatten(1)))
        with torch.no_grad():
            model(images)
            handle.remove()
            values = torch.cat(outputs, 1)
            factor = spread / values.std(1)
            layer.weight *= factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
            layer.bias.copy_((layer.bias - values.mean(1)) * factor + middle)
            layer.bias[0] += first - middle


def _import_torchvision(torch) -> bool:
    """Imports it, and says whether it has its compiled operators; registers others if not."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", lambda *args: torch.from_numpy(_nms(*(np.asarray(a) for a in args))), "CPU")
        _LIBRARY.append(library)
        importlib.import_module("torchvision")
        importlib.import_module("torchvision.extension")._has_ops = lambda: True
        poolers = importlib.import_module("torchvision.ops.poolers")
        poolers.roi_align = lambda *args, **options: _roi_align(torch, *args, **options)
    return not _LIBRARY


def _nms(boxes: Float[np.ndarray, "n 4"], scores: Float[np.ndarray, " n"], threshold: float) -> np.ndarray:
    """Greedy suppression: the kept boxes' indices, best first."""
    order = np.argsort(-scores, kind="stable")
    low, high = boxes[order, :2], boxes[order, 2:]
    area = (high - low).prod(1)
    kept = np.ones(len(order), bool)
    for k in range(len(order)):
        if kept[k]:
            after = slice(k + 1, None)
            inner = (np.minimum(high[k], high[after]) - np.maximum(low[k], low[after])).clip(0.0).prod(1)
            kept[after] &= inner <= threshold * (area[k] + area[after] - inner)
    return order[kept]


def _roi_align(torch, input, boxes, output_size, spatial_scale, sampling_ratio):
    """RoIAlign, not aligned, of RoIs sorted by image."""
    rows, columns = output_size
    low, high = (boxes[:, 1:] * spatial_scale).split(2, 1)
    length = (high - low).clamp(min=1.0)
    cells = torch.tensor([input.shape[3], input.shape[2]])

    def points(axis, bins):
        share = (torch.arange(bins * sampling_ratio) + 0.5) / (bins * sampling_ratio)
        at = low[:, axis, None] + length[:, axis, None] * share
        return 2.0 * at / (cells[axis] - 1).clamp(min=1) - 1.0  # -1 and 1 are the centres of the first and last cells

    x, y = points(0, columns), points(1, rows)
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)
    pooled = [input.new_zeros(0, input.shape[1], rows, columns)]
    for image, features in enumerate(input):
        own = grid[boxes[:, 0] == image]
        if len(own):
            sampled = torch.nn.functional.grid_sample(
                features[None], own.flatten(0, 1)[None], padding_mode="border", align_corners=True
            )
            bins = torch.nn.functional.avg_pool2d(sampled[0], sampling_ratio)
            pooled.append(bins.reshape(-1, len(own), rows, columns).transpose(0, 1))
    return torch.cat(pooled)
