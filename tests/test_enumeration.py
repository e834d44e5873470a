"""The enumeration against all formulas written out one by one, and the known losses as its rows."""

import dataclasses
import functools

import pytest

import cse_jax
from cse_jax.atlas.enumeration import count_formulas, enumerate_losses
from cse_jax.language.expression import Expression
from cse_jax.language.spaces import BINARY_CLASS, BOX, MULTI_CLASS
from cse_jax.screening.verification import verify


def smaller(space, operators, constants=(1,)):
    """The space with fewer operators for random formulas; all others can still be read."""
    return dataclasses.replace(
        space, operators=tuple(operators.split()), further_operators=space.readable, constants=constants
    )


@functools.cache
def all_formulas(space, nodes):
    """Every formula of a size, as tokens."""
    if nodes == 1:
        return [(leaf,) for leaf in space.leaves]
    found = []
    for name in space.operators:
        if space.arities[name] == 1:
            found += [(name, *below) for below in all_formulas(space, nodes - 1)]
            continue
        for left in range(1, nodes - 1):
            for one in all_formulas(space, left):
                found += [(name, *one, *two) for two in all_formulas(space, nodes - 1 - left)]
    return found


SMALL_SPACES = [
    (smaller(BOX, "Add Sub Mul Div Neg Log Sqrt"), 5),
    (smaller(BOX, "Sub Div Exp Sig Cos", (1, 2)), 4),
    (smaller(BINARY_CLASS, "Sub Mul Sig Log Abs"), 5),
    (smaller(MULTI_CLASS, "Sub Mul Dot Softmax Log"), 5),
]


@pytest.mark.slow
@pytest.mark.parametrize(("space", "largest"), SMALL_SPACES, ids=lambda p: str(p))
def test_every_convergent_behaviour_is_found_at_its_size(space, largest):
    """By the gate's fingerprint; all formulas judged one by one, with the sign that passes."""
    assert count_formulas(space, largest) == [len(all_formulas(space, n)) for n in range(1, largest + 1)]
    first, found = {}, {}
    for report in enumerate_losses(space, largest):
        assert report.formulas == len(all_formulas(space, report.nodes))
        for loss in report.losses:
            assert loss.fingerprint not in found
            found[loss.fingerprint] = report.nodes
        formulas = [Expression(tokens, space) for tokens in all_formulas(space, report.nodes)]
        for expression, verdict in zip(formulas, verify(formulas, space, sign_flip=True), strict=True):
            if verdict.passed:
                first.setdefault(verdict.fingerprint, (report.nodes, str(expression)))
    assert len(first) > 1
    missing = {text for name, (_, text) in first.items() if name not in found}
    assert not missing and {name: size for name, (size, _) in first.items()} == found


KNOWN = [  # a space that has the operators of the loss, the loss, and the nodes of its shortest formula without a sign
    (BOX, "IoU", 3),
    (BOX, "-log IoU", 4),
    (smaller(BOX, "Add Sub Mul Div"), "GIoU", 7),
    (smaller(BINARY_CLASS, "Sub Mul Log Sig Softplus"), "CE", 6),
    (smaller(MULTI_CLASS, "Sub Mul Dot Softmax Log"), "CE", 5),
    (smaller(MULTI_CLASS, "Sub Mul Dot Softmax Log"), "CEI", 7),
]


@pytest.mark.parametrize(("space", "name", "nodes"), KNOWN, ids=lambda p: str(p))
def test_known_losses_are_rows(space, name, nodes):
    (verdict,) = verify([cse_jax.parse(space.losses[name], space)], space)
    sizes = {loss.fingerprint: report.nodes for report in enumerate_losses(space, nodes) for loss in report.losses}
    assert verdict.passed and sizes[verdict.fingerprint] == nodes


def test_a_focal_like_loss_is_a_row():
    """The squared error of the probability: as the focal loss, it gives easy examples less weight than CE does."""
    space = smaller(BINARY_CLASS, "Sub Mul Sig")
    (verdict,) = verify([cse_jax.parse("(y - sigmoid(x)) * (y - sigmoid(x))", space)], space)
    found = {loss.fingerprint: str(loss.expression) for r in enumerate_losses(space, 9) for loss in r.losses}
    assert verdict.passed and verdict.fingerprint in found
