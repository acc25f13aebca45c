"""Whether more modalities help the same frozen weights: more bands, and relief and greenness.

    python benchmarks/modalities.py gfm-jepa-nano --data ../shared/data

1. 369 EuroSAT chips of 13 bands (spatial lists: 218 to fit, 73 to choose C, 78 to test): logistic
   regression on the embedding of their display colours (`rgb`, reflectance 0..0.275 as 0..255), of
   all bands (`s2_l1c`), and of both in one batch. Means over the test chips with the share of 2,000
   resamplings in which all bands are better than colours.
2. Land cover of 8 x 8 px patches on the five TerraMesh places, leave one place out: logistic
   regression on the tokens of Sentinel-2 L2A alone, and joined with those of DEM and NDVI on the
   same patches, and of Sentinel-1 too. Patches where one class has less than half of the pixels
   are left out.

The last line is one JSON object.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gfm_jepa import from_pretrained
from gfm_jepa.data.benchmarks import load_benchmark
from gfm_jepa.data.rasters import Rasters
from gfm_jepa.errors import told_in_one_sentence
from gfm_jepa.evaluation.features import Features, extract_features
from gfm_jepa.evaluation.logistic import LogisticRegression
from gfm_jepa.evaluation.probes import linear_probe
from gfm_jepa.modalities import resolve_all
from gfm_jepa.models import BaseEncoder, Encoder

COLOURS = ('B04', 'B03', 'B02')
CLASSES = 11  # of TerraMesh's land cover
C = (0.001, 0.01, 0.1, 1.0)


def display(chips: Tensor, bands: tuple[str, ...]) -> Tensor:
    """Colours (B, 3, H, W) of Sentinel-2 chips as EuroSAT's JPEG files show them, 0..255."""
    picked = chips[:, [bands.index(b) for b in COLOURS]]
    return (picked / 2750 * 255).clamp(0, 255).round()


def bands_probe(encoder: BaseEncoder, root: Path) -> dict[str, float]:
    """Linear accuracy, percent, of colours, all bands and both."""
    benchmark = load_benchmark('eurosat-spatial', root)
    bands = encoder.modalities['s2_l1c'].bands
    right: dict[str, Tensor] = {}
    for name in ('rgb', 's2_l1c', 'both'):

        def embed(batch: dict[str, Tensor], name: str = name) -> Tensor:
            views = {'rgb': display(batch['s2_l1c'], bands), 's2_l1c': batch['s2_l1c']}
            embedding: Tensor = encoder(views if name == 'both' else {name: views[name]})
            return embedding

        train, val, test = (
            extract_features(embed, part, progress=False)
            for part in (benchmark.train, benchmark.val, benchmark.test)
        )
        result = linear_probe(train, val, test, progress=False)
        right[name] = (result.predictions == test.labels).float()
    draws = torch.randint(len(right['rgb']), (2000, len(right['rgb'])),
                          generator=torch.Generator().manual_seed(0))  # fmt: skip
    better = right['s2_l1c'][draws].mean(dim=1) > right['rgb'][draws].mean(dim=1)
    scores = {name: round(100 * float(r.mean()), 1) for name, r in right.items()}
    return {
        **scores,
        'resamplings in which s2_l1c is better': round(float(better.float().mean()), 3),
    }


def majority(labels: Tensor, patch: int) -> Tensor:
    """Class of most pixels of each patch (N,), -1 where it has less than half of them."""
    one_hot = F.one_hot(labels.nan_to_num(0).long(), CLASSES + 1).permute(2, 0, 1).float()
    share, winner = F.avg_pool2d(one_hot, patch).max(dim=0)
    return torch.where(share >= 0.5, winner, -1).flatten()


@torch.inference_mode()
def place_features(encoder: Encoder, sample: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """Tokens (N, D len(names)) of a place: each modality embedded alone, joined by patch."""
    maps = []
    for name in names:
        batch = {name: sample[name][None], 'gsd': sample['gsd']}
        maps.append(encoder.forward_feature_map(batch, name)[0].flatten(1).T)
    return torch.cat(maps, dim=1)


def cover_probe(encoder: Encoder, root: Path, names: tuple[str, ...]) -> dict[str, float]:
    """Accuracy, percent, by place that is left out; C chosen on the places that are fitted."""
    paths = sorted(root.glob('terramesh_*'))
    modalities = resolve_all([*names, 'lulc'])
    places: list[Features] = []
    for path in paths:
        sample = Rasters([path], modalities, chip_size=224)[0]
        labels = majority(sample['lulc'][0], encoder.patch_sizes[names[0]])
        features = place_features(encoder, sample, names)
        there = (labels >= 0) & features.isfinite().all(dim=1)
        places.append(Features(features[there], labels[there]))
    return {
        path.name: round(100 * score, 1)
        for i, path in enumerate(paths) if (score := held_out(places, i)) == score  # not NaN
    }  # fmt: skip


def held_out(places: list[Features], out: int) -> float:
    """Accuracy on one place of what was fitted on the others, C by the same among these.

    Patches of a class that no other place has are left out; NaN if no other is left.
    """
    others = [p for i, p in enumerate(places) if i != out]
    scores = [
        torch.tensor([fit(others[:i] + others[i + 1 :], p, c) for i, p in enumerate(others)])
        .nanmean().item() for c in C
    ]  # fmt: skip
    return fit(others, places[out], C[scores.index(max(scores))])


def fit(places: list[Features], test: Features, c: float) -> float:
    """Accuracy on the patches of a place whose class can be known; NaN if there are none."""
    inputs, labels = (torch.cat([getattr(p, k) for p in places]) for k in ('embeddings', 'labels'))
    known = torch.isin(test.labels, labels)
    test = Features(test.embeddings[known], test.labels[known])
    if not len(test):
        return float('nan')
    mean, std = inputs.mean(dim=0), inputs.std(dim=0).clamp_min(1e-6)
    weight, bias = LogisticRegression((inputs - mean) / std, labels)(c)
    guess = ((test.embeddings - mean) / std @ weight.T + bias).argmax(dim=1)
    return float((guess == test.labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('weights')
    parser.add_argument('--data', type=Path, required=True, help='with eurosat_ms and rasters')
    args = parser.parse_args()
    encoder = from_pretrained(args.weights)
    assert isinstance(encoder, Encoder)
    found = {'eurosat 13 bands': bands_probe(encoder, args.data / 'eurosat_ms')}
    for names in (('s2_l2a',), ('s2_l2a', 'dem', 'ndvi'), ('s2_l2a', 'dem', 'ndvi', 's1')):
        places = cover_probe(encoder, args.data / 'rasters', names)
        found[f'land cover, {" + ".join(names)}'] = {
            'mean': round(torch.tensor(list(places.values())).nanmean().item(), 1),
            **places,
        }
    for title, scores in found.items():
        print(title, scores)
    print(json.dumps(found))


if __name__ == '__main__':
    with told_in_one_sentence('modalities.py'):
        main()
