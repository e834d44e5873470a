"""Pascal VOC: trained on trainval of 2007 and 2012, evaluated on test of 2007, with images of up to 1000 x 600 pixels.

python launch/data.py --config=configs/data/voc.py --config.root=/data/VOCdevkit
"""

from detectors.data.voc import VocData


def get_config() -> VocData:
    return VocData(short_side=600, long_side=1000)
