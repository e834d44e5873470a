#!/usr/bin/env bash
#SBATCH --job-name=cse_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# A search whose trainings run on the GPUs of all nodes, and then a training whose batches they share.  The folders of
# the runs and the data are on a file system of all nodes.  After a preemption the job is queued again and resumes.
# Not run on the real thing.  DRY=1 prints the commands.
set -euo pipefail
dry=${DRY:+echo}

# JAX takes coordinator, number and index of the processes from SLURM, and one GPU for each process.
$dry srun python launch/search.py --coordinator=auto --config=configs/search/faster_rcnn_r50_coco.py \
  --workdir=runs/coco --config.data.root="${DATA:-/data/coco}" --config.weights.file=resnet50-0676ba61.pth
$dry srun python launch/train.py --coordinator=auto --config=configs/train/faster_rcnn_r50_coco.py \
  --search=runs/coco --config.data.root="${DATA:-/data/coco}" --config.weights.file=resnet50-0676ba61.pth "$@"
