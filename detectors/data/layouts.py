"""Recognises the layout of a data set by what lies in its folder."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from detectors.data.bdd100k import Bdd100kData
from detectors.data.coco import CocoData
from detectors.data.coco_files import read_coco
from detectors.data.json_rows import FileError
from detectors.data.on_disk import DiskData, LayoutError
from detectors.data.records import BadRecords
from detectors.data.voc import VocData
from detectors.data.yolo import NAMES, YoloData

TEST_SHARE = 0.2  # of a data set without splits
_TRAIN, _TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
_XML_FOLDERS = ("Annotations", "annotations", "labels", "xml", "xmls", "")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "img", "imgs", "photos")
_DEPTHS = ("*/", "*/*/", "*/*/*/")  # of folders of images below the root
_LOOKED_AT = 20  # images of a file that tell its folder


class Recognised(NamedTuple):
    """A layout, in words, and the config that reads it."""

    said: str
    config: DiskData


def recognise(root: pathlib.Path) -> Recognised:
    """What a folder holds.

    Raises:
      LayoutError: nothing that is known; the message says what was looked for.
    """
    if not root.is_dir():
        raise LayoutError(f"The folder {root} does not exist")
    for look in (_bdd100k, _yolo, _voc, _coco, _xml_files, _yolo_beside):
        found = look(root)
        if found is not None:
            return found._replace(config=dataclasses.replace(found.config, root=str(root)))
    there = sorted(path.name for path in root.iterdir())
    raise LayoutError(
        f"The layout of {root} is not known. It was searched for COCO's JSON files, VOC's XML files, YOLO's data.yaml "
        f"or classes.txt, and BDD100K's labels; it holds {', '.join(there[:10]) or 'nothing'}"
        f"{', ...' if len(there) > 10 else ''}. Give the folder that holds annotations and images, or a config of "
        "configs/data"
    )


def differing(config: DiskData) -> dict[str, Any]:
    """The fields of a config that are not the defaults, root apart."""
    usual = type(config)()
    fields = (field.name for field in dataclasses.fields(config) if field.name != "root")
    return {name: getattr(config, name) for name in fields if getattr(config, name) != getattr(usual, name)}


def _bdd100k(root: pathlib.Path) -> Recognised | None:
    if (root / "images" / "100k").is_dir() and (root / "labels").is_dir():
        return Recognised("BDD100K's layout", Bdd100kData())


def _yolo(root: pathlib.Path) -> Recognised | None:
    for path in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))):
        config = YoloData(str(root), file=path.name)
        try:
            config.categories()
        except LayoutError:
            continue
        keys = [key for key, value in config.settings().items() if value]
        train = next((key for key in _TRAIN if key in keys), None)
        test = next((key for key in _TEST if key in keys and _has_images(config, key)), None)
        share = 0.0 if train and test else TEST_SHARE
        changed = dataclasses.replace(config, train=train or "", test=test or train or "", test_share=share)
        return Recognised(f"YOLO's layout ({path.name}, {_split_in_words(changed)})", changed)
    return None


def _has_images(config: YoloData, key: str) -> bool:
    try:
        return bool(dataclasses.replace(config, test=key).images_of("test"))
    except LayoutError:
        return False


def _yolo_beside(root: pathlib.Path) -> Recognised | None:
    if not any((folder / name).is_file() for folder in (root, root / "labels") for name in NAMES):
        return None
    config = YoloData(file="", train="", test="", test_share=TEST_SHARE)
    return Recognised(f"YOLO's layout (names of categories in a text file, {_split_in_words(config)})", config)


def _voc(root: pathlib.Path) -> Recognised | None:
    if (root / "VOC2007").is_dir():
        return Recognised("Pascal VOC's layout", VocData())
    lists = {path.stem for path in (root / "ImageSets" / "Main").glob("*.txt")}
    train = next((name for name in ("trainval", *_TRAIN) if name in lists), None)
    test = next((name for name in _TEST if name in lists), None)
    if train == "trainval" and test == "val" and "train" in lists:
        train = "train"  # trainval holds val
    images = _images_folder(root)
    if train is None or images is None:
        return None
    share = 0.0 if test else TEST_SHARE
    config = VocData(train=(train,), test=(test or train,), names=(), images=images, test_share=share)
    return Recognised(f"Pascal VOC's layout (lists in ImageSets/Main, {_split_in_words(config)})", config)


def _xml_files(root: pathlib.Path) -> Recognised | None:
    """XML files of VOC's format without lists."""
    folders = {path.name for path in root.iterdir() if path.is_dir() and any(path.glob("*.xml"))}
    train, test = (next((name for name in names if name in folders), None) for names in (_TRAIN, _TEST))
    if train and test:
        config = VocData(train=(train,), test=(test,), names=(), images="")
        return Recognised(f"XML files of VOC's format ({_split_in_words(config)})", config)
    for name in _XML_FOLDERS:
        if any((root / name).glob("*.xml")):
            images = (_images_folder(root) or "") if name else ""
            one = name or "."
            config = VocData(train=(one,), test=(one,), names=(), images=images, test_share=TEST_SHARE)
            return Recognised(f"XML files of VOC's format in {name or root.name}/ ({_split_in_words(config)})", config)
    return None


