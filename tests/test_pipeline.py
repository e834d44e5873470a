"""Records to batches: what is left out and reported, what a batch holds, and that batches can be seen again."""

import dataclasses
import io
import itertools
import pathlib
from xml.etree import ElementTree

import numpy as np
import pytest
from extras import beside
from PIL import Image

from detectors.data.datasets import DataConfig, open_dataset, open_records
from detectors.data.digit_scenes import DigitScenesConfig
from detectors.data.pipeline import eval_batches, flipped, make_batch, one_image_per_category, train_batches

CATEGORIES = ("cat", "dog", "owl")
GOOD_BOX = (10.0, 20.0, 30.0, 36.0)


def encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def record(image_id: int, boxes=(GOOD_BOX,), labels=(0,), size=(40, 50), image: bytes | None = None) -> dict:
    pixels = np.random.default_rng(image_id).integers(0, 256, (*size, 3), dtype=np.uint8)
    objects = {"box": [np.array(box, np.float32) for box in boxes], "label": list(labels)}
    return {"image": encode(pixels) if image is None else image, "image_id": image_id, "objects": objects}


def open_train(records, **settings):
    """The training split and its report; the other splits hold one good image each."""
    config = DataConfig(**settings)
    dataset = open_records({"train": records, "select": [record(901)], "test": [record(902)]}, CATEGORIES, config)
    return dataset.train, dataset.bad_records["train"]


@pytest.fixture(scope="module")
def source():
    boxes = [[(i, 2 * i, i + 10, 2 * i + 12), GOOD_BOX][: 1 + i % 2] for i in range(11)]
    records = [record(100 + i, boxes[i], [i % 3, 1][: 1 + i % 2], size=(40 + i, 50 - i)) for i in range(11)]
    return open_train(records)[0]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    config = DataConfig(DigitScenesConfig(30, 7, 5), data_dir=str(tmp_path_factory.mktemp("data")))
    return config, open_dataset(config)


# --- bad records ---


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (record(7, image=b"not an image"), "cannot be decoded", "image 7"),
        (record(7, image=record(7)["image"][:400]), "cannot be decoded", "image 7"),
        (record(7, image=b""), "cannot be decoded", "image 7"),
        (record(7, labels=(3,)), "not declared", "image 7 has category 3, declared are 0..2 (cat, dog, owl)"),
        (record(7, labels=(-1,)), "not declared", "image 7 has category -1"),
        (record(7, labels=(0, 1)), "boxes and labels differ in number", "image 7: 1 and 2"),
        (record(7, size=(31, 50), boxes=((0, 0, 9, 9),)), "side under 32", "image 7 (50x31)"),
        (record(7, boxes=(), labels=()), "image without boxes", "image 7"),
    ],
)
def test_bad_image_is_left_out_and_reported(bad, reason, detail):
    train, report = open_train([record(1), bad, record(2)])
    assert [annotation.image_id for annotation in train.annotations] == [1, 2]
    assert sum(report.counts.values()) == 1
    assert reason in str(report) and detail in str(report)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 20, 10, 30), "without area"),
        ((10, 20, 8, 30), "without area"),
        ((10, 20, 30, 20), "without area"),
        ((50, 10, 60, 20), "outside the image"),
        ((-9, 10, 0, 20), "outside the image"),
        ((5, 40, 9, 44), "outside the image"),
        ((5, 5, np.nan, 9), "not finite"),
        ((5, 5, np.inf, 9), "not finite"),
    ],
)
def test_bad_box_is_dropped_and_reported(box, reason):
    train, report = open_train([record(7, (box, GOOD_BOX), (2, 1))])
    np.testing.assert_array_equal(train.annotations[0].boxes, [GOOD_BOX])
    np.testing.assert_array_equal(train.annotations[0].labels, [1])
    assert str(report).startswith(f"1 x box dropped, {reason}: image 7 (50x40), box (")


def test_masks_go_with_their_boxes():
    without_area, short = record(1, ((10, 20, 10, 30), GOOD_BOX), (2, 1)), record(2)
    without_area["objects"]["mask"], short["objects"]["mask"] = [b"dropped", b"kept"], []
    train, report = open_train([without_area, short], mask_stride=4)
    assert [annotation.masks for annotation in train.annotations] == [(b"kept",)]
    assert "masks and labels differ in number: image 2: 0 and 1" in str(report)


def test_box_across_the_border_is_clipped():
    train, report = open_train([record(7, ((-5, -1, 60, 45), GOOD_BOX), (2, 1))])
    np.testing.assert_array_equal(train.annotations[0].boxes, [(0, 0, 50, 40), GOOD_BOX])
    assert report.counts == {"box clipped to the image": 1}


