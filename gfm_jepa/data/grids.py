"""Grids of pixels on the ground, in metres, and the boxes that they cover."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.warp import calculate_default_transform, transform_bounds

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Grid:
    """A north-up grid of square-enough pixels in a CRS whose unit is the metre."""

    crs: CRS
    transform: Affine
    width: int
    height: int

    @property
    def gsd(self) -> float:
        """Metres per pixel: the geometric mean of both axes."""
        return math.sqrt(abs(self.transform.a * self.transform.e))

    @property
    def bounds(self) -> Box:
        """Left, bottom, right, top, metres."""
        right, bottom = self.transform @ (self.width, self.height)
        return self.transform.c, bottom, right, self.transform.f

    def zoomed(self, factor: float) -> 'Grid':
        """The same ground with pixels `factor` times as wide."""
        return Grid(
            self.crs,
            self.transform @ Affine.scale(factor),
            math.ceil(self.width / factor - 1e-6),
            math.ceil(self.height / factor - 1e-6),
        )

    def corners(
        self, windows: NDArray[np.int32], size: tuple[int, int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitude and latitude of the corners of windows.

        Args:
            windows: (N, 2) first row and column of each.
            size: Height and width of all, pixels.

        Returns:
            Two arrays (N, 4), degrees, around each window from its top left.
        """
        rows = windows[:, :1] + np.array([0, 0, size[0], size[0]])
        cols = windows[:, 1:] + np.array([0, size[1], size[1], 0])
        x = self.transform.c + cols * self.transform.a
        y = self.transform.f + rows * self.transform.e
        lon, lat = _to_degrees(self.crs.to_wkt()).transform(x.ravel(), y.ravel())
        return np.reshape(lon, x.shape), np.reshape(lat, x.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the index."""
        code = self.crs.to_epsg()
        return {
            'crs': f'EPSG:{code}' if code else self.crs.to_wkt(),
            'transform': list(self.transform)[:6],
            'size': [self.width, self.height],
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> 'Grid':
        """What `to_dict` wrote."""
        crs = CRS.from_user_input(fields['crs'])
        return cls(crs, Affine(*fields['transform']), *fields['size'])


def grid_of(source: rasterio.DatasetReader) -> tuple[Grid, bool]:
    """The raster's own grid if it is north-up in metres, else one of its UTM zone.

    Returns:
        The grid, and whether it differs from the raster's own, so that the raster has to be warped.
    """
    own, crs = source.transform, source.crs
    metres = crs.is_projected and abs(crs.linear_units_factor[1] - 1) < 1e-6
    upright = own.b == 0 and own.d == 0 and own.a > 0 and own.e < 0
    if metres and upright and 0.8 < abs(own.a / own.e) < 1.25:
        return Grid(crs, own, source.width, source.height), False
    if not metres:
        left, bottom, right, top = transform_bounds(crs, 'EPSG:4326', *source.bounds)
        zone = int(((left + right) / 2 + 180) // 6) % 60 + 1
        crs = CRS.from_epsg((32600 if bottom + top >= 0 else 32700) + zone)
    # From the transform, not the bounds: the bounds of a rotated raster are not its outline.
    rows, cols = [0, 0, source.height, source.height], [0, source.width, source.width, 0]
    xs, ys = zip(*(own @ (c, r) for r, c in zip(rows, cols, strict=True)), strict=True)
    if own.b or own.d:
        left, bottom, right, top = min(xs), min(ys), max(xs), max(ys)
        step = math.sqrt(abs(own.a * own.e - own.b * own.d))
        width, height = math.ceil((right - left) / step), math.ceil((top - bottom) / step)
        placed = calculate_default_transform(
            source.crs, crs, width, height, left, bottom, right, top
        )
    else:
        placed = calculate_default_transform(
            source.crs, crs, source.width, source.height, *source.bounds
        )
    return Grid(crs, placed[0], placed[1], placed[2]), True


@lru_cache(maxsize=256)
def _to_degrees(crs: str) -> Transformer:
    """From a CRS to longitude and latitude; building one takes milliseconds."""
    return Transformer.from_crs(crs, 'OGC:CRS84', always_xy=True)
