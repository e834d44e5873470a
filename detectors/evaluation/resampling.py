"""How much average precision depends on the images that happen to be in the test split: a bootstrap over images.

Objects and detections are matched once, within their images; a draw of images with replacement then only counts each
image's matches as often as the image was drawn.  Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993),
chapter 6.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from detectors.evaluation.coco import Found, GroundTruth, matched

RECALLS = np.linspace(0.0, 1.0, 101)
DRAWS = 200  # enough for a standard error


class Matches(NamedTuple):
    """One category's detections on all images, best first, at each IoU threshold."""

    image: Int[np.ndarray, " n"]  # its place among the images
    right: Bool[np.ndarray, "t n"]  # finds an object
    wrong: Bool[np.ndarray, "t n"]  # finds none; what finds a crowd is neither
    objects: Int[np.ndarray, " images"]  # to be found on each image


def all_matches(found: Found, truth: GroundTruth, categories: Sequence[str]) -> list[Matches]:
    """What a detector finds, by category; arguments as for ``coco.evaluate``."""
    place = {image_id: k for k, image_id in enumerate(truth.image_ids.tolist())}
    of_category: list[list[dict]] = [[] for _ in categories]
    for row in matched(found, truth, categories):
        of_category[row["category_id"]].append(row)
    return [_matches(sorted(rows, key=lambda row: row["image_id"]), place) for rows in of_category]


def _matches(rows: Sequence[dict], place: dict[int, int]) -> Matches:
    objects = np.zeros(len(place), np.int64)
    for row in rows:
        objects[place[row["image_id"]]] = np.sum(~np.array(row["gtIgnore"], bool))
    some = [row for row in rows if row["dtScores"]]
    if not some:
        none = np.zeros((1, 0), bool)
        return Matches(np.zeros(0, np.int64), none, none, objects)
    order = np.argsort(-np.concatenate([row["dtScores"] for row in some]), kind="stable")
    image = np.repeat([place[row["image_id"]] for row in some], [len(row["dtScores"]) for row in some])
    hit, ignored = (
        np.concatenate([np.array(row[name], bool) for row in some], 1) for name in ("dtMatched", "dtIgnore")
    )
    return Matches(image[order], (hit & ~ignored)[:, order], (~hit & ~ignored)[:, order], objects)


def draws(images: int, count: int = DRAWS, seed: int = 0) -> Int[np.ndarray, "draws images"]:
    """How often each image is in each draw of as many images, with replacement."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1.0 / images), count)


def resampled_ap(matches: Sequence[Matches], counts: Int[np.ndarray, "draws images"]) -> Float[np.ndarray, " draws"]:
    """AP (COCO, IoU .50:.95) over each draw of images; NaN if it has no objects.

    Args:
      matches: by category, as ``all_matches`` gives them.
      counts: how often each image counts.
    """
    each = np.array([_category_ap(category, counts) for category in matches])
    defined = np.isfinite(each).sum(0)
    return np.where(defined, np.nansum(each, 0), np.nan) / np.maximum(defined, 1)


def _category_ap(matches: Matches, counts: Int[np.ndarray, "draws images"]) -> Float[np.ndarray, " draws"]:
    objects = counts @ matches.objects
    weights = counts[:, matches.image]
    found = np.zeros(len(counts))
    for right, wrong in zip(matches.right, matches.wrong, strict=True):
        hits = np.cumsum(weights * right, 1)
        precision = hits / np.maximum(hits + np.cumsum(weights * wrong, 1), 1)
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        padded = np.pad(precision, ((0, 0), (0, 1)))
        for k in np.flatnonzero(objects):
            found[k] += padded[k, np.searchsorted(hits[k] / objects[k], RECALLS)].mean()
    return np.where(objects > 0, found / len(matches.right), np.nan)
