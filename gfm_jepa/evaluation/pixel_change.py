"""What has changed between two dates, pixel by pixel, by what the encoder sees before its patches.

A patch of 8 pixels is coarse for a new road. The first stage of a conv stem answers every second
pixel; its responses and the bands themselves, each standardised by date, are compared here.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..models import Encoder
from ..models.pyramid import FineMaps
from .embeddings import EmbeddingMap

Float = NDArray[np.float32]
TILE, MARGIN = 512, 16  # pixels; the margin is more than the first stage sees


def pixel_change(encoder: Encoder, modality: str, before: Float, after: Float) -> Float:
    """Compare two dates.

    Each band of each date is brought to the mean and standard deviation that the encoder knows,
    which takes season, light and calibration out, then goes through the first stage of its stem.
    The score is the root of the mean square of differences of standardised bands, plus that of
    standardised responses.

    Args:
        encoder: With a conv stem for the modality.
        modality: Of both dates; its bands are those of the arrays, in order.
        before: (C, H, W), any unit that both dates have, NaN where there is no data.
        after: (C, H, W).

    Returns:
        (H, W), NaN where either date has no data.

    Raises:
        InputError: If shapes differ, the bands are not the encoder's, nothing is there at both
            dates, or the stem has no stages.
    """
    embed = encoder.embedder(modality)
    bands = embed.modality.bands
    if before.shape != after.shape or len(before) != len(bands):
        raise InputError(
            f'The dates have the shapes {before.shape} and {after.shape}; expected twice the same '
            f'ground with the bands {", ".join(bands)}.'
        )
    there = np.isfinite(before).all(axis=0) & np.isfinite(after).all(axis=0)
    if there.sum() < 2:
        raise InputError('There is no place that has data at both dates; give dates that overlap.')
    dates = [torch.from_numpy(_standardised(x, there)) for x in (before, after)]
    fine = [_first_stage(encoder, modality, x) for x in dates]
    valid = torch.from_numpy(there)
    for responses in fine:
        known = responses[:, valid]
        mean, std = known.mean(dim=1), known.std(dim=1).clamp_min(1e-6)
        responses.sub_(mean[:, None, None]).div_(std[:, None, None])
    square = (dates[1] - dates[0]).square().mean(dim=0) + (fine[1] - fine[0]).square().mean(dim=0)
    return np.where(there, square.sqrt().numpy(), np.nan).astype(np.float32)


def _standardised(values: Float, there: NDArray[np.bool_]) -> Float:
    """Bands with mean 0 and standard deviation 1 over the common ground, 0 elsewhere."""
    known = values[:, there].astype(np.float64)
    mean, std = known.mean(axis=1)[:, None, None], known.std(axis=1)[:, None, None]
    scaled = (values - mean) / np.maximum(std, 1e-9)
    return np.where(there, scaled, 0.0).astype(np.float32)


@torch.no_grad()
def _first_stage(encoder: Encoder, modality: str, values: Tensor) -> Tensor:
    """Responses of the stem's first stage at every pixel, (D, H, W), tile by tile."""
    embed = encoder.embedder(modality).eval()
    step = encoder.patch_sizes[modality]
    height, width = values.shape[1:]
    raw = (values * embed.std + embed.mean)[None]
    right, bottom = MARGIN + -width % step, MARGIN + -height % step
    padded = F.pad(raw, (MARGIN, right, MARGIN, bottom), mode='replicate')
    found: Tensor | None = None
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            tile = padded[..., top : top + TILE + 2 * MARGIN, left : left + TILE + 2 * MARGIN]
            levels = FineMaps(embed, tile).levels
            if not levels:
                raise InputError(
                    f'The encoder has a {encoder.stems[modality]} stem for {modality}, which has '
                    f'no finer stage; take weights with a conv stem, or compare maps of `embed`.'
                )
            full = F.interpolate(levels[0], size=tile.shape[-2:], mode='bilinear')[0]
            rows, cols = min(TILE, height - top), min(TILE, width - left)
            if found is None:
                found = full.new_empty(len(full), height, width)
            found[:, top : top + rows, left : left + cols] = full[
                :, MARGIN : MARGIN + rows, MARGIN : MARGIN + cols
            ]
    assert found is not None
    return found


def bands_of(raster: EmbeddingMap) -> Float:
    """All bands of a raster on its target grid: (C, H, W), NaN where any band has no data."""
    values = np.full((raster.count, len(raster.names)), np.nan, np.float32)
    for places, found in raster.batches():
        values[places] = found
    return values.T.reshape(-1, raster.target.height, raster.target.width)
