"""How others would judge the same formulas on the same paths: for comparison with ``cse_jax.screening.verification``.

Each peer gets formulas and gives verdicts with the sign flip allowed, in float64 and with the gate's thresholds:

- ``authors_route``: DEAP and PyTorch autograd, one formula at a time, on one thread;
- ``vmapped_switch``: the plain port to JAX, a stack machine with ``lax.switch`` under ``vmap``, jitted once;
- ``kozax``: a published JAX package for genetic programming, through its own tree evaluator.

Verdicts differ from the gate's where an infinite gradient meets a zero, as in ``sqrt(u - u)``: NaN for the peers, 0 for
the gate.  The gradient of ``abs`` at 0 is 0 in PyTorch and 1 in JAX.

A formula is handed over in the peer's own form (a DEAP tree, an array of opcodes); making that form is not timed.  The
packages are optional: ``pip install deap torch kozax==0.1.5``.
"""

import contextlib
import dataclasses
import functools
import io
import math
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from cse_jax.language.expression import Expression
from cse_jax.language.float64 import float64
from cse_jax.language.operators import EPS, EXP_LIMIT, OPERATORS
from cse_jax.language.program import instruction_set
from cse_jax.language.spaces import Space, Trajectories, trajectories
from cse_jax.sampling.random_trees import Shape
from cse_jax.screening import verification

KOZAX = "kozax==0.1.5"


@dataclasses.dataclass(frozen=True)
class PeerResult:
    """What a peer made of ``n`` formulas.

    Attributes:
      passed: which pass, as they are or with their sign flipped; ``None`` if nothing was judged.
      judged: which formulas the peer can express at all; the times are for these.
      seconds: time to evaluate and judge them, without compilation.
      seconds_compile: time to compile them.
      recompiles: whether compilation is paid for every formula; else it is paid once.
      note: conditions of the measurement, or why there is none.
    """

    passed: Bool[np.ndarray, " n"] | None
    judged: Bool[np.ndarray, " n"] | None
    seconds: float
    seconds_compile: float
    recompiles: bool
    note: str

    @property
    def rate(self) -> float | None:
        """Formulas a second in the long run: with the compilation if it recurs, without if it is paid once."""
        if self.judged is None:
            return None
        return float(self.judged.sum() / (self.seconds + self.recompiles * self.seconds_compile))


def _absent(note: str) -> PeerResult:
    return PeerResult(None, None, math.nan, math.nan, False, note)


