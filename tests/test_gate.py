"""The convergence gate: what must pass, what must not, and what a rejection says."""

import numpy as np
import pytest
from populations import descendants

import cse_jax
from cse_jax.language import spaces, zoo
from cse_jax.language.expression import Expression
from cse_jax.language.population import encode
from cse_jax.language.spaces import SPACES, trajectories
from cse_jax.screening.verification import Property
from cse_jax.screening.verification import judge as judge_population

pytestmark = pytest.mark.computes  # verdicts as users get them: a formula at a singular point lives by its rounding

ALL_SPACES = pytest.mark.parametrize("space", SPACES.values(), ids=str)


def judge(text, space, **options):
    return cse_jax.verify([cse_jax.parse(text, space)], space, **options)[0]


@ALL_SPACES
def test_hand_made_and_published_losses_pass(space):
    for units in ("pixels", "strides"):
        known = zoo.known(space)
        for name, verdict in zip(known, cse_jax.verify(list(known.values()), space, units=units), strict=True):
            assert verdict.passed and verdict.reason == "" and not verdict.flipped, (name, verdict.reason)


def test_further_published_candidates_pass():
    for text in ("-dot(y * erfc(sin(-erfc(x))), log(softmax(x)))", "-dot(w * y, log(softmax(x + w)))"):
        assert judge(text, spaces.MULTI_CLASS).passed


@ALL_SPACES
def test_negations_fail_unless_flipped(space):
    known = list(zoo.known(space).values())
    negated = [Expression(("Neg", *e.tokens), space) for e in known]
    plain = cse_jax.verify(known, space)
    for verdict in cse_jax.verify(negated, space):
        assert not verdict.passed and verdict.failed is Property.MONOTONE and verdict.reason
    for original, verdict in zip(plain, cse_jax.verify(negated, space, sign_flip=True), strict=True):
        assert verdict.passed and verdict.flipped and verdict.fingerprint == original.fingerprint


REJECTED = {
    "multi_class": {
        "1": Property.DEPENDS,
        "dot(y, w)": Property.DEPENDS,
        "Neg(X)": Property.MONOTONE,
        "x": Property.MONOTONE,
        "-dot(y, x)": Property.RISES,
        "-dot(y, sigmoid(x))": Property.RISES,
        "dot(x, x)": Property.MONOTONE,
        "sqrt(x)": Property.FINITE_VALUE,
        "log(x)": Property.FINITE_VALUE,
        "exp(exp(x))": Property.MONOTONE,
        "1 / (y * x)": Property.MONOTONE,
        "sin(x)": Property.MONOTONE,
    },
    "binary_class": {
        "y": Property.DEPENDS,
        "q - ny": Property.DEPENDS,
        "Neg(X)": Property.MONOTONE,
        "-y * x": Property.RISES,
        "ny * x - y * x": Property.VANISHES,
        "y * cos(x)": Property.MONOTONE,
        "sqrt(x - y)": Property.FINITE_VALUE,
        "-(y * log(sigmoid(x)))": Property.RISES,
    },
    "box": {
        "2": Property.DEPENDS,
        "u": Property.RISES,
        "e": Property.RISES,
        "-i": Property.RISES,
        "i / u": Property.MONOTONE,
        "sin(u)": Property.MONOTONE,
        "e / u": Property.RISES,
        "sqrt(i - u)": Property.FINITE_VALUE,
        "u / i": Property.FINITE_GRADIENT,
        "abs(u - i) + sqrt(abs(u - e))": Property.FINITE_GRADIENT,
    },
}


@pytest.mark.parametrize(
    ("space", "text", "property"),
    [(SPACES[name], text, failed) for name, cases in REJECTED.items() for text, failed in cases.items()],
    ids=str,
)
def test_rejections_name_the_property(space, text, property):
    verdict = judge(text, space)
    assert not verdict.passed
    assert verdict.failed is property, verdict.reason


def test_a_rejection_names_point_and_value():
    reason = judge("sqrt(x)", spaces.BINARY_CLASS).reason
    assert "not finite" in reason and "nan" in reason and "x=[" in reason and "ny=[" in reason
    reason = judge("e", spaces.BOX).reason
    assert "does not rise" in reason and "the box shrinks" in reason and "i=" in reason and "u=" in reason


def test_fingerprints_ignore_positive_factors_and_constants():
    same = ["1 - i / u", "3 * (2 - i / u)", "-(i / u)", "(u - i) / u", "1 - 1 / (u / i)"]
    different = ["1 - i / e", "-log(i / u)", "1 - i / u + (e - u) / e", "1 - (i / u) * (i / u)"]
    first = {judge(text, spaces.BOX).fingerprint for text in same[:3]}
    assert len(first) == 1
    others = {judge(text, spaces.BOX).fingerprint for text in different}
    assert len(others) == len(different) and not others & first


@pytest.mark.slow
@ALL_SPACES
def test_a_verdict_does_not_depend_on_its_batch(space):
    population = descendants(list(zoo.hand_made(space).values()), 300)
    together = cse_jax.verify(population, space, sign_flip=True)
    for k in (0, 17, 255, 256, 299):
        assert cse_jax.verify([population[k]], space, sign_flip=True)[0] == together[k]
    assert 10 < sum(v.passed for v in together) < 290


@ALL_SPACES
def test_a_verdict_does_not_depend_on_what_is_looked_at_first(space):
    tokens = encode(descendants(list(zoo.hand_made(space).values()), 300), space)
    one, two = (judge_population(tokens, space, values_first=order) for order in (True, False))
    np.testing.assert_array_equal(one.failed, two.failed)
    passed = one.passed(sign_flip=True)
    for ours, theirs in zip(one[1:], two[1:], strict=True):
        np.testing.assert_array_equal(ours[passed], theirs[passed])
    assert 10 < passed.sum() < 290


@ALL_SPACES
def test_tangents_are_the_derivatives_of_the_paths(space):
    """Central differences of linear (logits) or piecewise quadratic (areas) paths, away from kinks."""
    paths = trajectories(space)
    if space.class_axis:
        step = paths.inputs[:, :, 1:] - paths.inputs[:, :, :-1]
        np.testing.assert_allclose(step, 2.0 * paths.tangents[:, :, 1:])  # two logits a step
        return
    change = (paths.inputs[..., 2:] - paths.inputs[..., :-2]) * 6.0  # twelve steps from 0 to 1
    error = np.abs(change - paths.tangents[..., 1:-1]) / (1.0 + np.abs(change).max(axis=(0, 2), keepdims=True))
    assert np.median(error) < 0.02


def test_a_formula_of_another_space_is_refused():
    with pytest.raises(ValueError, match="belongs to space binary_class, not multi_class"):
        cse_jax.verify([zoo.default(spaces.BINARY_CLASS)], spaces.MULTI_CLASS)
    with pytest.raises(ValueError, match="units is 'metres'; space box has 'pixels', 'strides'"):
        cse_jax.verify([zoo.default(spaces.BOX)], spaces.BOX, units="metres")


def test_a_formula_may_be_higher_than_a_byte_counts():
    formula = "1 - i / u" + " + 1 - 1" * 70
    assert cse_jax.parse(formula, spaces.BOX).height > 127
    assert judge(formula, spaces.BOX).fingerprint == judge("1 - i / u", spaces.BOX).fingerprint != ""


def test_no_formulas_no_verdicts():
    assert cse_jax.verify([], spaces.BOX) == []
