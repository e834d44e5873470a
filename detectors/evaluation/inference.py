"""Trained detectors, from a training's checkpoint or from weights of torchvision, ready to predict."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from cse_jax.errors import InputError
from cse_jax.workdir import WorkdirError, differences, read_json, write_whole
from detectors import checkpoint, compiling, weights
from detectors.evaluation.coco import Predict
from detectors.models import DetectorConfig, build_detector
from detectors.models.detector import Detector, abstract_detector
from detectors.models.mask_rcnn import MaskRCNNConfig
from detectors.structures import Detections, Images, Normalisation

USUAL = ("best", "last", "model")  # checkpoints that a training leaves, best first
LABELS = "labels.json"  # in a training's folder: the names of its detector's labels
_MAY_DIFFER = {  # settings without effect on predictions
    *("root", "data_dir", "outside", "cache", "workers", "flip", "mask_stride", "max_boxes"),
}


def find_checkpoint(folder: pathlib.Path, name: str | None = None) -> pathlib.Path:
    """A training's checkpoint.

    Args:
      folder: the training's folder.
      name: name of a checkpoint in it, or the path of one; None for the first of ``USUAL`` that exists.

    Raises:
      CheckpointError: there is no such checkpoint; the message names those that exist.
    """
    candidates = [folder / usual for usual in USUAL] if name is None else [folder / name, pathlib.Path(name)]
    for path in candidates:
        if checkpoint.exists(path):
            return path
    there = checkpoint.found(folder)
    wanted = "checkpoint" if name is None else f"checkpoint {name!r}"
    remedy = (
        f"--checkpoint is one of {', '.join(there)}, or a path" if there else "train there first, or give --workdir"
    )
    raise checkpoint.CheckpointError(f"there is no {wanted} in {folder}: {remedy}")


def check_trained_with(folder: pathlib.Path, config: Any) -> None:
    """Refuses a config whose detector or data differ from those of the training in a folder.

    The data's place, how they are read and whether they are mirrored may have changed since.

    Args:
      folder: the training's folder.
      config: a config dataclass with ``detector`` and ``data``.

    Raises:
      WorkdirError: the folder holds no training, or one with other settings; the message names the fields.
    """
    stored = folder / "config.json"
    if not stored.is_file():
        raise WorkdirError(f"{folder} holds no training: there is no {stored}; give its --workdir and --config")
    before, now = read_json(stored, "put it back from a copy"), dataclasses.asdict(config)
    parts = [{name: tree.get(name, {}) for name in ("detector", "data")} for tree in (before, now)]
    for part in parts:
        part["data"] = {name: value for name, value in part["data"].items() if name not in _MAY_DIFFER}
    changed = differences(*parts)
    if changed:
        raise WorkdirError(
            f"{folder} holds a detector that was trained with other settings ({'; '.join(changed[:5])}): give the "
            "--config file and the --config fields of the training"
        )


def keep_label_names(folder: pathlib.Path, categories: Sequence[str]) -> None:
    """Writes the categories that a detector is trained with, which ``label_names`` reads."""
    write_whole(folder / LABELS, json.dumps({"names": list(categories)}))


def label_names(
    classes: int, categories: Callable[[], Sequence[str]], folder: pathlib.Path | None = None
) -> tuple[str, ...]:
    """The names of a detector's labels; empty for those that no category has.

    Args:
      classes: how many labels it has.
      categories: gives those of the data, which are taken unless the training kept its own: other data may have others.
      folder: of the training; None for a detector from elsewhere.

    Raises:
      InputError: there are more categories than labels.
      WorkdirError: the file of the training's categories is damaged.
    """
    kept = folder and folder / LABELS
    names = read_json(kept, "put it back from a copy").get("names", []) if kept and kept.is_file() else categories()
    if len(names) > classes:
        raise InputError(f"the detector has {classes} labels, and there are {len(names)} categories")
    return (*names, *[""] * (classes - len(names)))


def restored(config: DetectorConfig, path: pathlib.Path, normalisation: Normalisation) -> Detector:
    """The detector of a config with the arrays of a checkpoint, on the device.

    Args:
      config: the detector's config in its training.
      path: a checkpoint of ``(params, rest)``, the two parts of ``nnx.split(model, nnx.Param, ...)``.
      normalisation: of the images in its training (``BatchConfig.normalisation``).

    Raises:
      CheckpointError: there is none, or it is of another detector; all differences are named.
    """
    graph, *parts = nnx.split(abstract_detector(build_detector(config, normalisation)[1]), nnx.Param, ...)
    return nnx.merge(graph, *jax.device_put(checkpoint.restore(path, tuple(parts))))


def loaded(config: DetectorConfig, path: pathlib.Path, normalisation: Normalisation) -> Detector:
    """The detector of a config of ``torchvision_settings`` with the weights of a .pth or .safetensors file.

    Args: as for ``restored``.

    Raises:
      As ``weights.load_whole``.
    """
    model = abstract_detector(build_detector(config, normalisation)[1])
    weights.load_whole(model, path)
    return model


def whole_pixels(config: DetectorConfig) -> bool:
    """How a detector's masks are put into images: ``MaskConfig.whole_pixels``; False without masks."""
    return isinstance(config, MaskRCNNConfig) and config.mask.whole_pixels


def predictor(model: Detector, table: Int[np.ndarray, " labels"] | None = None) -> Predict:
    """A detector's ``predict``, compiled once for each shape of its arguments.

    Args:
      model: the detector.
      table: the label to report instead of each of the detector's labels, or -1 to drop the detection; see
        ``label_table``.

    Raises:
      InputError: the table is not as long as the detector has labels.
    """
    classes = model.config.classes
    if table is not None and len(table) != classes:
        raise InputError(
            f"the detector has {classes} labels, but {len(table)} names of labels are given: set the config's "
            "detector.classes and label_names (or data) to those that the weights were trained with"
        )
    graph, state = nnx.split(model)
    return functools.partial(predictor_of_any(graph, table), state)


def predictor_of_any(
    graph: nnx.GraphDef[Detector], table: Int[np.ndarray, " labels"] | None = None
) -> Callable[..., Detections]:
    """``predict(state, image, image_size)`` for all detectors of one structure, which share what is compiled.

    Args:
      graph: the structure, ``nnx.graphdef`` of a detector.
      table: as for ``predictor``.
    """

    @compiling.jit
    def predict(state: nnx.State, image: Images, image_size: jax.Array) -> Detections:
        detections = nnx.merge(graph, state).predict(image, image_size)
        return detections if table is None else relabelled(detections, table)

    return predict


def label_table(names: Sequence[str], categories: Sequence[str]) -> Int[np.ndarray, " labels"]:
    """For each of a detector's labels, the label of the data set's category of the same name, or -1 without one.

    Args:
      names: of the detector's labels; empty where a number is no category.
      categories: of the data set.

    Raises:
      InputError: no category is among the names.
    """
    index = {name: label for label, name in enumerate(categories)}
    table = np.array([index.get(name, -1) if name else -1 for name in names], np.int32)
    if (table < 0).all():
        raise InputError(
            f"the detector knows none of the data's categories ({', '.join(list(categories)[:5])}, ...); its own are "
            f"{', '.join([name for name in names if name][:5])}, ..."
        )
    return table


def relabelled(detections: Detections, table: Int[np.ndarray, " labels"]) -> Detections:
    """The detections with the labels of a table; those with -1 become invalid."""
    labels = jnp.asarray(table)[detections.labels]
    return detections._replace(labels=jnp.maximum(labels, 0), valid=detections.valid & (labels >= 0))
