"""What an embedding owes to a modality or to fine pixels; each function returns a Figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..metrics import mean_cosine
from ..models import BaseEncoder
from ..models.base import Batch
from .plots import STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTORS = (1.5, 2.0, 3.0, 4.0, 8.0)
MOST = 16  # samples that the encoder takes at once


@dataclass(frozen=True)
class Agreement:
    """How far embeddings stay what they were.

    Attributes:
        cosines: (B,) of each sample with itself as it was, -1 to 1.
        found: Share of the samples that are still the nearest to themselves, 0 to 1.
    """

    cosines: NDArray[np.float32]
    found: float

    @classmethod
    def of(cls, whole: Tensor, other: Tensor) -> 'Agreement':
        """Compare embeddings (B, D) with those of the same samples as they were.

        Samples that are left with nothing, NaN, count as not found.
        """
        there = other.isfinite().all(dim=1)
        similar = F.normalize(other[there], dim=1) @ F.normalize(whole, dim=1).mT
        own = there.nonzero().flatten()
        cosines = similar.gather(1, own[:, None])[:, 0]
        found = (similar.argmax(dim=1) == own).sum().item() / len(whole)
        return cls(cosines.numpy(), found)


def without_modalities(
    encoder: BaseEncoder, batch: Batch, whole: Tensor | None = None
) -> dict[str, dict[str, Agreement]]:
    """Compare the embeddings of a batch with those without one modality, and of one alone.

    Args:
        encoder: In evaluation mode.
        batch: Rasters (B, C, H, W) by modality, raw units.
        whole: (B, D) embeddings of the batch, if they are known.

    Returns:
        ``left out`` and ``alone``, each by modality.

    Raises:
        InputError: If there are fewer than two modalities, or two samples.
    """
    names = list(encoder.rasters(batch))
    if len(names) < 2:
        raise InputError(
            f'There is {names[0]} alone; to leave one out, give rasters of two modalities.'
        )
    whole = _whole(encoder, batch) if whole is None else whole
    kept = {'left out': {n: [o for o in names if o != n] for n in names},
            'alone': {n: [n] for n in names}}  # fmt: skip
    return {
        kind: {n: Agreement.of(whole, _embed(encoder, batch, some)) for n, some in by.items()}
        for kind, by in kept.items()
    }


def coarser(
    encoder: BaseEncoder, batch: Batch, factors: Sequence[float] = FACTORS, tell: bool = True,
    whole: Tensor | None = None,
) -> dict[float, Agreement]:  # fmt: skip
    """Compare the embeddings of a batch with those of coarser pixels on the same ground.

    Args:
        encoder: In evaluation mode.
        batch: Rasters (B, C, H, W) by modality, raw units, and perhaps ``gsd``, metres per pixel.
        factors: How much wider pixels should be, above 1.
        tell: Whether the encoder is told the new gsd; else it takes the pixels for fine ones.
        whole: (B, D) embeddings of the batch, if they are known.

    Returns:
        By how much wider the pixels of the first modality really are: `coarsened` rounds sizes.

    Raises:
        InputError: If there are fewer than two samples, or too few pixels to make coarser.
    """
    whole = _whole(encoder, batch) if whole is None else whole
    found = {}
    for factor in factors:
        changed, wider = coarsened(encoder, batch, factor)
        if not tell:  # the ground then seems as many times smaller, for all modalities
            changed['gsd'] = {n: gsd / wider for n, gsd in changed['gsd'].items()}
        if wider > 1 and wider not in found:
            found[wider] = Agreement.of(whole, _embed(encoder, changed))
    if not found:
        raise InputError('The rasters have too few pixels to make them coarser; give larger ones.')
    return found


def coarsened(encoder: BaseEncoder, batch: Batch, factor: float) -> tuple[dict[str, Any], float]:
    """Average the rasters of a batch, each to the nearest size that its patches divide.

    Args:
        encoder: Whose modalities.
        batch: Rasters (B, C, H, W) by modality, and perhaps ``gsd``, metres per pixel.
        factor: How much wider pixels should be.

    Returns:
        The batch with its new ``gsd``, and how much wider pixels of the first modality are.
    """
    rasters = encoder.rasters(batch)
    changed, gsd, ratios = {}, {}, []
    for name, raster in rasters.items():
        patch, (height, width) = encoder.patch_sizes[name], raster.shape[-2:]
        rows, cols = (max(round(n / factor / patch), 1) * patch for n in (height, width))
        changed[name] = resample(raster, (rows, cols))
        ratios.append(math.sqrt(height * width / (rows * cols)))
        gsd[name] = _gsd(encoder, batch, name) * ratios[-1]
    return {**changed, 'gsd': gsd}, ratios[0]


def resample(raster: Tensor, size: tuple[int, int]) -> Tensor:
    """Average a raster (B, C, H, W) to a size; NaN where less than half of a pixel holds data."""
    share = F.adaptive_avg_pool2d(raster.isfinite().float(), size)
    total = F.adaptive_avg_pool2d(raster.nan_to_num(0.0), size)
    return torch.where(share >= 0.5, total / share, torch.nan)


def draw_without_modalities(encoder: BaseEncoder, batch: Batch) -> 'Figure':
    """Draw what leaving each modality out does to the embedding, and what each says alone.

    Raises:
        InputError: As `without_modalities`.
    """
    whole = _whole(encoder, batch)
    found = without_modalities(encoder, batch, whole)
    names = list(found['alone'])
    figure, left, right = _panels(whole)
    for shift, ((kind, values), (colour, _, marker)) in zip(
        (-0.15, 0.15), zip(found.items(), STYLES, strict=False), strict=True
    ):
        for place, name in enumerate(names):
            cosines = values[name].cosines
            at = np.full(len(cosines), place + shift)
            left.plot(at, cosines, marker, color=colour, alpha=0.4, markersize=4,
                      label='_' if place else kind)  # fmt: skip
        bars = right.bar(np.arange(len(names)) + shift, [100 * values[n].found for n in names],
                         width=0.28, color=colour, edgecolor='black', hatch='' if shift < 0 else
                         '//', label=kind)  # fmt: skip
        right.bar_label(bars, fmt='%.0f', padding=2, fontsize=8)
    for axes in (left, right):
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel('modality')
        _legend(axes)
    figure.suptitle('One modality left out, or alone, against all together')
    return figure


def draw_coarser(
    encoder: BaseEncoder, batch: Batch, factors: Sequence[float] = FACTORS
) -> 'Figure':
    """Draw what coarser pixels do to the embedding, the encoder told of it and not.

    Raises:
        InputError: As `coarser`.
    """
    name = next(iter(encoder.rasters(batch)))
    gsd = _gsd(encoder, batch, name)
    whole = _whole(encoder, batch)
    figure, left, right = _panels(whole)
    for tell, (colour, line, marker) in zip((True, False), STYLES, strict=False):
        found = coarser(encoder, batch, factors, tell, whole)
        steps = [gsd * f for f in found]
        label = 'gsd told' if tell else 'gsd not told'
        style: dict[str, Any] = {'color': colour, 'linestyle': line, 'marker': marker}
        low, middle, high = (
            [float(np.percentile(a.cosines, q)) if len(a.cosines) else np.nan
             for a in found.values()] for q in (10, 50, 90)
        )  # fmt: skip
        left.plot(steps, middle, label=f'{label}: median', **style)
        left.fill_between(steps, low, high, color=colour, alpha=0.15)
        right.plot(steps, [100 * a.found for a in found.values()], label=label, **style)
    for axes in (left, right):
        axes.set_xlabel(f'pixel of {name} (m); {gsd:.4g} m is as it came')
        _legend(axes)
        axes.grid(alpha=0.3)
    figure.suptitle('Coarser pixels against those that came; bands: 10 to 90 % of the windows')
    return figure


def _panels(whole: Tensor) -> tuple['Figure', Any, Any]:
    """Cosines left, with those of other windows to compare with; right what is found again."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout='constrained')
    left, right = figure.subplots(1, 2)
    others = float(mean_cosine(whole))
    left.axhline(others, color='black', linestyle=':', label='other windows, as they came: mean')
    left.set_ylabel('cosine with the embedding as it came')
    left.set_ylim(top=1.02)
    right.set_ylabel(f'nearest to itself among {len(whole)} windows (%)')
    right.set_ylim(0, 110)
    right.axhline(100 / len(whole), color='black', linestyle=':', label='by chance')
    return figure, left, right


