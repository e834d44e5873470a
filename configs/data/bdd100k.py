"""BDD100K detection, in either layout of its labels.

python launch/data.py --config=configs/data/bdd100k.py --config.root=/data/bdd100k
"""

from detectors.data.bdd100k import Bdd100kData


def get_config() -> Bdd100kData:
    return Bdd100kData()
