"""Change between two Landsat dates of Taizhou, found without labels and judged with them.

    python benchmarks/change_taizhou.py --data ../shared/data/rasters/change_taizhou

The 21,390 labelled pixels of a pair of 2000 and 2003, 30 m. Every method gives each pixel a score;
F1 is that of the pixels above a threshold that no label chooses (`split_scores`), "best F1" that
of the best threshold. Intervals are 95 % of a bootstrap over blocks of 20 x 20 pixels, since labels
lie in patches. Writes benchmarks/results/change_taizhou.csv and .png; the last line is one JSON
object.
"""

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score

from gfm_jepa import from_pretrained
from gfm_jepa.data.raster_files import gdal
from gfm_jepa.evaluation.baselines import random_init
from gfm_jepa.evaluation.change import split_scores
from gfm_jepa.evaluation.embeddings import open_map
from gfm_jepa.evaluation.pixel_change import bands_of, pixel_change
from gfm_jepa.evaluation.plots import save
from gfm_jepa.models import Encoder

Float = NDArray[np.float32]
BANDS = ('B02', 'B03', 'B04', 'B08', 'B11', 'B12')  # Sentinel-2's for Landsat 7's 1-5 and 7
BLOCK, DRAWS = 20, 200
RESULTS = Path(__file__).parent / 'results'


def standardised(x: Float) -> Float:
    """Bands with mean 0 and standard deviation 1."""
    scaled: Float = (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
    return scaled


def methods(weights: str, before: Float, after: Float) -> dict[str, Float]:
    """Scores (H, W) by method."""
    encoder = from_pretrained(weights, modalities=['s2_l2a'], bands={'s2_l2a': list(BANDS)})
    twin = random_init(encoder)
    assert isinstance(encoder, Encoder) and isinstance(twin, Encoder)
    difference = after - before
    common = standardised(after) - standardised(before)
    return {
        'image differencing': np.abs(difference).mean(axis=0),
        'change vector analysis': np.linalg.norm(difference, axis=0),
        'change vector analysis, standardised': np.linalg.norm(common, axis=0),
        'random init, pixel_change': pixel_change(twin, 's2_l2a', before, after),
        f'{weights}, pixel_change': pixel_change(encoder, 's2_l2a', before, after),
    }


def judge(scores: Float, marked: NDArray[np.bool_], above: NDArray[np.bool_]) -> dict[str, float]:
    """AUC, F1 and the best F1 of labelled pixels."""
    precision, recall, _ = precision_recall_curve(marked, scores)
    best = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return {
        'auc': float(roc_auc_score(marked, scores)),
        'f1': float(f1_score(marked, above)),
        'best_f1': float(best.max()),
    }


def intervals(
    judged: Callable[[NDArray[np.int64]], dict[str, float]], blocks: NDArray[np.int64]
) -> dict[str, str]:
    """95 % intervals over blocks drawn with replacement."""
    random, (_, which) = np.random.default_rng(0), np.unique(blocks, return_inverse=True)
    members = [np.flatnonzero(which == b) for b in range(which.max() + 1)]
    drawn = [judged(np.concatenate([members[b] for b in random.integers(len(members), size=len(
        members))])) for _ in range(DRAWS)]  # fmt: skip
    return {
        f'{name}_95': '{:.3f} to {:.3f}'.format(
            *np.percentile([d[name] for d in drawn], (2.5, 97.5))
        )
        for name in drawn[0]
    }


def figure(scores: dict[str, Float], labels: NDArray[np.int64]) -> Figure:
    """Scores side by side, and the labels."""
    result = Figure(figsize=(4 * (len(scores) + 1) / 2, 8.4), layout='constrained')
    axes = result.subplots(2, -(-(len(scores) + 1) // 2)).ravel()
    for ax, (name, values) in zip(axes, scores.items(), strict=False):
        low, high = np.nanpercentile(values, (2, 98))
        ax.imshow(values, cmap='cividis', vmin=low, vmax=high)
        ax.set_title(name.replace(', ', '\n'), fontsize=9)
    shown = np.ma.masked_less(labels, 0)
    axes[len(scores)].imshow(shown, cmap='cividis', interpolation='nearest')
    axes[len(scores)].set_title('labels: changed (yellow), unchanged (blue)', fontsize=9)
    for ax in axes:
        ax.set_axis_off()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--data', type=Path, required=True, help='folder of taizhou_*.tif')
    parser.add_argument('--weights', default='gfm-jepa-nano')
    parser.add_argument('--output', type=Path, default=RESULTS / 'change_taizhou.csv')
    args = parser.parse_args()
    with gdal():
        before, after, mask = (
            bands_of(open_map(args.data / f'taizhou_{n}.tif')) for n in ('t1', 't2', 'mask')
        )
    labels = np.nan_to_num(mask[0], nan=-1).astype(np.int64)
    known = labels >= 0
    marked = labels[known] > 0
    row, col = np.nonzero(known)
    blocks = row // BLOCK * 10_000 + col // BLOCK
    rows, found = [], methods(args.weights, before, after)
    for name, scores in found.items():
        values, above = scores[known], (scores > split_scores(scores))[known]

        def judged(
            at: NDArray[np.int64], values: Float = values, above: NDArray[np.bool_] = above
        ) -> dict[str, float]:
            return judge(values[at], marked[at], above[at])

        result = judged(np.arange(len(values)))
        rounded = {k: f'{v:.4f}' for k, v in result.items()}
        rows.append({'method': name, **rounded, **intervals(judged, blocks)})
    with args.output.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    save(figure(found, labels), args.output.with_suffix('.png'))
    print('| method | AUC | F1 | best F1 |\n|---|---|---|---|')
    for line in rows:
        cells = [f'{line[k]} ({line[f"{k}_95"]})' for k in ('auc', 'f1', 'best_f1')]
        print(f'| {line["method"]} | {" | ".join(cells)} |')
    print(json.dumps({r['method']: float(r['auc']) for r in rows}))


if __name__ == '__main__':
    main()
