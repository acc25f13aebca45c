"""Land cover by place: each place is held out once, and every method trains equally long.

    python benchmarks/segmentation.py WEIGHTS --root DIR --modalities s2_l2a s1 dem -o rows.csv

DIR holds a folder a place, with LULC beside the other rasters. With --halves the western half of
every place is known and the eastern one held out, which asks what the features are worth where all
classes are known. Methods: the frozen encoder with a
linear and with a UPerNet head, logistic regression of each pixel's bands, and a U-Net (ResNet-18)
from scratch. Minutes are those of one process's CPU time, without reading, so that what else runs
on the machine does not count. Prints mean intersection over union of all held-out chips together,
over the classes that they have, with its 95 % bootstrap interval over chips.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import segmentation_models_pytorch as smp
import torch
from rasterio.windows import Window
from torch import Tensor, nn

from gfm_jepa import InputError, from_pretrained
from gfm_jepa.data import Rasters
from gfm_jepa.errors import told_in_one_sentence
from gfm_jepa.evaluation.logistic import LogisticRegression
from gfm_jepa.evaluation.pixel_scores import Counts, mean_iou, resampled
from gfm_jepa.modalities import LULC, resolve_all
from gfm_jepa.models import Encoder
from gfm_jepa.models.pixel_heads import LinearPixels, UPerNetPixels
from gfm_jepa.tasks.base import warmup_cosine
from gfm_jepa.tasks.pixelwise import turn

NUM_CLASSES = 10
CHIP = 64  # pixels
BATCH = 16
Answer = Callable[[dict[str, Any]], Tensor]  # a batch to (B, K, H, W)


def batches(chips: Rasters, generator: torch.Generator) -> Iterable[dict[str, Any]]:
    """Endless shuffled batches of chips that have the same modalities, turned."""
    groups = [list(g) for g in chips.groups()]
    while True:
        for group in groups:
            order = torch.randperm(len(group), generator=generator)
            for ids in order.split(BATCH):
                yield turn(collect(chips, [group[i] for i in ids]), generator)


def collect(chips: Rasters, ids: Sequence[int]) -> dict[str, Any]:
    """A batch."""
    samples = [chips[i] for i in ids]
    return {
        k: torch.stack([s[k] for s in samples]) if isinstance(v, Tensor) else v
        for k, v in samples[0].items()
    }


def classes_of(batch: dict[str, Any]) -> Tensor:
    """True classes (B, H, W), -1 where there is none."""
    return torch.nan_to_num(batch['lulc'][:, 0], -1.0).long()


def train(model: nn.Module, answer: Answer, chips: Rasters, minutes: float, seed: int) -> None:
    """AdamW with a cosine over CPU minutes; reading does not count."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    spent, total = 0.0, 60 * minutes
    for batch in batches(chips, torch.Generator().manual_seed(seed)):
        start = time.process_time()
        for group in optimizer.param_groups:
            group['lr'] = 3e-3 * warmup_cosine(int(1000 * spent / total), 1000, 0.05, 0.01)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(answer(batch), classes_of(batch), ignore_index=-1)
        loss.backward()
        optimizer.step()
        spent += time.process_time() - start
        if spent >= total:
            return


@torch.no_grad()
def count(answer: Answer, chips: Rasters) -> Counts:
    """Pixels by true and predicted class, chip by chip: (chips, K, K)."""
    found = np.zeros((len(chips), NUM_CLASSES, NUM_CLASSES))
    for i in range(len(chips)):
        batch = collect(chips, [i])
        true, taken = classes_of(batch)[0], answer(batch)[0].argmax(dim=0)
        there = true >= 0
        np.add.at(found[i], (true[there].numpy(), taken[there].numpy()), 1)
    return found


