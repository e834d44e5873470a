"""Compiled programs are kept between runs, and what was compiled is said."""

import os
import subprocess
import sys

from scripts import ROOT

import compilation

PROGRAM = """
import compilation, jax, jax.numpy as jnp

compilation._LONG = 0.0
compilation.keep()
compilation.keep()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

@jax.jit
def doubled(x):
    return 2 * x

x = jnp.ones(3)
for damaged in (False, False, True):
    jax.clear_caches()
    if damaged:
        (file,) = compilation.default_data_dir().glob("compiled/*/jit_doubled*cache")
        file.write_bytes(file.read_bytes()[:100])
    compilation._compiled.clear()
    compilation._read.clear()
    assert doubled(x).tolist() == [2, 2, 2]
    print(compilation.summary())
"""


def test_a_program_is_read_the_second_time_and_compiled_again_if_it_is_damaged(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"CSE_JAX_DATA_DIR": str(tmp_path), "PYTHONPATH": f"{ROOT / 'launch'}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    folder = f". Kept in {tmp_path / 'compiled' / 'jaxlib-'}"
    assert first.startswith("Programs: 1 compiled in 0 s, the longest doubled (0 s)" + folder)
    assert second.startswith("Programs: 1 read as compiled before" + folder)
    assert third == first


def test_the_end_says_what_was_compiled_unless_the_script_has_told_it(capsys):
    for tells in (False, True):
        with compilation.kept():
            compilation._compiled.append(("step", 2.0))
            told = compilation.summary() if tells else ""
        said = told + capsys.readouterr().out
        assert said.count("Programs: 1 compiled in 2 s, the longest step (2 s).") == 1
    with compilation.kept():
        pass
    assert capsys.readouterr().out == ""
