"""What is fitted to images without labels after training: random filters, and a readout."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import InputError
from ..models import Encoder
from ..models.base import Batch, evaluating
from ..models.encoder import one_by_one
from ..models.random_filters import SIDE
from .baselines import RandomConvolutions

_IMAGES = 500  # of a modality, that random filters are cut from


def add_random_filters(
    encoder: Encoder, batches: Iterable[Batch], count: int = 256, seed: int = 1
) -> Encoder:
    """Give an encoder fixed filters, cut from images, whose responses join `forward_depths`.

    They are those of the baseline `RandomConvolutions`, and see what training has not come to:
    fine detail. A readout has to be fitted afterwards.

    Args:
        encoder: Whose weights to take; a readout, which would not know of the filters, is left
            out.
        batches: As the encoder takes them; read until each modality has 500 samples, or to the end.
        count: Filters of each modality.
        seed: Of the choice of filters.

    Returns:
        A copy with random filters, in evaluation mode. Filters of a modality that no batch holds
        stay 0.
    """
    images: dict[str, list[Tensor]] = {name: [] for name in encoder.modalities}
    for batch in batches:
        for name, raster in encoder.rasters(batch).items():
            if len(images[name]) < _IMAGES:
                chips = one_by_one(raster)
                images[name] += chips[chips.isfinite().flatten(1).any(dim=1)].cpu().unbind()
        if all(len(found) >= _IMAGES for found in images.values()):
            break
    copy = _rebuilt(encoder, ('.filters.', 'readout.'), random_filters=count, readout=None)
    for name, found in images.items():
        if found:
            _cut_filters(copy, name, found[:_IMAGES], count, seed)
    return copy


@torch.no_grad()
def _cut_filters(encoder: Encoder, name: str, images: list[Tensor], count: int, seed: int) -> None:
    """Take the filters of the baseline, which sees raw values, for standardised ones."""
    embed = encoder.embedder(name)
    assert embed.filters is not None
    height, width = (min(image.shape[i] for image in images) for i in (1, 2))
    samples = cast(Any, [{name: image[:, :height, :width]} for image in images])
    means = encoder.modalities[name].mean
    model = RandomConvolutions(samples, name, 2 * count, SIDE, seed=seed, means=means)
    scaled = (model.weights / model.range).to(embed.std)
    shift = (scaled * embed.mean).sum(dim=(1, 2, 3))
    embed.filters.weight.copy_(scaled * embed.std)
    embed.filters.bias.copy_(model.biases.to(shift) + shift)


def add_readout(
    encoder: Encoder, batches: Iterable[Batch], width: int = 512, power: float = 0.5
) -> Encoder:
    """Give an encoder an embedding of so many principal components of its `forward_depths`.

    The features are standardised, turned to their principal components, and each component divided
    by a power of its standard deviation: 1 whitens, 0 leaves them as they are. Cosine similarity,
    which nearest neighbours use, then heeds all components alike, or nearly so. At last all is
    turned at random: a probe that standardises what it gets would whiten bare components to the
    end, and the weakest of them do not carry over to other ground.

    Args:
        encoder: Whose weights to take.
        batches: Of what the embedding will be of, as the encoder takes them; a few thousand
            samples that were trained on.
        width: K of the embedding.
        power: Of the standard deviations.

    Returns:
        A copy with `readout`, in evaluation mode; its embedding is (B, K).

    Raises:
        InputError: If there are fewer samples or features than `width`.

    Source: Kessy, Lewin & Strimmer, "Optimal whitening and decorrelation" (2018), PCA-cor.
    Differs from the source: components are cut off, whitened in part, and turned.
    """
    found = []
    with torch.inference_mode(), evaluating(encoder):
        for batch in batches:
            features = encoder.forward_depths(batch)
            found.append(features[features.isfinite().all(dim=1)].cpu())
    features = torch.cat(found)
    if width > min(features.shape):
        raise InputError(
            f'A readout of width {width} was asked for, but there are {len(features)} samples of '
            f'{features.shape[1]} features; give more samples, or a smaller width.'
        )
    copy = _rebuilt(encoder, ('readout.',), readout=width)
    assert copy.readout is not None
    weight, bias = fit_readout(features, width, power)
    with torch.no_grad():
        copy.readout.weight.copy_(weight)
        copy.readout.bias.copy_(bias)
    return copy


def _rebuilt(encoder: Encoder, left_out: tuple[str, ...], **changes: Any) -> Encoder:
    """An encoder of a changed config with the same weights, but for those named `left_out`."""
    copy = Encoder.from_config({**encoder.config, **changes})
    weights = encoder.state_dict().items()
    kept = {k: v for k, v in weights if not any(part in k for part in left_out)}
    copy.load_state_dict({**copy.state_dict(), **kept})
    return copy.to(next(encoder.parameters()).device).eval()


def fit_readout(features: Tensor, width: int = 512, power: float = 0.5) -> tuple[Tensor, Tensor]:
    """Weight (K, F) and bias (K,) of `add_readout`'s map from features (N, F)."""
    weight, bias = components(features, width, power)
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(noise).Q
    return turn @ weight, turn @ bias


def components(features: Tensor, width: int, power: float) -> tuple[Tensor, Tensor]:
    """Weight (K, F) and bias (K,) of the linear map from features (N, F) to their components."""
    values = features.double()
    mean, std = values.mean(dim=0), values.std(dim=0)
    # A feature that never changes says nothing, and is not blown up.
    scale = torch.where(std > 1e-6 * std.max(), 1 / std, 0.0)
    correlation = torch.cov(((values - mean) * scale).T)
    variance, vectors = torch.linalg.eigh(correlation)  # rising
    largest = variance.flip(0)[:width].clamp_min(1e-12)
    weight = vectors.flip(1)[:, :width].T * scale / largest.sqrt().pow(power).unsqueeze(1)
    return weight.float(), -(weight @ mean).float()
