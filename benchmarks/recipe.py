"""What matters in the recipe: one change at a time, at equal training time, judged on `val`.

    python benchmarks/recipe.py --root DIR --minutes 2

Trains `configs/vicreg_eurosat_rgb.yaml`, or another's, on the spatial train list of EuroSAT RGB
with one thing changed, for so many minutes of two quiet cores (in processor time of the reference
machine, as in objectives.py), and probes: fitted on the spatial train list and tried on the val
list, and back, fitted on val and tried on train, which asks more of a recipe because the lists lie
at other longitudes. The test list is not read. Rows go to benchmarks/results/recipe.csv and are
skipped when they stand there. The last line is one JSON object: kNN-5 and linear accuracy by
variant, percent, mean over seeds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from objectives import CALIBRATION_STEPS, affordable, read_out, train_ours
from rows import Row, fill, read, require_columns
from throughput import time_ours

from gfm_jepa.data.benchmarks import load_benchmark
from gfm_jepa.errors import told_in_one_sentence
from gfm_jepa.evaluation.features import EncoderFeatures, extract_features
from gfm_jepa.evaluation.probes import knn_probe, linear_probe

_ENCODER, _VIEWS, _RATE = (
    'model.init_args.encoder', 'model.init_args.views', 'model.init_args.optimizer.lr',
)  # fmt: skip


def _changes(strength: float) -> dict[str, Any]:
    """Views whose bands change in gain and offset by so much."""
    return {f'{_VIEWS}.gain': strength, f'{_VIEWS}.offset': strength}


# By name: the method, and what is changed in its config.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    'recipe': ('vicreg', {}),
    'LeJEPA': ('lejepa@32', {}),
    # Views of 32 px of a third to a whole chip of 64 px show it coarser than it is embedded later.
    'LeJEPA, crops of 0.1 to 0.6': ('lejepa@32', {f'{_VIEWS}.global_scale': [0.1, 0.6]}),
    'LeJEPA, four views, batch 32': (
        'lejepa@32', {f'{_VIEWS}.num_global': 4, 'data.init_args.batch_size': 32},
    ),
    'LeJEPA, four local views': ('lejepa@32', {
        f'{_VIEWS}.num_local': 4, f'{_VIEWS}.local_scale': [0.06, 0.3],
        f'{_VIEWS}.local_fraction': 0.25,
    }),
    'LeJEPA, projection of 256': ('lejepa@32', {'model.init_args.projection_dim': 256}),
    'SimSiam': ('simsiam', {}),
    'linear stem': ('vicreg', {f'{_ENCODER}.stem': 'linear'}),
    'patches of 16 px': ('vicreg', {f'{_ENCODER}.patch_size': 16}),
    'views of 48 px': ('vicreg', {f'{_VIEWS}.global_fraction': 0.75}),
    'views of 64 px': ('vicreg', {f'{_VIEWS}.global_fraction': 1.0}),
    'crops of 0.1 to 1': ('vicreg', {f'{_VIEWS}.global_scale': [0.1, 1.0]}),
    'four views, batch 32': (
        'vicreg', {f'{_VIEWS}.num_global': 4, 'data.init_args.batch_size': 32},
    ),
    'batch 256': ('vicreg', {'data.init_args.batch_size': 256}),
    'lr 1e-3': ('vicreg', {_RATE: 1e-3}),
    'lr 4e-3': ('vicreg', {_RATE: 4e-3}),
    'gain and offset 0.2': ('vicreg', _changes(0.2)),
    'gain and offset 0.4': ('vicreg', _changes(0.4)),
    'gain and offset 0.7': ('vicreg', _changes(0.7)),
    'noise 0.1': ('vicreg', {f'{_VIEWS}.noise': 0.1}),
    # Of three bands this drops 0.16; a row made before it did (none stands) dropped 0.04.
    'band dropout 0.2': ('vicreg', {f'{_VIEWS}.band_dropout': 0.2}),
    # Against the row of 0.2: run before the recipe had 0.5.
    'trunk of 192 x 6, 0.2': ('vicreg', {f'{_ENCODER}.preset': 'tiny', **_changes(0.2)}),
    'expander of 2048': ('vicreg', {'model.init_args.expander_dims': [2048, 2048, 2048]}),
}  # fmt: skip
COLUMNS = ('knn5', 'linear', 'knn5_back', 'linear_back')
ROW = ('variant', 'minutes', 'seed', 'steps', 'features', *COLUMNS)
RESULTS = Path(__file__).parent / 'results' / 'recipe.csv'


def rows_of(variant: str, minutes: float, seed: int, root: str) -> list[Row]:
    """Train and probe one variant: a row for each kind of features."""
    seed_everything(seed)
    method, changes = VARIANTS[variant]
    clock, _ = time_ours(method, CALIBRATION_STEPS, changes=changes)
    steps, _ = affordable(variant, clock, minutes)
    encoder = train_ours(method, steps, seed, root, changes)
    benchmark = load_benchmark('eurosat-rgb-spatial', root)
    embed = EncoderFeatures(encoder, variant, benchmark, 'depths')
    depths = [extract_features(embed, part, progress=False)
              for part in (benchmark.train, benchmark.val)]  # fmt: skip
    rows: list[Row] = []
    for features, (train, val) in (('depths', depths), ('readout', read_out(depths))):
        rows.append({
            'variant': variant, 'minutes': minutes, 'seed': seed, 'steps': steps,
            'features': features, 'knn5': round(knn_probe(train, val, k=5).accuracy, 4),
            'linear': round(linear_probe(train, val, val, progress=False).accuracy, 4),
            'knn5_back': round(knn_probe(val, train, k=5).accuracy, 4),
            'linear_back': round(linear_probe(val, train, train, progress=False).accuracy, 4),
        })  # fmt: skip
    return rows


def said(row: Row) -> str:
    """A row in words."""
    scores = ', '.join(f'{c} {row[c]}' for c in COLUMNS)
    return f'{row["variant"]}, {row["features"]}: {scores}'


def summary(rows: list[Row], minutes: float) -> dict[str, dict[str, float]]:
    """Percent by variant and kind of features, mean over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if float(row['minutes']) == minutes:
            scores = found.setdefault(f'{row["variant"]} | {row["features"]}', {})
            for column in COLUMNS:
                scores.setdefault(column, []).append(100 * float(row[column]))
    return {n: {c: round(sum(v) / len(v), 2) for c, v in s.items()} for n, s in found.items()}


