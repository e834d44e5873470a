"""Which formulas a branch writes: weights of operators, limits on nesting, and a template."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from fakes import FakeTrainer
from rich.console import Console

from cse_jax import search
from cse_jax.errors import InputError
from cse_jax.language.parsing import parse
from cse_jax.language.population import decode, encode
from cse_jax.language.spaces import BINARY_CLASS, BOX, MULTI_CLASS
from cse_jax.reporting.monitor import Monitor
from cse_jax.sampling.random_trees import random_population
from cse_jax.sampling.template import Template
from cse_jax.sampling.variation import offspring
from cse_jax.search.config import BranchConfig, FinalConfig, SearchConfig
from cse_jax.search.grammar import grammar
from cse_jax.search.ledger import Ledger

pytestmark = pytest.mark.computes
TEMPLATE = "-dot(y * ?, log(softmax(x)))"


def within(formula, outer, inner):
    """The most that one operator occurs within another, counted plainly."""
    places = [k for k, token in enumerate(formula.tokens) if token == outer]
    return max((formula.tokens[k + 1 : formula.end(k)].count(inner) for k in places), default=0)


@pytest.mark.slow
def test_weights_and_nesting_hold_for_random_formulas_and_their_offspring():
    sizes = BranchConfig(operators="exp 0, - 0.05", nesting="log in log 0, sqrt in tanh 1")
    shape, _ = grammar(sizes, BOX, max_nodes=40)
    tokens = np.asarray(random_population(jax.random.key(0), BOX, shape, 3000))
    parents = encode([parse("1 - i / u", BOX), parse("exp(log(i) / u)", BOX)], BOX)
    children = np.asarray(
        offspring(jax.random.key(1), parents, BOX, shape, 3000, crossover_rate=0.4, mutation_rate=0.4)[0]
    )
    random, bred = decode(tokens, BOX), decode(children, BOX)
    for formulas in (random, bred):
        assert all(within(f, "Log", "Log") == 0 and within(f, "Tanh", "Sqrt") <= 1 for f in formulas)
        assert (
            max(within(f, "Tanh", "Sqrt") for f in formulas) == 1 and max(f.tokens.count("Log") for f in formulas) > 1
        )
    count = {name: sum(f.tokens.count(name) for f in random) for name in ("Exp", "Sub", "Add", "Mul")}
    assert count["Exp"] == 0 and 0 < count["Sub"] < 0.1 * count["Add"]
    assert count["Add"] == pytest.approx(count["Mul"], rel=0.15)
    assert shape.allows(random[0]) and not shape.allows(parse("log(log(i))", BOX))


def test_operators_of_one_arity_may_be_left_out():
    names = [name for name in BOX.operators if BOX.arities[name] == 2]
    shape, _ = grammar(BranchConfig(operators=", ".join(f"{name} 0" for name in names)), BOX, max_nodes=40)
    parents = encode([parse("1 - i / u", BOX)], BOX)
    children = decode(
        np.asarray(offspring(jax.random.key(1), parents, BOX, shape, 500, crossover_rate=0.0, mutation_rate=0.9)[0]),
        BOX,
    )
    assert all(sum(f.tokens.count(name) for name in names) <= 2 for f in children), "those of the parent"


def test_a_template_and_its_parts():
    template = Template.read(TEMPLATE, MULTI_CLASS)
    parts = [parse(text, MULTI_CLASS) for text in ("w", "1 + sin(w)", "softmax(x)")]
    whole = decode(template.filled(encode(parts, MULTI_CLASS)), MULTI_CLASS)
    assert [str(f) for f in whole] == [TEMPLATE.replace("?", t) for t in ("w", "(1 + sin(w))", "softmax(x)")]
    assert [template.part_of(formula) for formula in whole] == parts
    for text in ("-dot(y, log(softmax(x)))", "-dot(y * w, log(softmax(w)))", "-dot(y * w * w, log(softmax(x)))"):
        assert template.part_of(parse(text, MULTI_CLASS)) is None
    middle = Template.read("exp(?) - i / u", BOX)
    assert middle.part_of(parse("exp(i) + 1 - i / u", BOX)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "1 - i / u"}, "must have one ?"),
        ({"template": "? + ?"}, "must have one ?"),
        ({"template": " ? "}, "something around it"),
        ({"template": "foo(?) + i"}, "no operator 'foo'"),
        ({"operators": "sine 0.1"}, "have no operator 'sine'; they have"),
        ({"operators": "exp much"}, "much is no weight of an operator; it must be a number from 0 to 1,000,000"),
        ({"operators": "exp nan"}, "nan is no weight"),
        ({"operators": "exp=0"}, "'exp=0' can't be read; write 'exp 0.5', an operator and its weight, with commas"),
        ({"operators": ", ".join(f"{name} 0" for name in BOX.operators)}, "leaves no operator of space box"),
        ({"nesting": "log in exp"}, "'log in exp' can't be read; write 'log in exp 1'"),
        ({"template": f"i + {'-' * 39}?"}, "no formula has so few nodes"),
    ],
)
def test_wrong_settings_are_named(changes, said):
    with pytest.raises(InputError) as error:
        grammar(BranchConfig(**changes), BOX, max_nodes=40)
    assert said in str(error.value)


def test_what_is_not_set_changes_nothing():
    shape, template = grammar(BranchConfig(), BOX, max_nodes=40)
    assert template is None and not shape.weights and not shape.nesting
    with pytest.raises(InputError, match="give either screened or template"):
        BranchConfig(screened="/", template="1 - ?").check()


@pytest.mark.slow
def test_a_search_within_a_template(tmp_path):
    """In both generations, with parents that have the form."""
    text = "-(y * ?) - ny * log(1 - sigmoid(x))"
    sizes = BranchConfig(
        strategy="cascade", generations=2, population=1500, offspring=500, max_overfit=5, max_proxy=3, template=text,
        crossover=0.5, mutation=0.5,
    )  # fmt: skip
    none = dataclasses.replace(sizes, generations=0, template="")
    config = SearchConfig(classification=sizes, regression=none, final=FinalConfig(seeds=1, fit_weights=()))
    with (
        Ledger(tmp_path / "ledger.sqlite", identity={}) as ledger,
        Monitor(Console(file=io.StringIO()), steps={"probe": 4, "overfit": 5, "proxy": 20, "final": 30}) as monitor,
    ):
        result = search.run(config, trainer=FakeTrainer(), ledger=ledger, progress=monitor)
    entries = result.branches[0].entries
    assert {entry.generation for entry in entries} == {0, 1}
    template = Template.read(text, BINARY_CLASS)
    for entry in entries:
        searched = parse(entry.searched, BINARY_CLASS)
        (whole,) = decode(template.filled(encode([searched], BINARY_CLASS)), BINARY_CLASS)
        assert template.part_of(whole) == searched
        assert sorted(entry.formula.variables) == sorted(whole.variables), "it is the same but for its form"
    later = [entry for entry in entries if entry.generation == 1]
    assert any(entry.origin[0] in ("crossover", "mutation") for entry in later)
