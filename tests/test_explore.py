"""Looking into a ledger: which candidates there are, and what is known of one."""

import pytest
import recorded_searches
from extras import need
from scripts import run

from cse_jax.language import spaces, zoo
from cse_jax.language.parsing import parse
from cse_jax.reporting import explanation, loss_plot
from cse_jax.search.ledger import Ledger
from cse_jax.search.ledger_reader import Filter, LedgerReader

ROWS = [  # stage, formula, nodes, simulation, probe, reason
    ("verification", "1 - i / u", 5, None, None, "same gradient as IoU"),
    ("distinct", "u - i", 3, 0.2, None, "simulation: gain 0.20 of the default loss's, below 0.5"),
    ("simulation", "tanh(u) - i", 4, 0.9, 0.1, "AP 0.100 with heads on fixed features, 100% sure"),
    ("simulation", "tanh(e * u)", 4, 1.1, 0.2, "AP 0.200 with heads on fixed features"),
    ("probe", "exp(1 - i / u)", 6, 0.8, 0.6, "not drawn"),
    ("proxy", "e / u - i / u", 7, 1.0, 0.5, ""),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    candidates = []
    for number, (stage, formula, nodes, simulation, probe, reason) in enumerate(ROWS):
        candidate = recorded_searches.candidate_row("box", number, recorded_searches.rejected("box", reason))
        candidate |= {"stage": stage, "formula": formula, "nodes": nodes, "simulation": simulation, "probe": probe}
        candidates.append(candidate | {"proxy": 0.7 if stage == "proxy" else None})
    with Ledger(path, identity={}) as ledger:
        ledger.record_generation("box", 0, candidates, {}, {})
    return path


def numbers(path, *, limit=10, **wanted):
    with LedgerReader(path) as ledger:
        return [row["number"] for row in ledger.candidates(Filter(**wanted), limit=limit)]


def test_those_that_came_furthest_are_first(path):
    assert numbers(path) == [5, 4, 3, 2, 1, 0], "by stage, and within a stage by its score"
    assert numbers(path, limit=3) == [5, 4, 3]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"stage": "simulation"}, [3, 2]),
        ({"reason": "heads on fixed"}, [3, 2]),
        ({"reason": "0% sure"}, [2]),
        ({"reason": "0_ sure"}, []),
        ({"formula": "tanh(?)"}, [3, 2]),
        ({"formula": "tanh(e * ?)"}, [3]),
        ({"formula": "(?u"}, [4, 3, 2]),
        ({"max_nodes": 4}, [3, 2, 1]),
        ({"at_least": {"probe": 0.2}}, [5, 4, 3]),
        ({"at_least": {"probe": 0.2, "simulation": 1.0}}, [5, 3]),
        ({"at_least": {"simulation": 0.2}}, [5, 4, 3, 2, 1]),
        ({"branch": "box", "stage": "overfit"}, []),
    ],
    ids=str,
)
def test_filters(path, wanted, found):
    assert numbers(path, **wanted) == found


def test_reasons_are_counted_by_kind(path):
    with LedgerReader(path) as ledger:
        kinds = {reason.kind: reason.count for reason in ledger.reasons()}
    assert kinds["same gradient as another loss"] == 1 and kinds["AP n with heads on fixed features"] == 1
    assert len(kinds) == 5


def test_the_nearest_known_loss():
    found = explanation.nearest(parse("2 - i / u", spaces.BOX), "pixels")
    assert found[0] == ("IoU", pytest.approx(0.0, abs=1e-6)) and found[1][1] > 0.01


@pytest.mark.slow
def test_an_explanation_has_every_check(tmp_path):
    folder = tmp_path / "run"
    recorded_searches.write(folder)
    with LedgerReader(folder / "ledger.sqlite") as ledger:
        row = ledger.candidate("box", place=(0, 2))
    said = "\n".join(explanation.explain(parse(row["authors"], spaces.BOX), row["weight"], row, units="strides"))
    assert "verification on 35 paths: passed" in said and "(at least 0.001)" in said
    assert "mean IoU" in said and "of GIoU's" in said
    assert "box/0/2, last stage passed: proxy" in said and "by seed: 0.4000, 0.4400" in said
    assert "GIoU: 0." in said and "shift: 0.00" in said


