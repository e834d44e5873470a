"""What XLA compiles is kept between runs, so that the same script starts faster the next time."""

import contextlib
import functools
import hashlib
import pathlib
import platform
import threading
from collections.abc import Iterator

import jax
import jaxlib.version
from jax import monitoring

from cse_jax.workdir import default_data_dir

_COMPILED = "/jax/core/compile/backend_compile_duration"  # also of what is read, right after it is
_READ = "/jax/compilation_cache/cache_retrieval_time_sec"
_LONG = 1.0  # seconds from which a program is kept (JAX's default) and named

_compiled: list[tuple[str, float]] = []  # names and seconds
_read: list[str] = []
_told = False
_thread = threading.local()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keeps compiled programs, and prints at the end what was compiled, unless the script has told it by then."""
    global _told
    keep()
    _compiled.clear()
    _read.clear()
    _told = False
    yield
    if _compiled and not _told:
        print(summary(), flush=True)


@functools.cache
def keep() -> None:
    """Keeps compiled programs in the cache folder, unless ``JAX_COMPILATION_CACHE_DIR`` names another.

    JAX finds them by program, options, device and versions; the folder is one for each jaxlib and kind of CPU.
    ``JAX_ENABLE_COMPILATION_CACHE=false`` turns this off, and a folder that can't be written keeps nothing.
    """
    monitoring.register_event_duration_secs_listener(_note)
    if jax.config.jax_compilation_cache_dir is None:
        folder = default_data_dir() / "compiled" / f"jaxlib-{jaxlib.version.__version__}-{_cpu()}"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))


def summary() -> str:
    """What was compiled or read until now, in words; empty for nothing that took long. The end does not repeat it."""
    global _told
    _told = True
    folder = jax.config.jax_compilation_cache_dir
    parts = []
    if _compiled:
        name, longest = max(_compiled, key=lambda each: each[1])
        total = sum(seconds for _, seconds in _compiled)
        parts.append(f"{len(_compiled)} compiled in {total:.0f} s, the longest {name} ({longest:.0f} s)")
    if _read:
        parts.append(f"{len(_read)} read as compiled before")
    kept = f" Kept in {folder}." if folder and parts else ""
    return f"Programs: {'; '.join(parts)}.{kept}" if parts else ""


def _note(event: str, seconds: float, *, fun_name: str = "", **_) -> None:
    if event == _READ:
        _thread.has_read = True
    elif event == _COMPILED:
        name = fun_name.removeprefix("jit(").removesuffix(")")
        if getattr(_thread, "has_read", False):
            _read.append(name)
        elif seconds >= _LONG:
            _compiled.append((name, seconds))
        _thread.has_read = False


def _cpu() -> str:
    """A name for CPUs with the same instructions: programs for others may not run."""
    about = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        about += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(about.encode()).hexdigest()[:8]
