"""Settings to evaluate torchvision's trained detectors, and to predict with them."""

import dataclasses

from detectors.data.coco import CocoData
from detectors.data.on_disk import DiskData
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.models.fcos import FCOSConfig
from detectors.models.mask_rcnn import MaskRCNNConfig
from detectors.models.torchvision_settings import fasterrcnn_resnet50_fpn, fcos_resnet50_fpn, maskrcnn_resnet50_fpn

# COCO's categories by their numbers, the first of which is 1. Ten numbers are not used.
COCO_NUMBERS = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep"),
    *("cow", "elephant", "bear", "zebra", "giraffe", "", "backpack", "umbrella", "", ""),
    *("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat"),
    *("baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "", "wine glass", "cup", "fork"),
    *("knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog"),
    *("pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "", "dining table", "", "", "toilet"),
    *("", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)


@dataclasses.dataclass
class PretrainedFasterRCNN:
    """torchvision's Faster R-CNN with its weights of COCO.

    Attributes:
      name: name of the folder that evaluations are written to.
      detector: its config.
      data: images to evaluate on; prediction uses their resizing and normalisation as well.
      label_names: names of the detector's labels; empty where a number is not used.
    """

    name: str = "fasterrcnn_resnet50_fpn"
    detector: FasterRCNNConfig = dataclasses.field(default_factory=fasterrcnn_resnet50_fpn)
    data: DiskData = dataclasses.field(default_factory=lambda: CocoData(torchvision_resizing=True))
    label_names: tuple[str, ...] = COCO_NUMBERS


@dataclasses.dataclass
class PretrainedMaskRCNN(PretrainedFasterRCNN):
    """torchvision's Mask R-CNN with its weights of COCO."""

    name: str = "maskrcnn_resnet50_fpn"
    detector: MaskRCNNConfig = dataclasses.field(default_factory=maskrcnn_resnet50_fpn)


@dataclasses.dataclass
class PretrainedFCOS(PretrainedFasterRCNN):
    """torchvision's FCOS with its weights of COCO."""

    name: str = "fcos_resnet50_fpn"
    detector: FCOSConfig = dataclasses.field(default_factory=fcos_resnet50_fpn)
