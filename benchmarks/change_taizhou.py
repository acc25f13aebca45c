"""Change of a Landsat pair without training: differences of features and of bands.

    python benchmarks/change_taizhou.py --data DIR --weights gfm-jepa-nano

DIR holds taizhou_t1.tif, taizhou_t2.tif (Landsat 7, 6 bands, 30 m) and taizhou_mask.tif (0
unchanged, 1 changed, 255 not labelled). Features see the bands under their names in landsat8, each
date standardised to that modality's statistics (its other bands are the mean). Levels: the stages
of the stem at strides 2 and 4, and the tokens; `zoom` enlarges the image before. Every level is
shown, with a random-init twin of the same architecture: which level is best was seen with labels.
Intervals: 95 %, blocks of 20 x 20 pixels drawn with replacement. The last line is JSON.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import RasterioIOError
from rows import write
from scipy.linalg import eigh
from scipy.stats import chi2
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from gfm_jepa import from_pretrained
from gfm_jepa.errors import InputError, told_in_one_sentence
from gfm_jepa.evaluation.baselines import random_init
from gfm_jepa.evaluation.change import ranking
from gfm_jepa.models import Encoder
from gfm_jepa.models.pyramid import FineMaps
from gfm_jepa.models.weight_files import weights_hash

MODALITY = 'landsat8'
BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07')  # of B1 B2 B3 B4 B5 B7
BLOCK = 20  # pixels
DRAWS = 200
SHOWN = (
    ('change vector analysis', 'standardised'), ('IR-MAD', 'raw'),
    ('gfm-jepa: stem, stride 2', 'standardised, zoom 1'),
    ('random init: stem, stride 2', 'standardised, zoom 1'),
    ('gfm-jepa: stem, stride 4', 'standardised, zoom 4'),
    ('gfm-jepa: tokens', 'standardised, zoom 4'),
    ('random init: tokens', 'standardised, zoom 4'),
)  # fmt: skip
Image = NDArray[np.float64]  # (C, H, W), or (H, W)


def standardised(x: Image) -> Image:
    """Each band with mean 0 and deviation 1 over the date."""
    found: Image = (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
    return found


def length(before: Image, after: Image) -> Image:
    """Length of the difference of each pixel: change vector analysis, of bands or of features."""
    found: Image = np.linalg.norm(after - before, axis=0)
    return found


def ir_mad(before: Image, after: Image, rounds: int = 30) -> Image:
    """Root of the chi-squared of iteratively reweighted multivariate alteration detection.

    Source: Nielsen, "The regularized iteratively reweighted MAD method" (2007), equations 4 to 9,
        without its regularisation.
    """
    bands = len(before)
    x, y = before.reshape(bands, -1).T, after.reshape(bands, -1).T
    weight, squared = np.ones(len(x)), np.zeros(len(x))
    for _ in range(rounds):
        one, two = x - np.average(x, 0, weight), y - np.average(y, 0, weight)
        both = np.hstack([one, two])
        cov = (both * weight[:, None]).T @ both / weight.sum()
        own, other, cross = cov[:bands, :bands], cov[bands:, bands:], cov[:bands, bands:]
        squares, first = eigh(cross @ np.linalg.solve(other, cross.T), own)
        second = np.linalg.solve(other, cross.T) @ first
        second /= np.sqrt(np.einsum('ij,ik,kj->j', second, other, second))
        variates = one @ first - two @ second
        squared = (variates**2 / (2 * (1 - np.sqrt(squares)))).sum(axis=1)
        weight = chi2.sf(squared, bands)
    found: Image = np.sqrt(squared).reshape(before.shape[1:])
    return found


def as_modality(encoder: Encoder, x: Image) -> Tensor:
    """The date in the unit of the modality that the encoder knows, (1, C, H, W)."""
    known = encoder.modalities[MODALITY]
    mean, std = (np.array(v)[:, None, None] for v in (known.mean, known.std))
    full = np.repeat(np.repeat(mean, x.shape[1], axis=1), x.shape[2], axis=2)
    at = [known.bands.index(b) for b in BANDS]
    full[at] += standardised(x) * std[at]
    return torch.from_numpy(full).float()[None]


@torch.inference_mode()
def levels(encoder: Encoder, x: Tensor, zoom: int, window: int = 80) -> Iterator[tuple[str, Image]]:
    """Features of each pixel (D, H, W) at each level, the mean of two shifts by half a stride."""
    height, width = x.shape[-2:]
    x = F.interpolate(x, scale_factor=zoom, mode='bilinear') if zoom > 1 else x
    embed = encoder.embedder(MODALITY)
    rows, cols = x.shape[-2:]
    for name, stride in (('stem, stride 2', 2), ('stem, stride 4', 4), ('tokens', 8)):
        found: Any = 0
        for shift in (0, stride // 2):
            # Windows of tokens: the trunk sees what it was trained on, not 40,000 tokens at once.
            below, right = (-(n + shift) % window for n in (rows, cols))
            padded = F.pad(x, (shift, right, shift, below), mode='replicate')
            if stride < 8:
                values = FineMaps(embed, padded).at(stride)
            else:
                values = tokens(encoder, padded, window)
            full = F.interpolate(values, padded.shape[-2:], mode='bilinear')
            full = full[..., shift : shift + rows, shift : shift + cols]
            found = found + F.adaptive_avg_pool2d(full, (height, width))[0] / 2
        yield name, found.double().numpy()


def tokens(encoder: Encoder, x: Tensor, window: int) -> Tensor:
    """Feature maps of windows, side by side (1, D, h, w)."""
    rows = []
    for band in x.split(window, dim=2):
        batch = {MODALITY: torch.cat(band.split(window, dim=3))}
        rows.append(torch.cat(list(encoder.forward_feature_map(batch)), dim=2))
    return torch.cat(rows, dim=1)[None]


def all_scores(encoder: Encoder, before: Image, after: Image) -> Iterator[tuple[str, str, Image]]:
    """Method, how it was prepared, and its score of each pixel."""
    dates = standardised(before), standardised(after)
    yield 'image differencing', 'raw', np.abs(after.mean(axis=0) - before.mean(axis=0))
    yield 'image differencing', 'standardised', np.abs((dates[1] - dates[0]).mean(axis=0))
    yield 'change vector analysis', 'raw', length(before, after)
    yield 'change vector analysis', 'standardised', length(*dates)
    yield 'IR-MAD', 'raw', ir_mad(before, after)
    for title, model in (('gfm-jepa', encoder), ('random init', random_init(encoder))):
        assert isinstance(model, Encoder)
        inputs = [as_modality(model, x) for x in (before, after)]
        for zoom in (1, 2, 4):
            pairs = zip(*(levels(model, x, zoom) for x in inputs), strict=True)
            for (name, first), (_, second) in pairs:
                score = length(standardised(first), standardised(second))
                yield f'{title}: {name}', f'standardised, zoom {zoom}', score


def intervals(score: Image, labels: NDArray[np.int64], threshold: float) -> dict[str, list[float]]:
    """95 % of AUC and F1 over blocks drawn with replacement."""
    rows, cols = np.nonzero(labels >= 0)
    block = rows // BLOCK * 1000 + cols // BLOCK
    _, block = np.unique(block, return_inverse=True)
    values, marked = score[rows, cols], labels[rows, cols] > 0
    rng, drawn = np.random.default_rng(0), []
    count = block.max() + 1
    for _ in range(DRAWS):
        weight = np.bincount(rng.integers(count, size=count), minlength=count)[block]
        drawn.append((
            roc_auc_score(marked, values, sample_weight=weight),
            f1_score(marked, values > threshold, sample_weight=weight),
        ))  # fmt: skip
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return {'auc': [low[0], high[0]], 'f1': [low[1], high[1]]}


def draw(scores: dict[str, Image], before: Image, after: Image, labels: NDArray[np.int64]) -> Any:
    """Both dates, labels, and the chosen scores."""
    shown: list[tuple[str, Any]] = [('2000', before), ('2003', after)]
    shown = [(t, np.moveaxis(np.clip(standardised(x)[2::-1] / 6 + 0.5, 0, 1), 0, 2))
             for t, x in shown]  # fmt: skip
    shown.append(('labels: unknown, unchanged, changed', labels))
    shown += [(t, np.minimum(s, np.percentile(s, 99))) for t, s in scores.items()]
    figure, axes = plt.subplots(2, -(-len(shown) // 2), figsize=(13, 5.8), layout='constrained')
    for axis in axes.flat:
        axis.axis('off')
    for axis, (title, values) in zip(axes.flat, shown, strict=False):
        axis.imshow(values, cmap='gray' if values is labels else 'magma')
        axis.set_title(title, fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', default='gfm-jepa-nano')
    parser.add_argument('-o', '--output', type=Path, default='change_taizhou.csv')
    args = parser.parse_args()
    encoder = from_pretrained(args.weights).eval()
    assert isinstance(encoder, Encoder)
    images = []
    for name in ('t1', 't2', 'mask'):
        try:
            with rasterio.open(args.data / f'taizhou_{name}.tif') as file:
                images.append(file.read().astype(np.float64))
        except RasterioIOError as error:
            raise InputError(
                f'{args.data} should hold taizhou_{name}.tif ({error}); give its folder as --data.'
            ) from error
    before, after = images[:2]
    labels = np.where(images[2][0] == 255, -1, images[2][0]).astype(np.int64)
    rows, kept = [], {}
    for method, prepared, score in all_scores(encoder, before, after):
        found = ranking(score.ravel(), labels.ravel())
        spans = intervals(score, labels, found['threshold'])
        row = {'method': method, 'prepared': prepared}
        for key, span in spans.items():
            row |= {key: f'{found[key]:.4f}', f'{key}_low': f'{span[0]:.4f}',
                    f'{key}_high': f'{span[1]:.4f}'}  # fmt: skip
        row |= {'best_f1': f'{found["best_f1"]:.4f}', 'places': str(found['places']),
                'weights_hash': weights_hash(encoder) if 'gfm-jepa' in method else ''}  # fmt: skip
        rows.append(row)
        if (method, prepared) in SHOWN:
            kept[f'{method} ({row["auc"]})'] = score
        print('{method:<28} {prepared:<20} AUC {auc} ({auc_low} to {auc_high})  F1 {f1} '
              '({f1_low} to {f1_high})  best F1 {best_f1}'.format(**row), flush=True)  # fmt: skip
    write(args.output, rows)
    picture = draw(kept, before, after, labels)
    picture.savefig(args.output.with_suffix('.png'), dpi=80)
    print(json.dumps({f'{r["method"]}, {r["prepared"]}': {
        k: float(r[k]) for k in ('auc', 'f1', 'best_f1')} for r in rows}))  # fmt: skip


if __name__ == '__main__':
    with told_in_one_sentence('change_taizhou.py'):
        main()
