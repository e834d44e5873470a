r"""Search for Faster R-CNN with ResNet-50 and FPN on COCO 2017, for one GPU.

python launch/search.py --config=configs/search/faster_rcnn_r50_coco.py --config.data.root=/data/coco \
    --config.weights.file=resnet50-0676ba61.pth
python launch/train.py --config=configs/train/faster_rcnn_r50_coco.py --config.data.root=/data/coco \
    --config.weights.file=resnet50-0676ba61.pth --search=runs/faster_rcnn_r50_coco

The search trains on 11,000 images of the training split and selects on 1,000 others, at 400 pixels.  The resized images
take some 12 GB of memory.  The second command trains at full size and length with the discovered losses.  Cost and AP
were not measured.  For another data set in COCO's format set --config.detector.classes, and --config.data.annotations
and --config.data.images if its folders have other names (configs/data/coco_format.py).
"""

from detectors.data.coco import CocoData
from detectors.models.faster_rcnn import FasterRCNNConfig
from detectors.training.schedule import ScheduleConfig
from detectors.training.step import TrainConfig
from search_run import SearchRun, search_in_minutes


def get_config() -> SearchRun:
    return SearchRun(
        name="faster_rcnn_r50_coco",
        search=search_in_minutes(),
        detector=FasterRCNNConfig(),
        train=TrainConfig(warmup_steps=200),
        schedule=ScheduleConfig(
            probe=(100, 200), probe_images=256, overfit=300, proxy=(700, 1500), final=3000, save_every=500
        ),
        data=CocoData(limit=12_000, select_images=1_000, short_side=400, long_side=672, cache=True),
    )
