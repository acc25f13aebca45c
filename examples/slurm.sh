#!/bin/sh
# I-JEPA on two nodes of four GPUs, requeued by SLURM until it is finished:
#
#   sbatch examples/slurm.sh configs/ijepa_ssl4eo.yaml --data.root=DIR [more words of gfm-jepa fit]
#
# NOT RUN HERE: there was no cluster. What it rests on has been tested: that SIGUSR1 saves and ends
# with status 138, and that --ckpt_path auto goes on bit for bit (tests/test_runs.py).
#
#SBATCH --job-name=gfm-jepa
#SBATCH --nodes=2                 # also --trainer.num_nodes below
#SBATCH --ntasks-per-node=4       # one process a GPU; also --trainer.devices below
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8         # data.num_workers of each process, and one to train
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120         # to all processes, 120 s before the time is over
#SBATCH --requeue                 # a node that fails, or a job of higher rank, puts it back in line
#SBATCH --open-mode=append        # one log for all its turns
#SBATCH --output=%x-%j.out
set -u
config=$1
shift

# Each turn runs the same words: `auto` goes on from the newest checkpoint in runs/<name of config>,
# and begins anew where there is none. Runs must lie on a file system that all nodes see.
# Lightning's own requeueing is off: it saves in the middle of a step, we save after it.
status=0
srun --kill-on-bad-exit=1 gfm-jepa fit --config "$config" --ckpt_path auto \
    --trainer.accelerator=gpu --trainer.devices=4 --trainer.num_nodes=2 --trainer.strategy=ddp \
    --trainer.plugins=lightning.pytorch.plugins.environments.SLURMEnvironment \
    --trainer.plugins.init_args.auto_requeue=false \
    "$@" || status=$?

# 138: SIGUSR1, the time is over; 143: SIGTERM, somebody else needs the nodes, and SLURM requeues by
# itself. 0: finished. Anything else, 2 for bad input among them, would only fail again.
if [ "$status" -eq 138 ]; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
