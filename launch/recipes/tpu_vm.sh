#!/usr/bin/env bash
# A search and a training on a Cloud TPU VM of one host; its chips share each batch.
# Not run on the real thing.  DRY=1 prints the commands.
set -euo pipefail
dry=${DRY:+echo}

$dry python -m pip install "jax[tpu]" .
# A chip belongs to one process, so trainings run in threads of this one.
$dry python launch/search.py --config=configs/search/faster_rcnn_r50_coco.py --workers=inline:1 \
  --workdir=runs/coco --config.data.root="${DATA:-/data/coco}" --config.weights.file=resnet50-0676ba61.pth
$dry python launch/train.py --config=configs/train/faster_rcnn_r50_coco.py --search=runs/coco \
  --config.train.compute=bfloat16 --config.data.root="${DATA:-/data/coco}" --config.weights.file=resnet50-0676ba61.pth
