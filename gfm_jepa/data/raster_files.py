"""One raster file: which modality it feeds, with which bands, on which grid, and how it is read."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform, transform_bounds
from rasterio.windows import Window

from ..errors import InputError
from ..modalities import Modality

SUFFIXES = frozenset({'.tif', '.tiff', '.vrt', '.jp2', '.img', '.nc', '.grd'})
UNRECOGNISED = 'feeds no configured modality: neither its name, its folder nor its bands say so'
Float = NDArray[np.float32]


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
    def bounds(self) -> tuple[float, float, float, float]:
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


@dataclass(frozen=True)
class RasterFile:
    """A file that feeds a modality.

    Attributes:
        path: Where it is.
        modality: What it feeds.
        band_ids: For each band of the modality, its 1-based number in the file, or 0 if the file
            lacks it.
        grid: Its own grid if that is north-up in metres, else the one it is warped to.
        warped: Whether `grid` differs from the file's own.
        nodata: Value that means "not there", if any.
        by_name: Whether bands were matched by name, not by position.
        valid_share: Share of the pixels that hold data, from a reduced read.
    """

    path: Path
    modality: Modality
    band_ids: tuple[int, ...]
    grid: Grid
    warped: bool
    nodata: float | None
    by_name: bool
    valid_share: float = 1.0

    def open(self, grid: Grid | None = None) -> rasterio.DatasetReader | WarpedVRT:
        """Open the file on its own grid, or on another."""
        source = rasterio.open(self.path)
        if grid is None and not self.warped:
            return source
        grid = grid or self.grid
        # Coarser pixels average the finer ones below them; bilinear would skip most.
        zoom = grid.gsd / self.grid.gsd
        return WarpedVRT(
            source,
            crs=grid.crs,
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            src_nodata=self.nodata,
            nodata=math.nan,
            dtype='float32',
            resampling=Resampling.average if zoom > 1.5 else Resampling.bilinear,
        )

    def read(
        self,
        source: rasterio.DatasetReader | WarpedVRT,
        window: Window | None = None,
        shape: tuple[int, int] | None = None,
    ) -> Float:
        """Read a window: (C, H, W) in the modality's band order, NaN where there is no data.

        Args:
            source: From `open`.
            window: Columns and rows, which may reach beyond the raster; all by default.
            shape: Height and width to reduce the window to, by nearest neighbour.

        Raises:
            InputError: If the file cannot be read there.
        """
        window = window or Window(0, 0, source.width, source.height)
        top, left = max(window.row_off, 0), max(window.col_off, 0)
        bottom = min(window.row_off + window.height, source.height)
        right = min(window.col_off + window.width, source.width)
        inside = Window(left, top, right - left, bottom - top)
        height, width = shape or (int(window.height), int(window.width))
        out = np.full((len(self.band_ids), height, width), np.nan, dtype=np.float32)
        if inside.width <= 0 or inside.height <= 0:
            return out
        at = [i for i, band in enumerate(self.band_ids) if band]
        ids = [self.band_ids[i] for i in at]
        try:
            values = source.read(
                ids, window=inside, out_shape=(len(ids), *shape) if shape else None
            )
        except RasterioIOError as error:
            raise InputError(
                f'{self.path} cannot be read ({_reason(error)}); fetch it again, or leave it out.'
            ) from error
        values = self._mark_missing(values.astype(np.float32))
        row, col = int(top - window.row_off), int(left - window.col_off)
        out[at, row : row + values.shape[1], col : col + values.shape[2]] = values
        return out

    def _mark_missing(self, values: Float) -> Float:
        """Set what is not there to NaN."""
        if self.nodata is not None and not math.isnan(self.nodata):
            missing = values == np.float32(self.nodata)
            # One band may well measure the value that all together use for "nothing here".
            values[:, missing.all(axis=0)] = np.nan
        values[~np.isfinite(values)] = np.nan
        return values


def find_files(paths: Sequence[str | Path]) -> Iterator[tuple[Path, str | None]]:
    """List rasters below each path, sorted.

    Args:
        paths: Files or folders; ``name=path`` says which modality lies there.

    Yields:
        Each file, and the modality that was stated for it.

    Raises:
        InputError: If a path does not exist, or there is no raster at all.
    """
    found = False
    for entry in paths:
        name, _, rest = ('', '', entry) if Path(entry).exists() else str(entry).partition('=')
        folder = Path(rest or name).expanduser()
        name = name if rest else ''
        if not folder.exists():
            raise InputError(f'There is no file or folder {folder}; check the path.')
        files = [folder] if folder.is_file() else sorted(folder.rglob('*'))
        for file in files:
            if file.suffix.lower() in SUFFIXES and file.is_file():
                found = True
                yield file, name or None
    if not found:
        raise InputError(
            f'No raster found in {", ".join(map(str, paths))}; expected files ending in '
            f'{" ".join(sorted(SUFFIXES))}.'
        )


def open_file(
    path: Path, modalities: Sequence[Modality], stated: str | None = None
) -> RasterFile | str:
    """Find out which modality a file feeds, and how to read it.

    Args:
        path: Of the file.
        modalities: Candidates.
        stated: Name of the modality that the user says it is.

    Returns:
        The file, or one phrase that says why it is left out.

    Raises:
        InputError: If the stated modality is not a candidate, or a file that is called after a
            modality has another number of bands.
    """
    if stated is not None and stated not in [m.name for m in modalities]:
        raise InputError(
            f'{path} is said to be {stated!r}, which is not among the modalities '
            f'{", ".join(m.name for m in modalities)}.'
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            source = rasterio.open(path)
    except RasterioIOError as error:
        return f'cannot be opened ({_reason(error)})'
    with source:
        if broken := _truncation(path, source):
            return broken
        modality = _identify(path, source, modalities, stated)
        if modality is None:
            return UNRECOGNISED
        matched = _match_bands(path, source, modality)
        if source.crs is None:
            return 'has no CRS, so that its place on the ground is unknown'
        grid, warped = _grid_of(source)
        nodata = modality.nodata if source.nodata is None else float(source.nodata)
        file = RasterFile(path, modality, matched[0], grid, warped, nodata, matched[1])
        shape = (min(source.height, 256), min(source.width, 256))
        try:
            values = file.read(source, shape=shape)
        except InputError as error:
            return str(error).partition(' cannot be read ')[2] or str(error)
    # Warping and all it costs are not needed to count what is there.
    share = float(np.isfinite(values).any(axis=0).mean())
    return replace(file, valid_share=share) if share else 'holds nothing but nodata'


def _truncation(path: Path, source: rasterio.DatasetReader) -> str | None:
    """Tell whether a TIFF ends before its last block: GDAL opens such files without a word."""
    if source.driver != 'GTiff':
        return None
    size = path.stat().st_size
    rows = math.ceil(source.height / source.block_shapes[0][0])
    cols = math.ceil(source.width / source.block_shapes[0][1])
    for band in {1, source.count}:
        # Blocks may lie in any order, but checking more than some thousands would cost seconds.
        step = max(rows * cols // 4096, 1)
        for index in {*range(0, rows * cols, step), rows * cols - 1}:
            place = f'{index % cols}_{index // cols}'
            offset = source.get_tag_item(f'BLOCK_OFFSET_{place}', 'TIFF', bidx=band)
            length = source.get_tag_item(f'BLOCK_SIZE_{place}', 'TIFF', bidx=band)
            if offset and length and int(offset) + int(length) > size:
                return f'is truncated: it ends at byte {size}, before its data does'
    return None


def _identify(
    path: Path, source: rasterio.DatasetReader, modalities: Sequence[Modality], stated: str | None
) -> Modality | None:
    """Which modality the file feeds: as stated, by file name, by folder name, or by band names."""
    if stated is not None:
        return next(m for m in modalities if m.name == stated)
    for text in (path.stem, path.parent.name):
        words = [w.lower() for w in re.split(r'[^A-Za-z0-9]+', text) if w]
        runs = {
            ''.join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)
        }
        for modality in modalities:
            names = {
                re.sub(r'[^a-z0-9]', '', a.lower()) for a in (modality.name, *modality.aliases)
            }
            if names & runs:
                return modality
    described = [_band_key(d) for d in source.descriptions if d]
    fits = [
        m for m in modalities
        if len(described) == source.count and set(described) <= {_band_key(b) for b in m.bands}
    ]  # fmt: skip
    return fits[0] if len(fits) == 1 else None


def _match_bands(
    path: Path, source: rasterio.DatasetReader, modality: Modality
) -> tuple[tuple[int, ...], bool]:
    """Number in the file of each of the modality's bands, and whether names decided."""
    described = [_band_key(d or '') for d in source.descriptions]
    wanted = [_band_key(b) for b in modality.bands]
    if len(set(described)) == source.count and set(described) <= set(wanted):
        return tuple(described.index(b) + 1 if b in described else 0 for b in wanted), True
    if source.count == len(wanted):
        return tuple(range(1, source.count + 1)), False
    raise InputError(
        f'{path} has {source.count} bands, but {modality.name} has {len(wanted)} '
        f'({" ".join(modality.bands)}), and the file does not name them; name its bands, or state '
        f'its own modality as name=path.'
    )


