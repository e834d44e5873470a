"""COCO's layout: one JSON file of boxes, masks and crowds per split, and folders of images.

    root/annotations/instances_train2017.json    root/train2017/
    root/annotations/instances_val2017.json      root/val2017/

Smaller sets in the same format have other file names: ``--config.data.annotations`` and ``--config.data.images``.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

from detectors.data.annotated import AnnotatedImage
from detectors.data.coco_files import described, read_categories, read_coco
from detectors.data.decoding import ImageError, read_encoded, upright_size
from detectors.data.on_disk import DiskData, LayoutError
from detectors.data.records import BadRecord, BadRecords


@dataclasses.dataclass
class CocoData(DiskData):
    """COCO 2017, or a data set in its format.

    Attributes:
      annotations: JSON file of a split, under root; ``{split}`` stands for its name.
      images: folder of a split's images, under root.
      train: split trained on.
      test: split evaluated on.
    """

    annotations: str = "annotations/instances_{split}2017.json"
    images: str = "{split}2017"
    train: str = "train"
    test: str = "val"

    kind = "coco"
    title = "COCO"
    source = "https://cocodataset.org/#download (train2017, val2017 and the trainval2017 annotations)"

    def expected(self) -> list[str]:
        return [form.format(split=name) for name in (self.train, self.test) for form in (self.annotations, self.images)]

    def annotation_files(self, role: str) -> list[pathlib.Path]:
        return [self.folder() / self.annotations.format(split=getattr(self, role))]

    def image_folders(self, role: str) -> list[pathlib.Path]:
        return [self.folder() / self.images.format(split=getattr(self, role))]

    def categories(self) -> tuple[str, ...]:
        """The categories in the order of their ids; ids have gaps, labels do not."""
        (path,) = self.annotation_files("train")
        return tuple(read_categories(path).values())

    def category_ids(self, categories: tuple[str, ...]) -> list[int]:
        """The number that each category has in the annotations."""
        found = {}
        for role in ("test", "train"):  # the file of test is the small one
            (path,) = self.annotation_files(role)
            found |= {name: number for number, name in read_categories(path).items()}
            if found.keys() >= set(categories):
                break
        return [found[name] for name in categories]

    def read(self, role: str, categories: tuple[str, ...], report: BadRecords) -> Iterator[AnnotatedImage]:
        (path,), (folder,) = self.annotation_files(role), self.image_folders(role)
        content = read_coco(path, report)
        undeclared = set(content.categories.values()) - set(categories)
        if undeclared:
            raise LayoutError(
                f"{path} declares categories that the file of train has not: {', '.join(sorted(undeclared))}; both must"
                " declare the same"
            )
        label_of = {number: categories.index(name) for number, name in content.categories.items()}
        for image_id, row in content.images.items():
            if row.file_name is None:
                report.add("image that cannot be used", f"{path.name}: image {image_id} has no file_name")
                continue
            try:
                image = self.image_path(folder, row.file_name)
            except BadRecord as bad:
                report.add(bad.reason, bad.detail)
                continue
            size = row.size or _true_size(image)
            columns = described(row, content.objects.get(image_id, []), size, label_of, report)
            yield AnnotatedImage(image, image_id, size, **columns)


def _true_size(path: pathlib.Path) -> tuple[int, int] | None:
    """(height, width) of an image file; None if it cannot be read."""
    with contextlib.suppress(ImageError):
        return upright_size(read_encoded(path))
