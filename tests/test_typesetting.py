"""Formulas in mathematical notation: what is shown is read back as a reader would, and evaluated."""

import re
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest
from populations import random_expressions

import cse_jax
from cse_jax import export
from cse_jax.export import typesetting
from cse_jax.language import operators, spaces, zoo
from cse_jax.language.spaces import SPACES, trajectories
from cse_jax.sampling.random_trees import Shape

FUNCTIONS = {row.symbol for row in operators.OPERATORS.values() if row.precedence is None}
ALL_SPACES = pytest.mark.parametrize("space", SPACES.values(), ids=str)
NOTATIONS = pytest.mark.parametrize("notation", ["latex", "mathml"])


def mathml_tokens(element):
    """What an element shows: names, numbers, signs and brackets."""
    kind = element.tag.removeprefix("{http://www.w3.org/1998/Math/MathML}")
    parts = [mathml_tokens(child) for child in element]
    inside = [token for part in parts for token in part]
    if kind == "mfrac":
        return ["(", "(", *parts[0], ")", "/", "(", *parts[1], ")", ")"]
    if kind == "msqrt":
        return ["sqrt", "(", *inside, ")"]
    if kind == "mover":
        assert parts[1] == ["\u00af"]
        return [f"n{element[0].text}"]
    if kind in ("mi", "mn", "mo"):
        return [] if element.text in ("\u2061", "\u2062") else [element.text]  # application and times are not shown
    assert kind in ("mrow", "math"), kind
    return ["abs", "(", *inside[1:-1], ")"] if parts[0] == ["|"] else inside


_LATEX = re.compile(r"\\left[(|]|\\right[)|]|\\operatorname\{\w+\}|\\bar\{\w+\}|\\\w+|[\d.]+|\w|\S")


def latex_tokens(text):
    scan = iter(_LATEX.findall(text))

    def group(end):
        found = []
        for token in scan:
            if token == end:
                return found
            if token == r"\frac":
                above, below = (next(scan) and group("}") for _ in range(2))
                found += ["(", "(", *above, ")", "/", "(", *below, ")", ")"]
            elif token == r"\sqrt":
                found += ["sqrt", "(", *(next(scan) and group("}")), ")"]
            elif token == r"\left|":
                found += ["abs", "(", *group(r"\right|"), ")"]
            else:
                name = re.fullmatch(r"\\(left|right|operatorname\{|bar\{|)(.*?)\}?", token)
                found.append({"bar{": "n"}.get(name[1], "") + name[2] if name else token)
        return found

    return group("")


def read(tokens, space):
    """The formula that tokens show; factors stand side by side."""
    text, before = "", "("
    for token in tokens:
        token = {"\u22c5": "*", "cdot": "*"}.get(token, token)
        assert not (before in "+-*/" and token in "+-*/"), "a sign after a sign"
        if before not in (*"(+-*/,", *FUNCTIONS) and token not in tuple(")+-*/,"):
            text += "*"
        text += token
        before = token
    return cse_jax.parse(text, space)


def shown(expression, notation):
    markup = getattr(typesetting, f"to_{notation}")(expression)
    tokens = latex_tokens(markup) if notation == "latex" else mathml_tokens(ElementTree.fromstring(markup))
    return read(tokens, expression.space)


def assert_shows_the_value(expression, notation):
    space = expression.space
    inputs = dict(zip((v.name for v in space.variables), trajectories(space).inputs[:, ::5, 1::4], strict=True))
    with jax.enable_x64(True):
        ours, theirs = (np.asarray(e.evaluate(inputs)) for e in (expression, shown(expression, notation)))
    finite = np.isfinite(ours) & (np.abs(ours) < 1e6)  # poles and large sines are decided by rounding
    np.testing.assert_allclose(theirs[finite], ours[finite], rtol=1e-6, atol=1e-6)


@NOTATIONS
@ALL_SPACES
def test_known_losses_are_shown_as_they_are(space, notation):
    for expression in zoo.known(space).values():
        assert_shows_the_value(expression, notation)
        assert_shows_the_value(export.prepare(expression).formula, notation)


@NOTATIONS
@ALL_SPACES
def test_random_formulas_are_shown_as_they_are(space, notation):
    for expression in random_expressions(space, 60, 3, Shape(max_height=5)):
        if not {"Sin", "Cos"} & set(expression.tokens):
            assert_shows_the_value(expression, notation)


@NOTATIONS
@pytest.mark.parametrize(
    "text",
    [
        "-(y + ny)",
        "x * (-y)",
        "x - (-y)",
        "x + (-y + q)",
        "-(-x)",
        "x - (y - q)",
        "x / (y / q)",
        "2 * (3 * 2)",
        "y * 2 * x",
    ]
    + ["-(x * y) * q", "abs(abs(x) - 2)", "(x - y) * -(q + 1)", "x * (1 - (q - y))", "sqrt(y + 1) * exp(-q)"],
)
def test_brackets_stand_where_the_value_needs_them(text, notation):
    assert_shows_the_value(cse_jax.parse(text, spaces.BINARY_CLASS), notation)


def test_what_the_marks_are():
    two_logs = zoo.find("CE", spaces.BINARY_CLASS)
    assert typesetting.to_latex(two_logs).startswith(r"-\left(y \log\left(\operatorname{sigmoid}\left(x\right)\right)")
    assert r" + \bar{y} \log" in typesetting.to_latex(two_logs)
    assert "<mover><mi>y</mi>" in typesetting.to_mathml(two_logs)
    power = cse_jax.parse("exp(e)", spaces.BOX)
    assert typesetting.to_latex(power) == r"\exp\left(e\right)"  # e is an area, no base of powers
