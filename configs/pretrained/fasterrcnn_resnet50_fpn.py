r"""torchvision's Faster R-CNN on ResNet-50 with its weights of COCO.

wget https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth -O fasterrcnn.pth
python launch/predict.py --config=configs/pretrained/fasterrcnn_resnet50_fpn.py --weights=fasterrcnn.pth photo.jpg
python launch/evaluate.py --config=configs/pretrained/fasterrcnn_resnet50_fpn.py --weights=fasterrcnn.pth \
    --config.data.root=/data/coco
"""

from detectors.weights.pretrained import PretrainedFasterRCNN


def get_config() -> PretrainedFasterRCNN:
    return PretrainedFasterRCNN()
