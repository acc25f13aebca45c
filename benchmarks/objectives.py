"""Methods on EuroSAT RGB (spatial split) at equal training time, a row at a time.

    python benchmarks/objectives.py --root DIR --minutes 10 --seeds 2

A minute is one of two quiet cores, counted as two minutes of processor time of a process with one
thread, on a machine on which a step of VICReg takes 0.287 s: that of 2026-11-27. Machines differ
by up to three times, so that each row measures a step of VICReg beside a step of its own method,
and scales. For each method and seed a process of its own does that, trains as many steps as fit
(ours with `configs/<method>_eurosat_rgb.yaml`, torchgeo's with torchgeo_objectives.py), probes, and
appends its rows to benchmarks/results/objectives.csv. What stands there is skipped, so that a
broken call goes on, ours from the last 500 steps; encoders of ours are kept in `--keep`, and probed
without training when they are there. `--best 3 --minutes 40` takes the best three methods of the
rows that are there. The last line is one JSON object: mean and spread over seeds, by method and
features.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from lightning.pytorch import seed_everything
from rows import Row, read, require_columns
from rows import fill as fill_rows
from throughput import OURS, Clock, config_of, time_ours
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gfm_jepa import tasks
from gfm_jepa.data.benchmarks import Benchmark, load_benchmark
from gfm_jepa.errors import InputError, told_in_one_sentence
from gfm_jepa.evaluation.baselines import ImageStatistics, RandomConvolutions, random_init
from gfm_jepa.evaluation.features import Embed, EncoderFeatures, Features, extract_features
from gfm_jepa.evaluation.probes import knn_probe, linear_probe
from gfm_jepa.evaluation.readouts import add_random_filters, fit_readout
from gfm_jepa.models import Encoder
from gfm_jepa.models.hub import from_pretrained

# Views of 24 or 32 px, whatever the config has today.
RESIZED = tuple(f'{m}@{side}' for m in ('lejepa', 'vicreg', 'simsiam') for side in (24, 32))
THEIRS = ('torchgeo-mae', 'torchgeo-simclr', 'torchgeo-byol')
BASELINES = ('image-statistics', 'rcf-torchgeo-defaults', 'rcf-512', 'random-init')
CALIBRATION_STEPS = 30
# What makes minutes of different machines the same: the step that most rows were made beside.
YARDSTICK, YARDSTICK_SECONDS = 'vicreg', 0.287
COLUMNS = (
    'method', 'minutes', 'seed', 'steps', 'seconds_a_step', 'features', 'width', 'knn5', 'linear',
)  # fmt: skip
RESULTS = Path(__file__).parent / 'results' / 'objectives.csv'


def affordable(name: str, clock: Clock, minutes: float) -> tuple[int, float]:
    """Steps in so many minutes of two cores of the reference machine, and a step's seconds there.

    Args:
        name: Of what was timed; a step of VICReg as it is is known, and not measured again.
        clock: Of some of its steps on this machine, in this process.
        minutes: Of two cores.
    """
    own = Clock.step(clock.processor)
    beside = own
    if name != YARDSTICK:
        beside = Clock.step(time_ours(YARDSTICK, CALIBRATION_STEPS)[0].processor)
    seconds = own / beside * YARDSTICK_SECONDS
    print(f'A step takes {own:.3f} s here, {YARDSTICK} {beside:.3f} s.', file=sys.stderr)
    return max(int(120 * minutes / seconds), 1), seconds


def train_ours(
    method: str,
    steps: int,
    seed: int,
    root: str,
    changes: Mapping[str, Any] = MappingProxyType({}),
    keep: Path | None = None,
) -> Any:
    """Train one of our configs, perhaps changed, for so many steps and return its encoder.

    Where its checkpoint is kept, a run of it that was broken off goes on.
    """
    from gfm_jepa.cli import main as gfm_jepa

    with tempfile.TemporaryDirectory() as scratch:
        folder = keep.with_suffix('') if keep else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / 'config.yaml'
        config.write_text(yaml.safe_dump(config_of(method, changes)))
        words = [
            'fit', '--config', str(config), f'--data.root={root}',
            f'--trainer.max_steps={steps}', f'--seed_everything={seed}',
            '--trainer.logger=false', f'--trainer.default_root_dir={folder}',
            '--trainer.enable_progress_bar=false',
            '--trainer.callbacks=gfm_jepa.tasks.CollapseGuard',
            '--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint',
            f'--trainer.callbacks.dirpath={folder}', '--trainer.callbacks.save_last=true',
            '--trainer.callbacks.every_n_train_steps=500', '--ckpt_path=auto',
        ]  # fmt: skip
        if gfm_jepa(words):
            raise SystemExit(f'{method} did not train.')
        encoder = from_pretrained(folder / 'last.ckpt')
        if keep:
            (folder / 'last.ckpt').replace(keep)
            shutil.rmtree(folder)
        return encoder


def train_theirs(method: str, minutes: float, root: str) -> tuple[Any, int, float]:
    """Train a task of torchgeo; returns its encoder, the steps and a step's seconds."""
    import torchgeo_objectives as theirs

    images: Dataset[Any] = theirs.UnitImages(root)
    clock = Clock()
    theirs.train(method, CALIBRATION_STEPS, images, [clock])
    steps, seconds = affordable(method, clock, minutes)
    return theirs.train(method, steps, images, []), steps, seconds


