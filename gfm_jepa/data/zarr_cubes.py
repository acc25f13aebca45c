"""Zarr arrays as rasters: an array, an affine transform and a CRS, in zarr 2 or 3, sharded or not.

GDAL reads zarr as well, but neither sharded arrays nor a georeference in plain attributes.
"""

import base64
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import zarr
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioIOError
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from .grids import Grid

Float = NDArray[np.float32]

# What zarr, zips and codecs raise where a store or a chunk is damaged.
BROKEN = (BadZipFile, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError, zlib.error)


@dataclass(frozen=True)
class Cube:
    """One array of a store, at one time.

    Attributes:
        uri: What `ZarrRaster` opens.
        bands: Names of its bands; numbers where the store names none.
        crs: Coordinate reference system, if stated.
        transform: Affine map from columns and rows to it, if stated.
        shape: Height and width, pixels.
        dtype: Of the stored values.
        nodata: Value of "not there", if stated.
        time: Acquisition, as stated; empty if not.
        scale: CF's ``scale_factor``, if it says something.
        offset: CF's ``add_offset``, likewise.
    """

    uri: str
    bands: tuple[str, ...]
    crs: CRS | None
    transform: Affine | None
    shape: tuple[int, int]
    dtype: str
    nodata: float | None
    time: str
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()


def is_store(path: Path) -> bool:
    """Whether a folder, or a zip, is a zarr store."""
    if path.is_dir():
        return any((path / name).is_file() for name in ('zarr.json', '.zgroup', '.zarray'))
    return path.name.endswith('.zarr.zip')


def find_cubes(path: Path) -> Iterator[Cube]:
    """List the arrays of a store that are rasters: (y, x), (band, y, x) or (time, band, y, x).

    A georeference is taken from the array's attributes or its group's: ``crs`` (or ``crs_wkt``,
    ``spatial_ref``, ``_CRS``, ``proj:epsg``) and ``transform`` (or ``affine``, ``GeoTransform``),
    or ``x`` and ``y`` coordinate arrays of equal steps.
    """
    root: Any = _open(path)
    arrays = [('', root)] if isinstance(root, zarr.Array) else sorted(root.arrays())
    for name, array in arrays:
        if not 2 <= array.ndim <= 4 or min(array.shape[-2:]) < 2 or array.dtype.kind not in 'iuf':
            continue
        group = root if isinstance(root, zarr.Group) else None
        attributes = {**(dict(group.attrs) if group else {}), **dict(array.attrs)}
        dims = _dimensions(array, attributes)
        if array.ndim == 4 or dims[0] in ('time', 't'):
            times: list[int | None] = list(range(array.shape[0]))
        else:
            times = [None]
        has_bands = array.ndim - (times[0] is not None) == 3
        count = array.shape[-3] if has_bands else 1
        stated = attributes.get('bands') or attributes.get('band_names')
        if stated is None and has_bands and group and 'band' in group:
            stated = [str(b) for b in np.asarray(group['band']).tolist()]
        if stated is not None and len(stated) != count:
            stated = None  # a group's, which are not this array's
        bands = stated or ([name] if count == 1 else [str(i + 1) for i in range(count)])
        crs, transform = _georeference(attributes, group, array.shape)
        fill = _number(attributes.get('_FillValue', attributes.get('nodata')))
        if fill is None and array.fill_value and not math.isnan(array.fill_value):
            fill = float(array.fill_value)  # of what was never written, and xarray's in zarr 2
        scale, offset = (_number(attributes.get(k)) for k in ('scale_factor', 'add_offset'))
        dates = _dates(group, times)
        for t, date in zip(times, dates, strict=True):
            shape = int(array.shape[-2]), int(array.shape[-1])
            uri = 'zarr:' + json.dumps({'store': str(path.resolve()), 'array': name, 'time': t})
            yield Cube(uri, tuple(map(str, bands)), crs, transform, shape,
                       str(array.dtype), fill, date,
                       () if scale in (None, 1) and not offset else (scale or 1.0,),
                       () if not offset else (offset,))  # fmt: skip


