"""MMDetection on mmcv-lite, whose compiled operators are missing: importing this puts what heads need in their place.

RoIAlign is torchvision's; what is never run here (deformable convolutions and the like) is an empty module.  Without
MMDetection the tests that import this are skipped.
"""

import sys
import types

from extras import need

torch = need("torch")
mmcv = need("mmcv")

import torchvision_oracle  # noqa: E402, F401  (registers torchvision's operators)
from torchvision.ops import roi_align  # noqa: E402


class RoIAlign(torch.nn.Module):
    def __init__(self, output_size, spatial_scale=1.0, sampling_ratio=0, **options):
        super().__init__()
        self.output_size, self.options = (output_size,) * 2, (spatial_scale, sampling_ratio, True)

    def forward(self, features, rois):
        return roi_align(features, rois, self.output_size, *self.options)


def _module(name: str, **attributes) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__path__ = []

    def absent(attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (torch.nn.Module,), {})

    vars(module).update(attributes, __getattr__=absent)
    sys.modules[name] = module
    return module


if not hasattr(mmcv, "ops"):
    mmcv.ops = _module("mmcv.ops", RoIAlign=RoIAlign)
    for part in ("nms", "carafe", "merge_cells", "roi_align", "deform_conv", "modulated_deform_conv"):
        setattr(mmcv.ops, part, _module(f"mmcv.ops.{part}"))
    mmcv.ops.multi_scale_deform_attn = _module("mmcv.ops.multi_scale_deform_attn")

import mmdet.models  # noqa: E402, F401  (registers the heads)
