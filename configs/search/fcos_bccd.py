"""FCOS on BCCD blood cells, 252 photographs to train on, 40 to select and 72 to test, at 160 x 120 pixels, on CPUs.

python launch/search.py --config=configs/search/fcos_bccd.py --config.data.root=/data/BCCD
python launch/train.py --config=configs/train/fcos_bccd.py --config.data.root=/data/BCCD --search=runs/fcos_bccd

The second trains a larger detector, at twice the resolution, with what the first has found.
The data set: https://github.com/Shenggan/BCCD_Dataset, folder BCCD.  Cost and AP: docs/benchmarks.md.
"""

from detectors.data.voc import VocData
from detectors.models.fcos import fcos_tiny
from detectors.training.run_config import FCOSRun, search_in_minutes, training_in_seconds
from detectors.training.search_trainer import ScheduleConfig


def get_config() -> FCOSRun:
    return FCOSRun(
        name="fcos_bccd",
        search=search_in_minutes(),
        detector=fcos_tiny(classes=3),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(verify=80, proxy=(150, 400), final=400),
        data=VocData(
            train=("trainval",),
            test=("test",),
            select_images=40,
            names=("RBC", "WBC", "Platelets"),
            max_boxes=40,
            short_side=120,
            long_side=160,
            cache=True,
        ),
    )
