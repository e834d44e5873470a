#!/usr/bin/env bash
# A search and a training on a slice of a TPU pod: the same commands on each of its hosts, which share the work folder
# (a mounted bucket or NFS).  JAX takes coordinator, number and index of the processes from Cloud TPU.
#   NAME=my-slice ZONE=us-central2-b launch/recipes/tpu_pod.sh
# Not run on the real thing.  DRY=1 prints the commands.
set -euo pipefail
dry=${DRY:+echo}

on_all_hosts() {
  $dry gcloud compute tpus tpu-vm ssh "${NAME:-cse-jax}" --zone="${ZONE:-us-central2-b}" --worker=all --command="\
cd cse_jax && $1 --coordinator=auto --config.data.root=${DATA:-/shared/coco} \
--config.weights.file=/shared/resnet50-0676ba61.pth"
}

on_all_hosts "python launch/search.py --config=configs/search/faster_rcnn_r50_coco.py --workdir=/shared/runs/coco"
on_all_hosts "python launch/train.py --config=configs/train/faster_rcnn_r50_coco.py --workdir=/shared/runs/coco_long \
--config.train.compute=bfloat16 --search=/shared/runs/coco"
