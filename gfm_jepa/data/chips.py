"""Chips of rasters: where they lie, how much of them is valid or cloud, and which to take."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from ..errors import InputError
from ..modalities import CLOUD_MASK, Modality
from .finding import Found
from .grids import boxes_of
from .raster_files import RasterFile, Source
from .recognition import UNRECOGNISED, recognise
from .sidecars import Facts

LeftOut = tuple[str, str]
_MOST = 2**24  # pixels of a map of what is valid; larger rasters are looked at more coarsely


@dataclass(frozen=True)
class FileChips:
    """The chips of one raster, n of them.

    Attributes:
        file: The raster.
        size: Side of a chip, pixels of the file's grid.
        corners: (n, 2) first row and column of each chip.
        valid: (n,) share of pixels that hold data.
        cloud: (n,) share of pixels under cloud, NaN where no mask says.
        lon: (n, 4) longitudes of the corners, degrees.
        lat: (n, 4) latitudes, degrees.
        split: (n,) name of the split, empty if there is none.
        valid_share: Of the whole raster.
    """

    file: RasterFile
    size: int
    corners: NDArray[np.int32]
    valid: NDArray[np.float32]
    cloud: NDArray[np.float32]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    split: NDArray[np.str_]
    valid_share: float

    @property
    def on_raster(self) -> NDArray[np.float64]:
        """(n,) share of each chip that lies on the raster; the rest reaches beyond it."""
        grid, size = self.file.grid, self.size
        height = np.minimum(grid.height - self.corners[:, 0], size)
        width = np.minimum(grid.width - self.corners[:, 1], size)
        share: NDArray[np.float64] = height * width / size**2
        return share

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(n, 4) west, south, east, north, degrees."""
        return boxes_of(self.lon, self.lat)

    def take(self, keep: NDArray[Any]) -> 'FileChips':
        """Only the chips that a boolean mask or indices choose."""
        chosen = {k: getattr(self, k)[keep] for k in
                  ('corners', 'valid', 'cloud', 'lon', 'lat', 'split')}  # fmt: skip
        return FileChips(self.file, self.size, valid_share=self.valid_share, **chosen)


@dataclass(frozen=True)
class ChipFilter:
    """Which chips to take.

    Args:
        min_valid: Lowest share of pixels that hold data, 0..1.
        max_cloud: Highest share of pixels under cloud, 0..1; chips without a mask stay.
        start: First day, such as ``2019-06-01`` or ``20190601``; chips of unknown time then go.
        end: Last day, inclusive.
        area: GeoJSON file of the area of interest, longitude and latitude; chips that touch it
            stay.
        split: Name of the split, if the index has some.

    Raises:
        InputError: If a share is none, or a day, or the last day is before the first.
    """

    min_valid: float = 0.25
    max_cloud: float = 1.0
    start: str | None = None
    end: str | None = None
    area: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is none, and bring days into the form in which they compare as text."""
        for name in ('min_valid', 'max_cloud'):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f'{name} is {getattr(self, name)}; give a share from 0 to 1.')
        for name in ('start', 'end'):
            if (day := getattr(self, name)) is None:
                continue
            try:
                object.__setattr__(self, name, date.fromisoformat(str(day)).isoformat())
            except ValueError as error:
                raise InputError(f'{name} is {day}; give a day, such as 2019-06-01.') from error
        if self.start and self.end and self.start > self.end:
            raise InputError(f'start {self.start} is after end {self.end}; swap them.')

    def mask(self, chips: FileChips, as_partner: bool = False) -> NDArray[np.bool_]:
        """Which chips of a file pass: (n,) boolean.

        Args:
            chips: Of one file.
            as_partner: Whether the file may stand beside an anchor. Only what lies on the raster
                then counts for `min_valid`, no time is no reason to go, and nor is the split: both
                are the anchor's.

        Raises:
            InputError: If the area cannot be read.
        """
        valid = chips.valid / np.maximum(chips.on_raster, 1e-6) if as_partner else chips.valid
        keep: NDArray[np.bool_] = (valid >= self.min_valid) & ~(chips.cloud > self.max_cloud)
        if not self.in_time(chips.file, undated=as_partner):
            keep[:] = False
        if self.area is not None:
            keep &= shapely.intersects(polygons(chips), read_area(Path(self.area)))
        if self.split and not as_partner:
            keep &= chips.split == self.split
        return keep

    def in_time(self, file: RasterFile, undated: bool) -> bool:
        """Whether a file's day lies between start and end; `undated` if it has none."""
        day = file.time[:10]
        if not (self.start or self.end):
            return True
        return (self.start or '') <= day <= (self.end or '9') if day else undated


