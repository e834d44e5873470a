"""Data sets that a user has on disk: built once from their original layout into array records.

A build is named after the root's path, the options, and names, sizes and times of the annotation files, so a changed
root is built again. Beside the records a build keeps all annotations in columns, and what was dropped and why.
"""

import abc
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float
from tensorflow_datasets.core import writer

from cse_jax.errors import InputError, UserError
from cse_jax.ranges import Count, Share
from cse_jax.workdir import default_data_dir
from detectors.data.annotated import AnnotatedImage, check, save_annotations, save_report
from detectors.data.building import BuildError, StableWriter, build_once
from detectors.data.missing import likely_cause
from detectors.data.records import BadRecord, BadRecords
from detectors.data.settings import BatchConfig

ROLES = ("train", "test")
ALL = 10**9  # cases of bad records that a build lists
SHOWN = 3  # cases of each reason that an error lists


class LayoutError(UserError, OSError):
    """A root folder does not hold what a data set's layout says; the message names what is missing and its source."""


@dataclasses.dataclass
class DiskData(BatchConfig, abc.ABC):
    """A data set on disk and how it is batched; subclasses know a layout.

    Attributes:
      root: folder of the data set, in its original layout.
      select_images: number of images, always the same, that are taken from train to be the select split; if 0,
        ``select`` is ``test``.
      limit: use only the first images of each split, for trials; 0 for all.
      outside: read images outside the root as well, where the annotations name such.
      test_share: of the images that are the test split, where train and test are the same images; always the same ones.
    """

    root: str = ""
    select_images: Count = 0
    limit: Count = 0
    outside: bool = dataclasses.field(default=False, kw_only=True)
    test_share: Share = dataclasses.field(default=0.0, kw_only=True)

    kind: ClassVar[str]  # folder of its builds
    title: ClassVar[str]
    source: ClassVar[str]  # where to get it

    @abc.abstractmethod
    def expected(self) -> list[str]:
        """What must be under root."""

    @abc.abstractmethod
    def annotation_files(self, role: str) -> list[pathlib.Path]:
        """The files that ``read`` reads for ``train`` or ``test``."""

    @abc.abstractmethod
    def image_folders(self, role: str) -> list[pathlib.Path]:
        """The folders of the images of ``train`` or ``test``."""

    @abc.abstractmethod
    def categories(self) -> tuple[str, ...]:
        """Names of the labels."""

    @abc.abstractmethod
    def read(self, role: str, categories: tuple[str, ...], report: BadRecords) -> Iterator[AnnotatedImage]:
        """The images of ``train`` or ``test``. What cannot be read goes to ``report``."""

    def folder(self) -> pathlib.Path:
        """The absolute path of root."""
        return pathlib.Path(os.path.normpath(pathlib.Path(self.root).expanduser().absolute()))

    def image_path(self, folder: pathlib.Path, name: str) -> pathlib.Path:
        """Where an image is that the annotations name, in one of ``image_folders``.

        Raises:
          BadRecord: that is outside the root.
        """
        path = named_path(folder, name)
        if not self.may_read(path) and not path.is_relative_to(os.path.normpath(folder)):
            raise BadRecord("image outside the root, not read", f"{name} (set --config.outside=True to read it)")
        return path

    def may_read(self, path: pathlib.Path) -> bool:
        """Whether a normal path is below the root, or any may be read."""
        return self.outside or path.is_relative_to(self.folder())

    def split(self, role: str, categories: tuple[str, ...], report: BadRecords) -> Iterator[AnnotatedImage]:
        """The images of ``train`` or ``test``, as ``read`` yields them, without those of the other."""
        found = self.read(role, categories, report)
        if not self.test_share:
            yield from found
            return
        if not 0 < self.test_share < 1:
            raise InputError(f"data.test_share={self.test_share} must be a share of the images, between 0 and 1")
        everything = list(found)
        drawn = sorted(everything, key=lambda image: hashlib.sha256(_place(image.path, self.folder())).digest())
        test = {image.path for image in drawn[: math.ceil(self.test_share * len(drawn))]}
        yield from (image for image in everything if (image.path in test) == (role == "test"))

    def check_layout(self) -> None:
        """Raises LayoutError unless root holds what is expected there."""
        advice = f"{self.title} is expected there as {', '.join(self.expected())}. Get it from {self.source}."
        if not self.root:
            raise LayoutError(
                f"No folder of {self.title} is given: set --config.root (--config.data.root of a training). {advice}"
            )
        if not self.folder().is_dir():
            raise LayoutError(f"The folder {self.folder()} does not exist. {advice}")
        for role in ROLES:
            for path in (*self.annotation_files(role), *self.image_folders(role)):
                if not path.exists():
                    raise LayoutError(f"{path} does not exist. {advice}")

    def build_name(self) -> str:
        """Name of the build of this root as it is now."""
        shared = {f.name for f in dataclasses.fields(DiskData)} - {"outside", "test_share"}
        own = {field.name for field in dataclasses.fields(self)} - shared
        digest = hashlib.sha256(
            json.dumps([str(self.folder()), {name: getattr(self, name) for name in own}], sort_keys=True).encode()
        )
        for role in ROLES:
            for path in (*self.annotation_files(role), *self.image_folders(role)):
                status = os.stat(path)
                digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        return f"{self.folder().name}-{digest.hexdigest()[:12]}"


