"""Our methods on EuroSAT RGB (spatial split) at equal minutes of training, a row at a time.

    python benchmarks/objectives.py --root DIR --minutes 10 --seeds 2

For each method and seed: measures the step on this machine, trains as many steps as fit into the
minutes with `configs/<method>_eurosat_rgb.yaml`, probes, and appends a row to
benchmarks/results/objectives.csv. What stands there already is skipped, so that a broken call goes
on. The last line is one JSON object: the mean over seeds by method.
"""

import argparse
import csv
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from step_rate import CONFIGS, Clock, Images
from torch.utils.data import DataLoader

from gfm_jepa import tasks
from gfm_jepa.cli import main as gfm_jepa
from gfm_jepa.data.benchmarks import load_benchmark
from gfm_jepa.evaluation.probes import probe
from gfm_jepa.models.hub import from_pretrained

METHODS = ('lejepa', 'vicreg', 'simsiam', 'ijepa', 'latentmim')
COLUMNS = ('method', 'minutes', 'seed', 'steps', 'seconds_a_step', 'features', 'knn5', 'linear',
           'torch_threads')  # fmt: skip


def step_seconds(method: str, steps: int = 40) -> float:
    """Median seconds of a training step of a config, on images in memory."""
    config = yaml.safe_load((CONFIGS / f'{method}_eurosat_rgb.yaml').read_text())
    kind = getattr(tasks, config['model']['class_path'].rpartition('.')[2])
    batch_size = config['data']['init_args']['batch_size']
    clock = Clock()
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=[clock],
        log_every_n_steps=20, gradient_clip_val=config['trainer']['gradient_clip_val'],
    )  # fmt: skip
    loader = DataLoader(Images(20 * batch_size), batch_size=batch_size)
    trainer.fit(kind(['rgb'], **config['model']['init_args']), loader)
    return clock.seconds


def run(method: str, minutes: float, seed: int, root: str) -> list[dict[str, Any]]:
    """Train and probe once: a row for the embedding, and one for several depths."""
    seconds = step_seconds(method)
    steps = max(int(60 * minutes / seconds), 1)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            'fit', '--config', str(CONFIGS / f'{method}_eurosat_rgb.yaml'), f'--data.root={root}',
            f'--trainer.max_steps={steps}', f'--seed_everything={seed}',
            f'--trainer.default_root_dir={folder}',
            '--trainer.enable_progress_bar=false',
        ]  # fmt: skip
        if gfm_jepa(words):
            raise SystemExit(f'{method} did not train.')
        (checkpoint,) = Path(folder).rglob('last.ckpt')
        encoder = from_pretrained(checkpoint)
    benchmark = load_benchmark('eurosat-rgb-spatial', root)
    rows = []
    for features in ('embedding', 'depths'):
        (row,) = probe(encoder, method, benchmark, features, baselines=False)
        rows.append({
            'method': method, 'minutes': minutes, 'seed': seed, 'steps': steps,
            'seconds_a_step': round(seconds, 4), 'features': features,
            'knn5': round(row['knn5'], 4), 'linear': round(row['linear'], 4),
            'torch_threads': torch.get_num_threads(),
        })  # fmt: skip
    return rows


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--root', required=True, help='folder of EuroSAT RGB')
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--methods', nargs='+', default=METHODS, choices=METHODS)
    parser.add_argument(
        '--output', type=Path, default=Path(__file__).parent / 'results' / 'objectives.csv'
    )
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    if args.output.exists():
        with args.output.open(newline='') as file:
            done = list(csv.DictReader(file))
    known = {(r['method'], float(r['minutes']), int(r['seed'])) for r in done}
    for seed in range(args.seeds):
        for method in args.methods:
            if (method, args.minutes, seed) in known:
                continue
            seed_everything(seed)
            done += run(method, args.minutes, seed, args.root)
            partial = args.output.with_suffix('.tmp')
            with partial.open('w', newline='') as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(done)
            partial.replace(args.output)
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in done:
        if float(row['minutes']) == args.minutes:
            name = f'{row["method"]} {row["features"]}'
            scores[name].append((float(row['knn5']), float(row['linear'])))
    means = {
        name: {'knn5': sum(k for k, _ in v) / len(v), 'linear': sum(x for _, x in v) / len(v),
               'seeds': len(v)}
        for name, v in scores.items()
    }  # fmt: skip
    print(json.dumps(means))


if __name__ == '__main__':
    main()
