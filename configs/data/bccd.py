"""BCCD blood cells, a small data set in VOC's format.

python launch/data.py --config=configs/data/bccd.py --config.root=/data/BCCD

The root is the folder ``BCCD`` of https://github.com/Shenggan/BCCD_Dataset.
"""

from detectors.data.voc import VocData


def get_config() -> VocData:
    return VocData(
        train=("trainval",),
        test=("test",),
        names=("RBC", "WBC", "Platelets"),
        short_side=480,
        long_side=640,
        cache=True,
    )