def _images_folder(root: pathlib.Path) -> str | None:
    return next((name for name in _IMAGE_FOLDERS if (root / name).is_dir()), None)


def _coco(root: pathlib.Path) -> Recognised | None:
    files = {path: folder for path in _json_files(root) if (folder := _folder_of(path, root)) is not None}
    splits = {_word(path, root): path for path in files}
    train = next((word for word in _TRAIN if word in splits), None)
    test = next((word for word in _TEST if word in splits), None)
    if train and test:
        paths = [path.relative_to(root).as_posix() for path in (splits[train], splits[test])]
        folders = [files[splits[word]] for word in (train, test)]
        form = _form(paths, (train, test)), _form(folders, (train, test))
        if form[0] is not None and form[1] is not None:
            config = CocoData(annotations=form[0], images=form[1], train=train, test=test)
            return Recognised(f"COCO's format ({', '.join(paths)}; {_split_in_words(config)})", config)
    if files:
        path = next((splits[word] for word in (train, test) if word), next(iter(files)))
        place = path.relative_to(root).as_posix()
        config = CocoData(annotations=place, images=files[path], train="all", test="all", test_share=TEST_SHARE)
        return Recognised(f"COCO's format ({place}; {_split_in_words(config)})", config)
    return None


def _json_files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Those that may be annotations, files of objects before others such as key points."""
    found = [*root.glob("*.json"), *root.glob("*/*.json")]
    yield from sorted(found, key=lambda path: ("instances" not in path.name, path))


def _folder_of(path: pathlib.Path, root: pathlib.Path) -> str | None:
    """The folder below root of a file's images; None if it is no annotation file, or there are no images."""
    try:
        images = list(read_coco(path, BadRecords()).images.values())[:_LOOKED_AT]
    except FileError:
        return None
    names = [image.file_name.replace("\\", "/") for image in images if image.file_name]
    word, best = _word(path, root), (0, False)
    chosen = None
    for folder in (path.parent, root, *(folder for depth in _DEPTHS for folder in sorted(root.glob(depth)))):
        place = folder.relative_to(root).as_posix()
        fit = sum((folder / name).is_file() for name in names), word in place.lower()
        if fit[0] and fit > best:
            chosen, best = place, fit
    return chosen


def _word(path: pathlib.Path, root: pathlib.Path) -> str:
    """The split that a file's name or folder says, else its name."""
    place = path.relative_to(root).with_suffix("").as_posix().lower()
    words = "".join(letter if letter.isalpha() else " " for letter in place).split()
    return next((word for word in (*_TRAIN, *_TEST) if word in words), place)


def _form(places: list[str], words: tuple[str, str]) -> str | None:
    """The form of two places that differ in the words only, with ``{split}`` for these."""
    if places[0] == places[1] and words[0] not in places[0]:
        return places[0]
    form = places[0].replace(words[0], "{split}")
    return form if form.replace("{split}", words[1]) == places[1] else None


def _split_in_words(config: Any) -> str:
    if config.test_share:
        return f"no splits: {config.test_share:.0%} of the images, always the same, are the test split"
    train, test = (value if isinstance(value, str) else ", ".join(value) for value in (config.train, config.test))
    return f"trained on {train}, tested on {test}"
