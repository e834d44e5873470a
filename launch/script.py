"""What all scripts share: how they start, and how they end, whatever happens.

Each imports it first.  From then on, during the other imports and the reading of flags and config as well, Ctrl-C and
errors end the script with a sentence, never with a traceback.
"""

import contextlib
import math
import pathlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import interrupts

if TYPE_CHECKING:  # slow to import: Ctrl-C is heard before that
    from rich.console import Console

ROOT = pathlib.Path(__file__).resolve().parents[1]
ERROR_FILE = "error.txt"
_FOR_USERS = (("cse_jax.errors", "UserError"), ("absl.flags", "Error"))  # module and name of classes of errors
_THREAD_LEFT = ("TrainingHangs", "ProcessLost")  # classes of errors after which an orderly exit would wait for ever
_HINTS = {  # what helps against an error, by its class, which need not be imported for that
    "WorkdirError": "The flag --workdir names the folder.",
    "LedgerError": "The flag --workdir names the folder.",
    "SearchFailed": "The flags are --config.train.learning_rate and --retry_failed.",
    "TrainingHangs": "The flag is --config.search.time_limit.",
    "SurvivorsError": "Such folders are made by launch/screen.py, whose flag --out names them.",
    "ModuleNotFoundError": "Install the project with all that it needs: python -m pip install .",
}
SHARED_FLAGS = ("workers", "processes")  # modules beside this one whose flags several scripts have


def run(main: Callable[[list[str]], None]) -> None:
    """Runs the main function of a script with its arguments that are no flags."""
    from absl import app

    app.run(main, flags_parser=read_flags)


def read_flags(argv: list[str]) -> list[str]:
    """Reads the flags, the config among them, and checks it; returns the arguments that are no flags.

    Raises:
      flags.Error, InputError: names the flag or the field, its value and what it may be.
    """
    from absl import flags

    from cse_jax.errors import InputError
    from cse_jax.ranges import validate

    for module, listed in list(flags.FLAGS.flags_by_module_dict().items()):
        for flag in listed if module in SHARED_FLAGS else ():
            flags.FLAGS.register_key_flag_for_module(argv[0], flag)  # or --help would leave it out
    rest = flags.FLAGS(argv)
    if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
        validate(flags.FLAGS["config"].value)
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if flags.FLAGS[name].present and isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name} is {value}; it must be a finite number")  # absl's bounds let nan pass
    return rest


def start(argv: list[str]) -> None:
    """Refuses arguments that are no flags, and silences what is not for users."""
    from cse_jax.errors import InputError

    if len(argv) > 1:
        raise InputError(f"unknown argument {argv[1]!r}; flags begin with --")
    quiet()


def quiet() -> None:
    """Shows warnings only."""
    from absl import logging

    logging.set_verbosity(logging.WARNING)


@contextlib.contextmanager
def ending(
    what: str,
    *,
    interrupted: str = "",
    folder: pathlib.Path | None = None,
    say: Callable[[str], None] | None = None,
    kept: str = "",
) -> Iterator[None]:
    """Ends the script with a message that a person can use, and never with a traceback.

    Args:
      what: stops, as a message calls it: ``"The search"``.
      interrupted: said after Ctrl-C.
      folder: where the traceback of an unforeseen error goes; a temporary folder otherwise.
      say: prints an error; to the standard error by default.
      kept: said after an error, unless the folder is gone.

    Raises:
      SystemExit: with 1 after an error.  Where a thread is left that never ends, or others share the work, the process
        ends at once.
    """
    interrupts.say(interrupted)
    try:
        yield
    except KeyboardInterrupt:
        interrupts.leave()
    except Exception as error:
        if _is_for_users(error):
            message, hint = f"{what} stopped: {error}", _HINTS.get(type(error).__name__)
            message = f"{message.rstrip('.')}{'' if message.endswith('?') else '.'} {hint}" if hint else message
        elif isinstance(error, MemoryError):
            message = f"{what} stopped: the memory of this machine is full ({_first_line(error) or 'MemoryError'})"
        else:
            path = _write_traceback(folder)
            message = (
                f"{what} stopped because of an error in the program ({type(error).__name__}: {_first_line(error)}). "
                f"The traceback is in {path}"
            )
        left = kept if folder is None or folder.exists() else ""
        (say or _to_stderr)("\n".join(filter(None, [message, *getattr(error, "__notes__", ()), left])))
        if type(error).__name__ in _THREAD_LEFT or _others_wait():
            interrupts.end(1)
        sys.exit(1)


@contextlib.contextmanager
def in_folder(
    what: str, folder: pathlib.Path, console: "Console", *, interrupted: str, kept: str
) -> Iterator[pathlib.Path]:
    """Holds a work folder, and ends the script as ``ending`` does, with errors on the console.

    Args:
      what, interrupted, kept: as of ``ending``.
      folder: of the run.
      console: where the run shows itself.
    """
    from cse_jax import workdir

    def say(message: str) -> None:
        console.print(f"\n{message}", style="red", markup=False, soft_wrap=True)

    with ending(what, interrupted=interrupted, folder=folder, say=say, kept=kept), workdir.opened(folder):
        yield folder


def _others_wait() -> bool:
    """Whether other processes share the work, for which an orderly exit would wait."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _is_for_users(error: Exception) -> bool:
    known = [getattr(sys.modules[module], name) for module, name in _FOR_USERS if module in sys.modules]
    return isinstance(error, (OSError, ModuleNotFoundError, *known))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _write_traceback(folder: pathlib.Path | None) -> pathlib.Path:
    """Writes the current traceback where it fits, in a temporary folder if the work folder takes no file."""
    if folder is not None:
        from cse_jax import workdir

        with contextlib.suppress(OSError):
            workdir.write_whole(folder / ERROR_FILE, traceback.format_exc())
            return folder / ERROR_FILE
    path = pathlib.Path(tempfile.mkdtemp(prefix="cse_jax-")) / ERROR_FILE
    path.write_text(traceback.format_exc())
    return path


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr)


def _end(_, error: BaseException, __) -> None:
    """Ends the process after an exception that nothing has caught."""
    with contextlib.suppress(SystemExit), ending(pathlib.Path(sys.argv[0]).name):
        raise error


def _is_script() -> bool:
    """Whether this process runs a script of this folder."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return main is not None and pathlib.Path(main).resolve().parent == ROOT / "launch"


if _is_script():
    sys.excepthook = _end
    interrupts.hear()