def _legend(axes: Any) -> None:
    """Below the panel, where no point lies."""
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False,
                fontsize='small')  # fmt: skip


def _whole(encoder: BaseEncoder, batch: Batch) -> Tensor:
    """The embeddings of a batch that can be compared with others."""
    whole = _embed(encoder, batch)
    if len(whole) < 2 or not bool(whole.isfinite().all()):
        raise InputError(
            f'{int(whole.isfinite().all(dim=1).sum())} of {len(whole)} samples hold data; give at '
            f'least two, all of which do.'
        )
    return whole


def _embed(encoder: BaseEncoder, batch: Batch, names: Sequence[str] | None = None) -> Tensor:
    """Embeddings (B, D) of all modalities, or some, some samples at a time."""
    names = names or list(encoder.rasters(batch))
    rest = {'gsd': batch['gsd']} if 'gsd' in batch else {}
    parts = zip(*(batch[n].split(MOST) for n in names), strict=True)
    with torch.inference_mode():
        return torch.cat([
            encoder({**dict(zip(names, part, strict=True)), **rest}).float().cpu() for part in parts
        ])  # fmt: skip


def _gsd(encoder: BaseEncoder, batch: Batch, name: str) -> float:
    """Metres per pixel of a modality in a batch."""
    return float(batch.get('gsd', {}).get(name, encoder.modalities[name].gsd))
