"""Pascal VOC: trainval of 2007 and 2012, evaluated on test of 2007; images at (1000, 600).

python launch/data.py --config=configs/data/voc.py --config.root=/data/VOCdevkit
"""

from detectors.data.voc import VocData


def get_config() -> VocData:
    return VocData(short_side=600, long_side=1000)
