"""Seeded landscapes: co-registered tiles of every modality from one terrain model, no download.

Rivers carve the relief; slope, height and moisture decide the cover; fields, towns and roads lie
on top. Cover becomes fractions of materials, and the same fractions give optical spectra and radar
backscatter. Light, haze and season differ by place and classes share materials, so the mean colour
of a chip does not give its class away: texture, context and other modalities have to help.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.transform import from_origin
from scipy import fft, ndimage, sparse, spatial

from gfm_jepa.errors import InputError

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

CLASSES = ('water', 'broadleaf forest', 'conifer forest', 'grassland', 'cropland', 'orchard',
           'bare', 'built-up', 'industry and roads')  # fmt: skip
WATER, BROADLEAF, CONIFER, GRASS, CROP, ORCHARD, BARE, BUILT, INDUSTRY = range(len(CLASSES))
S2_BANDS = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12')
WAVELENGTHS = np.array((443, 490, 560, 665, 705, 740, 783, 842, 865, 945, 1610, 2190))  # nm
NATIVE = (6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 2, 2)  # what a band really resolves, in 10 m pixels
FILES: dict[str, tuple[str, tuple[str, ...], float | None]] = {  # key of synthesize, bands, nodata
    'RGB.tif': ('rgb', ('red', 'green', 'blue'), None),
    'S2L2A.tif': ('s2_l2a', S2_BANDS, 0),
    'S1RTC.tif': ('s1', ('VV', 'VH'), np.nan),
    'NDVI.tif': ('ndvi', ('ndvi',), np.nan),
    'DEM.tif': ('dem', ('elevation',), np.nan),
    'LULC.tif': ('lulc', ('lulc',), 255),
}
MATERIALS = {  # reflectance x 10000 in the order of S2_BANDS, then VV and VH in dB
    'water': (320, 300, 290, 200, 170, 140, 130, 110, 100, 90, 60, 40, -20, -28),
    'silt': (500, 620, 900, 850, 700, 430, 400, 330, 280, 220, 120, 80, -20, -28),
    'broad': (180, 230, 450, 260, 700, 2300, 2900, 3150, 3300, 3350, 1600, 700, -9, -14.5),
    'conifer': (160, 200, 350, 230, 520, 1500, 1850, 2000, 2100, 2150, 1000, 450, -10.5, -15.5),
    'grass': (300, 400, 750, 560, 1150, 2500, 2950, 3150, 3300, 3400, 2200, 1200, -13.5, -20),
    'green': (230, 320, 680, 350, 950, 3000, 3900, 4200, 4350, 4400, 2000, 950, -11.5, -17.5),
    'straw': (650, 850, 1200, 1550, 1900, 2250, 2450, 2650, 2800, 2900, 3500, 2600, -13, -20.5),
    'soil': (600, 750, 1000, 1300, 1550, 1750, 1900, 2050, 2250, 2300, 3000, 2500, -12.5, -21.5),
    'rock': (900, 1050, 1250, 1450, 1600, 1700, 1780, 1880, 1950, 2000, 2450, 2200, -11, -19),
    'roof': (850, 950, 1150, 1600, 1800, 1950, 2100, 2250, 2350, 2400, 2600, 2300, -1, -10),
    'metal': (1700, 1950, 2150, 2300, 2400, 2450, 2500, 2600, 2600, 2500, 2400, 2100, 1, -10),
    'asphalt': (750, 800, 870, 940, 1000, 1060, 1120, 1180, 1240, 1280, 1450, 1350, -17, -25),
}
# contrast of brightness from pixel to pixel, by class: crowns and roofs are rough, fields smooth
ROUGHNESS = np.array((0.02, 0.16, 0.13, 0.04, 0.04, 0.08, 0.12, 0.14, 0.10), np.float32)


def _graph(value: Array, join: np.ufunc) -> sparse.coo_array:
    """Neighbouring cells joined by join(value, value), and each edge cell joined to a last node."""
    n = len(value)
    cell = np.arange(n * n).reshape(n, n)
    here = [cell[1:], cell[:, 1:], cell[1:, 1:], cell[1:, :-1]]
    there = [cell[:-1], cell[:, :-1], cell[:-1, :-1], cell[:-1, 1:]]
    a, b = (np.concatenate([part.ravel() for part in parts]) for parts in (here, there))
    return sparse.coo_array((join(value.flat[a], value.flat[b]), (a, b)), (n * n + 1, n * n + 1))


class _Place:
    """One place, laid layer on layer: each method builds on what the methods before it made.

    Arrays are (H,W) at 10 m, or flat over 30 m cells while the relief forms. Heights are in metres,
    slopes in degrees, lengths on the grid in pixels.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.n = size, size // 3
        self.rng = np.random.default_rng(seed)
        self.grid = np.mgrid[:size, :size].astype(np.float32)
        self.erode()
