"""Boxes and pixels that can be read and still look wrong are doubted, and usual ones are not."""

import json

import numpy as np
import pytest
from PIL import Image
from scripts import run
from test_odd_files import PLAIN, coco_content, results_of, write_set

from detectors.data.doubts import doubts_of_boxes

RNG = np.random.default_rng(0)
LOW = RNG.uniform(0, 60, (100, 2))
BOXES = np.concatenate([LOW, LOW + RNG.uniform(5, 40, (100, 2))], 1)
SIZES = np.full((100, 2), 100.0)


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        (BOXES, None),
        (BOXES[:10] * 50, None),  # too few
        (np.concatenate([LOW, LOW + BOXES[:, 2:]], 1), "look like corners x1, y1, x2, y2 where"),
        (BOXES * 2, "perhaps they are of images of another size"),
        (BOXES / 100, "upper left corner of their images"),
    ],
)
def test_boxes_of_another_form_are_doubted(boxes, said):
    found = doubts_of_boxes(boxes, SIZES[: len(boxes)])
    assert (said is None) == (not found) and (said is None or said in " ".join(found))


def as_corners(rows):
    return [row | {"bbox": [*row["bbox"][:2], *np.add(row["bbox"][:2], row["bbox"][2:])]} for row in rows]


def test_both_files_of_an_evaluation_are_doubted(tmp_path):
    content = coco_content(images=6, seed=3)
    content["annotations"] += [row | {"id": row["id"] + 100} for row in content["annotations"]]
    results = results_of(content)
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    for annotations, detections, said in [
        (content["annotations"], results, []),
        (as_corners(content["annotations"]), results, [f"Warning: {truth}: "]),
        (content["annotations"], as_corners(results), [f"Warning: {found}: "]),
    ]:
        truth.write_text(json.dumps(content | {"annotations": annotations}))
        found.write_text(json.dumps(detections))
        code, output = run("evaluate", f"--results_file={found}", f"--annotations={truth}")
        assert code == 0 and output.count("Warning") == len(said), output
        assert all(warning in output and "look like corners" in output for warning in said)


def test_data_says_what_pixels_it_saw_and_doubts_some(tmp_path):
    config = write_set(tmp_path, PLAIN)
    Image.fromarray(np.full((60, 80), 7, np.uint8)).save(tmp_path / "images" / "1.png")
    white = np.full((60, 80, 3), 255, np.uint8)
    white[:9] = 30
    Image.fromarray(white).save(tmp_path / "images" / "2.png")
    fields = [f"--config.{name}={getattr(config, name)}" for name in ("root", "annotations", "images")]
    code, output = run("data", *fields, data_dir=tmp_path / "built")
    assert code == 0 and "pixels: 5 RGB, 1 L; levels 0 to 255" in output, output
    assert "Warning: 1 images are of one colour, such as 1.png" in output
    assert "Warning: 1 images are mostly black or white, such as 2.png" in output
