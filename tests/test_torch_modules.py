"""Exported losses in plain PyTorch."""

import numpy as np
import pytest
from clients import engine, exported, torch, train

from cse_jax.errors import InputError
from cse_jax.language import spaces

NAMES = {"box": "A_reg", "multi_class": "A_cls", "binary_class": "B_cls"}
EACH_SPACE = pytest.mark.parametrize("space", [spaces.BOX, spaces.MULTI_CLASS, spaces.BINARY_CLASS], ids=str)


def given(space):
    """What a loss is called with; the first is the prediction."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(40)
    if space == spaces.BOX:
        corners, size = torch.rand(2, 40, 2, generator=generator) * 300
        truth = torch.cat([corners, corners + size + 1], 1)
        pred = truth + 20 * torch.randn(40, 4, generator=generator)
        return torch.cat([pred[:-2], truth[-2:] + 2000]), truth  # the last do not meet
    logits, quality = 3 * torch.randn(40, 6, generator=generator), torch.rand(40, generator=generator)
    if space == spaces.MULTI_CLASS:
        return logits, rows % 6, quality
    labels = torch.nn.functional.one_hot(rows % 8, 8)[:, :6].float()
    return logits, labels, labels * quality[:, None]


@EACH_SPACE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_values_are_the_engine_s(space, dtype):
    """Half precision is computed in float32; the areas of these boxes are beyond its range.

    The tolerance is for the engine's ``1 - sigmoid(x)``, which at 10 has four digits.
    """
    inputs = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in given(space)]
    found = exported("torch_module", space, NAMES[space.name]).SearchedLoss()(*inputs)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), engine(space, NAMES[space.name], inputs), rtol=2e-4, atol=1e-5)


@EACH_SPACE
def test_training_lowers_the_loss(space):
    pred, *rest = given(space)
    loss = exported("torch_module", space, NAMES[space.name]).SearchedLoss()
    pred = torch.nn.Parameter(pred)
    values = train(lambda: loss(pred, *rest).sum(), [pred], rate=1.0 if space == spaces.BOX else 0.1)
    assert values[-1] < 0.9 * values[0]


def test_quality_and_background_have_defaults():
    cls = exported("torch_module", spaces.MULTI_CLASS, "CEI").SearchedLoss
    logits, labels, quality = given(spaces.MULTI_CLASS)
    plain = 1.5 * torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(cls()(logits, labels), plain)
    for background in (0, -1):
        w = torch.where(labels == background % 6, 1.0, quality)
        torch.testing.assert_close(cls(background=background)(logits, labels, quality), plain * w)
    logits, labels, quality = given(spaces.BINARY_CLASS)
    cei = exported("torch_module", spaces.BINARY_CLASS, "CEI").SearchedLoss(alpha=0.5)
    torch.testing.assert_close(cei(logits, labels), cei(logits, labels, labels))
    assert not torch.allclose(cei(logits, labels), cei(logits, labels, quality))


def test_iou_is_the_quality():
    module = exported("torch_module", spaces.BINARY_CLASS, "CEI")
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0]], requires_grad=True)
    b = torch.tensor([[0.0, 0.0, 4.0, 8.0], [5.0, 5.0, 7.0, 7.0]])
    found = module.iou(a, b)
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.tensor([0.5, 0.0]))


def test_a_space_that_a_client_has_no_loss_of_is_told():
    with pytest.raises(InputError, match="ultralytics has no loss of space multi_class; export it as pytorch"):
        exported("ultralytics", spaces.MULTI_CLASS, "CE")