def _even(count: int, batch: int) -> int:
    """A size of equal batches, at most ``batch``, so that little is padded."""
    return -(-count // -(-count // batch))


def _passes(
    values: Float[np.ndarray, "*n t p"],
    along: Float[np.ndarray, "*n t p"],
    general: Float[np.ndarray, "*n t p"],
    paths: Trajectories,
) -> Bool[np.ndarray, "*n"]:
    """Which losses pass, as they are or with their sign flipped: the properties of the gate, in NumPy.

    ``along`` is the gradient along the path, ``general`` that in a general direction.
    """
    with np.errstate(all="ignore"):
        steepest = np.abs(along).max(-1)
        magnitude = np.abs(values).max(-1)
        noise = verification.ROUNDING * magnitude
        finite = magnitude < verification.LARGEST
        finite &= (np.abs(along) + np.abs(general)).max(-1) < verification.LARGEST
        vanished = np.abs(along[..., 0]) <= verification.VANISHED * steepest
        valid = finite.all(-1) & (steepest.max(-1) > 0.0) & (vanished | ~paths.vanishing).all(-1)
        steps = np.diff(values)
        dip = verification.GRADIENT_TOLERANCE * steepest + noise
        drop = verification.GRADIENT_TOLERANCE * np.ptp(values, axis=-1) + noise
        passed = np.zeros(values.shape[:-2], bool)
        for sign in (1.0, -1.0):
            monotone = ((sign * along).min(-1) >= -dip) & ((sign * steps).min(-1) >= -drop)
            rises = sign * (values[..., -1] - values[..., 0]) > verification.MIN_RISE * magnitude
            passed |= (monotone & rises | ~paths.gated).all(-1)
        return passed & valid


# ---------------------------------------------------------------------------------------------- DEAP and PyTorch


def authors_route(expressions: Sequence[Expression], space: Space, units: str = "pixels") -> PeerResult:
    """DEAP compiles each formula to a Python function; PyTorch evaluates it and autograd gives its gradients."""
    try:
        import torch
        from deap import gp
    except ImportError:
        return _absent("not installed: pip install deap torch")
    paths = trajectories(space, units)
    primitives = _primitives(space)
    moving = [k for k, variable in enumerate(space.variables) if variable.name in space.differentiable]
    inputs = [torch.tensor(a, dtype=torch.float64, requires_grad=k in moving) for k, a in enumerate(paths.inputs)]
    tangents = [torch.tensor(paths.tangents[k]) for k in moving]

    def judge(function) -> bool:
        result = function(*inputs)
        if not result.requires_grad:
            return False
        values = result.sum(-1) if space.class_axis else result
        if not (values.detach().abs() < verification.LARGEST).all():
            return False
        gradients = torch.autograd.grad(result.sum(), [inputs[k] for k in moving], materialize_grads=True)
        along = sum(g * t for g, t in zip(gradients, tangents, strict=True))
        sizes = sum(g.abs() for g in gradients)
        if space.class_axis:
            along, sizes = along.sum(-1), sizes.sum(-1)
        return bool(_passes(*(a.detach().numpy() for a in (values, along, sizes)), paths))

    trees = [_tree(expression, primitives) for expression in expressions]
    judged = np.array([tree is not None for tree in trees], bool)
    if not judged.any():
        return _absent("there is no PyTorch function for any of the formulas")
    passed, seconds, seconds_compile = np.zeros(len(trees), bool), 0.0, 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for k in np.flatnonzero(judged)[:1]:  # warms up
            judge(gp.compile(trees[k], primitives))
        for k in np.flatnonzero(judged):
            start = time.perf_counter()
            function = gp.compile(trees[k], primitives)
            compiled = time.perf_counter()
            passed[k] = judge(function)
            seconds += time.perf_counter() - compiled
            seconds_compile += compiled - start
    finally:
        torch.set_num_threads(threads)
    note = f"DEAP, PyTorch {torch.__version__} on one thread; gp.compile for each formula"
    return PeerResult(passed, judged, seconds, seconds_compile, True, note)


class Generated(NamedTuple):
    """Random formulas, the time it took to make them (``nan`` if not installed), and the conditions."""

    expressions: list[Expression]
    seconds: float
    note: str


def authors_generate(count: int, space: Space, *, seed: int = 0, shape: Shape | None = None) -> Generated:
    """Random formulas by DEAP's ``genHalfAndHalf``, drawn again if too large or without the prediction."""
    try:
        import torch  # noqa: F401  the operators are functions of tensors
        from deap import gp
    except ImportError:
        return Generated([], math.nan, "not installed: pip install deap torch")
    shape = shape or Shape()
    primitives = _primitives(space, space.operators)
    wanted = set(space.differentiable)
    trees = []
    state = random.getstate()  # DEAP draws from the global generator
    random.seed(seed)
    start = time.perf_counter()
    try:
        while len(trees) < count:
            tree = gp.PrimitiveTree(gp.genHalfAndHalf(primitives, shape.min_height, shape.max_height))
            if len(tree) <= shape.max_nodes and any(node.arity == 0 and node.value in wanted for node in tree):
                trees.append(tree)
        seconds = time.perf_counter() - start
    finally:
        random.setstate(state)
    tokens = {f"c{k}": str(constant) for k, constant in enumerate(space.constants)}
    texts = ([node.name if node.arity else node.value for node in tree] for tree in trees)
    found = [Expression(tuple(tokens.get(text, text) for text in tree), space) for tree in texts]
    return Generated(found, seconds, f"DEAP genHalfAndHalf, heights {shape.min_height} to {shape.max_height}")


def _torch_functions() -> dict:
    import torch

    def gudermannian(x):
        return 2.0 * torch.atan(torch.tanh(x / 2.0))

    def serf(x):
        return (torch.erf(math.sqrt(math.pi) / 4.0 * x) + 1.0) / 2.0

    def salf(x):
        half = x / 2.0
        return (half / torch.sqrt(1.0 + half * half) + 1.0) / 2.0

    return {
        "Add": torch.add,
        "Sub": torch.sub,
        "Mul": torch.mul,
        "Div": lambda a, b: a / (b + EPS),
        "Dot": lambda a, b: (a * b).sum(-1, keepdim=True),
        "Neg": torch.neg,
        "Exp": lambda x: torch.exp(torch.clamp(x, max=EXP_LIMIT)),
        "Log": lambda x: torch.log(x + EPS),
        "Abs": torch.abs,
        "Sqrt": torch.sqrt,
        "Softmax": lambda x: torch.softmax(x, -1),
        "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "Sig": torch.sigmoid,
        "Sgdf": lambda x: (gudermannian(math.pi / 4.0 * x) * (2.0 / math.pi) + 1.0) / 2.0,
        "Salf": salf,
        "Serf": serf,
        "Serfc": lambda x: 1.0 - serf(x),
        "Tanh": torch.tanh,
        "Relu": torch.relu,
        "Sin": torch.sin,
        "Cos": torch.cos,
    }


def _primitives(space: Space, names: Sequence[str] | None = None):
    """The ``deap.gp.PrimitiveSet`` of a space; constant ``k`` is the terminal ``c{k}``."""
    import torch
    from deap import gp

    functions = _torch_functions()
    primitives = gp.PrimitiveSet(space.name, len(space.variables))
    primitives.renameArguments(**{f"ARG{k}": variable.name for k, variable in enumerate(space.variables)})
    for name in names or space.readable:
        if name in functions:
            primitives.addPrimitive(functions[name], OPERATORS[name].arity, name)
    for k, constant in enumerate(space.constants):
        primitives.addTerminal(torch.tensor([constant], dtype=torch.float64), f"c{k}")
    return primitives


def _tree(expression: Expression, primitives):
    """A formula as ``deap.gp.PrimitiveTree``, or ``None`` if an operator of it has no PyTorch function here."""
    from deap import gp

    names = {str(constant): f"c{k}" for k, constant in enumerate(expression.space.constants)}
    nodes = [primitives.mapping.get(names.get(token, token)) for token in expression.tokens]
    return None if None in nodes else gp.PrimitiveTree(nodes)


# ---------------------------------------------------------------------------------------------- a stack machine in JAX


class _Code(NamedTuple):
    """Formulas in postfix order, padded to ``m`` steps."""

    opcode: Int[np.ndarray, "n m"]  # 0 pushes a leaf; then ``program.instruction_set``
    leaf: Int[np.ndarray, "n m"]
    top: Int[np.ndarray, "n m"]  # slot that is written: that of the first operand
    moves: Bool[np.ndarray, "n m"]  # whether the result depends on the prediction
    wide: Bool[np.ndarray, " n"]
    length: Int[np.ndarray, " n"]


def vmapped_switch(
    expressions: Sequence[Expression], space: Space, units: str = "pixels", *, batch: int = 64
) -> PeerResult:
    """``jax.vmap`` of a stack machine over formulas, sorted by length; every operator runs at every step."""
    paths = trajectories(space, units)
    if not expressions:
        return _absent("no formulas")
    batch = _even(len(expressions), batch)
    code = _encode(expressions, space)
    depth = int(code.top.max(initial=0)) + 2
    shortest_first = np.argsort(code.length, kind="stable")
    passed = np.zeros(len(expressions), bool)
    with float64():
        arrays = _grid(space, paths)

        def judge(chosen: np.ndarray) -> np.ndarray:
            part = _Code(*(a[np.resize(chosen, batch)] for a in code))
            results = _run_stack(space, depth, part, part.length[: len(chosen)].max(), *arrays)
            shape = (batch, *paths.gated.shape, -1)
            return _passes(*(a.reshape(shape) for a in jax.device_get(results)), paths)[: len(chosen)]

        start = time.perf_counter()
        judge(shortest_first[:1])
        seconds_compile = time.perf_counter() - start
        start = time.perf_counter()
        for k in range(0, len(passed), batch):
            chosen = shortest_first[k : k + batch]
            passed[chosen] = judge(chosen)
        seconds = time.perf_counter() - start
    note = f"JAX {jax.__version__} on {jax.default_backend()}, batches of {batch} sorted by length; compiled once"
    return PeerResult(passed, np.ones(len(passed), bool), seconds, seconds_compile, False, note)


def _grid(space: Space, paths: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """The leaves ``[l, q, *c]`` at all points, and two directions ``[2, l, q, *c]``: the path's and a general one."""
    shape = (len(space.leaves), math.prod(paths.inputs.shape[1:3]), *paths.inputs.shape[3:])
    leaves, directions = np.zeros(shape), np.zeros((2, *shape))
    leaves[: len(space.variables)] = paths.inputs.reshape(-1, *shape[1:])
    leaves[len(space.variables) :] = np.reshape(space.constants, (-1, *(1,) * (len(shape) - 1)))
    directions[0, : len(space.variables)] = paths.tangents.reshape(-1, *shape[1:])
    rng = np.random.default_rng(0)
    for name in space.differentiable:
        directions[1, space.leaves.index(name)] = rng.uniform(1.0, 2.0, shape[1:])
    return leaves, directions


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_stack(
    space: Space,
    depth: int,
    code: _Code,
    steps: Int[Array, ""],
    leaves: Float[Array, "l q *c"],
    directions: Float[Array, "2 l q *c"],
) -> tuple[Float[Array, "n q"], Float[Array, "n q"], Float[Array, "n q"]]:
    """Values, gradients along the path, and gradients in a general direction."""

    def one(code: _Code):
        def loss(leaves):
            def push(a, b, leaf):
                return leaf

            def operator(row, a, b, leaf):
                return jnp.broadcast_to(row.fn(a) if row.arity == 1 else row.fn(a, b), a.shape)

            branches = [push, *(functools.partial(operator, row) for row in instruction_set(space))]

            def step(t, stack):
                top = code.top[t]
                result = lax.switch(code.opcode[t], branches, stack[top], stack[top + 1], leaves[code.leaf[t]])
                result = jnp.where(code.moves[t], result, lax.stop_gradient(result))  # else sqrt(y) has 0 * inf
                return stack.at[top].set(jnp.where(t < code.length, result, stack[top]))

            stack = lax.fori_loop(0, steps, step, jnp.ones((depth, *leaves.shape[1:]), leaves.dtype))
            if not space.class_axis:
                return stack[0]
            return jnp.where(code.wide, stack[0].sum(-1), stack[0][..., 0])

        values, gradients = jax.vmap(lambda d: jax.jvp(loss, (leaves,), (d,)), out_axes=(None, 0))(directions)
        return values, gradients[0], gradients[1]

    return jax.vmap(one)(code)


def _encode(expressions: Sequence[Expression], space: Space) -> _Code:
    steps = max(map(len, expressions), default=1)
    opcode, leaf, top = (np.zeros((len(expressions), steps), np.int32) for _ in range(3))
    moves = np.zeros((len(expressions), steps), bool)
    wide = np.zeros(len(expressions), bool)
    variables = {variable.name for variable in space.variables}
    opcodes = {(row.name, row.class_axis): 1 + k for k, row in enumerate(instruction_set(space))}
    for n, expression in enumerate(expressions):

        def at_leaf(token):
            return [(0, space.leaves.index(token), token in space.differentiable, 0)], token in variables

        def at_node(token, *operands):
            codes, widths = zip(*operands, strict=True)
            any_wide = any(widths)
            row = OPERATORS[token] if any_wide else OPERATORS[token].narrow
            number = opcodes[token, row.class_axis]
            below = [(*step[:3], k + step[3]) for k, steps in enumerate(codes) for step in steps]
            moving = any(steps[-1][2] for steps in codes)
            return [*below, (number, 0, moving, 0)], any_wide and not row.reduces

        code, wide[n] = expression.fold(at_leaf, at_node)
        here = n, slice(len(code))
        opcode[here], leaf[here], moves[here], top[here] = zip(*code, strict=True)
    return _Code(opcode, leaf, top, moves, wide, np.array([len(e) for e in expressions], np.int32))


# ---------------------------------------------------------------------------------------------- kozax


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
        return _absent(f"not installed: pip install {KOZAX} ({error})")
    paths = trajectories(space, units)
    elementwise = [row for row in space.table if not row.class_axis]
    inexpressible = {row.name for row in space.table if row.class_axis}
    judged = np.array([inexpressible.isdisjoint(expression.tokens) for expression in expressions], bool)
    expressible = [expression for expression, good in zip(expressions, judged, strict=True) if good]
    if not judged.any():
        return _absent("kozax can express none of the formulas")
    batch = _even(len(expressible), batch)

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
        trees = np.stack([_kozax_tree(e, numbers, strategy) for e in expressible])
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
            return _passes(*results, paths)[: len(trees)] if gradients else np.zeros(len(trees), bool)

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


def _kozax_tree(expression: Expression, numbers: dict[str, int], strategy) -> Float[np.ndarray, "1 m 4"]:
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
