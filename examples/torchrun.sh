#!/bin/sh
# Several processes on one machine, two on its CPU as it stands:
#
#   sh examples/torchrun.sh configs/ijepa_rasters.yaml --data.paths=[DIR] [more words of fit]
#
# GPUs: PROCESSES=4 ACCELERATOR=gpu sh examples/torchrun.sh ...      (not run here: there was one at most)
# Several machines, the same line on each (not run here either):
#   NODES=2 RANK=0 HEAD=first-machine:29500 sh examples/torchrun.sh ...      and RANK=1 on the other
#
# batch_size is that of one process: two with 32 see what one with 64 sees, and take the same step.
# Lightning alone starts processes on one machine too: --trainer.devices=2 --trainer.strategy=ddp.
set -eu
config=$1
shift
processes=${PROCESSES:-2}
nodes=${NODES:-1}
if [ "$nodes" -eq 1 ]; then
    where=--standalone  # finds a free port by itself
else
    where="--nnodes=$nodes --node-rank=$RANK --rdzv-backend=c10d --rdzv-endpoint=$HEAD --rdzv-id=1"
fi
# $where is several words. Add --ckpt_path auto to go on where a run was broken off.
# torchrun passes SIGTERM on to its processes, which save and end; SIGUSR1 it does not.
# shellcheck disable=SC2086
exec torchrun $where --nproc-per-node="$processes" -m gfm_jepa.cli fit --config "$config" \
    --trainer.accelerator="${ACCELERATOR:-cpu}" --trainer.devices="$processes" \
    --trainer.num_nodes="$nodes" --trainer.strategy=ddp "$@"
