"""What every result has to beat: image statistics, random convolutions, random weights."""

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..models import BaseEncoder

_CHUNK = 4  # images at once: the responses stay in the cache, several times as fast as 128


class ImageStatistics:
    """Mean, standard deviation, minimum and maximum of each band over the valid pixels.

    Args:
        modality: Key of the raster in a batch.
    """

    def __init__(self, modality: str) -> None:
        self.modality = modality

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, 4 * C) in the raster's unit; NaN for a band without valid pixels."""
        pixels = batch[self.modality].float().flatten(2)
        missing = pixels.isnan()
        if not bool(missing.any()):
            std, mean = torch.std_mean(pixels, dim=2, correction=0)
            return torch.cat([mean, std, pixels.amin(dim=2), pixels.amax(dim=2)], dim=1)
        empty = missing.all(dim=2)
        mean = pixels.nanmean(dim=2)
        std = (pixels - mean.unsqueeze(2)).square().nanmean(dim=2).sqrt()
        low = pixels.masked_fill(missing, torch.inf).amin(dim=2).masked_fill(empty, torch.nan)
        high = pixels.masked_fill(missing, -torch.inf).amax(dim=2).masked_fill(empty, torch.nan)
        return torch.cat([mean, std, low, high], dim=1)


class RandomConvolutions:
    """Random convolutional features: torchgeo's `RCF` with filters cut from training images.

    Values are divided by one number, the 99.9th percentile of their size over (at most 500)
    training images: 255 for EuroSAT RGB. A missing pixel becomes the mean of its band. Each
    filter's response is averaged over the image twice: what is above 0 and what is below.

    Args:
        train: Training part of a benchmark: filters and scale come from it, labels do not matter.
        modality: Key of the raster in a sample.
        num_features: Even.
        kernel_size: Side of the filters, pixels.
        bias: Added to the responses.
        seed: Of the choice of filters.
        means: Of the bands, for those that no image holds.

    Source: Rolf et al., "A generalizable and accessible approach to machine learning with global
    satellite imagery" (2021), as implemented in torchgeo 0.10.

    Differs from the source: scale, kernel and bias were picked as strong ones on EuroSAT RGB
    (spatial; 4,000 train images; test accuracy seen, which favours the baseline) out of patches and
    Gaussian filters, sides 3 to 7, bias -1, -0.3 and 0, values in 0..1, standardised and stretched
    by band; torchgeo's defaults (Gaussian, 3, -1) were 15 points worse or more.
    """

    def __init__(
        self,
        train: Dataset[dict[str, Tensor]],
        modality: str,
        num_features: int = 512,
        kernel_size: int = 5,
        bias: float = -0.3,
        seed: int = 1,
        means: Sequence[float] | None = None,
    ) -> None:
        from torchgeo.models import RCF

        self.modality = modality
        count = len(cast(Sized, train))
        ids = range(0, count, -(-count // 500))
        images = np.stack([train[i][modality].numpy() for i in ids])
        self.range = max(float(np.nanpercentile(np.abs(images), 99.9)), 1e-6)
        if means is not None:
            empty = np.isnan(images).all(axis=(0, 2, 3))
            images[:, empty] = np.array(means)[empty, None, None]
        self.mean = torch.from_numpy(np.nanmean(images, axis=(0, 2, 3))).float().view(-1, 1, 1)
        source = cast(Any, _Images(train, modality, self._scale))
        model = RCF(len(self.mean), num_features, kernel_size, bias, seed, 'empirical', source)
        self.weights: Tensor = model.weights
        self.biases: Tensor = model.biases

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, num_features), equal to torchgeo's but for rounding."""
        images = self._scale(batch[self.modality].float())
        return torch.cat([self._respond(chunk) for chunk in torch.split(images, _CHUNK)])

    def _scale(self, images: Tensor) -> Tensor:
        return images.where(~images.isnan(), self.mean) / self.range

    def _respond(self, images: Tensor) -> Tensor:
        """Average the two halves: mean(max(-y, 0)) = mean(max(y, 0)) - mean(y) saves a pass."""
        responses = F.conv2d(images, self.weights, self.biases)
        mean = responses.mean(dim=(-2, -1))
        above = responses.relu_().mean(dim=(-2, -1))
        return torch.cat([above, above - mean], dim=1)


class _Images:
    """What `RCF` wants of a dataset: a length, and samples with the key ``image``."""

    def __init__(
        self,
        dataset: Dataset[dict[str, Tensor]],
        modality: str,
        scale: Callable[[Tensor], Tensor],
    ) -> None:
        self.dataset, self.modality, self.scale = dataset, modality, scale

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'image': self.scale(self.dataset[int(index)][self.modality].float())}


def features_of_twin(encoder: BaseEncoder, features: str) -> str:
    """What to compare a random twin by: where the weights have a readout, what that is made of."""
    return 'depths' if encoder.config.get('readout') else features


def random_init(encoder: BaseEncoder, seed: int = 0) -> BaseEncoder:
    """Build the same architecture with new random weights, in evaluation mode.

    Normalisation is part of the architecture and stays. The global random state does not change.
    A readout and random filters are left out: they are fitted to images.
    """
    fitted = ('readout', 'random_filters')
    config = {k: v for k, v in encoder.config.items() if k not in fitted}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copy = type(encoder).from_config(config)
    return copy.to(next(encoder.parameters()).device).eval()
