r"""torchvision's Mask R-CNN on ResNet-50 with its weights of COCO.

wget https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth -O maskrcnn.pth
python launch/predict.py --config=configs/pretrained/maskrcnn_resnet50_fpn.py --weights=maskrcnn.pth photo.jpg
python launch/evaluate.py --config=configs/pretrained/maskrcnn_resnet50_fpn.py --weights=maskrcnn.pth \
    --config.data.root=/data/coco
"""

from detectors.weights.pretrained import PretrainedMaskRCNN


def get_config() -> PretrainedMaskRCNN:
    return PretrainedMaskRCNN()
