"""Grids of pixels on the ground, in metres, and the boxes that they cover."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from rasterio.crs import CRS
from rasterio.warp import calculate_default_transform, transform_bounds
from rasterio.warp import transform as warp_points

Box = tuple[float, float, float, float]
_EARTH = Geod(ellps='WGS84')


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

    def moved(self, row: int, col: int) -> 'Grid':
        """The part that begins at a row and column."""
        start = self.transform @ Affine.translation(col, row)
        return Grid(self.crs, start, self.width - col, self.height - row)

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
        return self.degrees(rows, cols)

    def degrees(
        self, rows: NDArray[Any], cols: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitudes and latitudes (N, M) of points of N shapes, given in rows and columns."""
        x = self.transform.c + cols * self.transform.a
        y = self.transform.f + rows * self.transform.e
        lon, lat = to_degrees(self.crs.to_wkt()).transform(x.ravel(), y.ravel())
        lon, lat = np.reshape(lon, x.shape), np.reshape(lat, x.shape)
        # Across the date line, longitudes count on beyond 180.
        first = np.where(np.ptp(lon, axis=1, keepdims=True) > 180, 0.0, -360.0)
        return np.where(lon < first, lon + 360, lon), lat

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


def boxes_of(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4) west, south, east, north of corners (N, 4), degrees."""
    return np.stack([lon.min(1), lat.min(1), lon.max(1), lat.max(1)], axis=1)


def grid_of(source: rasterio.DatasetReader) -> tuple[Grid, bool]:
    """The raster's own grid if it is north-up in metres, else one of its UTM zone.

    Returns:
        The grid, and whether it differs from the raster's own, so that the raster has to be warped.
    """
    own, crs = source.transform, source.crs
    metres = crs.is_projected and abs(crs.linear_units_factor[1] - 1) < 1e-6
    upright = own.b == 0 and own.d == 0 and own.a > 0 and own.e < 0
    true = metres and _is_true(source)
    if true and upright and 0.8 < abs(own.a / own.e) < 1.25:
        return Grid(crs, own, source.width, source.height), False
    if not true:
        crs = _utm(source)
    # The outline from the transform: the bounds of a rotated raster are not its outline.
    ends = [own @ (c, r) for r in (0, source.height) for c in (0, source.width)]
    left, right = min(x for x, _ in ends), max(x for x, _ in ends)
    bottom, top = min(y for _, y in ends), max(y for _, y in ends)
    gsd = _ground_step(source, crs)
    placed = calculate_default_transform(
        source.crs, crs, source.width, source.height, left, bottom, right, top, resolution=gsd
    )
    return Grid(crs, placed[0], placed[1], placed[2]), True


def _utm(source: rasterio.DatasetReader) -> CRS:
    """The UTM zone of a raster's middle."""
    left, bottom, right, top = transform_bounds(source.crs, 'EPSG:4326', *source.bounds)
    right += 360 * (right < left)  # beyond the date line
    zone = int(((left + right) / 2 + 180) // 6) % 60 + 1
    return CRS.from_epsg((32600 if bottom + top >= 0 else 32700) + zone)


def _is_true(source: rasterio.DatasetReader) -> bool:
    """Whether metres of a raster's CRS are metres on the ground, to 5 %: not in Web Mercator."""
    xs, ys = warp_points(source.crs, 'EPSG:4326', *_central_pixel(source))
    _, _, sides = _EARTH.inv([xs[0]] * 2, [ys[0]] * 2, xs[1:], ys[1:])
    stated = math.sqrt(abs(source.transform.determinant))
    return abs(stated / math.sqrt(sides[0] * sides[1]) - 1) < 0.05


def _ground_step(source: rasterio.DatasetReader, crs: CRS) -> float:
    """Side of a square as large as the raster's central pixel, metres."""
    xs, ys = warp_points(source.crs, crs, *_central_pixel(source))
    across, down = (xs[1] - xs[0], ys[1] - ys[0]), (xs[2] - xs[0], ys[2] - ys[0])
    return math.sqrt(abs(across[0] * down[1] - across[1] * down[0]))


def _central_pixel(source: rasterio.DatasetReader) -> list[list[float]]:
    """Upper left corner of a raster's central pixel, and the next across and down: x, y."""
    col, row = source.width // 2, source.height // 2
    corners = [source.transform @ (col + i, row + j) for i, j in ((0, 0), (1, 0), (0, 1))]
    return [list(axis) for axis in zip(*corners, strict=True)]


@lru_cache(maxsize=256)
def to_degrees(crs: str) -> Transformer:
    """From a CRS to longitude and latitude; building one takes milliseconds."""
    return Transformer.from_crs(crs, 'OGC:CRS84', always_xy=True)
