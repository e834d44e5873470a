#!/usr/bin/env bash
# A search on one GPU: whole detectors side by side, as many as fit its memory and make a candidate cheaper.
# Not run on the real thing.  DRY=1 prints the commands.
set -euo pipefail
dry=${DRY:+echo}

$dry python -m pip install "jax[cuda13]" .
# One thread prepares a group of trainings while the other's runs.
$dry python launch/search.py --config=configs/search/faster_rcnn_r50_coco.py --workers=inline:2 \
  --config.data.root="${DATA:-/data/coco}" --config.weights.file=resnet50-0676ba61.pth "$@"