def train_or_find(
    method: str, minutes: float, seed: int, root: str, keep: Path
) -> tuple[Any, int, float]:
    """Encoder, steps and a step's seconds of one of our methods, perhaps from an earlier call.

    Raises:
        InputError: If that was with another config.
    """
    checkpoint = keep / f'{method}_{minutes:g}_{seed}.ckpt'
    about = checkpoint.with_suffix('.json')
    if about.is_file():
        told = json.loads(about.read_text())
        if not isinstance(told, dict) or told['config'] != config_of(method):
            raise InputError(
                f'{checkpoint} is of another config than {method} has today; name another --keep.'
            )
    else:
        steps, seconds = affordable(method, time_ours(method, CALIBRATION_STEPS)[0], minutes)
        told = {'steps': steps, 'seconds': seconds, 'config': config_of(method)}
        keep.mkdir(parents=True, exist_ok=True)
        about.write_text(json.dumps(told))
    # A run that goes on keeps its schedule, whatever a step takes today.
    steps, seconds = told['steps'], told['seconds']
    if checkpoint.is_file():
        return from_pretrained(checkpoint), steps, seconds
    return train_ours(method, steps, seed, root, keep=checkpoint), steps, seconds


def embed(model: Embed, benchmark: Benchmark) -> list[Features]:
    """Features of train, val and test."""
    parts = benchmark.train, benchmark.val, benchmark.test
    return [extract_features(model, part, progress=False) for part in parts]


def feature_sets(
    encoder: Encoder, method: str, benchmark: Benchmark
) -> Iterator[tuple[str, list[Features]]]:
    """All that an encoder offers, from one pass over the images.

    With random filters `forward_depths` is wider by what they say and else the same, and the
    embedding, the mean over the last tokens, is one of its parts.
    """
    filtered = add_random_filters(encoder, images_of(benchmark))
    everything = embed(EncoderFeatures(filtered, method, benchmark, 'depths'), benchmark)

    width, depths = encoder.embed_dim, encoder.depths_dim
    last = depths - encoder.statistics_dim - width  # where the tokens' standard deviations start
    for kind, columns in (('embedding', slice(last - width, last)), ('depths', slice(depths))):
        yield kind, [replace(p, embeddings=p.embeddings[:, columns]) for p in everything]
    for kind, count in (('readout', depths), ('readout+rcf', filtered.depths_dim)):
        yield kind, read_out(everything, count)


def read_out(depths: list[Features], count: int | None = None) -> list[Features]:
    """What `add_readout` makes of the first `count` depth features; fitted to the first part."""
    weight, bias = fit_readout(depths[0].embeddings[:, :count])
    return [replace(p, embeddings=p.embeddings[:, :count] @ weight.T + bias) for p in depths]


def measured(
    method: str, minutes: float, seed: int, root: str, benchmark: Benchmark, keep: Path
) -> Iterator[tuple[str, list[Features], int, float]]:
    """Yield kind of features, themselves, steps and seconds a step of a method or baseline."""
    if method == 'image-statistics':
        yield 'statistics', embed(ImageStatistics('rgb'), benchmark), 0, 0.0
    elif method == 'rcf-512':
        model = RandomConvolutions(benchmark.train, 'rgb', seed=seed + 1)
        yield 'rcf', embed(model, benchmark), 0, 0.0
    elif method == 'rcf-torchgeo-defaults':
        from torchgeo.models import RCF

        rcf = RCF(in_channels=3, features=512, seed=seed, mode='gaussian').eval()
        yield 'rcf', embed(lambda batch: rcf(batch['rgb'] / 255), benchmark), 0, 0.0
    elif method == 'torchgeo-mae':
        vit, steps, seconds = train_theirs(method, minutes, root)
        features = embed(lambda batch: vit(batch['rgb'] / 255), benchmark)
        yield 'embedding', features, steps, seconds
    else:
        if method in THEIRS:
            encoder, steps, seconds = train_theirs(method, minutes, root)
        elif method == 'random-init':
            task = tasks.LeJEPA(['rgb'], **config_of('lejepa')['model']['init_args'])
            encoder, steps, seconds = random_init(task.encoder, seed), 0, 0.0
        else:
            encoder, steps, seconds = train_or_find(method, minutes, seed, root, keep)
        for kind, features in feature_sets(encoder, method, benchmark):
            yield kind, features, steps, seconds


def images_of(benchmark: Benchmark) -> Iterator[dict[str, Tensor]]:
    """The training images, spread over all classes from the start, in batches."""
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(benchmark.train, 256, shuffle=True, generator=order)
    return ({'rgb': batch['rgb']} for batch in loader)


