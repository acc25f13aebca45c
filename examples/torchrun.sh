#!/bin/sh
# One machine, two processes: sh examples/torchrun.sh CONFIG [words of gfm-jepa fit ...]
# On a machine with GPUs, drop the accelerator and set --nproc-per-node and devices to their number.
set -e
config=$1
shift
exec torchrun --standalone --nproc-per-node=2 -m gfm_jepa.cli fit --config "$config" \
    --trainer.accelerator=cpu --trainer.devices=2 --trainer.strategy=ddp "$@"
