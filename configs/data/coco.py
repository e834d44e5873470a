"""COCO 2017. Building takes about as long as decoding all images once.

python launch/data.py --config=configs/data/coco.py --config.root=/data/coco
"""

from detectors.data.coco import CocoData


def get_config() -> CocoData:
    return CocoData()
