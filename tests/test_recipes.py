"""The recipes for GPUs, clusters and TPUs: their syntax, and the commands that they would run."""

import os
import re
import subprocess

import pytest
from absl import flags
from scripts import ROOT, own_flags

RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.sh"))
ARGUMENTS = {"ray_cluster": (["head"], ["join", "10.0.0.1"], ["search", "10.0.0.1"])}


def dry(recipe, arguments):
    environment = os.environ | {"DRY": "1", "GPUS": "8"}
    return subprocess.run(["bash", str(recipe), *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_what_there_is(recipe):
    assert subprocess.run(["bash", "-n", str(recipe)]).returncode == 0
    assert "Not run on the real thing." in recipe.read_text()
    printed = [dry(recipe, arguments) for arguments in ARGUMENTS.get(recipe.stem, ([],))]
    assert not any(done.returncode or done.stderr for done in printed)
    commands = re.findall(r"python launch/(\w+)\.py (.*)", "".join(done.stdout for done in printed))
    assert commands
    for name, arguments in commands:
        with own_flags(name):
            known = set(flags.FLAGS)
        assert {flag.split("=")[0].split(".")[0] for flag in re.findall(r"--(\S+)", arguments)} <= known
        assert all((ROOT / path).is_file() for path in re.findall(r"--config=(\S+)", arguments))


def test_recipes_say_how_they_are_used():
    done = dry(ROOT / "launch" / "recipes" / "ray_cluster.sh", [])
    assert done.returncode == 1 and "head | join HEAD | search HEAD" in done.stderr
