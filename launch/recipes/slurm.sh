#!/usr/bin/env bash
#SBATCH --job-name=cse_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# A training whose batches are shared by the GPUs of all nodes; one process a node.  The folder of the run and the data
# are on a file system of all nodes.  After a preemption the job is queued again and resumes from the last checkpoint.
# Not run on the real thing.  DRY=1 prints the commands.
set -euo pipefail
dry=${DRY:+echo}

# JAX takes coordinator, number and index of the processes from SLURM.
$dry srun python launch/train.py --coordinator=auto --config=configs/train/faster_rcnn_r50_coco.py \
  --config.data.root="${DATA:-/data/coco}" --config.weights.file=resnet50-0676ba61.pth "$@"
