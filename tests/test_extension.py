"""A finished search goes on with more generations or seeds, and says what that leaves valid."""

import dataclasses
import io

import pytest
from fakes import FakeTrainer
from rich.console import Console

from cse_jax import search
from cse_jax.errors import InputError
from cse_jax.reporting.monitor import Monitor
from cse_jax.search import extension
from cse_jax.search.config import BranchConfig, FinalConfig, SearchConfig
from cse_jax.search.ledger import Ledger, LedgerError

pytestmark = pytest.mark.computes
NONE = BranchConfig(generations=0)
ONE = BranchConfig(strategy="cascade", generations=1, population=400, offspring=200, max_overfit=3, max_proxy=2)
CONFIG = SearchConfig(classification=NONE, regression=ONE, final=FinalConfig(seeds=2))


def run(path, config, trainer=None, said=None):
    identity = {"config": {"search": dataclasses.asdict(config)}}
    with (
        Ledger(path / "ledger.sqlite", identity=identity, extendable=extension.EXTENDABLE) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"probe": 4, "overfit": 5, "proxy": 20, "final": 30}) as monitor,
    ):
        if said is not None:
            said += extension.effects(ledger)
        return search.run(config, trainer=trainer or FakeTrainer(), ledger=ledger, progress=monitor)


def changed(**sizes):
    return dataclasses.replace(CONFIG, regression=dataclasses.replace(ONE, **sizes))


@pytest.mark.slow
def test_a_finished_search_goes_on(tmp_path):
    run(tmp_path, CONFIG)
    said, more, seeds = [], FakeTrainer(), FakeTrainer()
    longer = run(tmp_path, changed(generations=2), more, said)
    assert said == ["config.search.regression.generations: 1 -> 2: the finished generations stay valid."]
    (tmp_path / "whole").mkdir()
    fresh = FakeTrainer()
    assert longer == run(tmp_path / "whole", changed(generations=2), fresh) and 0 < more.count < fresh.count

    said.clear()
    known = run(tmp_path, changed(generations=2, proxy_seeds=3), seeds, said)
    assert len(said) == 1 and "proxy_seeds: 2 -> 3: the generations are made again" in said[0]
    assert all(len(entry.aps) == 3 for entry in known.branches[1].entries)
    (tmp_path / "seeds").mkdir()
    assert known == run(tmp_path / "seeds", changed(generations=2, proxy_seeds=3))
    assert 0 < seeds.count < fresh.count, "what was trained is recalled"

    final = dataclasses.replace(changed(generations=2, proxy_seeds=3), final=FinalConfig(seeds=3), workers=1)
    last = FakeTrainer()
    assert all(len(row.aps) == 3 for row in run(tmp_path, final, last).table) and last.count <= len(known.table)
    with pytest.raises(InputError, match="more than 1 generations of the branch box, and none is taken back"):
        run(tmp_path, dataclasses.replace(final, regression=changed(proxy_seeds=3).regression))


def recorded(path, **changes):
    """A ledger with a generation and a training, opened with other settings."""
    now = {"config": {"search": {"workers": 2, "regression": {"generations": 1, "proxy_seeds": 2, "parents": 3}}}}
    now["config"]["search"]["regression"] |= changes
    return Ledger(path / "ledger.sqlite", identity=now, extendable=extension.EXTENDABLE)


def test_what_stays_valid(tmp_path):
    with recorded(tmp_path) as ledger:
        ledger.record_generation("box", 0, [], {}, {})
        assert not ledger.changed
    with recorded(tmp_path, generations=2) as ledger:
        assert ledger.changed == {"config.search.regression.generations": "1 -> 2"} and ledger.generation("box", 0)
    with pytest.raises(LedgerError, match=r"other settings \(config.search.regression.parents: 3 -> 4\)"):
        recorded(tmp_path, generations=3, parents=4)
    with recorded(tmp_path, generations=2) as ledger:
        assert not ledger.changed, "a refused change leaves everything as it was"
    row = {"key": "a", "purpose": "proxy", "cls": "x", "box": "i", "cls_weight": 1.0, "box_weight": 1.0, "seed": 0}
    with recorded(tmp_path, generations=2, proxy_seeds=3) as ledger:
        assert ledger.generation("box", 0) is None
        ledger.record_training(row | {"steps": 1, "ap": 0.5, "failure": "", "metrics": {}, "seconds": 1.0})
    with recorded(tmp_path, generations=2, proxy_seeds=4) as ledger:
        assert ledger.training("a") is not None


def test_a_setting_that_came_later_and_is_not_used_is_no_change(tmp_path):
    with recorded(tmp_path) as ledger:
        ledger.record_generation("box", 0, [], {}, {})
    with recorded(tmp_path, template="") as ledger:
        assert not ledger.changed
    with pytest.raises(LedgerError, match="template: absent -> .1 - .* choose another work folder"):
        recorded(tmp_path, template="1 - ?")


def test_all_that_may_change_are_fields_of_a_search():
    for key in extension.EXTENDABLE:
        place = {"config": {"search": CONFIG, "name": ""}}
        for name in key.split("."):
            place = place[name] if isinstance(place, dict) else getattr(place, name)
