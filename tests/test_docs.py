"""The commands of README and docs take the flags, fields and files that they name, and the cheap ones run."""

import contextlib
import pathlib
import re
import shlex

import pytest
import recorded_searches
from scripts import ROOT, read_flags, run

import cse_jax

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_COMMAND = re.compile(r"^(?: {4}|\$ )?((?:\w+=\S+ )*python (?:launch|docs)/\w+\.py.*)$", re.M)
_MISSING = "is no folder of screened losses|there is no such file"  # what a user has, and a test has not


def commands(file: pathlib.Path) -> list[str]:
    """The commands of a page, without comments and redirections."""
    text = file.read_text().replace("\\\n", " ")
    found = (match[1].split(" > ")[0].split(" && ")[0] for match in _COMMAND.finditer(text))
    return [" ".join(shlex.split(command, comments=True)) and command for command in found]


COMMANDS = sorted({command for file in FILES for command in commands(file)})


def arguments(command: str) -> tuple[str, list[str]]:
    words = shlex.split(command, comments=True)
    words = words[words.index("python") + 1 :]
    return words[0], words[1:]


def test_there_are_commands():
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_what_it_is_given(command):
    path, given = arguments(command)
    assert (ROOT / path).is_file()
    if path.startswith("docs/"):
        return
    given = [argument for argument in given if argument not in ("...",) and "<" not in argument]
    for argument in given:
        name, _, value = argument.partition("=")
        if name == "--config" and not value.startswith("runs/"):
            assert (ROOT / value.split(":")[0]).is_file(), value
    written = "configs/train/fcos_digits.py" if path.endswith("train.py") else "configs/search/default.py"
    given = [f"--config={written}" if a.startswith("--config=runs/") else a for a in given]
    with contextlib.nullcontext() if "screened=" not in command else pytest.raises(cse_jax.InputError, match=_MISSING):
        read_flags(pathlib.Path(path).stem, *given)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "default"
    recorded_searches.write(folder)
    return folder


CHEAP = [
    command
    for command in COMMANDS
    if re.search(r"launch/(explore|report|export)\.py", command)
    and "runs/default" in command
    and not re.search("runs/atss|--pictures|--explain|--out=", command)
]


@pytest.mark.parametrize("command", CHEAP)
def test_a_cheap_command_runs(command, search):
    path, given = arguments(command)
    code, output = run(pathlib.Path(path).stem, *(argument.replace("runs/default", str(search)) for argument in given))
    assert code == 0 and output.strip(), output


def test_the_reference_is_that_of_the_code():
    import runpy

    found = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    assert (ROOT / "docs" / "reference.md").read_text() == found["text"](), "run: python docs/reference.py"
    known = {kind.__name__ for kind in found["configs"](found["SearchRun"])}
    assert {"SearchConfig", "BranchConfig", "FCOSConfig", "YoloData"} <= known
    assert found["meanings"](found["SearchRun"])["prior"].startswith("table of trained losses")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_links_lead_to_files(file):
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", file.read_text(), flags=re.S)):
        assert (file.parent / link).exists(), link


def test_every_page_is_in_the_site():
    listed = (ROOT / "mkdocs.yml").read_text()
    for file in (ROOT / "docs").rglob("*.md"):
        assert str(file.relative_to(ROOT / "docs")) in listed
