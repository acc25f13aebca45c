"""Hand-made features: what a person who knows sensors would compute, spectral and texture."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modalities import Modality

# Normalised differences of bands by STAC's common names: vegetation, water, built-up, colours.
INDICES = (('nir', 'red'), ('green', 'nir'), ('nir', 'swir16'),
           ('swir16', 'green'), ('rededge071', 'red'), ('red', 'green'), ('green', 'blue'),
           ('red', 'blue'))  # fmt: skip
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LEVELS = 16  # grey levels of the co-occurrence matrix
OFFSETS = (
    (0, 1),
    (1, 0),
    (1, 1),
    (1, -1),
)  # pixels down and right; averaged, so turns do not matter
STEPS = (1, 4)  # pixels between the two
_CHUNK = 4  # chips at once: torch.quantile takes so many values and no more


class HandMade:
    """Quantiles of bands, spectral indices and brightness, and texture of the brightness.

    Texture: local standard deviations at three scales, gradient strength and how directed it is,
    and contrast, homogeneity, energy and correlation of grey-level co-occurrences. Pixels without
    data take the mean of their band in that chip.

    Args:
        modality: Of the chips; its bands' common names say which indices there are.

    Source: Haralick et al., "Textural features for image classification" (1973).
    """

    def __init__(self, modality: Modality) -> None:
        self.modality = modality
        names = modality.common_names or tuple(b.lower() for b in modality.bands)
        at = {name: i for i, name in enumerate(names)}
        self.pairs = [(at[a], at[b]) for a, b in INDICES if a in at and b in at]

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, F); NaN for a chip of which a band has no data."""
        chunks = batch[self.modality.name].float().split(_CHUNK)
        return torch.cat([self._features(chunk) for chunk in chunks])

    def _features(self, x: Tensor) -> Tensor:
        x = x.where(x.isfinite(), x.nanmean(dim=(2, 3), keepdim=True))
        grey = x.mean(dim=1)
        layers = torch.stack([*self._indices(x), grey], dim=1)
        parts = [_quantiles(x), _quantiles(layers), *_scales(grey), _gradients(grey)]
        parts += [_co_occurrence(grey, step) for step in STEPS]
        return torch.cat(parts, dim=1)

    def _indices(self, x: Tensor) -> Sequence[Tensor]:
        """Normalised differences, each (B, H, W)."""
        return [_ratio(x[:, i] - x[:, j], x[:, i].abs() + x[:, j].abs()) for i, j in self.pairs]


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """A quotient, 0 where it has no meaning."""
    return torch.where(below > 0, above / below.clamp_min(1e-6), 0.0)


def _quantiles(x: Tensor) -> Tensor:
    """Mean, standard deviation and quantiles of each layer: (B, 7 C)."""
    flat = x.flatten(2)
    at = torch.tensor(QUANTILES, device=x.device)
    std, mean = torch.std_mean(flat, dim=2, correction=0)
    return torch.cat([mean, std, flat.quantile(at, dim=2).permute(1, 2, 0).flatten(1)], dim=1)


def _scales(grey: Tensor) -> list[Tensor]:
    """Mean and standard deviation of the local standard deviation in windows of 3, 7 and 15."""
    found = []
    for side in (3, 7, 15):
        if side > min(grey.shape[-2:]):
            break
        mean = F.avg_pool2d(grey.unsqueeze(1), side, stride=1)
        square = F.avg_pool2d(grey.square().unsqueeze(1), side, stride=1)
        local = (square - mean.square()).clamp_min(0).sqrt().flatten(1)
        found.append(torch.stack([local.mean(dim=1), local.std(dim=1, correction=0)], dim=1))
    return found


def _gradients(grey: Tensor) -> Tensor:
    """Strength of gradients, and how far they agree on a direction modulo a half turn: (B, 3)."""
    down = ((grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]) / 2).flatten(1)
    right = ((grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]) / 2).flatten(1)
    squares = down.square() + right.square()
    # Doubled angles: a gradient and its opposite are one direction.
    real, imaginary = (right.square() - down.square()).sum(dim=1), 2 * (right * down).sum(dim=1)
    agreement = _ratio((real.square() + imaginary.square()).sqrt(), squares.sum(dim=1))
    strength = squares.sqrt()
    spread, mean = torch.std_mean(strength, dim=1, correction=0)
    return torch.stack([mean, spread, agreement], dim=1)


def _co_occurrence(grey: Tensor, step: int) -> Tensor:
    """Contrast, homogeneity, energy, correlation of grey levels `step` pixels apart: (B, 4)."""
    low, high = grey.flatten(1).aminmax(dim=1)
    unit = (grey - low[:, None, None]) / (high - low).clamp_min(1e-6)[:, None, None]
    levels = (unit * (LEVELS - 1e-3)).long()
    rows, cols = levels.shape[-2:]
    counts = torch.zeros(len(grey), LEVELS * LEVELS, device=grey.device)
    for down, right in OFFSETS:
        d, r = down * step, right * step
        first = levels[:, : rows - d, max(-r, 0) : cols - max(r, 0)]
        second = levels[:, d:, max(r, 0) : cols - max(-r, 0)]
        pairs = (first * LEVELS + second).flatten(1)
        counts.scatter_add_(1, pairs, torch.ones_like(pairs, dtype=counts.dtype))
    matrix = counts.unflatten(1, (LEVELS, LEVELS))
    matrix = matrix + matrix.mT
    share = matrix / matrix.sum(dim=(1, 2), keepdim=True)
    level = torch.arange(LEVELS, device=grey.device, dtype=share.dtype)
    apart = level[:, None] - level[None, :]
    contrast = (share * apart.square()).sum(dim=(1, 2))
    homogeneity = (share / (1 + apart.square())).sum(dim=(1, 2))
    energy = share.square().sum(dim=(1, 2)).sqrt()
    mean = (share.sum(dim=2) * level).sum(dim=1)
    variance = (share.sum(dim=2) * (level - mean[:, None]).square()).sum(dim=1)
    covariance = variance - contrast / 2
    return torch.stack([contrast, homogeneity, energy, _ratio(covariance, variance)], dim=1)
