"""How scripts start and end."""

import os
import re
import signal
import time

import pytest
from scripts import ROOT, start

NAMES = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if "script.run(main)" in path.read_text())


def test_all_scripts_are_here():
    assert len(NAMES) == 11


@pytest.mark.parametrize("name", NAMES)
def test_a_script_hears_ctrl_c_before_it_imports_anything_slow(name):
    code = (ROOT / "launch" / f"{name}.py").read_text()
    assert re.search(r"^(import|from) .*", code, re.M)[0] == "import script"
    assert code.endswith('if __name__ == "__main__":\n    script.run(main)\n')


@pytest.mark.slow
@pytest.mark.parametrize(("number", "delay"), [(signal.SIGINT, 0.3), (signal.SIGTERM, 1.0)])
def test_an_interruption_of_the_imports_is_no_traceback(number, delay):
    process = start("search")
    time.sleep(delay)
    os.killpg(process.pid, number)
    code, output = process.finish(timeout=20)
    assert (code, output) == (130, "\nInterrupted.\n")