def test_report_counts_all_and_names_some():
    _, report = open_train([record(1), *(record(i, image=b"x") for i in range(10, 30))])
    assert report.counts["image that cannot be decoded"] == 20
    assert "20 x image that cannot be decoded: image 10" in str(report) and "image 25" not in str(report)


def test_flawed_records_are_logged_once(caplog):
    open_train([record(1), record(2, image=b"x")])
    assert caplog.text.count("image that cannot be decoded") == 1 and "Split train" in caplog.text


def test_nothing_valid_is_an_error():
    with pytest.raises(ValueError, match="'train' has no valid record out of 2:\n2 x category that is not declared"):
        open_train([record(1, labels=(5,)), record(2, labels=(5,))])


def test_images_without_boxes_and_small_ones_are_scored():
    unusual = [record(1, (), ()), record(2, ((0, 0, 9, 9),), (0,), size=(20, 20))]
    dataset = open_records({"train": [record(3)], "select": unusual, "test": unusual}, CATEGORIES, DataConfig())
    assert len(dataset.select) == len(dataset.test) == 2
    assert not dataset.bad_records["select"]


def test_too_many_boxes_name_the_image_and_the_remedy():
    records = [record(1), record(5, [GOOD_BOX] * 3, [0] * 3)]
    train, _ = open_train(records, max_boxes=2)
    with pytest.raises(ValueError, match="Image 5 has 3 boxes.*max_boxes=2: train with --config.data.max_boxes=3"):
        train_batches(train, batch_size=1, seed=0)
    assert [len(batch.image) for batch in eval_batches(train, 1)] == [1, 1]  # which need no padding
    remedied, _ = open_train(records, max_boxes=3)
    assert next(train_batches(remedied, batch_size=2, seed=0)).valid.sum() == 4


def test_grey_and_palette_images_become_rgb():
    grey = np.arange(1600, dtype=np.uint8).reshape(40, 40)
    train, _ = open_train([record(1, image=encode(grey))])
    np.testing.assert_array_equal(train[0].image, np.repeat(grey[..., None], 3, axis=-1))


def test_damaged_files_name_the_folder_and_the_remedy(tmp_path):
    config = DataConfig(DigitScenesConfig(8, 1, 1), data_dir=str(tmp_path))
    open_dataset(config)
    (path,) = tmp_path.rglob("*train.array_record*")
    path.write_bytes(path.read_bytes()[:70_000])
    with pytest.raises(OSError, match=rf"{path.parent}: .*Delete that folder"):
        open_dataset(config)


# --- batches ---


def test_batch_holds_padded_examples(source):
    batch = make_batch([source[3], source[4]], source.layout, batch_size=4)
    assert batch.image.shape == (4, 64, 64, 3) and batch.image.dtype == np.uint8
    np.testing.assert_array_equal(batch.image[0, :43, :47], source.images[3])
    assert not batch.image[0, 43:].any() and not batch.image[0, :, 47:].any() and not batch.image[2:].any()
    np.testing.assert_array_equal(batch.image_size, [(43, 47), (44, 46), (64, 64), (64, 64)])
    np.testing.assert_array_equal(batch.boxes[0, :2], [(3, 6, 13, 18), GOOD_BOX])
    np.testing.assert_array_equal(batch.labels[0, :2], [0, 1])
    np.testing.assert_array_equal(batch.valid.sum(1), [2, 1, 0, 0])
    np.testing.assert_array_equal(batch.image_id[:2], [103, 104])
    np.testing.assert_array_equal(batch.real, [True, True, False, False])


