"""Formulas as self-contained Python files for JAX, NumPy and PyTorch."""

import math
import re
import textwrap
from collections import Counter

import jax.numpy as jnp

from cse_jax.errors import InputError
from cse_jax.export import definitions, escaping
from cse_jax.export.carried import CHAIN_RULE, FLOATS
from cse_jax.language import program as programs
from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.operators import EPS
from cse_jax.language.stable import LOG_SOFTMAX, operator

MODULES = {"jax": "jnp", "numpy": "np", "pytorch": "torch"}
_IMPORTS = {
    "jax": ["import jax", "import jax.numpy as jnp"],
    "numpy": ["import numpy as np"],
    "pytorch": ["import torch"],
}

_LINEAR = frozenset(("Add", "Sub", "Neg"))
_BOUNDED = frozenset(("Abs", "Relu", "Softmax", "Dot"))  # have a domain to know about, but no infinite derivative

# A formula as nested tuples ``(operator, *operands)``; leaves are tokens, numbers are floats.
_Node = tuple | str | float


def _tree(expression: Expression) -> _Node:
    """The formula as it is evaluated, with constant parts as numbers."""
    nodes: list[_Node] = []
    for name, below in expression.steps():
        operands = [nodes[k] for k in below]
        numbers = [operand for operand in operands if isinstance(operand, float)]
        if not below:
            nodes.append(name if name in expression.variables else float(name))
        elif len(numbers) == len(operands):
            with float64():
                nodes.append(float(operator(name).fn(*(jnp.full(1, number) for number in numbers))[0]))
        else:
            nodes.append((name, *operands))
    return nodes[-1]


def _finite(node: _Node, positive: frozenset[str]) -> bool:
    """Whether all derivatives inside a formula are finite, for areas and logits that are.

    Args:
      node: the formula.
      positive: names of the variables that are above 0.
    """

    def above_zero(node: _Node) -> bool:
        if isinstance(node, tuple):
            return node[0] == "Add" and all(map(above_zero, node[1:]))
        return node in positive if isinstance(node, str) else node > 0

    if not isinstance(node, tuple):
        return True
    name = node[0]
    bounded = name in _BOUNDED or not operator(name).domain
    return (bounded or (name == "Div" and above_zero(node[2]))) and all(
        _finite(operand, positive) for operand in node[1:]
    )


def _helper(name: str, framework: str) -> tuple[str, str, str]:
    """Name, parameters and body of an operator's function."""
    row = operator(name)
    code = row.code if isinstance(row.code, str) else row.code[framework]
    symbol = row.symbol if row.precedence is None else name.lower()
    return symbol, "a" if row.arity == 1 else "a, b", re.sub(r"\bxp\.", f"{MODULES[framework]}.", code)


class _Writer:
    """Writes one formula as assignments and a final expression."""

    def __init__(self, expression: Expression, framework: str) -> None:
        self.framework = framework
        self.symbols = {v.name: v.symbol for v in expression.space.variables}
        self.functions: dict[str, None] = {}
        self.assignments: list[tuple[str, str]] = []
        self.named: dict[_Node, str] = {}
        root = _tree(expression)
        positive = frozenset(v.name for v in expression.space.variables if v.sign == "positive")
        self.chained = framework in CHAIN_RULE and not _finite(root, positive)
        counts: Counter = Counter()
        self._count(root, counts)
        self.repeated = {node for node, count in counts.items() if count > 1 and isinstance(node, tuple)}
        self.result = self._write(root)[0]

    def _count(self, node: _Node, counts: Counter) -> None:
        counts[node] += 1
        if isinstance(node, tuple) and counts[node] == 1:
            for operand in node[1:]:
                self._count(operand, counts)

    def _write(self, node: _Node) -> tuple[str, int]:
        """Text, and how tightly it binds."""
        tightest = 9
        if isinstance(node, str):
            return self.symbols[node], tightest
        if not isinstance(node, tuple):
            if not math.isfinite(node):
                return f'float("{node}")', tightest
            text = str(int(node)) if node % 1 == 0 and abs(node) < 1e15 else repr(node)
            return (text, tightest) if node >= 0 else (f"({text})", tightest)
        if node in self.named:
            return self.named[node], tightest
        text, binding = self._apply(node)
        if node in self.repeated:
            name = f"t{len(self.named) + 1}"
            self.named[node] = name
            self.assignments.append((name, text))
            return name, tightest
        return text, binding

    def _apply(self, node: tuple) -> tuple[str, int]:
        name, *operands = node
        row = operator(name)
        written = [self._write(operand) for operand in operands]
        if row.precedence is None or (self.chained and name not in _LINEAR):
            self.functions[name] = None
            self._needs_log_softmax(name)
            return f"{_helper(name, self.framework)[0]}({', '.join(text for text, _ in written)})", 9
        own = row.precedence
        if row.arity == 1:
            return f"-{_wrap(written[0], own)}", own
        if name == "Div":
            return f"{_wrap(written[0], own)} / ({_wrap(written[1], 1)} + EPS)", own
        return f"{_wrap(written[0], own)} {row.symbol} {_wrap(written[1], own + 1)}", own

    def _needs_log_softmax(self, name: str) -> None:
        is_used = "log_softmax(" in _helper(name, self.framework)[2] and name != LOG_SOFTMAX.name
        if is_used and self.framework == "numpy":
            self.functions[LOG_SOFTMAX.name] = None


