"""The enumeration against all formulas written out one by one, and the known losses as its rows."""

import dataclasses
import functools

import numpy as np
import pytest

import cse_jax
from cse_jax.atlas.enumeration import count_formulas, enumerate_losses
from cse_jax.language.expression import Expression
from cse_jax.language.population import encode
from cse_jax.language.spaces import BINARY_CLASS, BOX, MULTI_CLASS
from cse_jax.screening import sizes
from cse_jax.screening.verification import Property, fingerprint, judge, verify


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Of which these few formulas fill several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "CPU", dataclasses.replace(sizes.CPU, operands=512))
        yield


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


def passing(formulas, space):
    """The formulas that pass, each after its fingerprint with the sign that passes."""
    judged = judge(encode(formulas, space), space)
    for k in np.flatnonzero(judged.passed(sign_flip=True)).tolist():
        flipped = judged.failed[k, 0] != Property.NONE
        yield fingerprint(judged, k, flipped=bool(flipped)), formulas[k]


BOXES = smaller(BOX, "Add Sub Mul Div Neg Log Sqrt")
BINARY = smaller(BINARY_CLASS, "Sub Mul Sig Softplus Abs")
MULTI = smaller(MULTI_CLASS, "Sub Mul Dot Softmax Log")
SMALL_SPACES = [(BOXES, 5), (smaller(BOX, "Sub Div Exp Sig Cos", (1, 2)), 4), (BINARY, 5), (MULTI, 5)]


@functools.cache
def enumeration(space, largest):
    return list(enumerate_losses(space, largest))


def reports(space, largest):
    """Of the largest enumeration of the space that a test needs: those of a size are the same in each."""
    return enumeration(space, max(size for other, *_, size in [*SMALL_SPACES, *KNOWN] if other == space))[:largest]


@pytest.mark.slow
@pytest.mark.parametrize(("space", "largest"), SMALL_SPACES, ids=lambda p: str(p))
def test_every_convergent_behaviour_is_found_at_its_size(space, largest):
    """By the gate's fingerprint; all formulas judged one by one, with the sign that passes."""
    everyone = [all_formulas(space, nodes) for nodes in range(1, largest + 1)]
    assert count_formulas(space, largest) == [len(formulas) for formulas in everyone]
    assert [report.formulas for report in reports(space, largest)] == [len(formulas) for formulas in everyone]
    found = {}
    for report in reports(space, largest):
        for loss in report.losses:
            assert loss.fingerprint not in found
            found[loss.fingerprint] = report.nodes
    first = {}
    for name, formula in passing([Expression(tokens, space) for formulas in everyone for tokens in formulas], space):
        first.setdefault(name, formula)
    assert len(first) > 1
    missing = {str(formula) for name, formula in first.items() if name not in found}
    assert not missing and {name: len(formula) for name, formula in first.items()} == found


KNOWN = [  # a space that has the operators of the loss, the loss, and the nodes of its shortest formula without a sign
    (BOXES, "IoU", 3),
    (BOXES, "-log IoU", 4),
    (smaller(BOX, "Add Sub Mul Div"), "GIoU", 7),
    (BINARY, "CE", 6),
    (MULTI, "CE", 5),
    (MULTI, "CEI", 7),
]


@pytest.mark.slow
@pytest.mark.parametrize(("space", "name", "nodes"), KNOWN, ids=lambda p: str(p))
def test_known_losses_are_rows(space, name, nodes):
    (verdict,) = verify([cse_jax.parse(space.losses[name], space)], space)
    sizes = {loss.fingerprint: report.nodes for report in reports(space, nodes) for loss in report.losses}
    assert verdict.passed and sizes[verdict.fingerprint] == nodes


@pytest.mark.slow
def test_a_focal_like_loss_is_a_row():
    """The squared error of the probability: as the focal loss, it gives easy examples less weight than CE does."""
    space = smaller(BINARY_CLASS, "Sub Mul Sig")
    (verdict,) = verify([cse_jax.parse("(y - sigmoid(x)) * (y - sigmoid(x))", space)], space)
    found = {loss.fingerprint: str(loss.expression) for r in enumerate_losses(space, 9) for loss in r.losses}
    assert verdict.passed and verdict.fingerprint in found
