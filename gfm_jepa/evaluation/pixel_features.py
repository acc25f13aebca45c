"""Frozen features of every pixel, and a sample of them to learn from."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from ..data.benchmarks import Benchmark
from ..errors import InputError
from ..models import BaseEncoder, Encoder
from ..models.base import evaluating, is_dated
from ..models.pyramid import STRIDES, FineMaps
from .features import Embed, Features, require_modality

MOST_CHIPS = 2000  # of a part, evenly spaced, that pixels are drawn from


class PixelFeatures(nn.Module):
    """An encoder as a function from a benchmark's batch to features of each pixel.

    Args:
        encoder: On any device; batches are brought there.
        name: What messages call it.
        benchmark: Says the modalities; those that the encoder lacks are left out, but the first.
        features: ``embedding``: the tokens, between them bilinear; ``depths``: also the stages of
            the stem at strides finer than the patches, and the normalised bands.

    Raises:
        InputError: If the encoder lacks the first modality or has other bands in it, or has no
            stem of ours for ``depths``.
    """

    def __init__(
        self, encoder: BaseEncoder, name: str, benchmark: Benchmark, features: str = 'embedding'
    ) -> None:
        super().__init__()
        require_modality(encoder, name, benchmark)
        if features == 'depths' and not isinstance(encoder, Encoder):
            raise InputError(
                f'{name} has no stem of ours; of its pixels there is --features embedding alone.'
            )
        self.encoder, self.first, self.fine = encoder, benchmark.modality, features == 'depths'
        others = [m for m in benchmark.others if m in encoder.modalities]
        self.used = (self.first, *others)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Embed rasters (B, C, H, W): (B, D, H, W), 0 where there is no token."""
        device = next(self.encoder.parameters()).device
        inputs: dict[str, Any] = {k: batch[k].to(device) for k in self.used}
        if 'gsd' in batch:
            inputs['gsd'] = {k: batch['gsd'][k] for k in self.used}
        x = inputs[self.first]
        found = [self.encoder.forward_feature_map(inputs, self.first)]
        if self.fine:
            assert isinstance(self.encoder, Encoder)
            embed = self.encoder.embedder(self.first)
            maps = FineMaps(embed, x)
            found += [maps.pixels, *(maps.at(s) for s in STRIDES if s < embed.patch_size)]
        size = x.shape[-2:]
        return torch.cat([
            F.interpolate(m.nan_to_num(0.0), size, mode='bilinear') for m in found
        ], dim=1)  # fmt: skip


class PixelBands:
    """The bands themselves, the baseline of every pixel's features; 0 where nothing is there.

    Args:
        benchmark: Says the modalities.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        self.names = (benchmark.modality, *benchmark.others)

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """Return (B, C, H, W), bands of all modalities on the grid of the first, raw."""
        size = batch[self.names[0]].shape[-2:]
        rasters = [batch[k] if batch[k].shape[-2:] == size else F.interpolate(batch[k], size)
                   for k in self.names]  # fmt: skip
        return torch.cat(rasters, dim=1).nan_to_num(0.0)


def dense(embed: Embed, batch: dict[str, Any]) -> tuple[Tensor, ...]:
    """Features (B, D, H, W) of a batch, or of both of its dates."""
    dates = max((x.shape[1] for x in batch.values() if is_dated(x)), default=1)
    if dates == 1:
        return (embed(batch).float().cpu(),)
    single = [{k: x[:, t] if is_dated(x) else x for k, x in batch.items()} for t in range(dates)]
    return tuple(embed(one).float().cpu() for one in single)


def difference(before: Tensor, after: Tensor, there: Tensor) -> Tensor:
    """How much features (B, D, H, W) differ, each date standardised over the chip: (B, H, W), 0..1.

    Squashed as d / (1 + d) of the root mean square difference d, which keeps the order.

    Args:
        before: Features of the earlier date.
        after: Of the later one.
        there: (B, H, W), True where a pixel counts.
    """
    length = (standardised(after, there) - standardised(before, there)).square().mean(dim=1).sqrt()
    return length / (1 + length)


def standardised(x: Tensor, there: Tensor) -> Tensor:
    """Give each feature mean 0 and standard deviation 1 over what counts: (B, D, H, W).

    Args:
        x: Features (B, D, H, W), finite.
        there: (B, H, W), True where a pixel counts.
    """
    weight = there[:, None].float()
    count = weight.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    x = x - (x * weight).sum(dim=(2, 3), keepdim=True) / count
    spread = (x.square() * weight).sum(dim=(2, 3), keepdim=True) / count
    return x / (spread + 1e-12).sqrt()


def batches(dataset: Dataset[Any], size: int, workers: int, title: str) -> Iterator[dict[str, Any]]:
    """Batches of a part, with a bar once it has taken more than two seconds."""
    from tqdm import tqdm

    loader = DataLoader(dataset, batch_size=size, num_workers=workers)
    yield from tqdm(loader, title, delay=2, leave=False, unit='batch')


def sample_pixels(
    embed: Embed, dataset: Dataset[Any], count: int, size: int, workers: int, seed: int = 0
) -> Features:
    """Features and classes of pixels drawn at random, equally many from each chip.

    Of each class that a chip has, one pixel is taken at least, so that rare ones are known. Of a
    pair of dates, the size of the difference is taken.

    Args:
        embed: Of a batch, (B, D, H, W).
        dataset: Of samples with ``mask``.
        count: Of pixels, about.
        size: Chips of a batch.
        workers: Processes that read.
        seed: Of the draw.

    Raises:
        InputError: If no pixel is labelled.
    """
    total = len(dataset)  # type: ignore[arg-type]
    ids = np.unique(np.linspace(0, total - 1, min(total, MOST_CHIPS)).round().astype(int))
    share, rng = -(-count // len(ids)), np.random.default_rng(seed)
    values, labels = [], []
    with torch.inference_mode(), evaluating(embed):
        for batch in batches(Subset(dataset, ids.tolist()), size, workers, 'Embedding'):
            masks = batch.pop('mask').flatten(1)
            found = dense(embed, batch)
            features = (found[1] - found[0]).abs() if len(found) == 2 else found[0]
            for mask, own in zip(masks, features.flatten(2), strict=True):
                order = rng.permutation(np.flatnonzero(mask.numpy() >= 0))
                _, rare = np.unique(mask.numpy()[order], return_index=True)
                chosen = torch.from_numpy(np.union1d(order[:share], order[rare]))
                values.append(own[:, chosen].T)
                labels.append(mask[chosen])
    drawn = Features(torch.cat(values), torch.cat(labels))
    if not len(drawn):
        raise InputError('No pixel of a part is labelled; check its masks.')
    if not bool(drawn.embeddings.isfinite().all()):
        raise InputError('Features of pixels are not finite; check the weights.')
    return drawn
