"""The readout of an encoder: a linear map of its pooled features, fitted without labels."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import InputError
from ..models import Encoder
from ..models.base import Batch
from .features import evaluating


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
    copy = Encoder.from_config({**encoder.config, 'readout': width})
    copy.load_state_dict({**copy.state_dict(), **encoder.state_dict()})
    assert copy.readout is not None
    weight, bias = components(features, width, power)
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(noise).Q
    with torch.no_grad():
        copy.readout.weight.copy_(turn @ weight)
        copy.readout.bias.copy_(turn @ bias)
    return copy.eval()


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
