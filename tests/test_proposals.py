"""Formulas that people or programs propose: what is read, what is refused, and how a search takes them."""

import dataclasses
import io

import pytest
from fakes import FakeTrainer
from rich.console import Console

from cse_jax import search
from cse_jax.errors import InputError
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import BOX
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.ancestry import ORIGINS
from cse_jax.search.config import BranchConfig, FinalConfig, SearchConfig
from cse_jax.search.extension import EXTENDABLE
from cse_jax.search.ledger import Ledger
from cse_jax.search.proposals import read

pytestmark = pytest.mark.computes
TEXT = (
    """# from a language model
exp(1 - i / u)   # which is new
Sub(1,Div(I,U))
1 - i / u
i / e
-(log(sigmoid(x))) * y
__import__('os').system('true')
1 - i / q
1 + 2
"""
    + "-" * 50
    + "i\n"
)


def test_a_file_is_read_and_bad_lines_are_named(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(TEXT)
    found = read(file, FakeTrainer.task, max_nodes=40)
    assert [str(formula) for formula in found.formulas["box"]] == ["exp(1 - i / u)", "1 - i / u", "i / e"]
    assert [str(formula) for formula in found.formulas["cls"]] == ["-log(sigmoid(x)) * y"]
    assert [line.split(":")[0].split(", ")[1] for line in found.bad] == [
        "line 4",
        "line 7",
        "line 8",
        "line 9",
        "line 10",
    ]
    reasons = (
        "an earlier line",
        "unexpected character",
        "no variable 'q'",
        "it has no variable",
        "51 nodes; filters.max_nodes is 40",
    )
    for line, said in zip(found.bad, reasons, strict=True):
        assert said in line and "\n" not in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no line of"),
        (b"# none\n", "no line of"),
        (b"import os\n", "line 1: 'import os' is left out"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_file_without_formulas_is_refused(tmp_path, content, said):
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read(file, FakeTrainer.task, max_nodes=40)
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "other.txt", FakeTrainer.task, max_nodes=40)


@pytest.mark.slow
def test_proposals_pass_the_same_filters(tmp_path):
    none = BranchConfig(generations=0)
    one = BranchConfig(strategy="cascade", generations=1, population=400, max_overfit=4, max_proxy=3)
    config = SearchConfig(classification=none, regression=one, final=FinalConfig(seeds=1, fit_weights=()))
    proposals = [
        parse(text, BOX) for text in ("exp(1 - i / u)", "exp(2 - i / u)", "2 - i / u", "i + u", "sqrt(1 - i / u)")
    ]

    def run(path, config=config, formulas=(), trainer=None):
        console = Console(file=io.StringIO(), width=500)
        with (
            Ledger(path / "ledger.sqlite", identity={}) as ledger,
            Monitor(console, steps={"probe": 4, "overfit": 5, "proxy": 20, "final": 30}) as monitor,
        ):
            result = search.run(
                config, trainer=trainer or FakeTrainer(), ledger=ledger, progress=monitor, proposals={"box": formulas}
            )
        return result.branches[1], [line for line in console.file.getvalue().splitlines() if "Proposal " in line]

    branch, said = run(tmp_path, formulas=proposals)
    assert [counts["generated"] for counts in branch.funnel] == [5, 400]
    assert (
        said[1:3]
        == [
            "Proposal exp(2 - i / u): passed verification, then: same gradient as exp(1 - i / u).",
            "Proposal 2 - i / u: passed verification, then: same gradient as IoU.",
        ]
        and "Proposal i + u: not monotone" in said[3]
    )
    origins = {str(entry.formula): entry.origin for entry in branch.entries}
    assert any(origin == ("proposed",) for origin in origins.values())
    assert {origin[0] for origin in origins.values()} <= set(ORIGINS)
    trainer = FakeTrainer()
    again, said = run(tmp_path, formulas=proposals, trainer=trainer)
    assert again == branch and not said and trainer.count == 0, "they are judged once"

    (tmp_path / "later").mkdir()
    run(tmp_path / "later")
    later, said = run(tmp_path / "later", formulas=proposals[:1])
    assert [counts["generated"] for counts in later.funnel] == [400, 1] and len(said) == 1
    longer = dataclasses.replace(config, regression=dataclasses.replace(one, generations=2, offspring=200))
    assert [counts["generated"] for counts in run(tmp_path / "later", longer)[0].funnel] == [400, 1, 200]


@pytest.mark.slow
def test_generations_that_are_made_again_judge_them_again(tmp_path):
    """The second call does not have the file."""
    formulas = [parse(text, BOX) for text in ("exp(1 - i / u)", "i + u")]
    none, funnels = BranchConfig(generations=0), []
    for seeds, proposed in ((1, formulas), (2, [])):
        config = SearchConfig(
            classification=none,
            regression=BranchConfig(generations=0, proxy_seeds=seeds),
            final=FinalConfig(1, (), False),
        )
        identity = {"config": {"search": dataclasses.asdict(config)}}
        with (
            Ledger(tmp_path / "ledger.sqlite", identity=identity, extendable=EXTENDABLE) as ledger,
            Monitor(Console(file=io.StringIO()), steps={"probe": 4, "overfit": 5, "proxy": 20, "final": 30}) as monitor,
        ):
            trainer = FakeTrainer()
            result = search.run(config, trainer=trainer, ledger=ledger, progress=monitor, proposals={"box": proposed})
        funnels.append([counts["generated"] for counts in result.branches[1].funnel])
    assert funnels == [[2], [2]]
    assert all(len(entry.aps) == 2 for entry in result.branches[1].entries)
