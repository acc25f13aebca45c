"""One raster that feeds a modality: how it is opened, and read as physical values with NaN."""

import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol
from xml.sax.saxutils import escape, unescape

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from ..errors import InputError
from ..modalities import Modality
from .grids import Grid
from .zarr_cubes import BROKEN, ZarrRaster

Float = NDArray[np.float32]
_MEASURABLE = (-998.0, 1e6)  # by a sensor of unknown range
REMOTE = ('http://', 'https://', 's3://', 'gs://', '/vsicurl/', '/vsis3/', '/vsigs/')

# Decoded blocks that a process keeps, bytes, whatever the machine: memory has to stay flat.
BLOCK_CACHE = 256 * 2**20
# An answer that never comes ends the read. Remote files are opened without listing their folder.
GDAL_OPTIONS = {
    'GDAL_HTTP_TIMEOUT': 30,
    'GDAL_HTTP_CONNECTTIMEOUT': 10,
}
REMOTE_OPTIONS = {
    'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR',
    # What failed once is asked for again, once the server is back.
    'CPL_VSIL_CURL_NON_CACHED': '/vsicurl/',
}


class Source(Protocol):
    """What can be read: rasterio's datasets, warped ones, and zarr arrays."""

    width: int
    height: int

    def read(
        self, indexes: Sequence[int], window: Any, out_shape: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """Read bands (1-based) of a window."""

    def close(self) -> None:
        """Let go of the file."""


@dataclass(frozen=True)
class RasterFile:
    """A raster that feeds a modality.

    Attributes:
        path: Where it is, as a reader would say it.
        uri: What is opened: the path, a GDAL name, ``array@store`` of a zarr, or the text of a VRT.
        modality: What it feeds.
        band_ids: For each band of the modality, its 1-based number in the file, or 0 if the file
            lacks it.
        grid: Its own grid if that is north-up in metres, else the one it is warped to.
        warped: Whether `grid` differs from the file's own.
        nodata: Value that means "not there", if any.
        masked: Whether a mask band or alpha says where there is data.
        scale: Factor from stored values to the modality's unit, one per band of the modality.
        offset: Added after `scale`, in the modality's unit.
        time: Acquisition, ISO 8601, UTC; empty if unknown.
        notes: What was decided about it, for reports.
    """

    path: str
    uri: str
    modality: Modality
    band_ids: tuple[int, ...]
    grid: Grid
    warped: bool = False
    nodata: float | None = None
    masked: bool = False
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    time: str = ''
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Where it lies; files of one place often lie in one folder."""
        return self.path.rpartition('/')[0]

    @property
    def is_remote(self) -> bool:
        """Whether another machine has to answer, which it may do at a second try."""
        return self.path.startswith(REMOTE)

    @property
    def bands(self) -> list[str]:
        """Names of the bands that it has."""
        ids = zip(self.modality.bands, self.band_ids, strict=True)
        return [name for name, band in ids if band]

    @property
    def nodata_is_impossible(self) -> bool:
        """Whether no band could measure its nodata value, so that it means so in each alone.

        One band may well measure what all together use for "nothing here", such as 0 or 255.
        """
        limits = self.modality.valid_range or _MEASURABLE
        return self.nodata is not None and not limits[0] <= self.nodata <= limits[1]

    def open(self, grid: Grid | None = None) -> Source:
        """Open the file on its own grid, or on another.

        Raises:
            InputError: If it cannot be opened.
        """
        if self.uri.startswith('zarr:'):
            target = grid or (self.grid if self.warped else None)
            nearest, by_band = self.modality.categorical, self.nodata_is_impossible
            try:
                return ZarrRaster(self.uri, target, self.nodata, nearest, by_band)
            except BROKEN as error:
                raise self._cannot('be opened', error) from error
        with gdal(self.is_remote):
            try:
                source = rasterio.open(gdal_name(self.uri))
            except RasterioError as error:
                raise self._cannot('be opened', error) from error
            if grid is None and not self.warped:
                return source  # type: ignore[no-any-return]
            grid = grid or self.grid
            # Coarser pixels average the finer ones below them; bilinear would skip most.
            zoom = grid.gsd / self.grid.gsd
            method = Resampling.average if zoom > 1.5 else Resampling.bilinear
            return WarpedVRT(  # type: ignore[no-any-return]
                source,
                crs=grid.crs,
                transform=grid.transform,
                width=grid.width,
                height=grid.height,
                src_nodata=self.nodata,
                nodata=math.nan,
                dtype='float32',
                resampling=Resampling.nearest if self.modality.categorical else method,
                UNIFIED_SRC_NODATA='NO' if self.nodata_is_impossible else 'YES',
            )

    def read(
        self, source: Source, window: Window | None = None, shape: tuple[int, int] | None = None
    ) -> Float:
        """Read a window: (C, H, W) in the modality's bands and unit, NaN where there is no data.

        Args:
            source: From `open`.
            window: Columns and rows, which may reach beyond the raster; all by default.
            shape: Height and width to reduce the window to, by nearest neighbour.

        Raises:
            InputError: If the file cannot be read there.
        """
        window = window or Window(0, 0, source.width, source.height)
        top, left = max(window.row_off, 0), max(window.col_off, 0)
        # A window that lies beyond the raster has nothing inside it.
        bottom = max(min(window.row_off + window.height, source.height), top)
        right = max(min(window.col_off + window.width, source.width), left)
        inside = Window(left, top, right - left, bottom - top)
        at = [i for i, band in enumerate(self.band_ids) if band]
        ids = [self.band_ids[i] for i in at]
        whole = len(at) == len(self.band_ids) and inside == window
        height, width = shape or (int(window.height), int(window.width))
        if not whole:
            out = np.full((len(self.band_ids), height, width), np.nan, dtype=np.float32)
            if inside.width <= 0 or inside.height <= 0:
                return out
        options = {'window': inside, 'out_shape': (len(ids), *shape) if shape else None}
        try:
            values = self._physical(source, source.read(ids, **options), options, at)
        except RasterioIOError as error:
            raise self._cannot('be read', error) from error
        if whole:
            return values
        row, col = int(top - window.row_off), int(left - window.col_off)
        out[at, row : row + values.shape[1], col : col + values.shape[2]] = values
        return out

    def present(
        self, source: Source, window: Window, shape: tuple[int, int] | None = None
    ) -> NDArray[np.bool_]:
        """Where a window inside the raster holds data in any band: (H, W).

        Args:
            source: From `open`.
            window: Columns and rows.
            shape: Height and width to reduce the window to, by nearest neighbour.

        Raises:
            InputError: If the file cannot be read there.
        """
        there: NDArray[np.bool_] = np.zeros(
            shape or (int(window.height), int(window.width)), dtype=bool
        )
        try:
            if self.masked and isinstance(source, rasterio.DatasetReader):
                there |= source.dataset_mask(window=window, out_shape=shape) > 0
                return there
            for band in (b for b in self.band_ids if b):
                out_shape = (1, *shape) if shape else None
                raw = source.read([band], window=window, out_shape=out_shape)[0]
                there |= np.isfinite(raw) & (raw != self._nodata_as(raw))
                if there.all():  # most rasters show it in the first band
                    break
        except RasterioIOError as error:
            raise self._cannot('be read', error) from error
        return there

    def _nodata_as(self, raw: NDArray[Any]) -> float | int:
        """Nodata, so that comparing it with stored values needs no wider copy of them."""
        if self.nodata is None:
            return math.nan
        whole_number = raw.dtype.kind in 'iu' and float(self.nodata).is_integer()
        return int(self.nodata) if whole_number else self.nodata

    def _physical(
        self, source: Source, raw: NDArray[Any], options: dict[str, Any], at: list[int]
    ) -> Float:
        """Stored values (C, H, W) in the modality's unit, NaN where they mean "not there"."""
        values: Float = raw.astype(np.float32)
        if self.nodata is not None and not math.isnan(self.nodata):
            missing = raw == self._nodata_as(raw)
            if self.nodata_is_impossible:
                values[missing] = np.nan
            else:
                values[:, missing.all(axis=0)] = np.nan
        if raw.dtype.kind == 'f':
            values[~np.isfinite(values)] = np.nan
        if self.masked and isinstance(source, rasterio.DatasetReader):
            shape = options['out_shape']
            mask = source.dataset_mask(window=options['window'], out_shape=shape and shape[1:])
            values[:, mask == 0] = np.nan
        if self.scale:
            values *= np.array([self.scale[i] for i in at], np.float32)[:, None, None]
        if self.offset:
            values += np.array([self.offset[i] for i in at], np.float32)[:, None, None]
        return values

    def _cannot(self, what: str, error: Exception) -> InputError:
        remedy = 'see whether its server answers' if self.is_remote else 'fetch it again'
        return InputError(
            f'{self.path} cannot {what} ({reason(error)}); {remedy}, or leave it out.'
        )

    def state(self) -> list[Any]:
        """What its pixels depend on: how it is read, and size and time of what is opened."""
        names = re.findall(r'<SourceFilename[^>]*>([^<]*)<', self.uri) or [self.path]
        states = map(state_of, map(Path, map(unescape, names)))
        return [self.to_dict(), *(list(state) for state in states if state)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the index; the modality by name."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        # 0 is a nodata value, and no default: only what equals its default goes.
        plain = {f.name: own[f.name] for f in fields(self) if own[f.name] != f.default}
        own_bands = list(self.modality.bands)
        return {
            **plain, 'modality': self.modality.name, 'bands': own_bands,
            'grid': self.grid.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, written: dict[str, Any], modality: Modality) -> 'RasterFile':
        """What `to_dict` wrote.

        Raises:
            InputError: If the modality has other bands than when it was written.
        """
        bands = written.pop('bands')
        if bands != list(modality.bands):
            raise InputError(
                f'{written["path"]} was indexed with the bands {" ".join(bands)} of '
                f'{modality.name}, which now has {" ".join(modality.bands)}; index it again.'
            )
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in written.items()
        }
        plain |= {'modality': modality, 'grid': Grid.from_dict(written['grid'])}
        return cls(**plain)


def gdal(remote: bool = False) -> rasterio.Env:
    """The settings that our reads run under; what the user's environment says goes before."""
    options: dict[str, Any] = {**GDAL_OPTIONS, **(REMOTE_OPTIONS if remote else {})}
    if 'GDAL_CACHEMAX' not in os.environ:
        options['GDAL_CACHEMAX'] = BLOCK_CACHE
    return rasterio.Env(**options)


def state_of(path: Path) -> tuple[int, int] | None:
    """Size and time of change, ns, of a file; of a store, the files below it and their newest."""
    if path.is_dir():
        times = [p.stat().st_mtime_ns for p in path.rglob('*')]
        return len(times), max(times, default=0)
    stat = path.stat() if path.exists() else None
    return stat and (stat.st_size, stat.st_mtime_ns)


def absolute(path: str) -> str:
    """A local path that holds from any folder; names of GDAL's own stay."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def gdal_name(uri: str) -> str:
    """What GDAL calls it: it finds its own credentials for buckets."""
    for scheme, prefix in (('s3://', '/vsis3/'), ('gs://', '/vsigs/'), ('http', '/vsicurl/http')):
        if uri.startswith(scheme):
            return prefix + uri.removeprefix(scheme)
    return uri


def stack_bands(
    bands: Sequence[tuple[str, rasterio.DatasetReader, int]],
    masked_by: rasterio.DatasetReader | None = None,
) -> str:
    """Join bands of several rasters on one ground, as the text of a VRT on the finest grid.

    Args:
        bands: Name of each, its raster, and its 1-based number there.
        masked_by: Of these rasters the one whose mask is that of all.
    """
    finest = max((source for _, source, _ in bands), key=lambda s: s.width)
    crs, transform = finest.crs, finest.transform
    lines = [f'<VRTDataset rasterXSize="{finest.width}" rasterYSize="{finest.height}">']
    if crs:
        lines += [f'<SRS>{escape(crs.to_wkt())}</SRS>']
        lines += [f'<GeoTransform>{", ".join(map(repr, transform.to_gdal()))}</GeoTransform>']
    kinds = {'uint8': 'Byte', 'int8': 'Int8'}
    for i, (name, source, number) in enumerate(bands):
        dtype = source.dtypes[number - 1]
        nodata = source.nodatavals[number - 1]
        missing = '' if nodata is None else f'<NoDataValue>{nodata}</NoDataValue>'
        size = f'xOff="0" yOff="0" xSize="{source.width}" ySize="{source.height}"'
        lines += [
            f'<VRTRasterBand dataType="{kinds.get(dtype, dtype.title().replace("int", "Int"))}" '
            f'band="{i + 1}"><Description>{escape(name)}</Description>{missing}'
            f'<SimpleSource resampling="{"nearest" if nodata is not None else "bilinear"}">'
            f'<SourceFilename relativeToVRT="0">{escape(absolute(source.name))}</SourceFilename>'
            f'<SourceBand>{number}</SourceBand><SrcRect {size}/>'
            f'<DstRect {_place_on(finest, source)}/>'
            f'</SimpleSource></VRTRasterBand>'
        ]
    if masked_by is not None:
        size = f'xOff="0" yOff="0" xSize="{masked_by.width}" ySize="{masked_by.height}"'
        lines += [
            f'<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource>'
            f'<SourceFilename relativeToVRT="0">{escape(absolute(masked_by.name))}</SourceFilename>'
            f'<SourceBand>mask,1</SourceBand><SrcRect {size}/>'
            f'<DstRect {_place_on(finest, masked_by)}/>'
            f'</SimpleSource></VRTRasterBand></MaskBand>'
        ]
    return '\n'.join([*lines, '</VRTDataset>'])


def _place_on(finest: rasterio.DatasetReader, source: rasterio.DatasetReader) -> str:
    """Where a raster lies on the pixels of another, as the attributes of a VRT's rectangle."""
    x, y = ~finest.transform @ (source.transform @ (0, 0))
    right, bottom = ~finest.transform @ (source.transform @ (source.width, source.height))
    sides = {'xOff': x, 'yOff': y, 'xSize': right - x, 'ySize': bottom - y}
    return ' '.join(f'{name}="{round(side, 6):g}"' for name, side in sides.items())


def reason(error: Exception) -> str:
    """The last line of what GDAL says, short."""
    text = str(error.__cause__ or error).strip().splitlines()
    return text[-1][:120] if text else type(error).__name__


def require_half_of_bands(files: Iterable[RasterFile]) -> None:
    """Refuse files of which none has half of the bands of its modality: no patch would count.

    Beside another modality that has its bands, one that has not is warned of.

    Raises:
        InputError: Naming the modality and the bands that are there.
    """
    most: dict[str, RasterFile] = {}
    for file in files:
        best = most.setdefault(file.modality.name, file)
        if len(file.bands) > len(best.bands):
            most[file.modality.name] = file
    lacking = [n for n, f in most.items() if 2 * len(f.bands) < len(f.modality.bands)]
    for name in lacking:
        file, bands = most[name], ', '.join(most[name].bands)
        message = (
            f'{name} has {len(file.modality.bands)} bands, of which {file.path} holds '
            f'{len(file.bands)} ({bands}), and no other file more; a patch counts with half of '
            f'its values: name these bands alone, to train as data.modalities=[{{name: {name}, '
            f'bands: [{bands}]}}], to embed by from_pretrained(..., bands={{...}}) and '
            f'save_pretrained.'
        )
        if len(lacking) == len(most):
            raise InputError(message)
        warnings.warn(message, stacklevel=2)
