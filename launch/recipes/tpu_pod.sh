#!/usr/bin/env bash
# A training on a slice of a TPU pod: the same command on each of its hosts, which share the work folder (a mounted
# bucket or NFS).  JAX takes coordinator, number and index of the processes from Cloud TPU.
#   NAME=my-slice ZONE=us-central2-b launch/recipes/tpu_pod.sh
# Not run on the real thing.  DRY=1 prints the commands.
set -euo pipefail
dry=${DRY:+echo}

$dry gcloud compute tpus tpu-vm ssh "${NAME:-cse-jax}" --zone="${ZONE:-us-central2-b}" --worker=all --command="\
cd cse_jax && python launch/train.py --coordinator=auto --config=configs/train/faster_rcnn_r50_coco.py \
--config.train.compute=bfloat16 --config.data.root=${DATA:-/shared/coco} --workdir=/shared/runs/coco \
--config.weights.file=/shared/resnet50-0676ba61.pth"
