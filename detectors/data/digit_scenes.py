"""Digit scenes: an embedded detection data set, built from the handwritten digits that scikit-learn carries.

Nothing is downloaded. Scenes are composed from the 1,797 glyphs of ``sklearn.datasets.load_digits`` (UCI Optical
Recognition of Handwritten Digits, 8x8, real handwriting). The glyphs are divided between the splits before any scene
is drawn: no glyph of ``select`` or ``test`` is ever seen in training. Writers are not named in the source, so one
writer's glyphs may be in several splits.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import zlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int
from PIL import Image
from tensorflow_datasets.core import writer

from cse_jax.ranges import Positive, Seed, validate
from cse_jax.workdir import default_data_dir
from detectors.data.building import BuildError, StableWriter, build_once
from detectors.data.masks import encoded
from detectors.data.scene_rendering import SceneConfig, render_scene

SPLITS = ("train", "select", "test")
CATEGORIES = tuple("0123456789")
GLYPH_SHARES = (0.6, 0.2, 0.2)  # of each digit's glyphs, per split


@dataclasses.dataclass
class DigitScenesConfig:
    """What is built: the images per split, the seed of everything random, and how a scene looks."""

    train_images: Positive = 2000
    select_images: Positive = 400
    test_images: Positive = 400
    seed: Seed = 0
    scene: SceneConfig = dataclasses.field(default_factory=SceneConfig)

    @property
    def name(self) -> str:
        """The folder of this data set; other settings have another name."""
        settings = json.dumps(dataclasses.asdict(self), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        counts = f"{self.train_images}-{self.select_images}-{self.test_images}"
        return f"{self.scene.image_size}px-{counts}-seed{self.seed}-{digest}"

    def images(self, split: str) -> int:
        """Number of images of a split."""
        return {"train": self.train_images, "select": self.select_images, "test": self.test_images}[split]


@dataclasses.dataclass(eq=False)
class DigitScenesBuilderConfig(tfds.core.BuilderConfig):
    """What TFDS passes to the builder."""

    scenes: DigitScenesConfig = dataclasses.field(default_factory=DigitScenesConfig)


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder. A record: PNG ``image``, ``image_id`` unique over the splits, ``objects``.

    An object has ``box`` (x1, y1, x2, y2, pixels, far edges exclusive), ``label`` and ``mask`` (its visible ink, as
    COCO's compressed run lengths). Raise ``VERSION`` when a change alters the bytes.
    """

    builder_config: DigitScenesBuilderConfig  # a property of TFDS, typed
    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.1.0": "Objects have masks; images, boxes and labels are those of 1.0.0.",
        "1.0.0": "First version.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.scenes.scene.image_size
        objects = {
            "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=list(CATEGORIES)),
            "mask": tfds.features.Text(),
        }
        features = {
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "image_id": tfds.features.Scalar(dtype=np.int64),
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
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str):
        config = self.builder_config.scenes
        glyphs, labels = split_glyphs(config.seed)[split]
        number = SPLITS.index(split)
        first_id = sum(config.images(earlier) for earlier in SPLITS[:number])
        for index in range(config.images(split)):
            rng = np.random.default_rng([config.seed, number, index])
            scene = render_scene(rng, glyphs, labels, config.scene)
            objects = [
                {"box": box, "label": int(label), "mask": encoded(mask)}
                for box, label, mask in zip(scene.boxes, scene.labels, scene.masks, strict=True)
            ]
            yield index, {"image": _encode_png(scene.image), "image_id": first_id + index, "objects": objects}


def split_glyphs(seed: int) -> dict[str, tuple[Float[np.ndarray, "g 8 8"], Int[np.ndarray, " g"]]]:
    """Divides the glyphs between the splits, digit by digit.

    Returns:
      For each split its glyphs, with ink in 0..1, and their labels.
    """
    from sklearn.datasets import load_digits  # scikit-learn takes a second to load and only building needs it

    pixels, digits = load_digits(return_X_y=True)
    glyphs, digits = np.reshape(pixels, (-1, 8, 8)), np.asarray(digits)
    rng = np.random.default_rng([seed, len(SPLITS)])
    members = {split: [] for split in SPLITS}
    for digit in range(len(CATEGORIES)):
        shuffled = rng.permutation(np.flatnonzero(digits == digit))
        ends = np.rint(np.cumsum(GLYPH_SHARES) * len(shuffled)).astype(int)
        for split, part in zip(SPLITS, np.split(shuffled, ends[:-1]), strict=True):
            members[split].append(part)
    chosen = {split: np.concatenate(parts) for split, parts in members.items()}
    return {
        split: ((glyphs[index] / 16).astype(np.float32), digits[index].astype(np.int32))
        for split, index in chosen.items()
    }


def build_digit_scenes(config: DigitScenesConfig, data_dir: str | os.PathLike = "") -> DigitScenes:
    """Builds the data set unless it is there, and returns its builder.

    The files appear under their final name in one step when they are complete. Several processes may call this at
    once: one of them builds, the others wait.

    Args:
      config: what to build; it and the builder's version name the folder.
      data_dir: where data sets are kept; ``default_data_dir()`` if empty.

    Raises:
      BuildError: the folder cannot be written or the disk is full; the message names the folder and says what to do.
      InputError: the settings contradict each other.
    """
    validate(config, "data.digit_scenes")
    root = pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()
    builder_config = DigitScenesBuilderConfig(name=config.name, scenes=config)
    try:
        return build_once(lambda: DigitScenes(data_dir=root, config=builder_config, file_format="array_record"))
    # Array records report a full disk as RuntimeError.
    except (OSError, RuntimeError) as error:
        megabytes = sum(map(config.images, SPLITS)) * 3 * config.scene.image_size**2 // 10**6 + 1
        raise BuildError(
            f"Could not build the digit scenes in {root}: {error}. The folder must be writable, with {megabytes} MB"
            " free; name another one with data.data_dir or the environment variable CSE_JAX_DATA_DIR."
        ) from error


def _encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # Noise has no repetitions to find: Huffman coding alone is smaller here, and faster.
    Image.fromarray(image).save(buffer, format="png", compress_type=zlib.Z_HUFFMAN_ONLY)
    return buffer.getvalue()
