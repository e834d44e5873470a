"""Random formulas and their variation: ramped growth, crossover and mutation on prefix tokens.

Every function draws from the ``random.Random`` it is given, so a population is a function of its seed.
"""

import dataclasses
import random
from collections.abc import Sequence

from cse_jax.expression import Expression, arity
from cse_jax.operators import OPERATORS
from cse_jax.spaces import Space

_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class Shape:
    """Limits on formulas.  Anything below height 9 or 39 nodes can't express the published losses.

    Attributes:
      min_height, max_height: heights that random formulas are ramped over.
      max_nodes: nodes that no formula may exceed.
      height_limit: height that no offspring may exceed.
    """

    min_height: int = 2
    max_height: int = 6
    max_nodes: int = 40
    height_limit: int = 12

    def allows(self, expression: Expression) -> bool:
        """Whether a formula keeps the limits."""
        return len(expression) <= self.max_nodes and expression.height <= self.height_limit


def random_expression(rng: random.Random, space: Space, shape: Shape) -> Expression:
    """A random formula in which the prediction occurs; half of them full, half grown, over a ramp of heights."""
    while True:
        height = rng.randint(shape.min_height, shape.max_height)
        tokens = _random_tokens(rng, space, height, full=rng.random() < 0.5, limit=shape.max_nodes)
        if tokens and not set(tokens).isdisjoint(space.differentiable):
            return Expression(tokens, space)


def _random_tokens(rng: random.Random, space: Space, height: int, *, full: bool, limit: int) -> tuple[str, ...]:
    """Prefix tokens of one random formula, or nothing if it outgrows ``limit``."""
    tokens: list[str] = []
    pending = [height]
    share_of_leaves = len(space.leaves) / (len(space.leaves) + len(space.operators))
    while pending:
        left = pending.pop()
        if left == 0 or (not full and tokens and rng.random() < share_of_leaves):
            tokens.append(_random_leaf(rng, space))
        else:
            name = rng.choice(space.operators)
            tokens.append(name)
            pending += [left - 1] * arity(name)
        if len(tokens) + len(pending) > limit:
            return ()
    return tuple(tokens)


def _random_leaf(rng: random.Random, space: Space) -> str:
    """A variable four times out of five, else a constant."""
    if rng.random() < 0.8:
        return rng.choice(space.variables).name
    return str(rng.choice(space.constants))


def crossover(rng: random.Random, mother: Expression, father: Expression, shape: Shape) -> Expression:
    """The mother with one of her sub-formulas replaced by one of the father's."""
    for _ in range(_ATTEMPTS):
        start = rng.randrange(len(father))
        child = mother.replace(rng.randrange(len(mother)), father.tokens[start : father.end(start)])
        if child != mother and shape.allows(child):
            return child
    return mutate(rng, mother, shape)


def mutate(rng: random.Random, parent: Expression, shape: Shape) -> Expression:
    """The parent with a random sub-formula replaced, wrapped or lifted, or one token exchanged."""
    for _ in range(_ATTEMPTS):
        child = rng.choice((_subtree, _point, _hoist, _wrap))(rng, parent)
        if child != parent and shape.allows(child) and child.variables & set(parent.space.differentiable):
            return child
    return random_expression(rng, parent.space, shape)


def _subtree(rng: random.Random, parent: Expression) -> Expression:
    new = _random_tokens(rng, parent.space, rng.randint(0, 3), full=False, limit=16)
    return parent.replace(rng.randrange(len(parent)), new) if new else parent


def _point(rng: random.Random, parent: Expression) -> Expression:
    position = rng.randrange(len(parent))
    old = parent.tokens[position]
    if arity(old) == 0:
        new = _random_leaf(rng, parent.space)
    else:
        new = rng.choice([name for name in parent.space.operators if arity(name) == arity(old)])
    return Expression((*parent.tokens[:position], new, *parent.tokens[position + 1 :]), parent.space)


def _hoist(rng: random.Random, parent: Expression) -> Expression:
    """Replaces a sub-formula by a part of itself."""
    outer = rng.randrange(len(parent))
    inner = rng.randrange(outer, parent.end(outer))
    return parent.replace(outer, parent.tokens[inner : parent.end(inner)])


def _wrap(rng: random.Random, parent: Expression) -> Expression:
    """Applies a random operator to a sub-formula, with a random leaf as the second operand where it takes one."""
    start = rng.randrange(len(parent))
    inside = parent.tokens[start : parent.end(start)]
    name = rng.choice(parent.space.operators)
    if OPERATORS[name].arity == 1:
        return parent.replace(start, (name, *inside))
    leaf = (_random_leaf(rng, parent.space),)
    return parent.replace(start, (name, *inside, *leaf) if rng.random() < 0.5 else (name, *leaf, *inside))


def offspring(
    rng: random.Random,
    parents: Sequence[Expression],
    count: int,
    shape: Shape,
    *,
    crossover_rate: float,
    mutation_rate: float,
) -> list[Expression]:
    """Descendants of the parents; what the two rates leave over is filled with new random formulas."""
    children = []
    for _ in range(count):
        draw = rng.random()
        if draw < crossover_rate and len(parents) > 1:
            children.append(crossover(rng, *rng.sample(list(parents), 2), shape))
        elif draw < crossover_rate + mutation_rate:
            children.append(mutate(rng, rng.choice(parents), shape))
        else:
            children.append(random_expression(rng, parents[0].space, shape))
    return children