def markdown(table: dict[str, dict[str, float]]) -> str:
    """The table of README.md."""
    lines = ['| variant | features | kNN-5 % | linear % | kNN-5 back | linear back |',
             '|---|---|---|---|---|---|']  # fmt: skip
    lines += [f'| {n} | {" | ".join(f"{s[c]:.1f}" for c in COLUMNS)} |' for n, s in table.items()]
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--root', default='.', help='folder of EuroSAT RGB')
    parser.add_argument('--minutes', type=float, default=2, help='of two cores, per row')
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--jobs', type=int, default=2, help='rows at once; one core each')
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument('--output', type=Path, default=RESULTS)
    parser.add_argument('--table', action='store_true', help='print what is there, as Markdown')
    parser.add_argument('--row', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print(markdown(summary(read(args.output), args.minutes)))
        return
    if args.row:
        torch.set_num_threads(1)
        variant, minutes, seed = args.row
        print(json.dumps(rows_of(variant, float(minutes), int(seed), args.root)))
        return
    require_columns(args.output, ROW)
    known = {(r['variant'], float(r['minutes']), int(r['seed'])) for r in read(args.output)}
    jobs = [
        ['--root', args.root, '--row', variant, str(args.minutes), str(seed)]
        for seed in range(args.seeds) for variant in args.variants
        if (variant, args.minutes, seed) not in known
    ]  # fmt: skip
    fill(args.output, __file__, jobs, args.jobs, said)
    print(json.dumps(summary(read(args.output), args.minutes)))


if __name__ == '__main__':
    with told_in_one_sentence('recipe.py'):
        main()
