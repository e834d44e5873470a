"""Search for FCOS on BCCD blood cells, for CPUs.

python launch/search.py --config=configs/search/fcos_bccd.py --config.data.root=/data/BCCD
python launch/train.py --config=configs/train/fcos_bccd.py --config.data.root=/data/BCCD --search=runs/fcos_bccd

The search has 252 photographs to train on, 40 to select on and 72 to test on, at 160 x 120 pixels.  The second command
trains a larger detector, at twice the resolution, with the discovered losses.  The data set is the folder BCCD of
https://github.com/Shenggan/BCCD_Dataset.  Cost and AP are in docs/benchmarks.md.
"""

from detectors.data.voc import VocData
from detectors.models.fcos import fcos_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.search_trainer import ScheduleConfig
from search_run import SearchRun, search_in_minutes


def get_config() -> SearchRun:
    return SearchRun(
        name="fcos_bccd",
        search=search_in_minutes(),
        detector=fcos_tiny(classes=3),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(overfit=80, proxy=(150, 400), final=400),
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