@pytest.mark.parametrize(
    ("copies", "duplicates", "said"),
    [(3, 2, "it: 3"), (2, 4, "it: 2, and 3 others with the same gradients"), (2, 0, "it: 2")],
)
def test_copies_of_a_formula_are_no_others(copies, duplicates, said):
    candidate = recorded_searches.rejected("box", "")
    candidate.copies, candidate.duplicates = copies, duplicates
    lines = explanation._recorded(recorded_searches.candidate_row("box", 0, candidate))
    assert f"  times that its generation had {said}" in lines


def test_a_loss_that_fails_says_where():
    said = "\n".join(explanation.explain(parse("i / u", spaces.BOX), 1.0, None, units="strides"))
    assert "passed with its sign flipped" in said and "it has no such candidate" in said
    assert "not monotone" in "\n".join(explanation.explain(parse("sin(i)", spaces.BOX), 1.0, None, units="strides"))


def test_a_plot(tmp_path):
    need("matplotlib")
    loss_plot.save(tmp_path / "a" / "loss.png", zoo.find("CE", spaces.BINARY_CLASS), 2.0, units="strides")
    assert (tmp_path / "a" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_script_lists_and_explains(tmp_path):
    folder = tmp_path / "run"
    recorded_searches.write(folder, finished=False)
    code, output = run("explore", f"--workdir={folder}", "--branch=box", "--limit=1")
    assert code == 0 and output.startswith("box/0/") and "There are more; --limit=2" in output
    code, output = run("explore", f"--workdir={folder}", "--formula=nothing ?")
    assert code == 0 and output == "no candidate is like that\n"
    code, output = run("explore", f"--workdir={folder}", "--branch=box", "--explain=exp(1 - i / u)")
    assert code == 0 and "box/0/3, last stage passed: proxy" in output and "Where it is lowest" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--branch=boxes"], "the ledger has no generation of branch 'boxes'; it has 'binary_class', 'box'"),
        (["--at_least=probes=1"], "candidates have no score 'probes'; use simulation, probe, overfit, proxy"),
        (["--at_least=probe"], "--at_least=probe is no score"),
        (["--explain=IoU"], "a formula to explain needs --branch"),
        (["--explain=box/7/7"], "the ledger has no candidate box/7/7"),
        (["--explain=boxes/7/7"], "use 'binary_class', 'box'"),
        (["--branch=box", "--explain=1 - v"], "has no variable 'v'"),
        (["--branch=box", "--explain=IoU", "--plot=a.jpg"], "the plot a.jpg must end in .png"),
        (["--plot=a.png"], "name it with --explain"),
    ],
)
def test_bad_input_is_named(tmp_path_factory, arguments, said):
    folder = tmp_path_factory.getbasetemp() / "explored"
    if not folder.exists():
        recorded_searches.write(folder)
    code, output = run("explore", f"--workdir={folder}", *arguments)
    assert code == 1 and said in output and "Traceback" not in output, output


def test_what_is_no_ledger_is_named(tmp_path):
    code, output = run("explore", f"--workdir={tmp_path}")
    assert code == 1 and "there is no ledger at" in output
    (tmp_path / "ledger.sqlite").touch()
    code, output = run("explore", f"--workdir={tmp_path}")
    assert code == 1 and "is empty; start the search" in output, output
    (tmp_path / "ledger.sqlite").write_text("no ledger, but long enough to be read as a header of one" * 9)
    code, output = run("explore", f"--workdir={tmp_path}")
    assert code == 1 and "is damaged, or no ledger" in output and "Traceback" not in output
