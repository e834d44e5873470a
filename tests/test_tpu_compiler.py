"""What a TPU's compiler says of the programs that it gets, without a TPU: it takes them, and they fit its memory."""

import pytest

from benchmarks import analysis
from detectors.training.fitting import bytes_needed

pytestmark = [pytest.mark.tpu, pytest.mark.computes]
TOPOLOGY = "v5e:2x2"
CASES = {case.name: case for case in analysis.cases("full", "tpu")}


@pytest.fixture(scope="module")
def target():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # there is no cloud that would describe it
        yield analysis.target(TOPOLOGY)


@pytest.mark.parametrize(
    "name",
    [
        "simulation of a batch, multi_class",
        "32 formula(s) with gradient, 16 x 5600 x 80",
        "training step, default search",
        "probe of 32, default search",
    ],
)
def test_programs_fit_16_gb(name, target):
    """Those of the default search; a detector on ResNet-50 takes longer to compile than anybody waits."""
    compiled = analysis.compile_for(*target, CASES[name])
    assert 0 < bytes_needed(compiled) < 1e9 * min(CASES[name].budget, 16.0)
