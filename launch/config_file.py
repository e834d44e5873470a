"""The flag ``--config``: a file whose ``get_config()`` makes a config, and ``--config.field=value`` for its fields.

ml_collections reads the values.  What people get wrong, the file and the names of fields, is said in a sentence.
"""

import script

import dataclasses
import difflib
import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import traceback
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from cse_jax.errors import InputError, UserError
from cse_jax.ranges import field_types

_PARSERS = {int: flags.IntegerParser(), float: flags.FloatParser(), tuple: tuple_parser.TupleParser()}
_MODULE = "config_file_of_script"


def define(default: str | None, help_string: str, *kinds: type) -> flags.FlagHolder:
    """Defines the flag ``--config``.

    Args:
      default: path of a config file, below the root of the project.
      help_string: what the config is of.
      *kinds: classes that the config may have.
    """
    config_flags.register_flag_parser_for_type(typing.Literal, flags.ArgumentParser())
    holder = config_flags.DEFINE_config_file("config", None, help_string)
    flags.FLAGS["config"].parser = _ConfigFile(kinds)
    if default is not None:
        flags.FLAGS.set_default("config", str(script.ROOT / default))
    return holder


class _ConfigFile(flags.ArgumentParser):
    """Reads the file, and checks which fields are to be changed."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self._kinds = kinds

    def parse(self, argument: str) -> Any:
        config = load(argument)
        if not isinstance(config, self._kinds):
            wanted = " or ".join(kind.__name__ for kind in self._kinds)
            raise InputError(f"it makes a {type(config).__name__}; this script takes a {wanted}")
        for name in changed():
            _check_name(config, name)
        _register_types(config)
        return config


def load(path: str) -> Any:
    """What ``get_config`` of a file makes; the argument of ``get_config`` may follow the path after a colon.

    Raises:
      InputError: there is no such file, or it is wrong.
    """
    name, *argument = path.split(":", 1)
    file = pathlib.Path(name)
    if not file.is_file():
        beside = {str(other): other for other in sorted(file.parent.glob("*.py"))} if name else {}
        what = "it is a folder; name one of its files" if file.is_dir() and name else "there is no such file"
        raise InputError(what + _hint(name, beside))
    loader = importlib.machinery.SourceFileLoader(_MODULE, str(file))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(_MODULE, loader))
    sys.modules[_MODULE] = module  # where pickle looks for classes of the file
    try:
        loader.exec_module(module)
        return module.get_config(*argument)
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        where = f"line {lines[-1]}: " if lines else ""
        raise InputError(f"the file can't be read, {where}{type(error).__name__}: {error}") from error


def changed() -> Iterator[str]:
    """The fields that flags of the command line change."""
    for argument in flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False):
        if argument == "--":
            return
        if found := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            yield found[1]


def _check_name(config: Any, name: str) -> None:
    """Raises InputError unless a field of this name takes a value."""
    place = "config"
    for part in name.split("."):
        known = [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
        if part not in known:
            fields = f"its fields are {', '.join(known)}" if known else "it has no fields"
            raise InputError(f"{place} has no field {part!r}{_hint(part, known) or f'; {fields}'}")
        place, config = f"{place}.{part}", getattr(config, part)
    if dataclasses.is_dataclass(config):
        known = [field.name for field in dataclasses.fields(config)]
        raise InputError(f"{place} has fields of its own, set one of them: {', '.join(known)}")


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _register_types(config: Any) -> None:
    """Says how values of the types that state a range are read: as those without it."""
    for name, kind in field_types(type(config)).items():
        for part in (kind, *typing.get_args(kind)):
            if typing.get_origin(part) is typing.Annotated:
                plain = typing.get_args(part)[0]
                config_flags.register_flag_parser_for_type(part, _PARSERS[typing.get_origin(plain) or plain])
        if dataclasses.is_dataclass(value := getattr(config, name)):
            _register_types(value)
