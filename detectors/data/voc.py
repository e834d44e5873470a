"""Pascal VOC's layout: an XML file per image, and lists of the images of each set.

    root/VOC2007/{Annotations,ImageSets/Main,JPEGImages}/    root/VOC2012/{Annotations,ImageSets/Main,JPEGImages}/

root is the folder ``VOCdevkit``. For a data set with these three folders directly in its root, give the lists without a
year (``--config.data.train="('train',)" --config.data.test="('test',)"``) and the categories (``--config.data.names``).
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Annotated
from xml.etree import ElementTree

import numpy as np

from cse_jax.ranges import Items
from detectors.data.annotated import AnnotatedImage
from detectors.data.decoding import SUFFIXES, image_files
from detectors.data.json_rows import read_bytes, shown
from detectors.data.on_disk import ROLES, DiskData, columns
from detectors.data.records import LISTED_TWICE, BadRecord, BadRecords

VOC_CATEGORIES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclasses.dataclass
class VocData(DiskData):
    """VOC 2007+2012 trainval against 2007 test, or a data set in its format.

    Attributes:
      train, test: lists of images, each ``folder/list`` or, for a root without years, ``list``; or folders of XML
        files.
      names: the categories; none for those that the XML files name, sorted.
      images: folder of the images, beside that of the XML files; if there is none, they are in the same one.
    """

    train: Annotated[tuple[str, ...], Items()] = ("VOC2007/trainval", "VOC2012/trainval")
    test: Annotated[tuple[str, ...], Items()] = ("VOC2007/test",)
    names: tuple[str, ...] = VOC_CATEGORIES
    images: str = "JPEGImages"

    kind = "voc"
    title = "Pascal VOC"
    source = "http://host.robots.ox.ac.uk/pascal/VOC (VOCtrainval and VOCtest 2007, VOCtrainval 2012)"

    def expected(self) -> list[str]:
        lists = [*self.train, *self.test]
        folders = sorted({str(pathlib.PurePath(name).parent / part) for name in lists for part in _FOLDERS})
        return [*folders, *(str(path.relative_to(self.folder())) for name in lists for path in [self._list(name)])]

    def annotation_files(self, role: str) -> list[pathlib.Path]:
        lists = [self._list(name) for name in getattr(self, role) if not self._holds_files(name)]
        folders = {self._folders(name)[0] for name in getattr(self, role)}
        return [*lists, *(path for folder in sorted(folders) for path in sorted(folder.glob("*.xml")))]

    def image_folders(self, role: str) -> list[pathlib.Path]:
        return [self._folders(name)[1] for name in getattr(self, role)]

    def categories(self) -> tuple[str, ...]:
        return tuple(self.names) or tuple(sorted(self._named()))

    def read(self, role: str, categories: tuple[str, ...], report: BadRecords) -> Iterator[AnnotatedImage]:
        image_id, seen = 0, set()
        for name in getattr(self, role):
            _, images = self._folders(name)
            found = image_files(images)
            for path in self._annotations(name):
                if path in seen:
                    report.add(LISTED_TWICE, f"{name}: {path.stem}")
                    continue
                seen.add(path)
                image_id += 1
                image = found.get(path.stem, images / f"{path.stem}.jpg")
                try:
                    yield _read_xml(path, image_id, image, categories)
                except BadRecord as bad:
                    report.add(bad.reason, bad.detail)

    def _annotations(self, name: str) -> list[pathlib.Path]:
        """The XML files of a list or folder."""
        folder, _ = self._folders(name)
        if self._holds_files(name):
            return sorted(folder.glob("*.xml"))
        lines = read_bytes(self._list(name)).decode(errors="replace").splitlines()
        return [_annotation(folder, line) for line in lines if line.strip()]

    def _folders(self, name: str) -> tuple[pathlib.Path, pathlib.Path]:
        """The folders of a list's XML files and images."""
        if not self._holds_files(name):
            base = self._list(name).parents[2]
            return base / "Annotations", base / self.images
        folder = self.folder() / name
        images = folder.parent / self.images
        return folder, images if self.images and images.is_dir() else folder

    def _holds_files(self, name: str) -> bool:
        """Whether it is a folder of XML files instead of a list."""
        return not self._list(name).is_file() and any((self.folder() / name).glob("*.xml"))

    def _named(self) -> set[str]:
        """The names of all objects."""
        found = set()
        for path in (path for role in ROLES for name in getattr(self, role) for path in self._annotations(name)):
            with contextlib.suppress(OSError, ElementTree.ParseError, ValueError, LookupError):
                found |= {
                    (o.findtext("name") or "").strip() for o in ElementTree.fromstring(read_bytes(path)).iter("object")
                }
        return found - {""}

    def _list(self, name: str) -> pathlib.Path:
        path = pathlib.PurePath(name)
        return self.folder() / path.parent / "ImageSets" / "Main" / f"{path.name}.txt"


_FOLDERS = ("Annotations", "JPEGImages")


def _annotation(folder: pathlib.Path, line: str) -> pathlib.Path:
    """The annotation file that a line of a list names; after the name there may be a number, as in VOC's own lists."""
    whole = pathlib.PurePath(line.strip())
    stem = whole.stem if whole.suffix.lower() in SUFFIXES else whole.name
    path = folder / f"{stem}.xml"
    return path if path.exists() else folder / f"{line.split()[0]}.xml"


def _read_xml(path: pathlib.Path, image_id: int, image: pathlib.Path, categories: tuple[str, ...]) -> AnnotatedImage:
    """Reads one annotation file. Raises BadRecord if it is missing, damaged or names an unknown category."""
    try:
        tree = ElementTree.fromstring(read_bytes(path))
        size = (_side(tree, "height"), _side(tree, "width"))
        objects = tree.findall("object")
        inclusive = [[_number(o, f"bndbox/{e}") for e in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        difficult = [_flag(o, "difficult") for o in objects]
    except OSError as error:
        raise BadRecord("missing file", f"{path} ({error.strerror})") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise BadRecord("annotation that cannot be read", f"{path.name} ({error})") from error
    names = [(o.findtext("name") or "").strip() for o in objects]
    unknown = sorted(set(names) - set(categories))
    if unknown:
        raise BadRecord("category that is not declared", f"{path.name}: {', '.join(unknown)}")
    corners = np.array(inclusive, np.float64).reshape(-1, 4)
    # Pixels count from 1, and the far ones are inside. A box of one pixel keeps its corners, and so has no area.
    boxes = corners - np.where((corners[:, 2:] > corners[:, :2]).all(1, keepdims=True), [1, 1, 0, 0], 0)
    known = (size[0], size[1]) if size[0] and size[1] else None
    return AnnotatedImage(
        image, image_id, known, **columns(boxes, [categories.index(name) for name in names], difficult=difficult)
    )


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no {path}")
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{path} is {shown(text)}, not a number") from error


def _side(tree: ElementTree.Element, name: str) -> int:
    """A side of the image in pixels; 0 where it is not said."""
    value = _number(tree, f"size/{name}") if tree.find(f"size/{name}") is not None else 0.0
    if not 0 <= value < 2**20 or value != int(value):
        raise ValueError(f"size/{name} is {value:g}, not a number of pixels")
    return int(value)


def _flag(element: ElementTree.Element, name: str) -> bool:
    text = (element.findtext(name) or "").strip().lower()
    if text not in _FLAGS:
        raise ValueError(f"{name} is {shown(text)}, not 0 or 1")
    return _FLAGS[text]


_FLAGS = {"": False, "0": False, "false": False, "unspecified": False, "1": True, "true": True}