@dataclasses.dataclass(eq=False, kw_only=True)
class DetectionSetConfig(tfds.core.BuilderConfig):
    """What TFDS passes to the builder."""

    data: DiskData


class DetectionSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder of a data set on disk, with the splits ``train`` and ``test``.

    A record: the image file's bytes, ``image_id``, ``file_name``, and ``objects`` of ``box`` (x1, y1, x2, y2, pixels,
    far edges exclusive), ``label``, ``area`` (NaN: not annotated), ``crowd``, ``difficult`` and ``mask`` (COCO's
    compressed run lengths).
    Raise ``VERSION`` when a change alters what is written.
    """

    builder_config: DetectionSetConfig  # a property of TFDS, typed
    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.2.0": "Areas that are not annotated are NaN.",
        "1.1.0": "Images are upright, text is read as the number it is, bad masks leave their boxes.",
        "1.0.0": "First version.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        objects = {
            "box": tfds.features.Tensor(shape=(4,), dtype=np.float64),
            "label": tfds.features.Scalar(dtype=np.int64),
            "area": tfds.features.Scalar(dtype=np.float64),
            "crowd": tfds.features.Scalar(dtype=np.bool_),
            "difficult": tfds.features.Scalar(dtype=np.bool_),
            "mask": tfds.features.Text(),
        }
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": tfds.features.Scalar(dtype=np.int64),
            "file_name": tfds.features.Text(),
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _example_writer(self) -> writer.ExampleWriter:
        return StableWriter()

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        categories = self.builder_config.data.categories()
        path = pathlib.Path(self.data_path)
        path.mkdir(parents=True, exist_ok=True)
        (path / "categories.json").write_text(json.dumps(categories))
        return {role: self._generate_examples(role, categories) for role in ROLES}

    def _generate_examples(self, role: str, categories: tuple[str, ...]):
        report, kept, bad_files = BadRecords(shown=ALL), [], {}
        for image in self.builder_config.data.split(role, categories, report):
            try:
                encoded, image = check(image, report)
            except BadRecord as bad:
                hint = ""
                if bad.reason == "missing file" and report.counts[bad.reason] < SHOWN:
                    hint = likely_cause(image.path, self.builder_config.data.folder())
                report.add(bad.reason, bad.detail + hint)
                bad_files[str(image.path)] = _stamp(image.path)
                continue
            columns = zip(image.boxes, image.labels, image.area, image.crowd, image.difficult, image.masks, strict=True)
            objects = [
                dict(zip(("box", "label", "area", "crowd", "difficult", "mask"), o, strict=True)) for o in columns
            ]
            yield (
                len(kept),
                {
                    "image": encoded,
                    "image_id": image.image_id,
                    "file_name": image.path.name,
                    "objects": objects,
                },
            )
            kept.append(image)
        if not kept:
            raise LayoutError(
                f"No image of {role} in {self.builder_config.data.root} can be used:\n{report.first(SHOWN)}"
            )
        path = pathlib.Path(self.data_path)
        save_annotations(path / f"annotations-{role}.npz", kept)
        save_report(path / f"bad_records-{role}.json", report)
        (path / f"bad_files-{role}.json").write_text(json.dumps(bad_files))


def named_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where a name leads that annotations give from a folder, wherever that is."""
    path = pathlib.Path(os.path.normpath(folder / name))
    if "\\" in name and not os.path.exists(path):  # written on Windows
        path = pathlib.Path(os.path.normpath(folder / name.replace("\\", "/")))
    return path


