"""Formulas in mathematical notation, term by term as they are written: LaTeX, and MathML for web pages.

Brackets stand where the value needs them; what sums and products don't need, ``a + (b + c)``, is left out.
"""

import dataclasses
import re

from cse_jax.export import escaping
from cse_jax.language.expression import Expression
from cse_jax.language.operators import OPERATORS

_SUM, _PRODUCT, _ATOM = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A part of a formula, set.

    Attributes:
      text: its markup.
      binding: how tightly it binds: a sum, a product or an atom.
      start: what it begins with, if that matters next to another part: ``"-"`` or ``"digit"``.
      negated: the part that it is the negative of, if any.
    """

    text: str
    binding: int = _ATOM
    start: str = ""
    negated: "_Piece | None" = None


class _Latex:
    # ``times`` stands before a number, ``beside`` before other factors, ``joint`` between all parts.
    minus, plus, times, beside, joint = "-", "+", r"\cdot", "", " "
    named = frozenset(("exp", "log", "sin", "cos", "tanh"))  # functions that LaTeX knows

    def number(self, text: str) -> str:
        mantissa, e, exponent = text.partition("e")
        return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if e else text

    def variable(self, symbol: str, latex: str) -> str:
        return latex

    def function(self, name: str, operands: list[str]) -> str:
        word = rf"\{name}" if name in self.named else rf"\operatorname{{{escaping.latex(name)}}}"
        return word + self.brackets(", ".join(operands))

    def brackets(self, inside: str) -> str:
        return rf"\left({inside}\right)"

    def absolute(self, inside: str) -> str:
        return rf"\left|{inside}\right|"

    def root(self, inside: str) -> str:
        return rf"\sqrt{{{inside}}}"

    def fraction(self, above: str, below: str) -> str:
        return rf"\frac{{{above}}}{{{below}}}"

    def row(self, inside: str) -> str:
        return inside


class _MathML:
    minus, plus, times, beside, joint = "<mo>-</mo>", "<mo>+</mo>", "<mo>&#8901;</mo>", "<mo>&#8290;</mo>", ""

    def number(self, text: str) -> str:
        return f"<mn>{text}</mn>"

    def variable(self, symbol: str, latex: str) -> str:
        barred = re.fullmatch(r"\\bar\{(\w+)\}", latex)
        if barred:
            return f"<mover><mi>{escaping.xml(barred[1])}</mi><mo>&#175;</mo></mover>"
        return f"<mi>{escaping.xml(symbol)}</mi>"

    def function(self, name: str, operands: list[str]) -> str:
        return self.row(f"<mi>{escaping.xml(name)}</mi><mo>&#8289;</mo>{self.brackets('<mo>,</mo>'.join(operands))}")

    def brackets(self, inside: str) -> str:
        return self.row(f"<mo>(</mo>{inside}<mo>)</mo>")

    def absolute(self, inside: str) -> str:
        return self.row(f"<mo>|</mo>{inside}<mo>|</mo>")

    def root(self, inside: str) -> str:
        return f"<msqrt>{inside}</msqrt>"

    def fraction(self, above: str, below: str) -> str:
        return f"<mfrac>{self.row(above)}{self.row(below)}</mfrac>"

    def row(self, inside: str) -> str:
        return f"<mrow>{inside}</mrow>"


def to_latex(expression: Expression) -> str:
    """The formula in LaTeX."""
    return _set(expression, _Latex())


def to_mathml(expression: Expression, after: str = "") -> str:
    """The formula in presentation MathML; ``after`` is MathML that follows it."""
    shown = _set(expression, _MathML()) + after
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">{shown}</math>'


def _set(expression: Expression, markup: _Latex | _MathML) -> str:
    variables = {v.name: v for v in expression.space.variables}

    def leaf(token: str) -> _Piece:
        if token in variables:
            return _Piece(markup.variable(variables[token].symbol, variables[token].latex))
        return _Piece(markup.number(token), start="digit")

    def wrapped(piece: _Piece, at_least: int, *, first: bool = False) -> _Piece:
        if piece.binding >= at_least and (first or piece.start != "-"):
            return piece
        return _Piece(markup.brackets(piece.text))

    def joined(left: _Piece, sign: str, right: _Piece, binding: int) -> _Piece:
        text = markup.joint.join(filter(None, (left.text, sign, right.text)))
        return _Piece(markup.row(text), binding, left.start)

    def node(name: str, *operands: _Piece) -> _Piece:
        left, right = operands[0], operands[-1]
        match name:
            case "Add" if right.negated is not None:
                return joined(left, markup.minus, wrapped(right.negated, _PRODUCT), _SUM)
            case "Add":
                return joined(left, markup.plus, wrapped(right, _SUM), _SUM)
            case "Sub":
                return joined(left, markup.minus, wrapped(right, _PRODUCT), _SUM)
            case "Mul":
                left, right = wrapped(left, _PRODUCT, first=True), wrapped(right, _PRODUCT)
                return joined(left, markup.times if right.start == "digit" else markup.beside, right, _PRODUCT)
            case "Neg":
                return _Piece(markup.row(markup.minus + wrapped(left, _PRODUCT).text), _PRODUCT, "-", left)
            case "Div":
                return _Piece(markup.fraction(left.text, right.text))
            case "Sqrt":
                return _Piece(markup.root(left.text))
            case "Abs":
                return _Piece(markup.absolute(left.text))
        return _Piece(markup.function(OPERATORS[name].symbol, [operand.text for operand in operands]))

    return expression.fold(leaf, node).text
