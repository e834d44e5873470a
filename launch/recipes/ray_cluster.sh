#!/usr/bin/env bash
# A search on a Ray cluster, a worker for each GPU.  Project, work folder and data have the same path on all machines.
#   on the head:           launch/recipes/ray_cluster.sh head
#   on each other machine: launch/recipes/ray_cluster.sh join HEAD
#   then on the head:      launch/recipes/ray_cluster.sh search HEAD
# Newer versions of Ray ask for a token, which all machines need; RAY_AUTH_MODE=disabled on all of them does without.
# Not run on the real thing.  DRY=1 prints the commands.
set -euo pipefail
dry=${DRY:+echo}

case ${1:-} in
  head) $dry ray start --head --port=6379 --ray-client-server-port=10001 ;;
  join) $dry ray start --address="$2:6379" ;;
  search)
    # Workers that are lost are replaced; if the search itself is interrupted, the same command resumes it.
    $dry python launch/search.py --config=configs/search/faster_rcnn_r50_coco.py --workers="ray://$2:10001" \
      --workdir=/shared/runs/coco --config.data.root="${DATA:-/data/coco}" \
      --config.weights.file=/shared/resnet50-0676ba61.pth
    ;;
  *) echo "usage: $0 head | join HEAD | search HEAD" >&2; exit 1 ;;
esac
