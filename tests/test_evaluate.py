"""Evaluation as a user does it: a training's checkpoint, weights with other labels, and files of detections."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from scripts import run
from test_data_sets import coco_tree, voc_tree

from cse_jax import workdir
from cse_jax.errors import InputError
from detectors import checkpoint
from detectors.data.coco import CocoData
from detectors.data.datasets import DataConfig, category_names, open_dataset
from detectors.data.json_rows import FileError
from detectors.data.voc import VocData
from detectors.evaluation import inference
from detectors.evaluation.coco import Found, detect, evaluate, evaluate_masks, ground_truth
from detectors.evaluation.results_files import ResultsError, read_reference, read_results, write_results
from detectors.evaluation.scores import as_json, score, table
from detectors.models import build_detector
from detectors.models.atss import atss_tiny
from detectors.models.fcos import fcos_tiny
from detectors.models.mask_rcnn import mask_rcnn_tiny
from detectors.structures import Detections, Normalisation
from detectors.training.run_config import TrainRun
from detectors.weights.pretrained import COCO_NUMBERS

ROOT = pathlib.Path(__file__).resolve().parents[1]


def leave_training(folder: pathlib.Path, config, name="best") -> None:
    """What a training leaves behind, without having trained."""
    model = build_detector(config.detector)[1](nnx.Rngs(1))
    checkpoint.save(folder / name, nnx.split(model, nnx.Param, ...)[1:])
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))


# --- detectors that are there already ---


@pytest.mark.slow
@pytest.mark.parametrize("config", [fcos_tiny(3), mask_rcnn_tiny(3)], ids=["fcos", "mask_rcnn"])
def test_a_restored_detector_predicts_what_the_trained_one_did(tmp_path, config):
    normalisation = Normalisation((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    model = build_detector(config, normalisation)[1](nnx.Rngs(1))
    checkpoint.save(tmp_path / "best", nnx.split(model, nnx.Param, ...)[1:])
    restored = inference.restored(config, inference.find_checkpoint(tmp_path), normalisation)
    assert restored.normalisation == normalisation
    for ours, theirs in zip(*(jax.tree.leaves(nnx.state(m)) for m in (restored, model)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    predict, batch = inference.predictor(restored), jax.device_put((image, np.full((1, 2), 64.0, np.float32)))
    found = predict(*batch)
    with jax.transfer_guard_host_to_device("disallow"):
        predict(*batch)  # without another copy of the model
    assert found.boxes.shape[0] == 1 and np.isfinite(np.asarray(found.scores)[np.asarray(found.valid)]).all()


def test_checkpoints_are_found_by_name_path_and_preference(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in .*train there first"):
        inference.find_checkpoint(tmp_path)
    for name in ("model", "last", "best"):
        checkpoint.save(tmp_path / name, {"a": np.zeros(1)})
        assert inference.find_checkpoint(tmp_path).name == name
    assert inference.find_checkpoint(tmp_path, "last") == tmp_path / "last"
    assert inference.find_checkpoint(tmp_path / "elsewhere", str(tmp_path / "last")) == tmp_path / "last"
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint 'bets'.*best, last, model"):
        inference.find_checkpoint(tmp_path, "bets")


def test_another_detector_or_data_than_trained_is_named(tmp_path):
    leave_training(tmp_path, TrainRun(detector=fcos_tiny(3)))
    read_otherwise = DataConfig(workers=4, max_boxes=99)
    inference.check_trained_with(tmp_path, TrainRun(detector=fcos_tiny(3), data=read_otherwise, steps=1))
    with pytest.raises(workdir.WorkdirError, match=r"config.detector.classes: 3 -> 4.*fields of the training"):
        inference.check_trained_with(tmp_path, TrainRun(detector=fcos_tiny(4)))
    with pytest.raises(workdir.WorkdirError, match=r"config.data.short_side: 0 -> 64"):
        inference.check_trained_with(tmp_path, TrainRun(detector=fcos_tiny(3), data=DataConfig(short_side=64)))
    with pytest.raises(workdir.WorkdirError, match="holds no training"):
        inference.check_trained_with(tmp_path / "none", TrainRun())


# --- labels ---


def test_cocos_numbers_have_their_gaps():
    assert len(COCO_NUMBERS) == 90 and sum(map(bool, COCO_NUMBERS)) == 80
    unused = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert [number for number, name in enumerate(COCO_NUMBERS, 1) if not name] == unused
    assert (COCO_NUMBERS[0], COCO_NUMBERS[12], COCO_NUMBERS[89]) == ("person", "stop sign", "toothbrush")


def test_labels_of_other_numbers_become_the_datas_and_the_others_are_dropped():
    categories = tuple(name for name in COCO_NUMBERS if name)
    labels = inference.label_table(COCO_NUMBERS, categories)
    assert labels[89] == 79 and labels[11] == -1 and sorted(labels[labels >= 0]) == list(range(80))
    number = np.array([[0, 11, 12, 89]])  # person, no category, stop sign, toothbrush
    valid = np.array([[True, True, True, False]])
    found = inference.relabelled(Detections(np.zeros((1, 4, 4)), np.ones((1, 4)), number, valid), labels)
    np.testing.assert_array_equal(found.valid, [[True, False, True, False]])
    assert [categories[label] for label in np.asarray(found.labels)[0, [0, 2]]] == ["person", "stop sign"]
    # Data with some of the categories in another order.
    np.testing.assert_array_equal(inference.label_table(("a", "", "b", "c"), ("c", "yeti", "a")), [2, -1, -1, 0])
    with pytest.raises(ValueError, match="knows none of the data's categories .yeti"):
        inference.label_table(COCO_NUMBERS, ("yeti",))


def test_a_training_keeps_the_names_of_its_labels(tmp_path):
    """Other data may have other categories, or the same ones in another order."""

    def of_data():
        return "cat", "dog"

    assert inference.label_names(4, of_data, tmp_path) == ("cat", "dog", "", "")
    inference.keep_label_names(tmp_path, ("dog", "cat", "bird"))
    assert inference.label_names(4, of_data, tmp_path) == ("dog", "cat", "bird", "")
    assert inference.label_names(4, of_data) == ("cat", "dog", "", ""), "of a detector from elsewhere"
    with pytest.raises(InputError, match="the detector has 2 labels, and there are 3 categories"):
        inference.label_names(2, of_data, tmp_path)


def test_names_of_other_labels_than_the_detector_s_are_refused():
    model = nnx.eval_shape(lambda: build_detector(fcos_tiny(3))[1](nnx.Rngs(0)))
    with pytest.raises(InputError, match="the detector has 3 labels, but 90 names"):
        inference.predictor(model, np.zeros(90, np.int32))


def test_weights_of_a_detector_that_torchvision_lacks(tmp_path):
    with pytest.raises(ValueError, match="no weights of ATSS; they are for FCOS, FasterRCNN, MaskRCNN"):
        inference.loaded(atss_tiny(3), tmp_path / "w.pth", Normalisation())
    with pytest.raises(FileNotFoundError, match="fcos_resnet50_fpn_coco"):
        inference.loaded(fcos_tiny(3), tmp_path / "w.pth", Normalisation())


# --- files of results ---


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = coco_tree(tmp_path_factory.mktemp("coco"))
    built = str(tmp_path_factory.mktemp("built"))
    return CocoData(str(root), data_dir=built, mask_stride=4, short_side=64, long_side=96)


def found_in(truth, scores):
    return Found(truth.image_of, truth.boxes.astype(np.float32), scores, truth.labels, truth.masks)


def test_detections_written_and_read_score_the_same(tmp_path, coco):
    """With the original ids of images and categories."""
    source = open_dataset(coco).test
    truth = ground_truth([a for a in source.annotations if a.masks and all(a.masks)])
    found = found_in(truth, np.linspace(0.9, 0.3, len(truth.labels), dtype=np.float32))
    assert coco.category_ids(source.categories) == [3, 7] and source.categories == ("dog", "cat")
    path = tmp_path / "detections.json"
    write_results(path, found, coco.category_ids(source.categories))
    entries = json.loads(path.read_text())
    assert {entry["image_id"] for entry in entries} <= {1, 2} and {e["category_id"] for e in entries} <= {3, 7}
    content = json.loads((pathlib.Path(coco.root) / "annotations/instances_val2017.json").read_text())
    kept = truth.image_ids.tolist()
    content["images"] = [row for row in content["images"] if row["id"] in kept]
    content["annotations"] = [o for o in content["annotations"] if o["image_id"] in kept and o["bbox"][2] > 0]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    reference = read_reference(tmp_path / "truth.json", masks=True)
    assert reference.categories == source.categories
    boxes = read_results(path, reference)
    np.testing.assert_allclose(boxes.boxes, found.boxes, rtol=1e-6)
    assert evaluate(boxes, reference.truth, reference.categories).ap == pytest.approx(1.0)
    masks = read_results(path, reference, iou_type="segm")
    assert evaluate_masks(masks, reference.truth, reference.categories).ap == pytest.approx(1.0)


def test_reference_evaluation_of_a_file(test_data):
    references = test_data / "eval_refs"
    expected = json.loads((references / "expected.json").read_text())["fakebbox100_pycocotools"]
    reference = read_reference(references / "instances_val2014_100_gt.json", masks=False)
    found = read_results(references / "instances_val2014_fakebbox100_results.json", reference)
    metrics = evaluate(found, reference.truth, reference.categories)
    np.testing.assert_allclose(metrics[:6], list(expected.values())[:6], atol=1e-12)
    assert metrics.per_category["person"] > 0.5 and len(metrics.per_category) == 80


TRUTH = {
    "images": [{"id": 5, "height": 20, "width": 30}],
    "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    "annotations": [{"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0}],
}
GOOD = {"image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 10], "score": 0.5}


def test_an_object_without_an_annotated_area_has_that_of_what_is_scored(tmp_path):
    """Of two with a large box and a small mask, one says that it is of medium size."""
    objects = [
        {"id": n, "image_id": 5, "category_id": 7, "bbox": [x, 0, 150, 150], "segmentation": [[x, 0, x + 150, 0, x, 3]]}
        for n, x in enumerate((0, 200), start=1)
    ]
    objects[1]["area"] = 5000
    images = [{"id": 5, "height": 200, "width": 400}]
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH | {"images": images, "annotations": objects}))
    truth = read_reference(tmp_path / "truth.json", masks=True).truth
    found = Found(truth.image_of[:1], truth.boxes[:1], np.array([0.9]), truth.labels[:1], truth.masks[:1])
    boxes, masks = (rule(found, truth, ["dog", "cat"]) for rule in (evaluate, evaluate_masks))
    assert (boxes.ap_large, boxes.ap_medium) == (pytest.approx(1.0), 0.0) and np.isnan(boxes.ap_small)
    assert (masks.ap_small, masks.ap_medium) == (pytest.approx(1.0), 0.0) and np.isnan(masks.ap_large)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 6}, "entry 1 can't be used: image_id 6 is not among the 1 images of truth.json"),
        ({"category_id": 0}, r"category_id 0 is not among the categories of truth.json \(3 to 7\)"),
        ({"bbox": [1, 2, 3]}, "entry 1 can't be used: .*It is .*1, 2, 3"),
        ({"bbox": [1, 2, -3, 4]}, "width and height not below 0"),
        ({"score": float("nan")}, "must be finite"),
        ({"score": "high"}, 'score is "high": expected a number'),
        ({"score": None, "drop": "score"}, "it has no field score"),
    ],
)
def test_bad_results_are_named(tmp_path, change, said):
    entry = GOOD | change
    entry.pop(entry.pop("drop", ""), None)
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    (tmp_path / "found.json").write_text(json.dumps([GOOD, entry]))
    reference = read_reference(tmp_path / "truth.json", masks=False)
    with pytest.raises(ResultsError, match=said):
        read_results(tmp_path / "found.json", reference)


def test_bad_masks_and_files_are_named(tmp_path):
    path, truth = tmp_path / "found.json", tmp_path / "truth.json"
    truth.write_text(json.dumps(TRUTH))
    reference = read_reference(truth, masks=False)
    for mask, said in [
        (None, "no segmentation; --iou_type=bbox"),
        ({"size": [9, 9], "counts": "=33000a0"}, "size"),
        ({"size": [20, 30], "counts": "jjjjjjjjjj"}, "invalid RLE"),
    ]:
        path.write_text(json.dumps([GOOD | {"segmentation": mask}]))
        with pytest.raises(ResultsError, match=f"entry 0 can't be used: .*{said}"):
            read_results(path, reference, iou_type="segm")
    with pytest.raises(ResultsError, match="1 of 1 objects have no segmentation that can be read"):
        read_reference(truth, masks=True)
    with pytest.raises(FileError, match="is not a results file of COCO"):
        read_results(truth, reference)
    with pytest.raises(FileError, match="is not an annotation file of COCO"):
        read_reference(path, masks=False)
    path.write_text("[{")
    with pytest.raises(FileError, match="is not JSON, and should be a results file"):
        read_results(path, reference)
    with pytest.raises(FileError, match="can't be read: No such file"):
        read_results(tmp_path / "gone.json", reference)
    truth.write_text(json.dumps(TRUTH | {"annotations": [{"id": 4, "image_id": 8, "category_id": 7, "bbox": [1] * 4}]}))
    assert "truth.json: image 8" in str(read_reference(truth, masks=False).bad_records)


def test_no_results_score_zero(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    (tmp_path / "found.json").write_text("[]")
    reference = read_reference(tmp_path / "truth.json", masks=False)
    found = read_results(tmp_path / "found.json", reference)
    assert evaluate(found, reference.truth, reference.categories).ap == 0.0


# --- tables ---


def test_scores_in_a_table_and_as_json(coco):
    truth = ground_truth(open_dataset(coco).test.annotations)
    truth = truth._replace(masks=None)
    found = found_in(truth, np.ones(len(truth.labels), np.float32))
    scores = score(found, truth, ("dog", "cat"), voc=True)
    lines = table(scores).splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl"] and lines[1].split()[:2] == [
        "boxes",
        "100.00",
    ]
    assert "-" in lines[1].split() and lines[2].startswith("VOC mAP at IoU 0.5:  100.00 (07)")
    assert [line.split()[:3] for line in lines[-2:]] == [["dog", "0", "-"], ["cat", "2", "100.00"]]
    stored = json.loads(json.dumps(as_json(scores), allow_nan=False))
    assert stored["boxes"]["ap"] == pytest.approx(1.0) and stored["boxes"]["per_category"]["dog"] is None
    assert stored["voc"]["map_07"] == pytest.approx(1.0) and "masks" not in stored


def test_names_of_labels_without_building(coco, tmp_path):
    assert category_names(dataclasses.replace(coco, data_dir=str(tmp_path))) == ("dog", "cat")
    open_dataset(coco)
    assert category_names(coco) == ("dog", "cat")
    assert not list(tmp_path.iterdir())
    assert category_names(DataConfig())[0]
    with pytest.raises(OSError, match="config.data.root"):
        category_names(CocoData())


def test_progress_counts_images(coco):
    source = open_dataset(coco).test
    source = dataclasses.replace(source, layout=source.layout._replace(mask_stride=0))
    said = []

    def nothing(image, image_size):
        n = len(image)
        return Detections(np.zeros((n, 1, 4)), np.zeros((n, 1)), np.zeros((n, 1), int), np.zeros((n, 1), bool))

    detect(nothing, source, batch_size=2, progress=said.append)
    assert said[-1] == len(source) and said == sorted(said)


# --- the script ---

CONFIG = """
from detectors.data.json_rows import FileError
from detectors.data.voc import VocData
from detectors.models.fcos import fcos_tiny
from detectors.training.run_config import TrainRun