def polygons(chips: FileChips) -> NDArray[Any]:
    """(n,) footprints as shapely polygons, degrees."""
    ring = np.stack([chips.lon, chips.lat], axis=2)
    footprints: NDArray[Any] = shapely.polygons(ring)
    return footprints


@lru_cache(maxsize=4)
def read_area(path: Path) -> Any:
    """The union of a GeoJSON file's geometries, longitude and latitude."""
    try:
        content = json.loads(path.read_text())
        parts = content.get('features', [content])
        shapes = [shapely.from_geojson(json.dumps(p.get('geometry', p))) for p in parts]
    except (OSError, ValueError, AttributeError, TypeError, shapely.errors.GEOSException) as error:
        raise InputError(
            f'{path} is not GeoJSON of an area ({type(error).__name__}); give a file with polygons '
            f'in longitude and latitude.'
        ) from error
    return shapely.union_all(shapes)


def summed_up(left_out: Sequence[LeftOut]) -> list[LeftOut]:
    """What is left out, and why: of files that feed nothing, those of one name as one."""
    by_name: dict[str, list[str]] = {}
    for path, why in left_out:
        if why == UNRECOGNISED:
            by_name.setdefault(Path(path).name, []).append(path)
    return [(path, why) for path, why in left_out if why != UNRECOGNISED] + [
        (paths[0] if len(paths) == 1 else f'{len(paths)} x {name}', UNRECOGNISED)
        for name, paths in by_name.items()
    ]


def scan(
    found: Sequence[Found],
    modalities: Sequence[Modality],
    size: int,
    stride: int,
    said: Facts | None = None,
    lenient: bool = False,
    workers: int = 2,
    masks: Mapping[str, list[Found]] | None = None,
) -> Iterator[tuple[list[FileChips], list[LeftOut]]]:
    """Cut files into chips, many at a time, in order.

    Args:
        found: From `find_rasters`.
        modalities: Candidates.
        size: Side of a chip, pixels of each file's grid.
        stride: Pixels from one chip to the next.
        said: What the command line says of all rasters.
        lenient: Whether wrong band counts and sidecars are reported, not raised.
        workers: Threads; GDAL decodes outside of Python's lock.
        masks: Cloud masks by folder, if `found` is a part of what there is.

    Yields:
        For each found path, its chips, and paths that are left out with one phrase that says why.

    Raises:
        InputError: See `recognise`.
    """
    masks = cloud_masks(found) if masks is None else masks
    one = partial(_scan_one, modalities=modalities, size=size, stride=stride, said=said,
                  lenient=lenient, masks=masks)  # fmt: skip
    with ThreadPoolExecutor(workers) as pool:
        for some in batched(found, 64 * workers):  # bounds what waits in memory
            yield from pool.map(one, some)


def _scan_one(
    found: Found, modalities: Sequence[Modality], size: int, stride: int, said: Facts | None,
    lenient: bool, masks: Mapping[str, list[Found]],
) -> tuple[list[FileChips], list[LeftOut]]:  # fmt: skip
    """The chips of one path."""
    chips: list[FileChips] = []
    left_out: list[LeftOut] = []
    name = found.path.encode('utf-8', 'backslashreplace').decode()
    if name != found.path:
        return chips, [(name, 'has a name that is not UTF-8; rename it')]
    try:
        for file in recognise(found, modalities, said):
            if isinstance(file, str):
                left_out.append((found.path, file))
                continue
            cut = _cut(file, size, stride, masks.get(file.folder, []))
            if cut.valid_share:
                chips.append(cut)
            else:
                left_out.append((found.path, 'holds nothing but nodata'))
    except InputError as error:
        text = str(error)
        if not lenient and ' cannot be ' not in text:
            raise
        left_out.append((found.path, text.removeprefix(f'{found.path} ').split('; fetch it')[0]))
    return chips, left_out


def _cut(file: RasterFile, size: int, stride: int, masks: Sequence[Found]) -> FileChips:
    """Cut a raster into chips, side by side or overlapping; one at least, however small it is."""
    grid = file.grid
    rows = np.arange(0, max(grid.height - size, 0) + 1, stride)
    cols = np.arange(0, max(grid.width - size, 0) + 1, stride)
    places = np.stack(np.meshgrid(rows, cols, indexing='ij'), axis=2).reshape(-1, 2)
    corners = places.astype(np.int32)
    source = file.open()
    try:
        valid = _valid_map(file, source)
    finally:
        source.close()
    lon, lat = grid.corners(corners, (size, size))
    return FileChips(
        file, size, corners, _shares(valid, corners, size, grid.height, grid.width),
        _cloud_shares(file, corners, size, masks), lon, lat,
        np.full(len(corners), '', dtype='U1'), float(valid.mean()),
    )  # fmt: skip