class ZarrRaster:
    """A zarr array that is read like a rasterio dataset.

    Args:
        uri: From `find_cubes`.
        target: Grid to warp to; its own if None.
        nodata: Value of "not there".
        nearest: Whether warping must not average, as for class numbers.
        by_band: Whether a band alone may be not there.

    Raises:
        RasterioIOError: From `read`, if a chunk cannot be read: what rasterio's datasets raise.
    """

    def __init__(
        self, uri: str, target: Grid | None = None, nodata: float | None = None,
        nearest: bool = False, by_band: bool = False,
    ) -> None:  # fmt: skip
        place = json.loads(uri.removeprefix('zarr:'))
        root = _open(Path(place['store']))
        self.array = root[place['array']] if place['array'] else root
        self.time = place['time']
        self.target = target
        self.nodata = math.nan if nodata is None else nodata
        self.nearest, self.by_band = nearest, by_band
        self.height, self.width = self.array.shape[-2:]
        if target is not None:
            group = root if isinstance(root, zarr.Group) else None
            attributes = {**(dict(group.attrs) if group else {}), **dict(self.array.attrs)}
            self.crs, self.transform = _georeference(attributes, group, self.array.shape)
            self.own = (self.height, self.width)
            self.height, self.width = target.height, target.width

    def close(self) -> None:
        """Nothing is held open."""

    def read(
        self, indexes: Sequence[int], window: Window, out_shape: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """Read bands (1-based) of a window: (C, H, W), stored values, or warped ones as float32."""
        if self.target is not None:
            values: NDArray[Any] = self._warped(indexes, window)
        else:
            top, left = int(window.row_off), int(window.col_off)
            values = self._stored(
                indexes, slice(top, top + int(window.height)), slice(left, left + int(window.width))
            )
        if out_shape:
            rows = np.arange(out_shape[1]) * values.shape[1] // out_shape[1]
            cols = np.arange(out_shape[2]) * values.shape[2] // out_shape[2]
            values = values[:, rows[:, None], cols]
        return values

    def _stored(self, indexes: Sequence[int], rows: slice, cols: slice) -> NDArray[Any]:
        first, last = min(indexes) - 1, max(indexes)
        at: tuple[Any, ...] = () if self.time is None else (self.time,)
        if self.array.ndim - len(at) == 3:
            at = (*at, slice(first, last))
        try:
            values = np.asarray(self.array[(*at, rows, cols)])
        except BROKEN as error:
            raise RasterioIOError(str(error) or type(error).__name__) from error
        values = values.reshape(-1, *values.shape[-2:])
        return values[[i - 1 - first for i in indexes]]

    def _warped(self, indexes: Sequence[int], window: Window) -> Float:
        """Warp just the part that the window needs."""
        assert self.target is not None and self.crs is not None and self.transform is not None
        there = self.target.transform @ Affine.translation(window.col_off, window.row_off)
        out = np.full((len(indexes), int(window.height), int(window.width)), np.nan, np.float32)
        right, bottom = there @ (window.width, window.height)
        box = transform_bounds(self.target.crs, self.crs, there.c, bottom, right, there.f)
        back = ~self.transform
        corners = [back @ (x, y) for x in box[::2] for y in box[1::2]]
        # Two pixels more, for the kernel and for edges that bend between their corners.
        top = max(int(min(r for _, r in corners)) - 2, 0)
        left = max(int(min(c for c, _ in corners)) - 2, 0)
        low = min(int(max(r for _, r in corners)) + 3, self.own[0])
        far = min(int(max(c for c, _ in corners)) + 3, self.own[1])
        if low <= top or far <= left:
            return out
        values = self._stored(indexes, slice(top, low), slice(left, far)).astype(np.float32)
        if not math.isnan(self.nodata):
            missing = values == np.float32(self.nodata)
            if not self.by_band:
                missing &= missing.all(axis=0)
            values[missing] = np.nan
        step = (far - left) / out.shape[2]  # own pixels below one of the target's
        method = Resampling.average if step > 1.5 else Resampling.bilinear
        reproject(
            values, out, src_crs=self.crs, dst_crs=self.target.crs, dst_transform=there,
            src_transform=self.transform @ Affine.translation(left, top),
            src_nodata=np.nan, dst_nodata=np.nan,
            resampling=Resampling.nearest if self.nearest else method,
        )  # fmt: skip
        return out


def _open(path: Path) -> Any:
    """Open a store, in a folder or a zip."""
    if path.suffix == '.zip':
        return zarr.open(zarr.storage.ZipStore(path, mode='r'), mode='r')
    return zarr.open(path, mode='r')


def _number(value: Any) -> float | None:
    """A number of a store's attributes; xarray writes those of floats in zarr 3 as base64."""
    if value is None or not isinstance(value, str):
        return None if value is None else float(value)
    try:
        return float(value)
    except ValueError:
        stored = base64.b64decode(value, validate=True)
        return float(np.frombuffer(stored, '<f8' if len(stored) == 8 else '<f4')[0])


def _dimensions(array: Any, attributes: dict[str, Any]) -> list[str]:
    """Names of the axes, as zarr 3 and xarray state them."""
    names = getattr(array.metadata, 'dimension_names', None) or attributes.get('_ARRAY_DIMENSIONS')
    return list(names or [''] * array.ndim)


def _dates(group: Any, times: Sequence[int | None]) -> list[str]:
    """ISO dates of the time axis, where the store states them."""
    if group is None or times[0] is None or 'time' not in group:
        return [''] * len(times)
    values = np.asarray(group['time'][:])
    unit = str(group['time'].attrs.get('units', ''))
    if values.dtype.kind in 'iuf':
        if ' since ' not in unit:
            return [''] * len(times)
        step, _, start = unit.partition(' since ')
        second = {'days': 86400, 'hours': 3600, 'minutes': 60, 'seconds': 1, 'nanoseconds': 1e-9}
        if step not in second:
            return [''] * len(times)
        begin = np.datetime64(start.strip().replace(' ', 'T')[:19].rstrip('Z'), 's')
        values = begin + np.round(values * second[step]).astype('timedelta64[s]')
    return [str(v)[:19] for v in values.tolist()] if values.dtype.kind in 'UO' else [
        str(v) for v in values.astype('datetime64[s]')
    ]  # fmt: skip


def _georeference(
    attributes: dict[str, Any], group: Any, shape: tuple[int, ...]
) -> tuple[CRS | None, Affine | None]:
    """CRS and transform, if the store states them."""
    stated = dict(attributes)
    reference = attributes.get('grid_mapping', 'spatial_ref')
    if group is not None and reference in group:
        stated = {**dict(group[reference].attrs), **stated}
    crs = None
    for key in ('crs', 'crs_wkt', 'proj:wkt2', 'spatial_ref', 'proj:epsg', '_CRS', 'epsg'):
        value = stated.get(key)
        if isinstance(value, dict):
            value = value.get('wkt') or value.get('projjson') or value.get('url')
        if value is not None and crs is None:
            try:
                crs = CRS.from_user_input(value)
            except CRSError:
                continue
    for key in ('transform', 'affine', 'spatial:transform'):
        if len(stated.get(key, ())) in (6, 9):
            return crs, Affine(*stated[key][:6])
    if 'GeoTransform' in stated:
        value = stated['GeoTransform']
        numbers = value.split() if isinstance(value, str) else value
        return crs, Affine.from_gdal(*map(float, numbers))
    if group is not None and 'x' in group and 'y' in group:
        x, y = (np.asarray(group[k][:], dtype=float) for k in 'xy')
        if (len(y), len(x)) == shape[-2:] and len(x) > 1 and len(y) > 1:
            dx, dy = (x[-1] - x[0]) / (len(x) - 1), (y[-1] - y[0]) / (len(y) - 1)
            return crs, Affine(dx, 0, x[0] - dx / 2, 0, dy, y[0] - dy / 2)
    return crs, None
