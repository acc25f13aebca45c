"""How the bands of a place go together: what tells a shifted band or a stripe, with no training."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..modalities import Modality
from ..models.base import BaseEncoder, Batch

CELL = 32  # pixels of a side over which bands are compared
DETAIL = 5  # pixels; what is wider than that is taken away first


class BandCorrelations(BaseEncoder):
    """Correlations between the bands of one modality, as the features of cells of 32 pixels.

    Bands of one sensor see the same edges. Where one is shifted, or a stripe is in all of them,
    correlations of the fine detail are unlike those elsewhere, which an embedding may well not
    show: it learned to look past such things. A hand-made baseline, without weights; the distance
    to known cells is that of `KnownEmbeddings`.

    Args:
        modality: Two bands or more.

    Raises:
        InputError: If it has one band.

    Source: Fisher, "On the 'probable error' of a coefficient of correlation" (1921): the inverse
        hyperbolic tangent, by which correlations are close to normally distributed.
    """

    needs_half = False

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        bands = len(modality.bands)
        if bands < 2:
            raise InputError(f'{modality.name} has one band; there is nothing to compare it with.')
        self.modality = modality
        self.config: dict[str, Any] = {'band_correlations_of': modality.to_dict()}
        self.embed_dim = bands * (bands - 1) // 2
        # Without a weight of its own; its device says where to compute.
        self.device_of = nn.Parameter(torch.empty(0), requires_grad=False)

    @property
    def modalities(self) -> dict[str, Modality]:
        """The one."""
        return {self.modality.name: self.modality}

    @property
    def patch_sizes(self) -> dict[str, int]:
        """Side of a cell."""
        return {self.modality.name: CELL}

    def check(self, batch: Batch) -> None:
        """Refuse other bands and sizes that are no multiple of a cell."""
        (raster,) = self.rasters(batch).values()
        bands, height, width = raster.shape[-3:]
        if bands != len(self.modality.bands) or height % CELL or width % CELL:
            raise InputError(
                f'{self.modality.name} came as {bands} x {height} x {width}; expected '
                f'{len(self.modality.bands)} bands and sides that {CELL} divides.'
            )

    def has_data(self, batch: Batch) -> Tensor:
        """Samples with any finite pixel, (B,) boolean."""
        (raster,) = self.rasters(batch).values()
        return raster.isfinite().flatten(1).any(dim=1)

    def forward(self, batch: Batch) -> Tensor:
        """Mean over the cells of a chip that are there: (B, D)."""
        mean: Tensor = self.forward_feature_map(batch).flatten(2).nanmean(dim=2)
        return mean

    def forward_depths(self, batch: Batch, num_depths: int = 3) -> Tensor:
        """The same as `forward`: there are no depths."""
        return self.forward(batch)

    def forward_feature_map(self, batch: Batch, modality: str | None = None) -> Tensor:
        """Fisher-transformed correlations (B, D, h, w) of each pair of bands.

        0 where a band is constant or not there; NaN where more than half of a cell is not there.
        """
        self.check(batch)
        (raster,) = self.rasters(batch).values()
        there = raster.isfinite()  # each band for itself: what one lacks is not made up
        values = torch.nan_to_num(raster.double(), 0.0, 0.0, 0.0)
        # The mean around a pixel, of those that are there.
        around = F.avg_pool2d(values, DETAIL, 1, DETAIL // 2)
        share = F.avg_pool2d(there.double(), DETAIL, 1, DETAIL // 2).clamp_min(1e-9)
        detail = (values - around / share) * there
        cells = _cells(detail)  # (B, h, w, C, CELL * CELL)
        norm = cells.norm(dim=-1, keepdim=True)
        cells = torch.where(norm > 1e-9, cells / norm, 0.0)
        first, second = torch.triu_indices(cells.shape[3], cells.shape[3], 1)
        pairs = (cells @ cells.mT)[..., first, second].clamp(-0.999, 0.999).atanh()
        shown = there.any(dim=1, keepdim=True).double()
        whole = _cells(shown).mean(dim=-1) >= 0.5
        found: Tensor = pairs.where(whole, torch.nan).movedim(-1, 1).float()
        return found


def _cells(values: Tensor) -> Tensor:
    """(B, C, H, W) as (B, h, w, C, pixels of a cell)."""
    cut = values.unflatten(3, (-1, CELL)).unflatten(2, (-1, CELL))  # (B, C, h, CELL, w, CELL)
    cells: Tensor = cut.permute(0, 2, 4, 1, 3, 5).flatten(4)
    return cells
