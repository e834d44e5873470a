"""The bootstrap over images beside the evaluation of images that really are there several times."""

import math

import numpy as np
import pytest
from test_evaluation import CATEGORIES, random_case

from detectors.evaluation.coco import evaluate
from detectors.evaluation.resampling import all_matches, draws, resampled_ap


def repeated(table, chosen, fields):
    """The rows of each chosen image, under the image's place in the choice as its id."""
    parts = [np.flatnonzero(table.image_of == image_id) for image_id in chosen]
    rows = np.concatenate(parts)
    changed = {name: getattr(table, name)[rows] for name in fields if getattr(table, name) is not None}
    return table._replace(**changed, image_of=np.repeat(np.arange(len(chosen)), [len(part) for part in parts]))


@pytest.mark.parametrize("seed", range(4))
def test_a_draw_is_scored_like_images_that_are_there_several_times(seed):
    found, truth = random_case(seed)
    rng = np.random.default_rng(seed)
    found = found._replace(scores=rng.permutation(len(found.scores)) / len(found.scores))  # ties depend on the order
    counts = draws(len(truth.image_ids), 3, seed)
    got = resampled_ap(all_matches(found, truth, CATEGORIES), counts)
    for count, ap in zip(counts, got, strict=True):
        chosen = np.repeat(truth.image_ids, count)
        many = repeated(truth, chosen, ("boxes", "labels", "area", "crowd"))._replace(image_ids=np.arange(len(chosen)))
        expected = evaluate(repeated(found, chosen, ("boxes", "scores", "labels")), many, CATEGORIES)
        assert ap == pytest.approx(expected.ap, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_every_image_once_is_the_usual_score(seed):
    found, truth = random_case(seed)
    (ap,) = resampled_ap(all_matches(found, truth, CATEGORIES), np.ones((1, len(truth.image_ids)), np.int64))
    assert ap == pytest.approx(evaluate(found, truth, CATEGORIES).ap, abs=1e-12)


def test_a_draw_without_objects_has_no_score():
    found, truth = random_case(0)
    counts = np.where(np.isin(truth.image_ids, truth.image_of), 0, 1)[None]
    assert math.isnan(resampled_ap(all_matches(found, truth, CATEGORIES), counts)[0])
    assert (draws(7).sum(1) == 7).all() and draws(7).shape == (200, 7)
