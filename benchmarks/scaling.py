"""What limits the recipe: more steps, larger batches, larger views or larger encoders, on one GPU.

    python benchmarks/scaling.py --root DIR --minutes 6

Trains `configs/lejepa_eurosat_rgb.yaml` and variants of it on the spatial train list of EuroSAT
RGB, all at once on one GPU, a process each, for the same minutes by the clock (the schedule goes by
it, too), in bfloat16 where autocast takes it. Each is probed with the readout and random filters,
as the rows of objectives.py: on val, by which one may choose, and on test. `--output` keeps the
encoders. The last line is one JSON object: steps, kNN-5 and linear accuracy by variant.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from objectives import images_of, read_out
from throughput import our_task
from torch import Tensor

from gfm_jepa import save_pretrained
from gfm_jepa.data.benchmarks import Benchmark, load_benchmark
from gfm_jepa.evaluation.features import EncoderFeatures, Features, extract_features
from gfm_jepa.evaluation.probes import knn_probe, linear_probe
from gfm_jepa.evaluation.readouts import add_random_filters
from gfm_jepa.models import Encoder
from gfm_jepa.tasks.base import warmup_cosine

_PRESET, _BATCH, _FRACTION = (
    'model.init_args.encoder.preset', 'data.init_args.batch_size',
    'model.init_args.views.global_fraction',
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    'recipe': {},
    'batch 256': {_BATCH: 256},
    'batch 1024': {_BATCH: 1024},
    'batch 256, views of 64 px': {_BATCH: 256, _FRACTION: 1.0},
    'batch 256, tiny': {_BATCH: 256, _PRESET: 'tiny'},
    'batch 256, small': {_BATCH: 256, _PRESET: 'small'},
}
TICKS = 10_000  # of the schedule


def train(variant: str, minutes: float, images: Tensor) -> tuple[Encoder, int]:
    """Train a variant for so many minutes on images (N, 3, H, W); its encoder, and steps."""
    task, batch_size, clip = our_task('lejepa', VARIANTS[variant])
    task.cuda().train()
    # There is no trainer, which these would ask.
    task._seed, task.log_dict = 0, lambda values: None
    optimizer = torch.optim.AdamW(
        task.parameter_groups(), task.optimizer_config.lr, task.optimizer_config.betas
    )
    order = torch.Generator(images.device).manual_seed(0)
    step, start = 0, time.monotonic()
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        if step % (len(images) // batch_size) == 0:
            shuffled = torch.randperm(len(images), generator=order, device=images.device)
            batches = shuffled.split(batch_size)
        batch = {'rgb': images[batches[step % (len(images) // batch_size)]].float()}
        rate = warmup_cosine(int(TICKS * done), TICKS, task.optimizer_config.warmup, 1e-3)
        for group in optimizer.param_groups:
            group['lr'] = rate * task.optimizer_config.lr
        with torch.autocast('cuda', torch.bfloat16):
            loss = task.compute_loss(batch, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), clip)
        optimizer.step()
        step += 1
    encoder: Encoder = task.encoder.eval()
    return encoder, step


def probed(encoder: Encoder, benchmark: Benchmark) -> dict[str, float]:
    """Accuracies of the readout with random filters on val and test, in percent."""
    filtered = add_random_filters(encoder.cpu(), images_of(benchmark)).cuda()
    embed = EncoderFeatures(filtered, 'scaling', benchmark, 'depths')
    parts = [extract_features(embed, part, progress=False)
             for part in (benchmark.train, benchmark.val, benchmark.test)]  # fmt: skip
    train, val, test = (on_gpu(part) for part in read_out(parts))
    return {
        f'{measure}_{name}': round(100 * value, 1)
        for name, part in (('val', val), ('test', test))
        for measure, value in (
            ('knn5', knn_probe(train, part).accuracy),
            ('linear', linear_probe(train, val, part, progress=False).accuracy),
        )
    }


def on_gpu(part: Features) -> Features:
    """Features there, where probes are faster."""
    return replace(part, embeddings=part.embeddings.cuda(), labels=part.labels.cuda())


def row_of(variant: str, minutes: float, root: str, output: Path | None) -> dict[str, Any]:
    """Train and probe a variant."""
    torch.manual_seed(0)
    benchmark = load_benchmark('eurosat-rgb-spatial', root)
    everything: Any = benchmark.train
    samples = everything.__getitems__(range(len(everything)))
    images = torch.stack([s['rgb'] for s in samples]).to('cuda', torch.uint8)
    encoder, steps = train(variant, minutes, images)
    print(f'{variant}: {steps} steps', file=sys.stderr, flush=True)
    if output is not None:
        save_pretrained(encoder.cpu(), output / variant.replace(', ', '_').replace(' ', '_'))
    return {'variant': variant, 'steps': steps, **probed(encoder, benchmark)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--root', default='.', help='folder of EuroSAT RGB')
    parser.add_argument('--minutes', type=float, default=6, help='by the clock')
    parser.add_argument('--output', type=Path, help='folder for the encoders')
    parser.add_argument('--variant', choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(row_of(args.variant, args.minutes, args.root, args.output)), flush=True)
        return
    calls = [[sys.executable, __file__, *sys.argv[1:], '--variant', v] for v in VARIANTS]
    running = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for call in calls]
    printed = [process.communicate()[0].splitlines() for process in running]
    if failed := [v for v, p in zip(VARIANTS, running, strict=True) if p.returncode]:
        raise SystemExit(f'{", ".join(failed)} failed; what was said stands above.')
    rows = [json.loads(lines[-1]) for lines in printed]
    print('| | steps | val kNN-5 % | val linear % | test kNN-5 % | test linear % |')
    print('|---' * 6 + '|')
    for row in rows:
        print('| ' + ' | '.join(str(value) for value in row.values()) + ' |')
    print(json.dumps(rows))


if __name__ == '__main__':
    main()
