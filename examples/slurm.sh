#!/bin/sh
# Two nodes of four GPUs: sbatch examples/slurm.sh CONFIG [words of gfm-jepa fit ...]
# Lightning reads ranks from SLURM; SIGUSR1 before the time limit makes it save and requeue the job.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=SIGUSR1@120
#SBATCH --requeue
set -e
config=$1
shift
exec srun gfm-jepa fit --config "$config" \
    --trainer.num_nodes=2 --trainer.devices=4 --trainer.strategy=ddp "$@"
