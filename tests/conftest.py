"""Where tests find data that is not part of the project."""

import dataclasses
import gc
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import tempfile

import hypothesis
import jaxlib.version
import pytest

# Test processes and the scripts they start compile much, often the same, and compute little. With its former code
# generator for CPUs, which later versions lack, XLA compiles faster. JAX reads all this when it is imported.
_QUICK = "--xla_backend_optimization_level=1"
if jaxlib.version.__version_info__ < (0, 11):
    _QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _QUICK)
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # of PyTorch and NumPy: on busy cores they spin and wait
    os.environ.setdefault(_threads, "1")
_OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _OWN_CACHE = tempfile.mkdtemp(prefix="cse_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.0"

import jax  # noqa: E402
from extras import beside  # noqa: E402

hypothesis.settings.register_profile("project", max_examples=100, deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


def pytest_collection_modifyitems(config, items):
    """Modules that share compiled functions come first, one after the other.

    Tests that need a GPU or a TPU's compiler are left out where there is none: skipped ones would have to run with the
    extras.
    """
    items.sort(key=lambda item: item.get_closest_marker("computes") is None)  # which leaves the order within both
    lacks = {"gpu": lambda: jax.default_backend() != "gpu", "tpu": lambda: importlib.util.find_spec("libtpu") is None}
    for mark, is_lacking in lacks.items():
        marked = [item for item in items if item.get_closest_marker(mark)]
        if marked and is_lacking():
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if not item.get_closest_marker(mark)]


def pytest_collection_finish():
    """Rubbish is looked for less often, and not among what all tests share: it was a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_unconfigure():
    """The process that made the cache removes it."""
    if _OWN_CACHE:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption("--skipped-to", metavar="FILE", help="write the skipped tests there, a line each; read as @FILE")


_skipped: dict[str, str] = {}  # reasons by test


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped[report.nodeid] = report.longrepr[-1]


def pytest_collectreport(report):
    if report.skipped:
        _skipped[report.nodeid] = report.longrepr[-1]


def pytest_sessionfinish(session):
    path = session.config.getoption("--skipped-to")
    if path and not hasattr(session.config, "workerinput"):
        pathlib.Path(path).write_text("".join(f"{test}\n" for test in sorted(_skipped)))


_shares = False  # whether the functions that are compiled now are those of a module marked ``computes``
_quick_before = None  # whether the module before was not


@pytest.fixture(scope="module", autouse=True)
def compiled_functions(request):
    """Compiles as fast as can be, also in processes that are started, unless a module is marked ``computes``.

    Screens in small batches unless it is marked ``batches``, since tests judge few formulas at once and a batch costs
    the same whatever it holds.
    Forgets what was compiled, which keeps the memory of a run bounded: modules share few compiled functions. Those
    marked ``computes`` share most of theirs, such as the programs that judge formulas.
    """
    global _shares, _quick_before
    from cse_jax.screening import sizes  # not before its types are checked

    quick = request.node.get_closest_marker("computes") is None
    shares = not quick and request.node.get_closest_marker("batches") is None
    if not (shares and _shares):
        jax.clear_caches()
    if quick != _quick_before:
        _forget_results()
    _shares, _quick_before = shares, quick
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))
        jax.config.update("jax_disable_most_optimizations", quick)
        if request.node.get_closest_marker("batches") is None:
            small = dataclasses.replace(sizes.CPU, batch=1024, gradient_batch=128, simulated=16)
            patch.setattr(sizes, "CPU", small)
        yield


def _forget_results():
    """Empties the project's caches: numbers round otherwise in functions that are compiled otherwise."""
    for name, module in list(sys.modules.items()):
        for value in vars(module).values() if name.split(".")[0] in ("cse_jax", "detectors") else ():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Real images and reference evaluations."""
    return beside("data")


@pytest.fixture(scope="session")
def golden() -> dict:
    """Reference values of the loss language."""
    return json.loads((beside("golden") / "losses.json").read_text())
