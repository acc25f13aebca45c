"""Land cover by place: each place is held out once, and every network trains equally long.

    python benchmarks/segmentation.py WEIGHTS --root DIR --modalities s2_l2a s1 dem -o rows.csv

DIR holds a folder a place, with LULC beside the other rasters. With --halves the western half of
every place is known and the eastern one held out, which asks what the features are worth where all
classes are known. Methods: the frozen encoder with a
linear and with a UPerNet head, logistic regression of each pixel's bands, and a U-Net (ResNet-18)
from scratch, all of the same modalities. Minutes are those of one process's CPU time, without
reading, so that what else runs on the machine does not count; the regression takes what it takes.
Prints mean intersection over union of all held-out chips together, over the classes that they have,
with its 95 % bootstrap interval over chips; the CSV is written after each place. The last line is
one JSON object: mean, lower and upper bound by method.
"""

import argparse
import json
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
from rows import Row, write
from seams import cut
from torch import Tensor, nn

from gfm_jepa import InputError, from_pretrained
from gfm_jepa.data import Rasters
from gfm_jepa.data.index import make_folder
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
    """Endless shuffled batches of chips that have the same modalities, turned.

    Raises:
        InputError: If no two chips do.
    """
    groups = [list(g) for g in chips.groups() if len(g) > 1]
    if not groups:
        raise InputError('No two chips have the same modalities; give larger rasters, or more.')
    while True:
        for group in groups:
            order = torch.randperm(len(group), generator=generator)
            # A single chip has no spread that a batch norm could divide by.
            for ids in (some for some in order.split(BATCH) if len(some) > 1):
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
    """Bands of all modalities by their statistics on the grid of the first, 0 where nothing is."""
    shape = batch[first].shape
    found = []
    for name, modality in encoder.modalities.items():
        if name not in batch:
            found.append(torch.zeros(len(batch[first]), len(modality.bands), *shape[-2:]))
            continue
        embed = encoder.embedder(name)
        values = torch.nan_to_num((batch[name] - embed.mean) / embed.std, 0.0, 0.0, 0.0)
        found.append(nn.functional.interpolate(values, shape[-2:], mode='nearest-exact'))
    return torch.cat(found, dim=1)


def unet(encoder: Encoder, first: str, chips: Rasters, minutes: float, seed: int) -> Answer:
    """A U-Net from scratch on the same bands."""
    torch.manual_seed(seed)
    bands = sum(len(m.bands) for m in encoder.modalities.values())
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
                width, height = source.width, source.height
            for side, left, right in (('west', 0, width // 2), ('east', width // 2, width)):
                target = folder / side / place.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                cut(file, target, Window(left, 0, right - left, height))
    yield 'halves', [folder / 'west'], [folder / 'east']


def rows_of(found: dict[str, list[Counts]], args: argparse.Namespace) -> list[Row]:
    """A row for each method, of the chips that were held out so far."""
    rows: list[Row] = []
    for name, parts in found.items():
        counts = np.concatenate(parts)
        value, (low, high) = mean_iou(counts.sum(axis=0)), interval(counts)
        rows.append({
            'method': name, 'mean_iou': f'{value:.4f}', 'low': f'{low:.4f}',
            'high': f'{high:.4f}', 'chips': len(counts),
            'held_out': 'halves' if args.halves else 'places', 'minutes': args.minutes,
            'modalities': ' '.join(args.modalities), 'weights': args.weights, 'seed': args.seed,
        })  # fmt: skip
    return rows


def run(args: argparse.Namespace, folder: Path) -> list[Row]:
    """All methods on what is held out; their rows, which are written after each part of it."""
    places = sorted(p for p in args.root.glob(args.places) if p.is_dir() and any(p.glob('*LULC*')))
    if len(places) < 2:
        raise InputError(f'{args.root} has {len(places)} folders with LULC; expected two or more.')
    modalities = (*resolve_all(args.modalities), LULC)
    encoder = from_pretrained(args.weights, modalities=args.modalities)
    assert isinstance(encoder, Encoder)
    first = args.modalities[0]
    make_folder(args.output.parent)
    found: dict[str, list[Counts]] = {}
    rows: list[Row] = []
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
        rows = rows_of(found, args)
        write(args.output, rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('weights')
    parser.add_argument('--root', type=Path, required=True, help='a folder a place in it')
    parser.add_argument('--places', default='terramesh_*', help='pattern of their names')
    parser.add_argument('--modalities', nargs='+', default=['s2_l2a'], help='of inputs')
    parser.add_argument('--minutes', type=float, default=2.0, help='CPU minutes of each training')
    parser.add_argument('--halves', action='store_true', help='hold out halves, not places')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('-o', '--output', type=Path, required=True, help='CSV to write')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(args, Path(folder))
    result = {r['method']: [float(r[key]) for key in ('mean_iou', 'low', 'high')] for r in rows}
    for name, values in result.items():
        value, low, high = (100 * v for v in values)
        print(f'{name:<20} {value:5.1f} % ({low:.1f} to {high:.1f})')
    print(json.dumps(result))


if __name__ == '__main__':
    with told_in_one_sentence('segmentation.py'):
        main()
