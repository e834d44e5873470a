"""What all scripts share: how they start, and how they end, whatever happens."""

import contextlib
import pathlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator

from absl import app, logging
from rich.console import Console

from cse_jax import workdir
from cse_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
ERROR_FILE = "error.txt"
_HINTS = {  # the flags that help against an error, by its class, which need not be imported for that
    "WorkdirError": "The flag --workdir names the folder.",
    "LedgerError": "The flag --workdir names the folder.",
    "SearchFailed": "The flag is --config.train.learning_rate.",
    "SurvivorsError": "Such folders are made by launch/screen.py, whose flag --out names them.",
}


def start(argv: list[str]) -> None:
    """Refuses arguments that are no flags, and silences what is not for users."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags begin with --")
    quiet()


def quiet() -> None:
    """Shows warnings only, and lets Ctrl-C arrive wherever the script is."""
    logging.set_verbosity(logging.WARNING)
    workdir.hear_interrupts()


@contextlib.contextmanager
def ending(
    what: str,
    *,
    interrupted: str,
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
      SystemExit: with 1 after an error.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nInterrupted. {interrupted}")
        workdir.leave_interrupted()
    except app.UsageError:
        raise
    except Exception as error:
        if isinstance(error, UserError | OSError):
            message = f"{what} stopped: {error} {_HINTS.get(type(error).__name__, '')}".rstrip()
        else:
            path = _write_traceback(folder)
            message = (
                f"{what} stopped because of an error in the program ({type(error).__name__}: {_first_line(error)}). "
                f"The traceback is in {path}"
            )
        left = kept if folder is None or folder.exists() else ""
        (say or _to_stderr)("\n".join(filter(None, [message, left])))
        sys.exit(1)


@contextlib.contextmanager
def in_folder(
    what: str, folder: pathlib.Path, console: Console, *, interrupted: str, kept: str
) -> Iterator[pathlib.Path]:
    """Holds a work folder, and ends the script as ``ending`` does, with errors on the console.

    Args:
      what, interrupted, kept: as of ``ending``.
      folder: of the run.
      console: where the run shows itself.
    """

    def say(message: str) -> None:
        console.print(f"\n{message}", style="red", markup=False, soft_wrap=True)

    with ending(what, interrupted=interrupted, folder=folder, say=say, kept=kept), workdir.opened(folder):
        yield folder


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _write_traceback(folder: pathlib.Path | None) -> pathlib.Path:
    """Writes the current traceback where it fits, in a temporary folder if the work folder takes no file."""
    if folder is not None:
        with contextlib.suppress(OSError):
            (folder / ERROR_FILE).write_text(traceback.format_exc())
            return folder / ERROR_FILE
    path = pathlib.Path(tempfile.mkdtemp(prefix="cse_jax-")) / ERROR_FILE
    path.write_text(traceback.format_exc())
    return path


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr)
