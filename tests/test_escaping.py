"""Text from ledgers, folders and configs stays text, in whatever format it is written."""

import ast
import html
import re
import xml.etree.ElementTree as ElementTree

import markdown_it
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ledgers import with_a_loss
from scripts import run

from cse_jax import export
from cse_jax.export import escaping
from cse_jax.export.torch_module import CLIENTS
from cse_jax.language import spaces, zoo

HOSTILE = [
    '"""\nimport os\n"""',
    "\\",
    r"\u12 \N{",
    '"',
    '""',
    "\0\x1b[2J",
    "\udc80",
    "$x_1^2$ 50 % & #~{}",
    "`<b>*_[a](b)_*</b>`",
]
MODULES = {"functools", "jax", "jax.numpy", "numpy", "torch"}


def any_text(test):
    for text in HOSTILE:
        test = example(text)(test)
    return given(st.text(alphabet=st.characters() | st.sampled_from("\\\"'nuxN{}$_*`<&|#\n")))(test)


def shown(text):
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


@any_text
def test_a_docstring_shows_the_text(text):
    (statement,) = ast.parse(f'"""{escaping.docstring(text)}"""').body
    assert ast.literal_eval(statement.value) == "\n".join(map(shown, text.split("\n")))


@any_text
def test_xml_shows_the_text(text):
    assert (ElementTree.fromstring(f"<mi>{escaping.xml(text)}</mi>").text or "") == shown(text)
    assert html.unescape(escaping.xml(text)) == shown(text)


@any_text
def test_latex_shows_the_text(text):
    escaped = escaping.latex(text)
    words = {"textbackslash{}": "\\", "textasciitilde{}": "~", "textasciicircum{}": "^"}
    read = re.sub(r"\\(text\w+\{\}|.)", lambda m: words.get(m[1], m[1]), escaped)
    assert read == shown(text)
    assert not re.search(r"(?<!\\)[%$&#_^~]", re.sub(r"\\(text\w+\{\}|.)", "", escaped))


@any_text
def test_markdown_shows_the_text(text):
    heading = markdown_it.MarkdownIt().parse(f"# a{escaping.markdown(text)}z")
    assert [token.type for token in heading] == ["heading_open", "inline", "heading_close"]
    assert {token.type for token in heading[1].children} <= {"text", "text_special"}
    assert "".join(token.content for token in heading[1].children) == f"a{shown(text).strip()}z"


@pytest.mark.parametrize("format", ["jax", "numpy", "pytorch", "mmdet", "torch_module", *CLIENTS])
@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_exported_does_nothing_but_define(text, format):
    loss = export.prepare(zoo.find("GIoU", spaces.BOX), title=text, provenance=text, simplified=False)
    tree = ast.parse(export.FORMATS[format](loss))
    kinds = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef, ast.ClassDef)
    assert all(isinstance(statement, kinds) for statement in tree.body)
    assert {a.name for s in tree.body if isinstance(s, ast.Import) for a in s.names} <= MODULES


@pytest.fixture
def ledger(tmp_path):
    """A folder with a hostile name and a ledger of one box loss, some of whose fields are forged."""
    return lambda **changes: with_a_loss(tmp_path / '"""\nimport os ?#%41', **changes)


def test_a_folder_s_name_stays_text(ledger):
    code, output = run("export", f"--workdir={ledger()}", "--space=box", "--format=pytorch")
    assert code == 0, output
    source = output[output.index('"""A discovered loss') :]
    assert "import os" not in [ast.unparse(statement) for statement in ast.parse(source).body]


@pytest.mark.parametrize(
    "changes",
    [{"generation": '1"""\nimport os'}, {"weight": "much"}, {"proxy": "high"}, {"authors": b"I"}, {"generation": 1.5}],
)
def test_forged_fields_are_told(ledger, changes):
    (field,) = changes
    code, output = run("export", f"--workdir={ledger(**changes)}")
    assert code == 1 and f"is damaged, or no ledger: {field} of a candidate is" in output and "Traceback" not in output


def test_a_ledger_names_no_code(ledger, tmp_path):
    """A branch that is the path of a Python file is none; only the flag --space may name one."""
    mark, file = tmp_path / "ran", tmp_path / "space.py"
    file.write_text(f"open({str(mark)!r}, 'w').close()\n")
    code, output = run("export", f"--workdir={ledger(branch=str(file))}")
    assert code == 1 and "no candidate of" in output and not mark.exists()
