"""Every field of every config states what it may be, and whole configs are checked against it."""

import dataclasses
import math
import pathlib
import typing
from typing import Annotated, Literal

import pytest
from test_configs import read

from cse_jax.errors import InputError
from cse_jax.ranges import Items, Range, describe, field_types, fits, validate

ROOT = pathlib.Path(__file__).resolve().parents[1]
WRONG = ["text", True, 1.5, -1, -1.0, 0, 0.0, math.nan, math.inf, -math.inf, 10**30, 1e300, None, (), (0,), (math.nan,)]
WRONG += [("text",), (-1, -1, -1), (3, 2, 1), [1], {}]


def parts(config, name="config"):
    """Every dataclass in a config, with its place."""
    yield type(config), (config, name)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from parts(value, f"{name}.{field.name}")


@pytest.fixture(scope="module")
def configs():
    return [read(path).get_config() for path in sorted((ROOT / "configs").glob("*/*.py"))]


@pytest.fixture(scope="module")
def classes(configs):
    return {kind: found for config in configs for kind, found in parts(config)}


def test_the_configs_are_right(configs):
    assert len(configs) > 30
    for config in configs:
        validate(config)


def numbers(kind, ranges=()):
    """The types of numbers in a type, each with the ranges that are stated of it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        yield from numbers(inner[0], [rule for rule in inner[1:] if isinstance(rule, Range)])
    elif kind in (int, float):
        yield kind, ranges
    elif origin is not Literal:
        for part in inner:
            yield from numbers(part)


def test_every_number_states_its_range(classes):
    assert len(classes) > 20
    found = 0
    for kind in classes:
        for field, hint in field_types(kind).items():
            for _, ranges in numbers(hint):
                found += 1
                assert len(ranges) == 1, f"{kind.__name__}.{field} states no range"
                bounds = max(ranges[0].least, ranges[0].above), min(ranges[0].most, ranges[0].below)
                assert all(map(math.isfinite, bounds)), f"{kind.__name__}.{field} has no bounds: {ranges[0]}"
    assert found > 100


def inside(value, kind):
    """Whether a value is what a field states, for those values above that some field allows."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    for plain, (stated, *_) in numbers(kind):
        if number and (plain is float or isinstance(value, int)) and typing.get_origin(kind) is not tuple:
            least, most = max(stated.least, stated.above), min(stated.most, stated.below)
            if least <= value <= most and value not in (stated.above, stated.below):
                return True
    return False


def test_wrong_values_are_refused_by_name(classes):
    refused = 0
    for config, name in classes.values():
        for field, kind in field_types(type(config)).items():
            right = getattr(config, field)
            for wrong in WRONG:
                plain = (type(wrong) is kind) or wrong is None and type(None) in typing.get_args(kind)
                tuples = isinstance(wrong, tuple) and "tuple" in describe(kind)
                if plain or inside(wrong, kind) or (tuples and fits(wrong, kind)):
                    continue
                setattr(config, field, wrong)
                with pytest.raises(InputError) as error:
                    validate(config, name)
                assert str(error.value) == f"{name}.{field} is {wrong!r}; it must be {describe(kind)}"
                refused += 1
            setattr(config, field, right)
    assert refused > 1500


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (Annotated[int, Range(least=1, most=9)], [1, 9], [0, 10, 1.0, True, None, "1"]),
        (Annotated[float, Range(above=0, below=1)], [0.5], [0, 0.0, 1, math.nan, -math.inf, False]),
        (Annotated[float, Range(least=0, most=1)], [0, 1, 0.5], [-0.1, 1.1, math.nan]),
        (Annotated[float, Range(least=0, most=1)] | None, [None, 0.5], [2.0, "None"]),
        (tuple[Annotated[int, Range(least=1)], ...], [(), (1, 1)], [(0,), (1.0,), [1], 1]),
        (tuple[Annotated[int, Range(least=1)], str], [(1, "a")], [(1,), ("a", 1), (1, "a", "b")]),
        (Annotated[tuple[int, ...], Items(increasing=True)], [(1,), (1, 2)], [(), (2, 1), (1, 1)]),
        (Literal["a", "b"], ["a"], ["c", None, 1]),
        (bool, [True], [1, "True", None]),
        (str, [""], [1, None]),
        (Range, [Range()], [Items(), None]),
    ],
    ids=str,
)
def test_a_value_fits_its_type_and_range(kind, right, wrong):
    assert all(fits(value, kind) for value in right)
    assert not any(fits(value, kind) for value in wrong)


def test_ranges_are_described():
    assert describe(Annotated[int, Range(least=0, most=10**9)]) == "a whole number from 0 to 1,000,000,000"
    assert describe(Annotated[float, Range(above=0, below=1)] | None) == "a number above 0 and below 1 or None"
    steps = Annotated[tuple[Annotated[int, Range(least=1, most=9)], ...], Items(increasing=True)]
    assert describe(steps) == "a tuple, each a whole number from 1 to 9 (1 or more, increasing)"


@pytest.mark.parametrize(
    ("path", "changes", "said"),
    [
        ("train/fcos_digits", {"steps": 0, "epochs": 0.0}, "config: steps=0 and epochs=0"),
        ("train/fcos_digits", {"train.accumulate": 3}, "config.train: accumulate=3 must divide batch_size=8"),
        (
            "train/fcos_digits",
            {"detector.norm_groups": 7},
            "config.detector: norm_groups=7 must divide fpn.channels",
        ),
        ("train/fcos_digits", {"detector.range_limits": ()}, r"range_limits=\(\) must be 1, for 2 levels"),
        ("train/fcos_digits", {"detector.backbone.norm_groups": 7}, "config.detector.backbone: norm_groups=7 must"),
        ("train/fcos_digits", {"detector.backbone.outputs": (5,)}, r"outputs=\(5,\) must be stages from 1 to"),
        ("train/fcos_digits", {"detector.backbone.widths": (8,)}, r"widths=\(8,\) must have an item for each stage"),
        ("train/fcos_digits", {"data": 3}, "config.data is 3; it must be of the class BatchConfig"),
        ("train/fcos_mobilenet", {"detector.backbone.norm_groups": 5}, "norm_groups=5 must divide 32"),
        ("train/fcos_bccd", {"data.short_side": 0}, "config.data: short_side=0 and long_side="),
        ("train/mask_rcnn_r50_coco", {"data.mask_stride": 5}, "config.data: mask_stride=5 must divide 32"),
        ("train/faster_rcnn_digits", {"detector.roi.levels": 9}, "roi.levels=9 must not exceed the 2 levels"),
        ("search/default", {"search.regression.crossover": 0.9}, "crossover=0.9 and mutation=0.3 must not exceed 1"),
        ("search/default", {"search.regression.strategy": "luck"}, "there is no strategy 'luck'; use 'random'"),
        ("search/default", {"search.regression.screened": "/nowhere"}, "screened='/nowhere' is no folder"),
    ],
    ids=str,
)
def test_what_fields_must_be_together(path, changes, said):
    config = read(ROOT / "configs" / f"{path}.py").get_config()
    for name, value in changes.items():
        *above, field = name.split(".")
        holder = config
        for part in above:
            holder = getattr(holder, part)
        setattr(holder, field, value)
    with pytest.raises(InputError, match=said):
        validate(config)
