"""Pictures of what the detectors of a search's final table find on test images, for its page."""

import script  # noqa: F401

import base64
import functools
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from cse_jax import workdir
from cse_jax.reporting.page.pictures import FILE
from cse_jax.search.ledger_reader import LedgerReader
from detectors.data.datasets import open_dataset
from detectors.data.drawing import draw_objects
from detectors.data.pipeline import layout_for
from detectors.data.records import Annotation
from detectors.evaluation import inference
from detectors.evaluation.photos import find_objects
from search_run import SearchRun

IMAGES = 4
LEAST = 0.3  # score of a detection that is drawn
_SIDE = 320  # pixels of a picture's longer side, about
_QUALITY = 70  # of JPEG


def write(config: SearchRun, folder: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Draws the first test images, as they are and with what the default and the discovered pair find.

    Args:
      config: of the search.
      folder: of the search, with the models of its final trainings.
      result: of the search, as in ``result.json``.

    Raises:
      CheckpointError: a model is missing or of another detector.
    """
    pairs = {"default losses": result["table"][0], "discovered losses": result["discovered"]}
    models = {name: _checkpoint(folder, pair) for name, pair in pairs.items() if pair}
    restored = functools.partial(inference.restored, config.detector, normalisation=config.data.normalisation)
    found = {name: restored(path) for name, path in models.items() if path}
    if not found:
        return
    source = open_dataset(config.data).test
    examples = [source[index] for index in range(min(IMAGES, len(source)))]
    layout = layout_for([example.image.shape[:2] for example in examples], config.data)
    graph = nnx.graphdef(next(iter(found.values())))
    states = {name: nnx.state(model) for name, model in found.items()}
    names = inference.label_names(config.detector.classes, lambda: source.categories)
    predict = inference.predictor_of_any(graph, inference.label_table(names, source.categories))
    rows = []
    for number, (image, annotation, _) in enumerate(examples, start=1):
        scale = np.array(image.shape[1::-1] * 2, np.float32) / np.array(annotation.size[::-1] * 2, np.float32)
        true = annotation._replace(size=image.shape[:2], boxes=annotation.boxes * scale, masks=None)
        row = [_picture(f"image {number}, as labelled", image, true, source.categories)]
        for name, state in states.items():
            seen = find_objects(functools.partial(predict, state), image, layout, config.data, least=LEAST)
            title = f"image {number}, {name}"
            row.append(_picture(title, image, seen.objects._replace(masks=None), source.categories, seen.scores))
        rows.append(row)
    about = (
        f"The first {len(rows)} images of the test split, as labelled and as detectors of the final table see them, "
        f"each of its first seed, with a score of {LEAST:g} or more. So few images say nothing of which is better."
    )
    workdir.write_whole(folder / FILE, json.dumps({"about": about, "rows": rows}))


def _checkpoint(folder: pathlib.Path, pair: Mapping[str, Any]) -> pathlib.Path | None:
    """The model of a pair's final training with the first seed that did not fail."""
    wanted = tuple(pair[part][field] for part in ("cls", "box") for field in ("text", "weight"))
    with LedgerReader(folder / "ledger.sqlite") as ledger:
        rows = [
            row
            for row in ledger.trainings("final")
            if (row["cls"], row["cls_weight"], row["box"], row["box_weight"]) == wanted and row["ap"] is not None
        ]
    best = min(rows, key=lambda row: row["seed"], default=None)
    return folder / "checkpoints" / json.loads(best["metrics"])["checkpoint"] if best else None


def _picture(
    title: str,
    image: np.ndarray,
    objects: Annotation,
    categories: tuple[str, ...],
    scores: np.ndarray | None = None,
) -> dict[str, str]:
    """An image [h, w, 3] with its objects drawn, small ones enlarged so that names can be read."""
    factor = max(1, round(_SIDE / max(image.shape[:2])))
    large = image.repeat(factor, 0).repeat(factor, 1)
    drawn = draw_objects(
        large,
        objects._replace(size=large.shape[:2], boxes=objects.boxes * factor),
        categories,
        scores=scores,
    )
    drawn.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    drawn.save(file, "jpeg", quality=_QUALITY, optimize=True)
    names = [categories[label] for label in objects.labels]
    listed = names if scores is None else [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    alt = f"{title}: {', '.join(listed) or 'nothing'}"
    return {"title": title, "alt": alt, "jpeg": base64.b64encode(file.getvalue()).decode()}
