"""The config of a search, made again from the plain data that its folder has."""

import dataclasses
import json
import pathlib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from cse_jax import workdir
from cse_jax.errors import InputError
from cse_jax.language import spaces
from cse_jax.search.task import Task
from detectors.data import layouts  # noqa: F401  (imports all data sets that a config can have)
from detectors.models import DetectorConfig, build_detector
from detectors.training.search_trainer import task_of
from search_run import SearchRun


def search_run(plain: Mapping[str, Any]) -> SearchRun:
    """The config that ``dataclasses.asdict`` and JSON have made plain.

    Raises:
      InputError: it is of no known class; the search's own config file must be given then.
    """
    try:
        return _made(SearchRun, plain)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"the config that the search was run with is not to be read back ({error}): give the same --config and "
            "fields as for the search"
        ) from error


def task(folder: pathlib.Path) -> Task:
    """What the search in a folder, finished or not, knew of its detector.

    Raises:
      InputError: the folder does not say it, and its detector is of no known class.
      WorkdirError: the folder is not that of a search.
    """
    described = workdir.read_description(folder)
    try:
        if "task" in described:
            about = dict(described["task"])
            return Task(spaces.SPACES[about.pop("cls_space")], **about)
        detector = _made(DetectorConfig, described["config"]["detector"])
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"the detector in {folder / 'config.json'} is not to be read back ({error}): use the version of cse_jax "
            "that made the folder"
        ) from error
    return task_of(build_detector(detector)[0])


def _made(kind: Any, value: Any) -> Any:
    """A value of a type, from plain data."""
    if isinstance(value, Mapping):
        return _dataclass(kind, value)
    if isinstance(value, list):
        return tuple(_made(Any, item) for item in value)
    return value


def _dataclass(kind: Any, value: Mapping[str, Any]) -> Any:
    """The one dataclass of a type, a subclass or a member of a union, whose fields are those of the value.

    Fields that are newer than the value have their defaults; the class that needs the fewest of these is it.
    """
    fitting: list[Any] = []
    classes = {each: {field.name for field in dataclasses.fields(each)} for each in _classes(kind)}
    fewest = min((len(names) for names in classes.values() if names >= value.keys()), default=0)
    for each, names in classes.items():
        if names >= value.keys() and len(names) == fewest:
            hints = typing.get_type_hints(each)
            made = each(**{name: _made(hints[name], part) for name, part in value.items()})
            if _agree(value, json.loads(json.dumps(dataclasses.asdict(made)))):
                fitting.append(made)
    if len(fitting) != 1:
        raise ValueError(f"{len(fitting)} classes have the fields {', '.join(list(value)[:4])}, ...")
    return fitting[0]


def _agree(value: Any, made: Any) -> bool:
    """Whether plain data says nothing else than a config that was made of it."""
    if isinstance(value, Mapping) and isinstance(made, Mapping):
        return all(name in made and _agree(part, made[name]) for name, part in value.items())
    return value == made


def _classes(kind: Any) -> Iterator[type]:
    """The dataclasses that a value of a type can have."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        for member in typing.get_args(kind):
            yield from _classes(member)
    elif isinstance(kind, type):
        if dataclasses.is_dataclass(kind):
            yield kind
        for below in kind.__subclasses__():
            yield from _classes(below)
