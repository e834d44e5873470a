"""kozax, a published JAX package for genetic programming, through its own evaluator of trees."""

import contextlib
import io
import time
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from benchmarks.screening_peers.peer import PeerResult, absent, even, passes
from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.spaces import Space, trajectories

KOZAX = "kozax==0.1.5"


def kozax(
    expressions: Sequence[Expression], space: Space, units: str = "pixels", *, batch: int = 64, gradients: bool = True
) -> PeerResult:
    """kozax's own evaluator on the same formulas; without ``gradients`` it only evaluates and ``passed`` is ``None``.

    kozax evaluates scalars, so that formulas with softmax or a dot product can't be expressed and are left out.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from kozax.fitness_functions.base_fitness_function import BaseFitnessFunction
            from kozax.genetic_programming import GeneticProgramming
    except ImportError as error:
        return absent(f"not installed: pip install {KOZAX} ({error})")
    paths = trajectories(space, units)
    elementwise = [row for row in space.table if not row.class_axis]
    inexpressible = {row.name for row in space.table if row.class_axis}
    judged = np.array([inexpressible.isdisjoint(expression.tokens) for expression in expressions], bool)
    expressible = [expression for expression, good in zip(expressions, judged, strict=True) if good]
    if not judged.any():
        return absent("kozax can express none of the formulas")
    batch = even(len(expressible), batch)

    class Nothing(BaseFitnessFunction):
        def __call__(self, candidate, data, tree_evaluator):
            return 0.0

    with float64():
        with contextlib.redirect_stdout(io.StringIO()):
            strategy = GeneticProgramming(
                num_generations=1,
                population_size=2,
                fitness_function=Nothing(),
                operator_list=[{"string": row.name, "fn": row.fn, "arity": row.arity} for row in elementwise],
                variable_list=[[f"x{k}" for k in range(len(space.variables))]],
                max_nodes=max(map(len, expressible)),
            )
        numbers = {row.name: strategy.string_to_node[row.name] for row in elementwise}
        numbers |= {v.name: strategy.string_to_node[f"x{k}"] for k, v in enumerate(space.variables)}
        trees = np.stack([_tree(e, numbers, strategy) for e in expressible])
        points = np.moveaxis(paths.inputs, 0, -1)
        general = np.zeros_like(points)
        moving = [k for k, v in enumerate(space.variables) if v.name in space.differentiable]
        general[..., moving] = np.random.default_rng(0).uniform(1.0, 2.0, (*points.shape[:-1], len(moving)))
        directions = np.stack([np.moveaxis(paths.tangents, 0, -1), general])

        def at_point(tree, x, d):
            def loss(x):
                return strategy.tree_evaluator(tree, x)[0]

            if not gradients:
                return (loss(x),)
            values, found = jax.vmap(lambda d: jax.jvp(loss, (x,), (d,)), out_axes=(None, 0))(d)
            return values, found[0], found[1]

        def evaluate(trees, points, directions):
            flat = points.reshape(-1, points.shape[-1]), directions.reshape(2, -1, points.shape[-1])
            results = jax.vmap(jax.vmap(at_point, (None, 0, 1)), (0, None, None))(trees, *flat)
            results = [a.reshape(-1, *points.shape[:-1]) for a in results]
            return [a.sum(-1) if space.class_axis else a for a in results]

        evaluate = jax.jit(evaluate)

        def judge(trees: np.ndarray) -> np.ndarray:
            results = jax.device_get(evaluate(np.resize(trees, (batch, *trees.shape[1:])), points, directions))
            return passes(*results, paths)[: len(trees)] if gradients else np.zeros(len(trees), bool)

        start = time.perf_counter()
        judge(trees[:1])
        seconds_compile = time.perf_counter() - start
        start = time.perf_counter()
        good = np.concatenate([judge(trees[k : k + batch]) for k in range(0, len(trees), batch)])
        seconds = time.perf_counter() - start
    passed = None
    if gradients:
        passed = np.zeros(len(expressions), bool)
        passed[judged] = good
    what = "values and gradients" if gradients else "values only"
    note = f"{KOZAX}, {what}, on {judged.sum()} of {len(judged)} formulas (no softmax, no dot), batches of {batch}"
    return PeerResult(passed, judged, seconds, seconds_compile, False, note)


def _tree(expression: Expression, numbers: dict[str, int], strategy) -> Float[np.ndarray, "1 m 4"]:
    """A formula as kozax has it: rows of (node, children, constant), children first, the root last."""
    rows: list[tuple[float, ...]] = []

    def leaf(token):
        rows.append((numbers[token], -1, -1, 0.0) if token in numbers else (1, -1, -1, float(token)))
        return len(rows) - 1

    def node(token, *operands):
        rows.append((numbers[token], *operands, *(-1,) * (2 - len(operands)), 0.0))
        return len(rows) - 1

    expression.fold(leaf, node)
    tree = np.array(strategy.empty_tree, float)
    start = len(tree) - len(rows)
    tree[start:] = rows
    tree[start:, 1:3] += np.where(tree[start:, 1:3] >= 0, start, 0)
    return tree[None]