def test_each_epoch_shows_every_image_in_another_order(source):
    ids = [i for batch in itertools.islice(train_batches(source, batch_size=4, seed=0), 11) for i in batch.image_id]
    epochs = np.reshape(ids, (4, 11))
    for epoch in epochs:
        assert sorted(epoch) == list(range(100, 111))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_depends_on_seed_and_step_only(source):
    run = list(itertools.islice(train_batches(source, batch_size=4, seed=5, flip=0.5), 9))
    late = list(itertools.islice(train_batches(source, batch_size=4, seed=5, flip=0.5, start_step=6), 3))
    for one, other in zip(run[6:], late, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    other_seed = next(train_batches(source, batch_size=4, seed=6, flip=0.5))
    assert not np.array_equal(other_seed.image_id, run[0].image_id)


@pytest.mark.parametrize("cache", [True, False])
def test_iterator_state_restores(digits, cache):
    config, _ = digits
    train = open_dataset(dataclasses.replace(config, cache=cache)).train
    batches = train_batches(train, batch_size=4, seed=0)
    for _ in range(5):
        next(batches)
    state, expected = batches.get_state(), next(batches)
    restored = train_batches(train, batch_size=4, seed=0)
    restored.set_state(state)
    np.testing.assert_array_equal(next(restored).image, expected.image)


def test_cache_changes_nothing_but_memory(digits):
    config, cached = digits
    decoded = open_dataset(dataclasses.replace(config, cache=False))
    assert not isinstance(decoded.train.images, list)
    for a, b in zip(eval_batches(cached.select, 4), eval_batches(decoded.select, 4), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_flip_mirrors_image_and_boxes(source):
    example = source[3]
    mirrored = flipped(example)
    for box, mirror in zip(example.annotation.boxes.astype(int), mirrored.annotation.boxes.astype(int), strict=True):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = box, mirror
        np.testing.assert_array_equal(example.image[y1:y2, x1:x2], mirrored.image[v1:v2, u1:u2][:, ::-1])
    assert not np.array_equal(example.image, mirrored.image)
    np.testing.assert_array_equal(flipped(mirrored).annotation.boxes, example.annotation.boxes)


def test_flips_are_off_unless_asked_for(source):
    plain = {b.image_id[0]: b.image[0] for b in itertools.islice(train_batches(source, batch_size=1, seed=0), 11)}
    batches = itertools.islice(train_batches(source, batch_size=1, seed=0, flip=0.5), 200)
    changed = np.mean([not np.array_equal(plain[b.image_id[0]], b.image[0]) for b in batches])
    assert 0.35 < changed < 0.65
    for image_id, image in plain.items():
        np.testing.assert_array_equal(image, make_batch([source[int(image_id) - 100]], source.layout).image[0])


def test_eval_batches_cover_every_image_once(source):
    batches = list(eval_batches(source, 4))
    assert [batch.image.shape[0] for batch in batches] == [4, 4, 4]
    ids = np.concatenate([batch.image_id[batch.real] for batch in batches])
    np.testing.assert_array_equal(ids, np.arange(100, 111))
    assert not batches[-1].valid[~batches[-1].real].any()


# --- data sets ---


def test_one_image_per_category(digits):
    _, dataset = digits
    chosen = one_image_per_category(dataset.train, seed=1)
    assert len(chosen) == 10
    for label, annotation in enumerate(chosen.annotations):
        assert label in annotation.labels
    ids = [annotation.image_id for annotation in chosen.annotations]
    assert len(set(ids)) == 10
    assert ids == [a.image_id for a in one_image_per_category(dataset.train, seed=1).annotations]
    assert ids != [a.image_id for a in one_image_per_category(dataset.train, seed=2).annotations]
    assert next(train_batches(chosen, batch_size=16, seed=0)).real.all()


def test_a_category_that_no_image_shows_has_none(source):
    owls = source.subset([index for index, annotation in enumerate(source.annotations) if 2 not in annotation.labels])
    assert len(one_image_per_category(owls, seed=0)) == len(source.categories) - 1


def test_digit_scenes_open(digits):
    config, dataset = digits
    assert dataset.categories == tuple("0123456789")
    assert [len(s) for s in (dataset.train, dataset.select, dataset.test)] == [30, 7, 5]
    assert dataset.train.layout.size == (96, 96)
    assert not any(dataset.bad_records.values())
    images = np.concatenate([batch.image for batch in eval_batches(dataset.train, 30)])
    normal = (images - np.array(config.mean)) / config.std
    assert abs(normal.mean()) < 0.3 and 0.7 < normal.std() < 1.3


def test_training_data_is_not_evaluation_data(digits):
    _, dataset = digits
    ids = [annotation.image_id for source in dataset[1:4] for annotation in source.annotations]
    assert len(ids) == len(set(ids))


def test_real_blood_cells_with_two_bad_boxes():
    """BCCD has two platelets without area; nothing else of it may be dropped."""
    folder = beside("data") / "bccd"
    names = ("RBC", "WBC", "Platelets")
    records = [_voc_record(folder, f"BloodImage_00{number}", names) for number in ("338", "343", "000")]
    splits = {"train": records, "select": records, "test": records}
    dataset = open_records(splits, names, DataConfig(max_boxes=40))
    assert len(dataset.train) == 3 and dataset.train.layout.size == (480, 640)
    assert dataset.bad_records["train"].counts["box dropped, without area"] == 2


def _voc_record(folder: pathlib.Path, stem: str, names) -> dict:
    objects = ElementTree.parse(folder / "Annotations" / f"{stem}.xml").findall("object")
    boxes = [[float(o.find("bndbox").find(e).text) for e in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
    labels = [names.index(o.find("name").text) for o in objects]
    image = (folder / "JPEGImages" / f"{stem}.jpg").read_bytes()
    return {"image": image, "image_id": int(stem[-5:]), "objects": {"box": boxes, "label": labels}}