def get_config():
    return TrainRun(name="voc", detector=fcos_tiny(20), data=VocData(short_side=64, long_side=96))
"""


@pytest.mark.slow
def test_the_script_scores_a_training(tmp_path):
    root, folder = voc_tree(tmp_path / "VOCdevkit"), tmp_path / "run"
    (tmp_path / "config.py").write_text(CONFIG)
    config = TrainRun(name="voc", detector=fcos_tiny(20), data=VocData(root=str(root), short_side=64, long_side=96))
    leave_training(folder, config)
    common = [f"--config={tmp_path / 'config.py'}", f"--workdir={folder}", f"--config.data.root={root}"]
    code, output = run("evaluate", *common, "--results", data_dir=tmp_path / "built")
    assert code == 0, output
    assert f"FCOS of {folder / 'best'} on 1 images of test" in output and "VOC mAP at IoU 0.5:" in output
    result = json.loads((folder / "evaluation-best-test.json").read_text())
    assert 0 <= result["boxes"]["ap"] <= 1 and result["objects"]["person"] == 1 and result["config"]["name"] == "voc"
    entries = json.loads((folder / "detections-best-test.json").read_text())
    assert all(1 <= entry["category_id"] <= 20 for entry in entries)

    code, output = run("evaluate", *common, "--config.detector.classes=19", data_dir=tmp_path / "built")
    assert code == 1 and "config.detector.classes: 20 -> 19" in output and "Traceback" not in output, output


@pytest.mark.slow
def test_labels_are_the_training_s_and_may_be_more_than_the_categories(tmp_path):
    root, folder = coco_tree(tmp_path / "coco"), tmp_path / "run"
    detector = dataclasses.replace(fcos_tiny(3), score_threshold=0.0)
    config = TrainRun(name="coco", detector=detector, data=CocoData(root=str(root), short_side=64, long_side=96))
    text = CONFIG.replace("voc", "coco").replace("VocData", "CocoData").replace("fcos_tiny(20)", "fcos_tiny(3)")
    (tmp_path / "config.py").write_text(text)
    leave_training(folder, config)
    entries = []
    for names in (("dog", "cat"), ("cat", "dog")):  # as in the data, and the other way round
        inference.keep_label_names(folder, names)
        code, output = run(
            "evaluate",
            *(f"--config={tmp_path / 'config.py'}", f"--workdir={folder}", f"--config.data.root={root}"),
            *("--config.detector.score_threshold=0.0", "--results"),
            data_dir=tmp_path / "built",
        )
        assert code == 0, output
        entries.append(json.loads((folder / "detections-best-test.json").read_text()))
    assert len(entries[0]) == len(entries[1]) > 0
    assert all(a["category_id"] + b["category_id"] == 3 + 7 for a, b in zip(*entries, strict=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--results_file=x.json"], "--results_file needs --annotations"),
        (["--weights=x.pth", "--checkpoint=last"], "give either --weights or --checkpoint"),
    ],
)
def test_bad_input_is_named(arguments, said):
    code, output = run("evaluate", *arguments)
    assert code != 0 and said in output and "Traceback" not in output, output
