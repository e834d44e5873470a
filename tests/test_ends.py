"""A search that ends before its last generation: by time, by a target, or because a person asks."""

import io
import itertools

import pytest
from fakes import FakeTrainer
from rich.console import Console

from cse_jax import search
from cse_jax.errors import InputError
from cse_jax.language import spaces, zoo
from cse_jax.language.expression import to_authors
from cse_jax.language.parsing import parse
from cse_jax.reporting import report
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.config import BranchConfig, FinalConfig, SearchConfig
from cse_jax.search.ends import Ends
from cse_jax.search.hall_of_fame import Entry
from cse_jax.search.ledger import Ledger
from cse_jax.search.ledger_reader import LedgerReader, read_hall_of_fame

pytestmark = pytest.mark.computes
SIZES = BranchConfig(strategy="cascade", generations=2, population=400, offspring=200, max_overfit=5, max_proxy=3)
CONFIG = SearchConfig(classification=SIZES, regression=SIZES, final=FinalConfig(seeds=2), workers=1)


def run(path, ends=None, trainer=None, config=CONFIG, proposals=None):
    with (
        Ledger(path / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"probe": 4, "overfit": 5, "proxy": 20, "final": 30}) as monitor,
    ):
        return search.run(
            config, trainer=trainer or FakeTrainer(), ledger=ledger, progress=monitor, ends=ends, proposals=proposals
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


class Asking(FakeTrainer):
    """A person asks for the end while a training of a candidate runs."""

    def __init__(self, ends, *, purpose, number):
        super().__init__()
        self.ends, self.purpose, self.left = ends, purpose, number

    def train(self, losses, *, purpose, seed, horizon, stop):
        if purpose == self.purpose and losses[0] != self.task.default:
            self.left -= 1
            if self.left == 0:
                self.ends.ask()
        return super().train(losses, purpose=purpose, seed=seed, horizon=horizon, stop=stop)


@pytest.mark.slow
@pytest.mark.parametrize(("purpose", "number"), [("probe", 1), ("proxy", 5)])
def test_a_search_that_is_asked_to_end_compares_what_it_has_and_goes_on_later(whole, tmp_path, purpose, number):
    ends = Ends()
    result = run(tmp_path, ends, Asking(ends, purpose=purpose, number=number))
    cls, box = result.branches
    assert len(cls.funnel) == 1 and not box.funnel and result.table
    assert cls.ended == "in generation 1 of 2, as it was asked to end"
    assert box.ended == "before generation 1 of 2, as it was asked to end"
    assert result.ended.startswith("The branch binary_class ended in generation 1 of 2")
    with LedgerReader(tmp_path / "ledger.sqlite") as ledger:
        reasons = [reason for reason in ledger.reasons() if "because the search ended" in reason.kind]
    assert purpose in {reason.kind.split()[1] for reason in reasons}
    again = FakeTrainer()
    assert run(tmp_path, trainer=again) == whole, "the generation that was cut short is made again"


@pytest.mark.slow
def test_what_was_found_can_be_read_while_a_generation_is_made_again(tmp_path):
    """Proposals are generations, too, and small ones."""
    none = BranchConfig(generations=0)
    config = SearchConfig(classification=none, regression=none, final=FinalConfig(1, (), False), workers=1)

    def judge(text, ends=None, trainer=None):
        proposals = {"box": [parse(text, spaces.BOX)]}
        return run(tmp_path, ends, trainer, config, proposals)

    found = judge("exp(1 - i / u)").branches[1].entries
    ends = Ends()
    cut = judge("sqrt(1 - i / u)", ends, Asking(ends, purpose="overfit", number=1)).branches[1]
    assert cut.ended and len(found) == 1
    with pytest.raises(KeyboardInterrupt):
        judge("sqrt(1 - i / u)", trainer=FakeTrainer(interrupt_at=1))
    fame = read_hall_of_fame(tmp_path / "ledger.sqlite")
    assert [row["authors"] for row in fame["box"]] == [to_authors(entry.formula) for entry in found]


@pytest.mark.slow
def test_a_target_ends_the_search_with_the_generation_that_reaches_it(whole, tmp_path):
    reached = whole.branches[0].entries[-1].ap
    result = run(tmp_path, Ends(target=reached))
    cls, box = result.branches
    assert len(cls.funnel) == 1 and max(entry.ap for entry in cls.entries) >= reached and not box.funnel
    assert "the target is" in cls.ended and "the target is" in box.ended
    about = dict(name="trial", seeding="yes", scale="raw", device="none", seconds=1.0, versions={}, config={})
    data = report.result_dict(result, about=about)
    assert data["ended"] == result.ended and result.ended in report.markdown(data)
    assert run(tmp_path) == whole


@pytest.mark.slow
def test_the_time_is_shared_by_the_branches(tmp_path):
    """A clock that jumps with each training: both branches are cut, and both find what they can."""
    hours = itertools.count(0.0, 200.0)
    result = run(tmp_path, Ends(hours=1.0, clock=lambda: next(hours)))
    assert [len(branch.funnel) for branch in result.branches] == [1, 1]
    assert all("the time is up (1 hours" in branch.ended for branch in result.branches)


def test_time_that_the_final_comparison_needs_is_refused(tmp_path):
    with pytest.raises(InputError, match="1e-09 hours are too few: the controls and the final comparison take about"):
        run(tmp_path, Ends(hours=1e-9))


def test_the_share_of_a_branch():
    now = [0.0]
    ends = Ends(hours=1.0, clock=lambda: now[0])
    assert ends.allot(2, 600.0) and not ends.come
    now[0] = 1499.0
    assert not ends.come
    now[0] = 1500.0
    assert "the time is up" in ends.come
    assert ends.allot(1, 600.0) and not ends.come, "the next branch has the rest"
    now[0] = 3000.0
    assert ends.come and not ends.allot(1, 600.0)


def test_the_target_is_that_of_any_loss():
    """Of those that the noise does not tell apart the shortest is the first, and not the best."""
    entries = [Entry(zoo.default(spaces.BOX), 1.0, (ap,), 0.5, 0) for ap in (0.49, 0.51)]
    ends = Ends(target=0.5)
    ends.found("box", entries[:1])
    assert not ends.come
    ends.found("box", entries)
    assert ends.come == "a box loss has reached AP 0.510, the target is 0.5"
