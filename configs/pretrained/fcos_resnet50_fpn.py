r"""torchvision's FCOS on ResNet-50 with its weights of COCO.

wget https://download.pytorch.org/models/fcos_resnet50_fpn_coco-99b0c9b7.pth -O fcos.pth
python launch/predict.py --config=configs/pretrained/fcos_resnet50_fpn.py --weights=fcos.pth photo.jpg
python launch/evaluate.py --config=configs/pretrained/fcos_resnet50_fpn.py --weights=fcos.pth \
    --config.data.root=/data/coco
"""

from detectors.weights.pretrained import PretrainedFCOS


def get_config() -> PretrainedFCOS:
    return PretrainedFCOS()
