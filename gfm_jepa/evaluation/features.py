"""From a dataset and something that embeds a batch to a matrix of frozen features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.benchmarks import Benchmark
from ..errors import InputError
from ..modalities import MODALITIES
from ..models import BaseEncoder
from ..models.base import evaluating
from ..models.heads import encode, require_features

Embed = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Features:
    """Frozen features of one split.

    Attributes:
        embeddings: (N, D), float32, on the CPU, finite.
        labels: (N,), int64, on the CPU.
    """

    embeddings: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)


def extract_features(
    embed: Embed,
    dataset: Dataset[dict[str, Tensor]],
    batch_size: int = 256,
    num_workers: int = 0,
    progress: bool = True,
) -> Features:
    """Embed every sample of a dataset, in its order, without gradients.

    Args:
        embed: Takes a batch, rasters (B, C, H, W) in raw units by modality, and returns (B, D). A
            module is in evaluation mode meanwhile.
        dataset: Of samples with a ``label`` beside the rasters.
        batch_size: Samples a batch.
        num_workers: Processes that read; 0 reads in this one.
        progress: Show a bar once it has taken more than two seconds.

    Raises:
        InputError: If the dataset is empty, or an embedding is not finite: such a sample holds no
            valid pixels, or the weights are broken.
    """
    from tqdm import tqdm

    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)
    if not len(loader):
        raise InputError('There is nothing to embed: the dataset has no samples.')
    embeddings, labels = [], []
    with torch.inference_mode(), evaluating(embed):
        bar = tqdm(loader, 'Embedding', delay=2, leave=False, disable=not progress, unit='batch')
        for batch in bar:
            labels.append(batch.pop('label'))
            embeddings.append(embed(batch).float().cpu())
    features = Features(torch.cat(embeddings), torch.cat(labels).long())
    lost = int((~features.embeddings.isfinite()).any(dim=1).sum())
    if lost:
        raise InputError(
            f'{lost} of {len(features)} embeddings are NaN or infinite; leave out the samples '
            f'without valid pixels, or check the weights.'
        )
    return features


class EncoderFeatures(nn.Module):
    """An encoder as a function of a benchmark's batch.

    Args:
        encoder: On any device; batches are brought there.
        name: What messages call it.
        benchmark: Says the modality and its ground sampling distance, metres per pixel, which the
            encoder is told.
        features: ``embedding`` or ``depths``.

    Raises:
        InputError: If the encoder lacks the modality, or has other bands in it.
    """

    def __init__(
        self, encoder: BaseEncoder, name: str, benchmark: Benchmark, features: str = 'embedding'
    ) -> None:
        super().__init__()
        key = benchmark.modality
        require_features(features)
        require_modality(encoder, name, benchmark)
        self.encoder, self.modality, self.gsd, self.features = encoder, key, benchmark.gsd, features

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Embed a batch: (B, D), or (B, D') wide for depths."""
        device = next(self.encoder.parameters()).device
        inputs: dict[str, Any] = {self.modality: batch[self.modality].to(device)}
        if self.gsd is not None:
            inputs['gsd'] = {self.modality: self.gsd}
        return encode(self.encoder, inputs, self.features)


def require_modality(encoder: BaseEncoder, name: str, benchmark: Benchmark) -> None:
    """Refuse an encoder that cannot embed a benchmark's first modality.

    Raises:
        InputError: If it lacks that, or has other bands in it.
    """
    key = benchmark.modality
    if key not in encoder.modalities:
        raise InputError(
            f'{name} embeds {", ".join(encoder.modalities)}, but {benchmark.name} holds {key}; '
            f'choose weights and a dataset that have a modality in common.'
        )
    bands, expected = encoder.modalities[key].bands, MODALITIES[key].bands
    if bands != expected:
        raise InputError(
            f'{name} has the bands {", ".join(bands)} in {key}, but {benchmark.name} '
            f'{", ".join(expected)}; choose weights with the same bands.'
        )
