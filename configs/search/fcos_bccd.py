"""Search for FCOS on BCCD blood cells, for CPUs.

python launch/search.py --config=configs/search/fcos_bccd.py --config.data.root=/data/BCCD
python launch/train.py --config=configs/train/fcos_bccd.py --config.data.root=/data/BCCD --search=runs/fcos_bccd

The search sees the photographs at 160 x 120 pixels.  The second command trains a larger detector, at twice the
resolution, with the discovered losses.  The data set is the folder BCCD of https://github.com/Shenggan/BCCD_Dataset.
Cost and AP are in docs/benchmarks.md.
"""

from detectors.models.fcos import fcos_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun, bccd_at_120, search_in_minutes


def get_config() -> SearchRun:
    return SearchRun(
        name="fcos_bccd",
        search=search_in_minutes(),
        detector=fcos_tiny(classes=3),
        train=training_in_seconds(learning_rate=0.002),
        schedule=ScheduleConfig(overfit=80, proxy=(200, 400), final=400, start=1000),
        data=bccd_at_120(),
    )
