r"""Search for Mask R-CNN on a data set in COCO's format with masks, at 128 x 160 pixels.

python launch/search.py --config=configs/search/mask_rcnn_coco.py --config.data.root=/data/mine \
    --config.detector.classes=80

The folder is as in configs/data/coco_format.py.  40 images of the training split are held out to select on.  Cost and
AP were not measured.
"""

from detectors.data.coco import CocoData
from detectors.models.mask_rcnn import mask_rcnn_tiny
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from search_run import SearchRun, search_in_minutes


def get_config() -> SearchRun:
    return SearchRun(
        name="mask_rcnn_coco",
        search=search_in_minutes(),
        detector=mask_rcnn_tiny(classes=80),
        train=training_in_seconds(learning_rate=0.0015),
        schedule=ScheduleConfig(overfit=80, proxy=(200, 400), final=400, start=1000),
        data=CocoData(
            annotations="annotations/instances_{split}.json",
            images="images",
            train="train",
            test="val",
            select_images=40,
            short_side=128,
            long_side=160,
            mask_stride=4,
            cache=True,
        ),
    )
