"""COCO 2017 in its original layout.

python launch/data.py --config=configs/data/coco.py --config.root=/data/coco

Building takes about as long as decoding all images once.
"""

from detectors.data.coco import CocoData


def get_config() -> CocoData:
    return CocoData()
