"""Exported files as modules, and the engine's value of what a searched loss was given."""

import sys
import types

import jax.numpy as jnp
import numpy as np
from extras import need

from cse_jax import export
from cse_jax.language import spaces, zoo
from detectors import losses

torch = need("torch")
torch.set_num_threads(1)  # on tensors as small as those of the tests threads only cost time
WEIGHTS = {"box": 2.5, "multi_class": 1.5, "binary_class": 1.5}


def exported(client: str, space, name: str, **about) -> types.ModuleType:
    """An exported file of a known loss, imported."""
    loss = export.prepare(zoo.find(name, space), **{"weight": WEIGHTS[space.name], "simplified": False} | about)
    module = types.ModuleType(f"searched_{space.name}")
    exec(compile(export.FORMATS[client](loss), module.__name__, "exec"), vars(module))
    sys.modules[module.__name__] = module
    module.calls = []  # what SearchedLoss was given, and its result
    forward = module.SearchedLoss.forward

    def recorded(self, *given):
        module.calls.append((given, forward(self, *given)))
        return module.calls[-1][1]

    module.SearchedLoss.forward = recorded
    return module


def engine(space, name: str, given, *, background: int = -1) -> np.ndarray:
    """The search's value of a loss, of the tensors that SearchedLoss was given."""
    first, second, *rest = (jnp.asarray(tensor.detach().float().numpy()) for tensor in given)
    term = losses.term(zoo.find(name, space), WEIGHTS[space.name])
    if space == spaces.BOX:
        boxes = dict(predicted=first, target=second, predicted_offsets=first, target_offsets=second)
        return np.asarray(losses.box_loss(term, **boxes, mask=jnp.ones(len(first), bool)))
    if space == spaces.BINARY_CLASS:
        return np.asarray(losses.binary_class_loss(term, logits=first, labels=second, quality=rest[0]))
    labels = second.astype(int)
    iou = jnp.where(labels == background % first.shape[-1], 1.0, rest[0])
    y = jnp.asarray(np.eye(first.shape[-1], dtype=np.float32)[labels])
    return np.asarray(losses.multi_class_loss(term, logits=first, labels=y, iou=iou))


def train(step, parameters, *, steps: int = 20, rate: float = 1e-3) -> list[float]:
    """The losses of some steps of Adam on one batch; all gradients are finite."""
    parameters = [p for p in parameters if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, rate)
    values = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = step()
        loss.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in parameters)
        optimiser.step()
        values.append(loss.item())
    return values
