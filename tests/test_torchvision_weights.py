"""Files that torch.save writes, with torchvision's names of today and of its published weights."""

import re

import jax
import numpy as np
import pytest
from flax import nnx
from torchvision_oracle import CLASSES, arrays, detection, pictures, shake, torch, torchvision

from detectors import weights
from detectors.models import torchvision_settings
from detectors.models.faster_rcnn import FasterRCNN
from detectors.models.fcos import FCOS
from detectors.models.mask_rcnn import MaskRCNN
from detectors.weights.tensor_files import read_tensors

DETECTORS = [
    ("fasterrcnn_resnet50_fpn", FasterRCNN, weights.load_faster_rcnn, weights.faster_rcnn_table),
    ("maskrcnn_resnet50_fpn", MaskRCNN, weights.load_mask_rcnn, weights.mask_rcnn_table),
    ("fcos_resnet50_fpn", FCOS, weights.load_fcos, lambda model: weights.FCOS_TABLE),
]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_files_of_torch_save(tmp_path, zipped):
    network = torchvision.models.resnet18(weights=None)
    shake(network, torch.stack(pictures([(64, 64)] * 2)))
    torch.save(network.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "w.pth")
    assert list(found) == list(network.state_dict())
    for name, array in arrays(network).items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_tensors_that_share_memory_and_have_other_types(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": base,
        "turned": base.T,
        "part": base[1:3, ::2],
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "parameter": torch.nn.Parameter(base + 1),
    }
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        for name, array in read_tensors(tmp_path / "w.pt").items():
            np.testing.assert_array_equal(array.astype(np.float32), tensors[name].detach().float(), err_msg=name)


OLDER_NAMES = [
    (r"fpn\.(\w+)_blocks\.(\d)\.0\.", r"fpn.\1_blocks.\2."),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}."),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "detector", "load", "table"), DETECTORS)
def test_published_names(name, detector, load, table, tmp_path):
    """A file with older names fills a detector as one with today's, and each row of the table is used."""
    network = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    tensors, renamed = network.state_dict(), {}
    for key, tensor in tensors.items():
        for pattern, older in OLDER_NAMES:
            key = re.sub(pattern, older, key)
        renamed[key] = tensor
    assert set(renamed) - set(tensors)
    torch.save(renamed, tmp_path / "w.pth")
    config = getattr(torchvision_settings, name)(CLASSES)
    today, older = (nnx.eval_shape(lambda: detector(config, rngs=nnx.Rngs(0))) for _ in range(2))
    load(older, tmp_path / "w.pth")
    weights.assign(today, arrays(network), table(today))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(older), nnx.state(today))
    paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(today, (nnx.Param, nnx.BatchStat)))]
    shapes = {re.sub(r"/\d+(?=/|$)", "/*", path) for path in paths}
    unused = {row.ours for row in table(today)} - shapes
    assert unused <= ({"fpn/extra/*/kernel", "fpn/extra/*/bias"} if "rcnn" in name else set())
