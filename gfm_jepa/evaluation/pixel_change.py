"""What has changed between two dates, pixel by pixel, by what the encoder sees before its patches.

A patch of 8 pixels is coarse for a new road. The first stage of a conv stem answers every second
pixel; its responses and the bands themselves, each standardised by date, are compared here.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..data.finding import Found
from ..data.recognition import recognise
from ..errors import InputError
from ..modalities import Modality
from ..models import Encoder
from ..models.pyramid import FineMaps
from .embeddings import EmbeddingMap
from .pixel_features import standardised

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
    if {len(before), len(after)} != {len(bands)}:
        raise InputError(
            f'The dates have {len(before)} and {len(after)} bands, but {modality} has {len(bands)} '
            f'({" ".join(bands)}); name all of theirs with --modality and --bands, in their order.'
        )
    if before.shape != after.shape:
        raise InputError(
            f'The dates have the shapes {before.shape} and {after.shape}; expected twice the same '
            f'ground.'
        )
    there = np.isfinite(before).all(axis=0) & np.isfinite(after).all(axis=0)
    if there.sum() < 2:
        raise InputError('There is no place that has data at both dates; give dates that overlap.')
    valid = torch.from_numpy(there)
    dates = [_standardised(torch.from_numpy(np.nan_to_num(x)), valid) for x in (before, after)]
    fine = [_standardised(_first_stage(encoder, modality, x * valid), valid) for x in dates]
    square = (dates[1] - dates[0]).square().mean(dim=0) + (fine[1] - fine[0]).square().mean(dim=0)
    return np.where(there, square.sqrt().float().numpy(), np.nan).astype(np.float32)


def _standardised(x: Tensor, there: Tensor) -> Tensor:
    """One image (D, H, W), in double precision: scenes have millions of pixels."""
    return standardised(x.double()[None], there[None])[0].float()


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


def bands_of(raster: EmbeddingMap, order: Sequence[int] | None = None) -> Float:
    """Bands of a raster on its target grid: (C, H, W), NaN where any band has no data.

    Args:
        raster: A scene.
        order: Which of its bands, from 0, and in which order; all as they are by default.
    """
    order = range(len(raster.names)) if order is None else order
    values = np.full((raster.count, len(order)), np.nan, np.float32)
    for places, found in raster.batches():
        values[places] = found[:, list(order)]
    return values.T.reshape(-1, raster.target.height, raster.target.width)


def band_orders(
    before: EmbeddingMap, after: EmbeddingMap, modality: Modality, stated: bool = False
) -> tuple[Sequence[int], Sequence[int]]:
    """Which bands of two scenes are compared, so that names and not positions are.

    Bands that a file names go into the modality's order, as `gfm-jepa embed` has them; names that
    the modality does not know are matched between both dates. Bands without a name stay in place.

    Args:
        before: Earlier date.
        after: Later date.
        modality: Of both.
        stated: Whether the user says that these are the bands of the scenes, in their order; of a
            scene with another number of bands they are picked by name.

    Raises:
        InputError: If both dates name their bands, and not alike; or one names a part of the
            modality's bands only.
    """
    dates = (before, after)
    own = [stated and len(raster.names) == len(modality.bands) for raster in dates]
    known = [None if o else _known_order(x, modality) for x, o in zip(dates, own, strict=True)]
    if not stated and None in known and _names_bands(before) and _names_bands(after):
        first, second = ([n.lower() for n in raster.names] for raster in dates)
        if known != [None, None] or sorted(first) != sorted(second):
            raise InputError(
                f'{before.path} names its bands {" ".join(before.names)}, {after.path} '
                f'{" ".join(after.names)}; give both dates with the same bands, or say with '
                f'--modality and --bands what they are, in their order.'
            )
        return range(len(first)), [second.index(name) for name in first]
    one, two = (
        range(len(raster.names)) if order is None else order
        for raster, order in zip(dates, known, strict=True)
    )
    return one, two


def _known_order(raster: EmbeddingMap, modality: Modality) -> list[int] | None:
    """Where the modality's bands are in a scene, from 0; None if its names do not say so."""
    if not _names_bands(raster):
        return None
    file = next(recognise(Found(str(raster.path), modality.name), [modality]))
    if isinstance(file, str):
        raise InputError(f'{raster.path} {file}.')
    if 'bands by position' in file.notes:
        return None
    if lacking := [band for band in modality.bands if band not in file.bands]:
        raise InputError(
            f'{raster.path} names its bands {" ".join(raster.names)}, but none '
            f'{", ".join(lacking)}; name with --modality and --bands those of {modality.name} that '
            f'both dates have.'
        )
    return [number - 1 for number in file.band_ids]


def _names_bands(raster: EmbeddingMap) -> bool:
    """Whether the file itself names each band, and each its own; `open_map` calls others d0..."""
    own = [name for i, name in enumerate(raster.names) if name != f'd{i}']
    return len(set(own)) == len(raster.names)
