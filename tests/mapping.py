"""Encoders and rasters whose maps are known, for the tests of inference."""

import numpy as np
import rasterio
import torch
from conftest import sensor
from torch.nn import functional as F

from gfm_jepa.models import BaseEncoder, Encoder
from gfm_jepa.models.hub import save_pretrained

OPTICAL, RADAR = sensor('optical', 3), sensor('radar', 2, gsd=20.0)


class MeanEncoder(BaseEncoder):
    """The mean of each patch of 4 x 4 pixels, or of the patches around it, as its features.

    Args:
        modality: What it embeds.
        reach: Patches to each side that a patch sees.
    """

    def __init__(self, modality=OPTICAL, reach=0):
        super().__init__()
        self.modality, self.reach = modality, reach
        self.embed_dim = len(modality.bands)
        self.register_parameter('none', torch.nn.Parameter(torch.zeros(1)))

    modalities = property(lambda self: {self.modality.name: self.modality})
    patch_sizes = property(lambda self: {self.modality.name: 4})

    def check(self, batch):
        pass

    def has_data(self, batch):
        return batch[self.modality.name].isfinite().flatten(1).any(dim=1)

    def forward(self, batch):
        return batch[self.modality.name].nanmean(dim=(2, 3))

    def forward_depths(self, batch, num_depths=3):
        return self(batch)

    def forward_feature_map(self, batch, modality=None):
        x = batch[self.modality.name].unfold(2, 4, 4).unfold(3, 4, 4).nanmean(dim=(4, 5))
        side = 2 * self.reach + 1
        there = F.avg_pool2d(x.isfinite().float(), side, 1, self.reach)
        mean = F.avg_pool2d(x.nan_to_num(0.0), side, 1, self.reach) / there
        return mean.where(x.isfinite(), torch.nan)


def save_encoder(folder, modalities=(OPTICAL, RADAR)):
    """A tiny encoder of patches of 8 pixels, saved."""
    encoder = Encoder(modalities, 8, embed_dim=16, depth=1, num_heads=2).eval()
    save_pretrained(encoder, folder)
    return encoder


def smooth(bands, height, width, seed=0):
    """Smooth noise around the statistics of `sensor` (bands, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, bands, height // 16 + 2, width // 16 + 2, generator=generator)
    fine = F.interpolate(coarse, (height, width), mode='bicubic')[0]
    return (100 + 50 * fine).numpy().astype('float32')


def read(path):
    """All bands of a map, and its transform and CRS."""
    with rasterio.open(path) as source:
        return source.read(), source.transform, source.crs


def there(values):
    """Cells (rows, columns) that hold data in all features."""
    return np.isfinite(values).all(axis=0)