def rows_of(method: str, minutes: float, seed: int, root: str, keep: Path) -> list[Row]:
    """Train and probe one method: a row for each kind of features."""
    seed_everything(seed)
    benchmark = load_benchmark('eurosat-rgb-spatial', root)
    rows = []
    found = measured(method, minutes, seed, root, benchmark, keep)
    for features, (train, val, test), steps, seconds in found:
        rows.append({
            'method': method, 'minutes': minutes, 'seed': seed, 'steps': steps,
            'seconds_a_step': round(seconds, 4), 'features': features,
            'width': train.embeddings.shape[1],
            'knn5': round(knn_probe(train, test, k=5).accuracy, 4),
            'linear': round(linear_probe(train, val, test, progress=False).accuracy, 4),
        })  # fmt: skip
    return rows


def summary(rows: list[Row], minutes: float) -> dict[str, Any]:
    """Mean and spread (largest less smallest) over seeds, in percent, best linear first."""
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if float(row['minutes']) in (minutes, 0.0):
            name = f'{row["method"]} {row["features"]}'
            scores[name].append((100 * float(row['knn5']), 100 * float(row['linear'])))
    table = {}
    for name, values in sorted(scores.items(), key=lambda s: -sum(v[1] for v in s[1]) / len(s[1])):
        knn5, linear = zip(*values, strict=True)
        table[name] = {
            'seeds': len(values),
            'knn5': round(sum(knn5) / len(values), 2),
            'knn5_spread': round(max(knn5) - min(knn5), 2),
            'linear': round(sum(linear) / len(values), 2),
            'linear_spread': round(max(linear) - min(linear), 2),
        }  # fmt: skip
    return table


def markdown(rows: list[Row], minutes: float) -> str:
    """The table of README.md: mean, and spread over seeds where there are several."""
    lines = [f'| {minutes:g} minutes | features | seeds | kNN-5 % | linear % |',
             '|---|---|---|---|---|']  # fmt: skip
    for name, row in summary(rows, minutes).items():
        method, features = name.split()
        scores = [f'{row[c]:.1f}' + (f' ({row[f"{c}_spread"]:.1f})' if row['seeds'] > 1 else '')
                  for c in ('knn5', 'linear')]  # fmt: skip
        lines.append(f'| {method} | {features} | {row["seeds"]} | {scores[0]} | {scores[1]} |')
    return '\n'.join(lines)


def best_methods(rows: list[Row], count: int) -> list[str]:
    """The trained methods with the highest linear accuracy of any features, at any length."""
    found: dict[str, float] = {}
    for row in rows:
        if row['method'] in OURS + THEIRS:
            found[row['method']] = max(found.get(row['method'], 0.0), float(row['linear']))
    return sorted(found, key=lambda m: -found[m])[:count]


def fill(args: argparse.Namespace) -> None:
    """Make the rows that are missing, `args.jobs` at a time, each in a process with one thread."""
    require_columns(args.output, COLUMNS)
    there = read(args.output)
    known = {(r['method'], float(r['minutes']), int(r['seed'])) for r in there}
    methods = best_methods(there, args.best) if args.best else list(args.methods)
    wanted = [(m, 0.0 if m in BASELINES else args.minutes, seed)
              for seed in range(args.seeds) for m in methods
             if seed == 0 or m != 'image-statistics']  # fmt: skip
    jobs = [['--root', args.root, '--keep', str(args.keep), '--row', m, str(minutes), str(seed)]
            for m, minutes, seed in wanted if (m, minutes, seed) not in known]  # fmt: skip
    fill_rows(args.output, __file__, jobs, args.jobs, lambda r: (
        f'{r["method"]} {r["features"]} seed {r["seed"]}: kNN-5 {r["knn5"]:.4f}, '
        f'linear {r["linear"]:.4f}'))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--root', default='.', help='folder of EuroSAT RGB')
    parser.add_argument('--minutes', type=float, default=10, help='of two cores, per row')
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--jobs', type=int, default=2, help='rows at once; one core each')
    everything = OURS + THEIRS + BASELINES
    parser.add_argument('--methods', nargs='+', default=everything, choices=everything + RESIZED)
    parser.add_argument('--best', type=int, default=0, help='so many best methods so far instead')
    parser.add_argument('--output', type=Path, default=RESULTS)
    parser.add_argument('--keep', type=Path, default=Path('runs/objectives'), help='encoders')
    parser.add_argument('--table', action='store_true', help='print what is there, as Markdown')
    parser.add_argument('--row', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print(markdown(read(args.output), args.minutes))
        return
    if args.row:
        torch.set_num_threads(1)
        method, minutes, seed = args.row
        rows = rows_of(method, float(minutes), int(seed), args.root, args.keep)
        print(json.dumps(rows))
        return
    fill(args)
    print(json.dumps(summary(read(args.output), args.minutes)))


if __name__ == '__main__':
    with told_in_one_sentence('objectives.py'):
        main()
