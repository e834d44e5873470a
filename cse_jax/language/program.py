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
    """The operators by opcode: those of the space, then those of its class-axis operators on narrow operands."""
    return (*space.table, *(row.narrow for row in space.table if row.class_axis))


def compile_expression(expression: Expression, capacity: int = CAPACITY) -> Program:
    """Compiles a formula; a repeated sub-formula is computed once.

    Raises:
      InputError: the formula needs more instructions than ``capacity``.
    """
    space = expression.space
    operators = {row.name: row for row in space.table}
    opcodes = {(row.name, row.class_axis): opcode for opcode, row in enumerate(instruction_set(space))}
    variables = len(space.variables)
    rows: dict[tuple, tuple[int, bool]] = {}  # of sub-formulas, and whether they are wide
    code: list[tuple[int, int, int]] = []

    def leaf(token: str) -> tuple[int, bool]:
        row = space.leaves.index(token)
        return row, space.class_axis and row < variables

    def node(name: str, *operands: tuple[int, bool]) -> tuple[int, bool]:
        wide = any(w for _, w in operands)
        operator = operators[name] if wide else operators[name].narrow
        instruction = opcodes[name, operator.class_axis], operands[0][0], operands[-1][0]
        if instruction not in rows:
            rows[instruction] = len(space.leaves) + len(code), wide and not operator.reduces
            code.append(instruction)
        return rows[instruction]

    root, wide = expression.fold(leaf, node)
    if len(code) > capacity:
        raise InputError(f"the formula {expression} needs {len(code)} instructions; the capacity is {capacity}")
    opcode, left, right = np.zeros((3, capacity), np.int32)
    for t, instruction in enumerate(code):
        opcode[t], left[t], right[t] = instruction
    return Program(opcode, left, right, np.array(len(code), np.int32), np.array(root, np.int32), np.array(wide))


def stack(programs: Sequence[Program]) -> Program:
    """Joins programs along a new leading axis."""
    return jax.tree.map(lambda *fields: np.stack(fields), *programs)
