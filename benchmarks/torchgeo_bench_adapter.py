"""Our encoder in somebody else's harness: the package torchgeo-bench, and its code on our features.

    pip install torchgeo-bench
    PYTHONPATH=benchmarks torchgeo-bench run dataset.names=[eurosat-spatial] dataset.bands=all \
        dataset.image_size=null device=cpu model._target_=torchgeo_bench_adapter.GfmJepaBench \
        +model.weights=WEIGHTS model.name=gfm_jepa
    python benchmarks/torchgeo_bench_adapter.py WEIGHTS --dataset eurosat-rgb-spatial --root DIR

The second prints kNN-5 and linear accuracy of one and the same features twice: by `gfm-jepa
benchmark`'s code, and by torchgeo-bench's. Its last line is one JSON object: the same, 0..1.
"""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gfm_jepa import InputError, from_pretrained
from gfm_jepa.data.benchmarks import load_benchmark
from gfm_jepa.errors import told_in_one_sentence
from gfm_jepa.evaluation.classifiers import GRID, knn_probe, linear_probe
from gfm_jepa.evaluation.features import EncoderFeatures, Features, extract_features
from gfm_jepa.modalities import MODALITIES, Modality

if TYPE_CHECKING:
    BenchModel: Any = nn.Module
else:
    try:
        from torchgeo_bench.models.interface import BenchModel
    except ModuleNotFoundError as error:
        raise SystemExit(f'{error.name} is not installed; pip install torchgeo-bench.') from error


class GfmJepaBench(BenchModel):  # type: ignore[misc]  # torchgeo-bench carries no types
    """Weights of ours as a model of torchgeo-bench: raw values go in, which the encoder normalises.

    Args:
        bands: torchgeo-bench's `BandSpec`s; their names in the files, or short names, say what
            they are.
        weights: As `from_pretrained` takes them.
        depths: Whether several depths are pooled, or the last is the embedding.

    Raises:
        InputError: If no modality of the weights has all bands.
    """

    def __init__(self, bands: Sequence[Any], weights: str, depths: bool = False, **_: Any) -> None:
        super().__init__(bands=list(bands), normalization='identity')
        known = from_pretrained(weights).modalities
        self.modality, names = find_modality(known, bands)
        self.encoder = from_pretrained(
            weights, modalities=[self.modality], bands={self.modality: names}, strict_bands=True
        )
        self.step = self.encoder.patch_sizes[self.modality]
        self.depths = depths

    @torch.no_grad()
    def _forward_patch_features(self, images: Tensor) -> Tensor:
        """Embed (B, C, H, W), padded with "not there" to whole patches: (B, D)."""
        height, width = images.shape[-2:]
        right, bottom = -width % self.step, -height % self.step
        batch = {self.modality: F.pad(images, (0, right, 0, bottom), value=torch.nan)}
        self.encoder.eval()
        embedding: Tensor = (
            self.encoder.forward_depths(batch) if self.depths else self.encoder(batch)
        )
        return embedding


def find_modality(known: dict[str, Modality], bands: Sequence[Any]) -> tuple[str, list[str]]:
    """The modality that has all bands, the one with the fewest others first, and their names."""
    for name, modality in sorted(known.items(), key=lambda item: len(item[1].bands)):
        own = {b.lower(): b for b in modality.bands}
        # Display values 0..255 and reflectances are both red, green and blue.
        eight_bit = modality.valid_range == (0.0, 255.0)
        if eight_bit and max(b.max for b in bands) > 255:
            continue
        common = dict(zip(modality.common_names, modality.bands, strict=False))
        found = [own.get(b.source_name.lower()) or own.get(b.name) or common.get(b.name)
                 for b in bands]  # fmt: skip
        if all(found):
            return name, [f for f in found if f]
    raise InputError(
        f'The weights know {", ".join(known)}, of which none has the bands '
        f'{", ".join(b.source_name for b in bands)}; choose others with dataset.bands.'
    )


def compare(weights: str, dataset: str, root: str, features: str) -> dict[str, float]:
    """Accuracies of the same features by both codes.

    Theirs measures L2 distances where ours compares directions, and standardises nothing: it gets
    features of unit length, and standardised ones.
    """
    from torchgeo_bench.main import evaluate_knn, evaluate_logistic

    benchmark = load_benchmark(dataset, root)
    embed = EncoderFeatures(from_pretrained(weights), weights, benchmark, features)
    train, val, test = (
        extract_features(embed, part) for part in (benchmark.train, benchmark.val, benchmark.test)
    )
    ours = {
        'knn5, ours': knn_probe(train, test).accuracy,
        'linear, ours': linear_probe(train, val, test).accuracy,
    }
    unit = [F.normalize(p.embeddings).numpy() for p in (train, test)]
    labels = [p.labels.numpy() for p in (train, val, test)]
    knn = evaluate_knn(unit[0], labels[0], unit[1], labels[2], seed=0, n_bootstrap=10)
    scaled = standardised(train, val, test)
    linear = evaluate_logistic(
        scaled[0], labels[0], scaled[1], labels[1], scaled[2], labels[2], c_values=GRID, seed=0,
        n_bootstrap=10, merge_val=False, device='cpu',
    )  # fmt: skip
    return ours | {
        'knn5, torchgeo-bench': float(knn[0]),
        'linear, torchgeo-bench': float(linear[0]),
    }


def standardised(train: Features, *others: Features) -> list[Any]:
    """Features by mean and standard deviation of the train part, as arrays."""
    mean, std = train.embeddings.mean(dim=0), train.embeddings.std(dim=0, correction=0)
    std = std.where(std > 1e-8, 1.0)
    return [((p.embeddings - mean) / std).numpy() for p in (train, *others)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('weights')
    parser.add_argument('--dataset', required=True, help=f'on one of {", ".join(MODALITIES)}')
    parser.add_argument('--root', required=True)
    parser.add_argument('--features', default='embedding', choices=('embedding', 'depths'))
    args = parser.parse_args()
    found = compare(args.weights, args.dataset, args.root, args.features)
    for name, value in found.items():
        print(f'{name:<24} {100 * value:6.2f} %')
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == '__main__':
    with told_in_one_sentence('torchgeo_bench_adapter.py'):
        main()