def _shares(
    there: NDArray[np.bool_], corners: NDArray[np.int32], size: int, height: int, width: int
) -> NDArray[np.float32]:
    """Share of True in each chip, from a map that may be reduced; what lies beyond is False."""
    sums = np.zeros((there.shape[0] + 1, there.shape[1] + 1))
    sums[1:, 1:] = there.cumsum(0, dtype=np.int32).cumsum(1)
    zoom = there.shape[0] / height, there.shape[1] / width
    top, left = (np.minimum((corners[:, i] * zoom[i]).astype(int), there.shape[i]) for i in (0, 1))
    bottom, right = (
        np.minimum(np.ceil((corners[:, i] + size) * zoom[i]).astype(int), there.shape[i])
        for i in (0, 1)
    )
    total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    shares: NDArray[np.float32] = np.minimum(total / (size * size * zoom[0] * zoom[1]), 1.0).astype(
        np.float32
    )
    return shares


def _valid_map(file: RasterFile, source: Source, most: int = _MOST) -> NDArray[np.bool_]:
    """(H, W) where the file holds data; reduced if there are more than `most` pixels."""
    height, width = source.height, source.width
    step, reduced = _reduction(height, width, most)
    there = np.ones(reduced, dtype=bool)
    if file.nodata is None and not file.masked and not file.warped and _is_integer(source):
        return there
    # Whole rows of blocks, in parts of some megabytes; a multiple of `step`.
    strip = max(2**22 // (width * len(file.band_ids)) // 256, 1) * 256 * step
    for top in range(0, height, strip):
        rows = min(strip, height - top)
        window = Window(0, top, width, rows)
        shape = (-(-rows // step), there.shape[1]) if step > 1 else None
        part = file.present(source, window, shape)
        there[top // step : top // step + part.shape[0]] = part
    return there


def _reduction(height: int, width: int, most: int = _MOST) -> tuple[int, tuple[int, int]]:
    """Which of a raster's pixels to look at, each or every so many, and how many those are."""
    step = max(int(np.ceil(np.sqrt(height * width / most))), 1)
    return step, (-(-height // step), -(-width // step))


def _is_integer(source: Source) -> bool:
    """Whether all bands are stored as integers, which have no NaN."""
    kinds = getattr(source, 'dtypes', None) or [str(source.array.dtype)]  # type: ignore[attr-defined]
    return all('int' in k for k in kinds)


def cloud_masks(found: Sequence[Found]) -> dict[str, list[Found]]:
    """Cloud masks by folder: they count for the rasters beside them."""
    names = [a.lower() for a in CLOUD_MASK.aliases]
    masks: dict[str, list[Found]] = {}
    for f in found:
        folder, _, name = f.path.rpartition('/')
        if any(a in name.lower() for a in names):
            masks.setdefault(folder, []).append(f)
    return masks


def _cloud_shares(
    file: RasterFile, corners: NDArray[np.int32], size: int, masks: Sequence[Found]
) -> NDArray[np.float32]:
    """Share of each chip under cloud, by the masks in its folder whose time is not another.

    By the one that shows most of it: a folder may hold tiles that overlap, and a mask of each.
    """
    share = np.full(len(corners), np.nan, dtype=np.float32)
    most = np.zeros(len(corners), dtype=np.float32)
    for found in masks:
        try:
            candidates = [m for m in recognise(found, [CLOUD_MASK]) if isinstance(m, RasterFile)]
        except InputError:  # its own line in the report says what is wrong with it
            continue
        for mask in candidates:
            if mask.time and file.time and mask.time != file.time:
                continue
            source = mask.open(file.grid)
            try:
                height, width = source.height, source.width
                clouds = mask.read(source, shape=_reduction(height, width)[1])[0]
            except InputError:
                continue
            finally:
                source.close()
            there = np.isfinite(clouds)
            seen = _shares(there, corners, size, height, width)
            cloudy = _shares(there & (clouds > 0), corners, size, height, width)
            better = seen > most
            share[better] = cloudy[better] / np.maximum(seen[better], 1e-6)
            most = np.maximum(most, seen)
    return share
