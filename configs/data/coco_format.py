"""A small data set in COCO's format: ``annotations/instances_{train,val}.json`` and one folder ``images``.

python launch/data.py --config=configs/data/coco_format.py --config.root=/data/mine
"""

from detectors.data.coco import CocoData


def get_config() -> CocoData:
    return CocoData(annotations="annotations/instances_{split}.json", images="images")
