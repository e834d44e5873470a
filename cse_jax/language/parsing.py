"""Reads formulas: the authors' notation ``Neg(Log(Sig(X)))`` and our infix ``-log(sigmoid(x))``.

One grammar reads both (a name followed by parentheses is a function in either)::

    sum     = product (("+" | "-") product)*
    product = sign (("*" | "/") sign)*
    sign    = "-" sign | atom
    atom    = name | constant | name "(" sum ("," sum)* ")" | "(" sum ")"

Text is only ever read by this parser, never evaluated.
"""

import difflib
import re
from collections.abc import Iterator
from typing import NoReturn

from cse_jax.errors import InputError
from cse_jax.language.expression import Expression
from cse_jax.language.operators import OPERATORS
from cse_jax.language.spaces import Space

MAX_TEXT = 20_000
MAX_NESTING = 60

_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_][A-Za-z_0-9]*)|(?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)|(?P<sign>[-+*/(),]))"
)
_INFIX = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div"}
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


class FormulaError(InputError):
    """A formula that can't be read; the message shows the position and, where there is one, a suggestion.

    Attributes:
      position: the character where reading stopped, from 0.
    """

    def __init__(self, text: str, position: int, message: str) -> None:
        self.position = position
        start = max(0, position - 40)
        shown = text[start : position + 40].replace("\n", " ").replace("\t", " ")
        super().__init__(f"{message} (at character {position + 1})\n  {shown}\n  {' ' * (position - start)}^")


def parse(text: str, space: Space) -> Expression:
    """Reads a formula in the authors' notation or in infix.

    Args:
      text: the formula.
      space: the search space that it must belong to.

    Raises:
      FormulaError: the text is no formula of this space.
      TypeError: it is not text.
    """
    if not isinstance(text, str):
        raise TypeError(f"a formula is text, not {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise FormulaError(text[:80], 0, f"the formula has {len(text)} characters; at most {MAX_TEXT} are read")
    return Expression(_Parser(text, space).formula(), space)


class _Parser:
    """Recursive descent by precedence, at most ``MAX_NESTING`` levels of parentheses deep."""

    def __init__(self, text: str, space: Space) -> None:
        self.text, self.space = text, space
        self.tokens = list(self._scan())
        self.at = 0
        self._check_nesting()
        self.functions: dict[str, str] = {}
        for name in space.readable:
            self.functions[name] = name
            if OPERATORS[name].precedence is None:
                self.functions[OPERATORS[name].symbol] = name
        self.variables = space.spellings

    def _scan(self) -> Iterator[tuple[str, str, int]]:
        """Kind, text and position of each token."""
        position = 0
        stripped = len(self.text.rstrip())
        while position < stripped:
            match = _TOKEN.match(self.text, position)
            if not match:
                while self.text[position].isspace():
                    position += 1
                raise FormulaError(self.text, position, f"unexpected character {self.text[position]!r}")
            (kind,) = (kind for kind, value in match.groupdict().items() if value)
            yield kind, match[kind], match.start(kind)
            position = match.end()
        yield "end", "", stripped

    def _check_nesting(self) -> None:
        depth = 0
        for _, value, position in self.tokens:
            depth += {"(": 1, ")": -1}.get(value, 0)
            if depth > MAX_NESTING:
                raise FormulaError(self.text, position, f"nested deeper than {MAX_NESTING} levels")

    def formula(self) -> tuple[str, ...]:
        """The whole text as prefix tokens."""
        result = self._chain()
        kind, value, position = self.tokens[self.at]
        if kind != "end":
            raise FormulaError(self.text, position, f"expected an operator or the end of the formula, found {value!r}")
        return result

    def _peek(self) -> str:
        kind, value, _ = self.tokens[self.at]
        return value if kind == "sign" else ""

    def _chain(self, at_least: int = 1) -> tuple[str, ...]:
        """Operands, joined by signs of at least this precedence."""
        result = self._operand()
        while (sign := self._peek()) in _INFIX and _PRECEDENCE[sign] >= at_least:
            name = self._known(_INFIX[sign])
            self.at += 1
            result = (name, *result, *self._chain(_PRECEDENCE[sign] + 1))
        return result

    def _operand(self) -> tuple[str, ...]:
        negations = 0
        while self._peek() == "-":
            self._known("Neg")
            negations += 1
            self.at += 1
        kind, value, position = self.tokens[self.at]
        self.at += 1
        if kind == "end":
            raise FormulaError(self.text, position, "the formula ends where an operand is expected")
        if kind == "number":
            found = (self._constant(value, position),)
        elif kind == "name":
            found = self._call(value, position) if self._peek() == "(" else (self._variable(value, position),)
        elif value == "(":
            found = self._chain()
            self._expect(")", position)
        else:
            raise FormulaError(self.text, position, f"expected an operand, found {value!r}")
        return ("Neg",) * negations + found

    def _constant(self, value: str, position: int) -> str:
        number = float(value)
        for constant in self.space.constants:
            if constant == number:
                return str(constant)
        allowed = ", ".join(map(str, self.space.constants))
        raise FormulaError(
            self.text, position, f"constant {value} is not in space {self.space.name} (it has {allowed})"
        )

    def _variable(self, value: str, position: int) -> str:
        if value in self.variables:
            return self.variables[value]
        if value in self.functions:
            raise FormulaError(self.text, position, f"{value} is a function: it needs its operands in parentheses")
        self._unknown("variable", value, position, self.variables)

    def _call(self, value: str, position: int) -> tuple[str, ...]:
        if value in self.variables and value not in self.functions:
            raise FormulaError(self.text, position, f"{value} is a variable: it takes no operands")
        if value not in self.functions:
            self._unknown("operator", value, position, self.functions)
        row = OPERATORS[self.functions[value]]
        self._expect("(", position)
        operands = [self._chain()]
        while self._peek() == ",":
            self.at += 1
            operands.append(self._chain())
        self._expect(")", position)
        if len(operands) != row.arity:
            message = f"{value} takes {row.arity} operand{'s' if row.arity > 1 else ''}, found {len(operands)}"
            raise FormulaError(self.text, position, message)
        return (row.name, *(token for operand in operands for token in operand))

    def _expect(self, sign: str, opened: int) -> None:
        kind, value, position = self.tokens[self.at]
        if self._peek() != sign:
            found = "the end of the formula" if kind == "end" else repr(value)
            message = f"expected {sign!r}, found {found}; the part that began at character {opened + 1} is not closed"
            raise FormulaError(self.text, position, message)
        self.at += 1

    def _known(self, name: str) -> str:
        """The operator that the sign at this place stands for."""
        if name not in self.functions:
            position = self.tokens[self.at][2]
            raise FormulaError(self.text, position, f"space {self.space.name} has no operator {name}")
        return name

    def _unknown(self, what: str, value: str, position: int, known: dict[str, str]) -> NoReturn:
        close = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
        close = close or [name for name in known if name.lower() == value.lower()]
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
        raise FormulaError(self.text, position, f"space {self.space.name} has no {what} {value!r}; {hint}")
