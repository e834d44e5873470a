"""Exported losses in the DETRs of transformers."""

import copy
import functools
import json
import warnings

import numpy as np
import pytest
import torchvision_oracle  # noqa: F401  (registers torchvision's operators)
from clients import engine, exported, torch, train
from extras import need

from cse_jax.language import spaces

warnings.filterwarnings("ignore")  # of the packages that transformers imports
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
transformers = need("transformers")

SIZE = (96, 64)  # width, height
BOXES = torch.tensor([[0.4, 0.5, 0.5, 0.6], [0.7, 0.3, 0.4, 0.4], [0.2, 0.2, 0.3, 0.3]])
SPACES = {"detr": (spaces.MULTI_CLASS, "A_cls", "loss_ce"), "rt_detr": (spaces.BINARY_CLASS, "B_cls", "loss_vfl")}


@functools.cache
def built(kind):
    torch.manual_seed(0)
    labels = {"num_labels": 4}
    if kind == "detr":
        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, out_features=["stage4"]
        )
        config = transformers.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
            d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=12,
            encoder_attention_heads=2, decoder_attention_heads=2, dropout=0.0, auxiliary_loss=True, **labels,
        )  # fmt: skip
        return transformers.DetrForObjectDetection(config).train()
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=32,
        decoder_in_channels=[32] * 3, d_model=32, decoder_ffn_dim=32, decoder_layers=2, num_queries=12,
        encoder_attention_heads=2, decoder_attention_heads=2, num_denoising=6, **labels,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config).train()


def detector(kind):
    return copy.deepcopy(built(kind))


def outputs_of(model):
    """Of two images, one of them without objects."""
    images = torch.rand(2, 3, SIZE[1], SIZE[0], generator=torch.Generator().manual_seed(1))
    size = {"size": torch.tensor(SIZE[::-1])}
    none = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)} | size
    torch.manual_seed(2)
    return model(pixel_values=images, labels=[{"class_labels": torch.tensor([1, 3, 0]), "boxes": BOXES} | size, none])


def losses_of(model):
    return {name: value.detach() for name, value in outputs_of(model).loss_dict.items()}


def searched(kind, **about):
    space, name, _ = SPACES[kind]
    cls, box = exported("transformers", space, name), exported("transformers", spaces.BOX, "A_reg", **about)
    return box.install(cls.install(detector(kind))), cls, box


@pytest.mark.parametrize(
    ("kind", "space", "name"),
    [("detr", spaces.MULTI_CLASS, "CE"), ("detr", spaces.BOX, "GIoU"), ("rt_detr", spaces.BOX, "GIoU")],
)
def test_the_losses_that_transformers_has_are_its_own(kind, space, name):
    expected, model = (
        losses_of(detector(kind)),
        exported("transformers", space, name, weight=1.0).install(detector(kind)),
    )
    found = losses_of(model)
    assert found.keys() == expected.keys()
    for each in expected:
        torch.testing.assert_close(found[each], expected[each], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SPACES)
def test_searched_losses_are_the_engine_s(kind):
    """On boxes in pixels, with the IoU of each as quality; the final layer's loss comes first."""
    model, cls, box = searched(kind)
    found = losses_of(model)
    space, name, key = SPACES[kind]
    (pred, truth), _ = box.calls[0]
    given, _ = cls.calls[0]
    sizes = BOXES[:, 2:] * torch.tensor(SIZE)
    assert torch.cdist(truth[:, 2:] - truth[:, :2], sizes).amin(1).max() < 1e-3
    values = engine(space, name, given)
    if kind == "detr":
        weights = np.where(given[1].numpy() == 4, model.config.eos_coefficient, 1.0)
        expected = (values * weights).sum() / weights.sum()
        quality = given[2][given[1] < 4]
        assert (given[2][given[1] == 4] == 1).all()
    else:
        expected, quality = values.sum() / 3, given[2][given[1] == 1]
        assert (given[2][given[1] == 0] == 0).all()
    overlap = torchvision_oracle.torchvision.ops.box_iou(pred, truth).diag().detach()
    torch.testing.assert_close(quality.sort()[0], overlap.sort()[0], rtol=1e-4, atol=1e-6)
    factor = model.config.weight_loss_giou if kind == "rt_detr" else 1.0  # RT-DETR's values have their factors
    np.testing.assert_allclose(found[key].numpy(), expected, rtol=2e-4)
    boxes = engine(spaces.BOX, "A_reg", (pred, truth)).sum() / 3
    np.testing.assert_allclose(found["loss_giou"].numpy(), factor * boxes, rtol=2e-4)


@pytest.mark.parametrize("kind", SPACES)
def test_training_lowers_the_loss(kind, tmp_path):
    model, *_ = searched(kind)
    values = train(lambda: outputs_of(model).loss, model.parameters(), rate=3e-3)
    assert values[-1] < 0.9 * values[0]
    model.save_pretrained(tmp_path)  # as the model that it was
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(detector(kind)).__name__] and "loss_type" not in config


def test_what_a_detector_cannot_take_is_told():
    with pytest.raises(ValueError, match="RTDetrForObjectDetection takes none"):
        exported("transformers", spaces.MULTI_CLASS, "CE").install(detector("rt_detr"))
    with pytest.raises(ValueError, match="DetrForObjectDetection takes none"):
        exported("transformers", spaces.BINARY_CLASS, "focal").install(detector("detr"))
    strides = exported("transformers", spaces.BOX, "A_reg", units="strides")
    with pytest.raises(ValueError, match="searched in strides"):
        strides.install(detector("detr"))
    losses_of(strides.install(detector("detr"), size=(6, 4)))
    (_, truth), _ = strides.calls[0]
    assert truth.max() < 6