def _wrap(written: tuple[str, int], at_least: int) -> str:
    text, binding = written
    return text if binding >= at_least else f"({text})"


def _is_elementwise(name: str) -> bool:
    return not operator(name).class_axis


def function(
    expression: Expression, framework: str, *, name: str, docstring: str, preamble: tuple[str, ...] = ()
) -> str:
    """Imports, helper functions and the loss as a function of the space's variables.

    Args:
      expression: the formula.
      framework: ``"jax"``, ``"numpy"`` or ``"pytorch"``.
      name: of the function.
      docstring: of the function.
      preamble: lines after the imports.

    Raises:
      InputError: the formula has no variable.
    """
    if not expression.variables:
        raise InputError(f"the formula {expression} is a number, whatever is predicted: there is no loss to write")
    space, writer, module = expression.space, _Writer(expression, framework), MODULES[framework]
    body = [_over_lines(f"{variable} = ", text) for variable, text in writer.assignments]
    if space.per_row:
        axis = "dim" if framework == "pytorch" else "axis"
        body.append(f"return {module}.sum({writer.result}, {axis}=-1)")
    elif space.class_axis and not bool(programs.compile_expression(expression).wide):
        shape = f"{space.variables[0].symbol}.shape"
        body.append(f"return {module}.broadcast_to(({writer.result}) / {shape}[-1], {shape})")
    else:
        body.append(_over_lines("return ", writer.result))
    parameters = ", ".join(v.symbol for v in space.variables)
    body.insert(0, f"{parameters}{',' * (len(space.variables) == 1)} = floats({parameters})")
    helpers = [_helper(function, framework) for function in writer.functions]
    rules = [FLOATS[framework], *([CHAIN_RULE[framework]] if writer.chained else [])]
    code = "\n".join([*rules, *(text for _, _, text in helpers), *body])
    standard = [f"import {module}" for module in ("functools", "math") if f"{module}." in code]
    lines = [*standard, ""] if standard else []
    lines += [line for line in _IMPORTS[framework] if line != "import jax" or "jax." in code]
    lines += ["", *preamble] if preamble else []
    if "EPS" in code:
        lines += ["", f"EPS = {EPS:g}"]
    for rule in rules:
        lines += ["", "", rule]
    for function, (helper, operands, text) in zip(writer.functions, helpers, strict=True):
        decorator = ["@chained"] if writer.chained and _is_elementwise(function) else []
        lines += ["", "", *decorator, f"def {helper}({operands}):", f"    return {text}"]
    lines += ["", "", f"def {name}({parameters}):", f'    """{docstring}"""']
    return "\n".join([*lines, textwrap.indent("\n".join(body), "    "), ""])


def _over_lines(start: str, text: str) -> str:
    """A statement from its start and an expression; if that is a long sum, with one term a line."""
    if len(start + text) <= 110:
        return start + text
    terms, depth = [""], 0
    for k, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0 and text[k : k + 3] in (" + ", " - "):
            terms.append("")
        terms[-1] += character
    return "\n".join([f"{start}(", *(f"    {term.strip()}" for term in terms), ")"])


def source_file(expression: Expression, framework: str, *, title: str, weight: float, notes: str) -> str:
    """A self-contained file: docstring with formula, space, units and provenance, helpers, and ``loss``."""
    docstring = description(expression, title=title, notes=notes)
    what = "The loss per row." if expression.space.per_row else "The loss per element."
    preamble = (f"WEIGHT = {weight!r}  # what the loss was trained with; multiply by it",)
    return f"{docstring}\n\n{function(expression, framework, name='loss', docstring=what, preamble=preamble)}"


def description(expression: Expression, *, title: str, notes: str) -> str:
    """The docstring of an exported file."""
    space = expression.space
    shape = "per row, summed over the classes" if space.per_row else "per element"
    inputs = [
        textwrap.fill(f"{v.symbol}: {v.meaning}", 110, initial_indent="  ", subsequent_indent="    ")
        for v in space.variables
    ]
    formula = textwrap.fill(str(expression), 110, initial_indent="    ", subsequent_indent="    ")
    formula += definitions.in_text(expression).replace("\n", "\n    ")
    parts = [title, "", formula, "", f"Search space {space.name}; the loss {shape}, unreduced, of"]
    text = escaping.docstring("\n".join([*parts, *inputs, "", notes]))
    return f'"""{text}\n"""'