def _place(path: pathlib.Path, root: pathlib.Path) -> bytes:
    """Where a file is below the root, which may itself be anywhere."""
    return os.path.relpath(path, root).encode(errors="surrogateescape")


def _stamp(path: pathlib.Path) -> list[int] | None:
    """What tells whether a file has changed; None for one that is missing."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def repaired_files(builder: tfds.core.DatasetBuilder) -> list[str]:
    """Images that could not be used when a data set was built, and that have changed since."""
    path = pathlib.Path(builder.data_path)
    bad = [json.loads((path / f"bad_files-{role}.json").read_text()) for role in ROLES]
    return [name for files in bad for name, stamp in files.items() if _stamp(pathlib.Path(name)) != stamp]


def build_detection_set(data: DiskData, *, again: bool = False) -> DetectionSet:
    """Builds the data set unless this root's build is there, and returns its builder.

    Args:
      data: which one.
      again: whether to replace a build that is there.

    Raises:
      LayoutError: root does not hold the data set, or no image of it can be used.
      BuildError: the build's folder cannot be written; the message names it.
    """
    data.check_layout()
    target = _built_in(data)
    kind = type(data.kind, (DetectionSet,), {"name": data.kind}, skip_registration=True)
    config = DetectionSetConfig(name=data.build_name(), data=data)
    try:
        return build_once(lambda: kind(data_dir=target, config=config, file_format="array_record"), again=again)
    except LayoutError:
        raise
    except (OSError, RuntimeError) as error:
        raise BuildError(
            f"Could not build {data.title} in {target}: {error}. The folder must be writable, with as much free space"
            " as the images take; name another one with data.data_dir or the environment variable CSE_JAX_DATA_DIR."
        ) from error


def built_categories(data: DiskData) -> tuple[str, ...]:
    """The categories of this root's build; empty if it is not built."""
    path = _built_in(data) / data.kind / data.build_name() / str(DetectionSet.VERSION) / "categories.json"
    return tuple(json.loads(path.read_text())) if path.is_file() else ()


def _built_in(data: DiskData) -> pathlib.Path:
    return pathlib.Path(data.data_dir).expanduser() if data.data_dir else default_data_dir()


def columns(
    boxes: Float[np.ndarray, "n 4"],
    labels: Sequence[int],
    *,
    crowd: Sequence[bool] | None = None,
    difficult: Sequence[bool] | None = None,
    masks: Sequence[bytes] | None = None,
) -> dict:
    """The columns of an ``AnnotatedImage``; those that a layout does not have are filled with defaults."""
    n = len(boxes)
    return {
        "boxes": boxes,
        "labels": np.array(labels, np.int32).reshape(n),
        "area": np.full(n, np.nan),
        "crowd": np.zeros(n, bool) if crowd is None else np.array(crowd, bool).reshape(n),
        "difficult": np.zeros(n, bool) if difficult is None else np.array(difficult, bool).reshape(n),
        "masks": (b"",) * n if masks is None else tuple(masks),
    }