def _band_key(name: str) -> str:
    """What band names are compared by: ``B1``, ``B01`` and ``b01`` are one."""
    return re.sub(r'^([a-z]+)0+(?=[1-9])', r'\1', name.strip().lower())


def _grid_of(source: rasterio.DatasetReader) -> tuple[Grid, bool]:
    """The file's own grid if it is north-up in metres, else one of its UTM zone."""
    own = source.transform
    metres = source.crs.is_projected and abs(source.crs.linear_units_factor[1] - 1) < 1e-6
    upright = own.b == 0 and own.d == 0 and own.a > 0 and own.e < 0
    if metres and upright and 0.8 < abs(own.a / own.e) < 1.25:
        return Grid(source.crs, own, source.width, source.height), False
    crs = source.crs
    if not metres:
        left, bottom, right, top = transform_bounds(source.crs, 'EPSG:4326', *source.bounds)
        zone = int(((left + right) / 2 + 180) // 6) % 60 + 1
        crs = CRS.from_epsg((32600 if bottom + top >= 0 else 32700) + zone)
    placed = calculate_default_transform(
        source.crs, crs, source.width, source.height, *source.bounds
    )
    return Grid(crs, placed[0], placed[1], placed[2]), True


def _reason(error: Exception) -> str:
    """The last line of what GDAL says, short."""
    text = str(error.__cause__ or error).strip().splitlines()
    return text[-1][:120] if text else type(error).__name__
