"""The authors' route: DEAP writes and compiles formulas, PyTorch gives their gradients, one formula at a time."""

import math
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.screening_peers.peer import PeerResult, absent, passes
from cse_jax.language.expression import Expression
from cse_jax.language.operators import EPS, EXP_LIMIT, OPERATORS
from cse_jax.language.spaces import Space, trajectories
from cse_jax.sampling.random_trees import Shape
from cse_jax.screening import verification


def authors_route(expressions: Sequence[Expression], space: Space, units: str = "pixels") -> PeerResult:
    """DEAP compiles each formula to a Python function; PyTorch evaluates it and autograd gives its gradients."""
    try:
        import torch
        from deap import gp
    except ImportError:
        return absent("not installed: pip install deap torch")
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
        return bool(passes(*(a.detach().numpy() for a in (values, along, sizes)), paths))

    trees = [_tree(expression, primitives) for expression in expressions]
    judged = np.array([tree is not None for tree in trees], bool)
    if not judged.any():
        return absent("there is no PyTorch function for any of the formulas")
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
