"""Heads that answer for every pixel: a linear map, and UPerNet."""

from typing import Any

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .base import Batch
from .encoder import Encoder
from .pyramid import STRIDES, FineMaps, map_width, scale_map


def make_pixel_head(
    kind: str, encoder: Encoder, modality: str, outputs: int, pixels: bool, width: int
) -> nn.Module:
    """Make a head by its name.

    Args:
        kind: ``linear`` or ``upernet``.
        encoder: Whose features.
        modality: Whose grid.
        outputs: Channels that come out K.
        pixels: Whether the linear head sees each pixel's bands.
        width: Of UPerNet's decoder.

    Raises:
        InputError: If there is no such kind.
    """
    if kind == 'linear':
        return LinearPixels(encoder, modality, outputs, pixels)
    if kind == 'upernet':
        return UPerNetPixels(encoder, modality, outputs, width)
    raise InputError(f'Unknown head.kind {kind!r}: expected linear or upernet.')


class LinearPixels(nn.Module):
    """A linear map of each pixel's token, between tokens bilinear, and of its own bands.

    Args:
        encoder: Whose features.
        modality: Whose grid and bands.
        outputs: Channels that come out K.
        pixels: Whether it sees the pixel's normalised bands beside its token, which is as wide as
            a patch.
    """

    def __init__(self, encoder: Encoder, modality: str, outputs: int, pixels: bool = True) -> None:
        super().__init__()
        self.modality, self.pixels = modality, pixels
        bands = len(encoder.modalities[modality].bands) if pixels else 0
        self.norm = nn.BatchNorm2d(encoder.embed_dim, affine=False)
        self.tokens = nn.Conv2d(encoder.embed_dim, outputs, 1)
        self.bands = nn.Conv2d(bands, outputs, 1, bias=False) if pixels else None

    def forward(self, encoder: Encoder, batch: Batch, features: Tensor | None = None) -> Tensor:
        """Map a batch of raw rasters to (B, K, H, W).

        Args:
            encoder: Embeds.
            batch: As it takes it.
            features: Its feature map of the batch on the grid of the modality, if that is known.
        """
        # Interpolating is linear, and so is the head: the order is free, and this one is cheap.
        coarse = self.tokens(self.norm(_filled(features, encoder, batch, self.modality)))
        x = encoder.rasters(batch)[self.modality]
        answer: Tensor = F.interpolate(coarse, x.shape[-2:], mode='bilinear', align_corners=False)
        if self.bands is not None:
            answer = answer + self.bands(encoder.embedder(self.modality).normalise(x))
        return answer


class UPerNetPixels(nn.Module):
    """smp's UPerNet decoder on the maps of `gfm_jepa.models.pyramid`.

    Args:
        encoder: Whose features.
        modality: Whose grid, and whose stem gives the fine maps.
        outputs: Channels that come out K.
        width: Of the decoder.

    Source: Xiao et al., "Unified perceptual parsing for scene understanding" (2018).
    """

    def __init__(self, encoder: Encoder, modality: str, outputs: int, width: int = 64) -> None:
        super().__init__()
        self.modality = modality
        embed = encoder.embedder(modality)
        channels = [len(embed.modality.bands), *(map_width(embed, s) for s in STRIDES)]
        self.decoder: Any = UPerNetDecoder(channels, len(STRIDES), width)
        self.answer: Any = SegmentationHead(width, outputs, kernel_size=1, upsampling=4)

    def forward(self, encoder: Encoder, batch: Batch, features: Tensor | None = None) -> Tensor:
        """Map a batch of raw rasters to (B, K, H, W), as `LinearPixels`."""
        last = _filled(features, encoder, batch, self.modality)
        x = encoder.rasters(batch)[self.modality]
        if x.shape[-2] % STRIDES[-1] or x.shape[-1] % STRIDES[-1]:
            raise InputError(
                f'{self.modality} came with {x.shape[-2]} x {x.shape[-1]} pixels; UPerNet needs '
                f'multiples of {STRIDES[-1]}: change chip_size, or take head.kind=linear.'
            )
        fine = FineMaps(encoder.embedder(self.modality), x)
        maps = [fine.pixels, *(scale_map(s, fine, last) for s in STRIDES)]
        answer: Tensor = self.answer(self.decoder(maps))
        return answer


def _filled(features: Tensor | None, encoder: Encoder, batch: Batch, modality: str) -> Tensor:
    """Tokens on the grid of a modality (B, D, h, w), 0 where there is none."""
    found = encoder.forward_feature_map(batch, modality) if features is None else features
    return torch.nan_to_num(found, 0.0) if bool(found.isnan().any()) else found
