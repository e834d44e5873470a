"""A candidate as data: a formula compiled to a few integer arrays that a jitted function takes as an input.

A compiled candidate is a list of instructions over numbered rows.  The first rows are the space's variables and
constants, and instruction ``t`` writes row ``leaves + t``; ``cse_jax.language.interpreter`` runs it.  A function of a
``Program`` compiles once and takes every candidate of that space.

All rows have the shape of the inputs: a value without class axis is repeated along it, and a class-axis operator on
such values has an opcode of its own (``Operator.narrow``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from cse_jax.errors import InputError
from cse_jax.language.expression import Expression
from cse_jax.language.operators import Operator
from cse_jax.language.spaces import Space
from cse_jax.language.stable import with_stable

CAPACITY = 64  # instructions: B_reg, the longest published formula, needs 22


class Program(NamedTuple):
    """A compiled candidate (or, with leading axes, a batch of them)."""

    opcode: Int[Array | np.ndarray, "*b t"]  # position in ``instruction_set``
    left: Int[Array | np.ndarray, "*b t"]  # row of the first operand
    right: Int[Array | np.ndarray, "*b t"]  # row of the second operand; equal to ``left`` for unary operators
    length: Int[Array | np.ndarray, "*b"]  # instructions in use
    root: Int[Array | np.ndarray, "*b"]  # row of the result
    wide: Bool[Array | np.ndarray, "*b"]  # whether the result has a class axis


def instruction_set(space: Space) -> tuple[Operator, ...]:
    """The operators by opcode: of the space, the stable ones, then those along the class axis on narrow operands."""
    rows = with_stable(space.table)
    return (*rows, *(row.narrow for row in rows if row.class_axis))


def compile_expression(expression: Expression, capacity: int = CAPACITY, *, stable: bool = True) -> Program:
    """Compiles a formula; a repeated sub-formula is computed once.

    Args:
      expression: the formula.
      capacity: instructions of the program.
      stable: take logarithms of a sigmoid or softmax without rounding (see ``cse_jax.language.stable``); False is the
        authors' code.

    Raises:
      InputError: the formula needs more instructions than ``capacity``.
    """
    space = expression.space
    operators = instruction_set(space)
    opcodes = {(row.name, row.class_axis): opcode for opcode, row in enumerate(operators)}
    rows = {row.name: row for row in reversed(operators)}
    variables = len(space.variables)
    found: list[tuple[int, bool]] = []  # of each step its row, and whether it is wide
    code: list[tuple[int, int, int]] = []
    for name, below in expression.steps(stable=stable):
        if not below:
            row = space.leaves.index(name)
            found.append((row, space.class_axis and row < variables))
            continue
        operands = [found[k] for k in below]
        wide = any(w for _, w in operands)
        operator = rows[name] if wide else rows[name].narrow
        found.append((len(space.leaves) + len(code), wide and not operator.reduces))
        code.append((opcodes[name, operator.class_axis], operands[0][0], operands[-1][0]))
    root, wide = found[-1]
    if len(code) > capacity:
        raise InputError(f"the formula {expression} needs {len(code)} instructions; the capacity is {capacity}")
    opcode, left, right = np.zeros((3, capacity), np.int32)
    for t, instruction in enumerate(code):
        opcode[t], left[t], right[t] = instruction
    return Program(opcode, left, right, np.array(len(code), np.int32), np.array(root, np.int32), np.array(wide))


def stack(programs: Sequence[Program]) -> Program:
    """Joins programs along a new leading axis."""
    return jax.tree.map(lambda *fields: np.stack(fields), *programs)