def interval(counts: Counts, seed: int = 0) -> tuple[float, float]:
    """95 % of the mean IoU over resampled chips."""
    drawn = [mean_iou(total) for total in resampled(counts, seed)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def heads(
    encoder: Encoder, first: str, chips: Rasters, minutes: float, seed: int
) -> dict[str, Answer]:
    """Both heads on the frozen encoder, trained."""
    encoder.requires_grad_(False).eval()
    answers: dict[str, Answer] = {}
    for name, kind in (('linear head', LinearPixels), ('UPerNet head', UPerNetPixels)):
        torch.manual_seed(seed)
        head = kind(encoder, first, NUM_CLASSES)
        train(head, lambda b, head=head: head(encoder, b), chips, minutes, seed)  # type: ignore[misc]
        head.eval()
        answers[name] = lambda b, head=head: head(encoder, b)  # type: ignore[misc]
    return answers


def standardised(encoder: Encoder, first: str, batch: dict[str, Any]) -> Tensor:
    """Bands of the first modality by its statistics, 0 where nothing is."""
    embed = encoder.embedder(first)
    return torch.nan_to_num((batch[first] - embed.mean) / embed.std, 0.0, 0.0, 0.0)


def unet(encoder: Encoder, first: str, chips: Rasters, minutes: float, seed: int) -> Answer:
    """A U-Net from scratch on the same bands."""
    torch.manual_seed(seed)
    bands = len(encoder.modalities[first].bands)
    model: Any = smp.Unet('resnet18', encoder_weights=None, in_channels=bands, classes=NUM_CLASSES)
    train(model, lambda b: model(standardised(encoder, first, b)), chips, minutes, seed)
    model.eval()
    return lambda b: model(standardised(encoder, first, b))


def pixel_regression(encoder: Encoder, first: str, chips: Rasters, seed: int) -> Answer:
    """Logistic regression on the bands of 20,000 training pixels."""
    inputs, labels = [], []
    for i in range(len(chips)):
        batch = collect(chips, [i])
        inputs.append(standardised(encoder, first, batch)[0].flatten(1).T)
        labels.append(classes_of(batch)[0].flatten())
    x, y = torch.cat(inputs), torch.cat(labels)
    there = (y >= 0).nonzero().flatten()
    chosen = there[
        torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))[:20000]
    ]
    known = y[chosen].unique()
    weight, bias = LogisticRegression(x[chosen], torch.searchsorted(known, y[chosen]))(1.0)

    def answer(batch: dict[str, Any]) -> Tensor:
        logits = torch.einsum('bchw,kc->bkhw', standardised(encoder, first, batch), weight)
        full = logits.new_full((len(logits), NUM_CLASSES, *logits.shape[2:]), -torch.inf)
        full[:, known] = logits + bias[:, None, None]
        return full

    return answer


def folds(
    places: Sequence[Path], halves: bool, folder: Path
) -> Iterable[tuple[str, list[Path], list[Path]]]:
    """Name, known and held-out folders: each place once, or the halves of all."""
    if not halves:
        for place in places:
            yield place.name, [p for p in places if p != place], [place]
        return
    for place in places:
        for file in place.glob('*.tif'):
            with rasterio.open(file) as source:
                middle = source.width // 2
                for side, left, width in (('west', 0, middle), ('east', middle, source.width)):
                    window = Window(left, 0, width - left, source.height)
                    profile = {**source.profile, 'width': window.width, 'tiled': False,
                               'transform': source.window_transform(window)}  # fmt: skip
                    profile.pop('blockxsize', None), profile.pop('blockysize', None)
                    target = folder / side / place.name / file.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with rasterio.open(target, 'w', **profile) as half:
                        half.write(source.read(window=window))
                        half.descriptions = source.descriptions
    yield 'halves', [folder / 'west'], [folder / 'east']


def run(args: argparse.Namespace, folder: Path) -> dict[str, Counts]:
    """All methods on what is held out; counts of all its chips, by method."""
    places = sorted(p for p in args.root.glob(args.places) if p.is_dir() and any(p.glob('*LULC*')))
    if len(places) < 2:
        raise InputError(f'{args.root} has {len(places)} folders with LULC; expected two or more.')
    modalities = (*resolve_all(args.modalities), LULC)
    encoder = from_pretrained(args.weights, modalities=args.modalities)
    assert isinstance(encoder, Encoder)
    first = args.modalities[0]
    found: dict[str, list[Counts]] = {}
    for name, others, some in folds(places, args.halves, folder):
        known = Rasters(others, modalities, CHIP, CHIP // 2)
        held = Rasters(some, modalities, CHIP, CHIP)
        answers = {
            'pixel regression': pixel_regression(encoder, first, known, args.seed),
            'U-Net from scratch': unet(encoder, first, known, args.minutes, args.seed),
            **heads(encoder, first, known, args.minutes, args.seed),
        }
        for method, answer in answers.items():
            counts = count(answer, held)
            print(f'{name}: {method} {100 * mean_iou(counts.sum(axis=0)):.1f} %', flush=True)
            found.setdefault(method, []).append(counts)
    return {name: np.concatenate(counts) for name, counts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('weights')
    parser.add_argument('--root', type=Path, required=True, help='a folder a place in it')
    parser.add_argument('--places', default='terramesh_*', help='pattern of their names')
    parser.add_argument('--modalities', nargs='+', default=['s2_l2a'], help='the first gives bands')
    parser.add_argument('--minutes', type=float, default=2.0, help='CPU minutes of each training')
    parser.add_argument('--halves', action='store_true', help='hold out halves, not places')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('-o', '--output', type=Path, required=True, help='CSV to write')
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        found = run(args, Path(folder))
    for name, counts in found.items():
        value, (low, high) = mean_iou(counts.sum(axis=0)), interval(counts)
        rows.append({
            'method': name, 'mean_iou': f'{value:.4f}', 'low': f'{low:.4f}',
            'high': f'{high:.4f}', 'chips': len(counts),
            'held_out': 'halves' if args.halves else 'places', 'minutes': args.minutes,
            'modalities': ' '.join(args.modalities), 'weights': args.weights, 'seed': args.seed,
        })  # fmt: skip
        print(f'{name:<20} {100 * value:5.1f} % ({100 * low:.1f} to {100 * high:.1f})')
    with args.output.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    with told_in_one_sentence('segmentation.py'):
        main()
