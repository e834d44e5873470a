#!/usr/bin/env bash
# A search on all GPUs of a machine, each a worker of its own; then a training that shares each batch among them.
# Not run on the real thing.  DRY=1 prints the commands.
set -euo pipefail
dry=${DRY:+echo}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

$dry python -m pip install "jax[cuda13]" ".[cluster]"
$dry python launch/search.py --config=configs/search/faster_rcnn_r50_coco.py --workers="ray:$gpus" \
  --workdir=runs/coco --config.data.root="${DATA:-/data/coco}" --config.weights.file=resnet50-0676ba61.pth
# All devices of a process share a batch: nothing is to be said of them.
$dry python launch/train.py --config=configs/train/faster_rcnn_r50_coco.py --search=runs/coco \
  --config.data.root="${DATA:-/data/coco}" --config.weights.file=resnet50-0676ba61.pth
