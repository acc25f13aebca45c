"""What `gfm-jepa embed` wrote, to work on: maps of cells and tables of chips, read part by part."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from shapely.geometry import Point

from ..data.grids import Grid, to_degrees
from ..data.index import make_folder
from ..data.places import outline
from ..data.raster_files import reason
from ..errors import InputError
from ..output_paths import require_apart

if TYPE_CHECKING:
    import geopandas

Float = NDArray[np.float32]
Places = NDArray[np.int64]
SIDE = 256  # cells of a block that is read at once


@dataclass(frozen=True)
class EmbeddingMap:
    """A GeoTIFF with a band a feature; its places are its cells, row by row.

    Attributes:
        path: The file.
        grid: Of its cells.
        names: Of its features.
        scale: Factor from stored values to features, one per feature.
        offset: Added after `scale`.
        like: Another map on whose grid this one is read, by nearest neighbour.
        weights: Hash of the weights that made it; '' if the file does not say.
    """

    path: Path
    grid: Grid
    names: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    like: 'EmbeddingMap | None' = None
    weights: str = ''

    @property
    def target(self) -> Grid:
        """The grid that it is read on."""
        return self.like.grid if self.like else self.grid

    @property
    def count(self) -> int:
        """Number of places, those without data too."""
        return self.target.height * self.target.width

    def batches(self) -> Iterator[tuple[Places, Float]]:
        """Places (n,) that hold data and their features (n, D), block by block.

        Raises:
            InputError: If the file is broken.
        """
        grid = self.target
        with rasterio.open(self.path) as own, self._warped(own) as source:
            for top in range(0, grid.height, SIDE):
                for left in range(0, grid.width, SIDE):
                    rows, cols = min(SIDE, grid.height - top), min(SIDE, grid.width - left)
                    raw = self._read(source, Window(left, top, cols, rows))
                    values = raw.filled(0).astype(np.float32).reshape(len(raw), -1).T
                    values = values * np.array(self.scale, 'f4') + np.array(self.offset, 'f4')
                    there = ~np.ma.getmaskarray(raw).any(axis=0).ravel()
                    there &= np.isfinite(values).all(axis=1)
                    row, col = np.divmod(np.flatnonzero(there), cols)
                    yield (row + top) * grid.width + col + left, values[there]

    def place_at(self, lon: float, lat: float) -> int:
        """The cell at a coordinate, degrees.

        Raises:
            InputError: If it lies beyond the map.
        """
        x, y = to_degrees(self.target.crs.to_wkt()).transform(lon, lat, direction='INVERSE')
        # Not a number where the map's projection has no such place.
        at = np.nan_to_num(~self.target.transform @ (x, y), nan=-1.0, posinf=-1.0, neginf=-1.0)
        col, row = (int(np.floor(v)) for v in at)
        if not (0 <= row < self.target.height and 0 <= col < self.target.width):
            west, south, east, north = outline(self.target)
            raise InputError(
                f'{lon}, {lat} (longitude, latitude) lies beyond {self.path}, which spans '
                f'longitudes {west:.4f} to {east:.4f} and latitudes {south:.4f} to {north:.4f}; '
                f'give a place within, longitude first.'
            )
        return row * self.target.width + col

    def positions(self, places: Places) -> NDArray[np.float64]:
        """Longitude and latitude (n, 2) of the centres of cells, degrees."""
        row, col = np.divmod(places, self.target.width)
        step = self.target.transform  # north-up
        x, y = step.c + (col + 0.5) * step.a, step.f + (row + 0.5) * step.e
        return np.stack(to_degrees(self.target.crs.to_wkt()).transform(x, y), axis=1)

    def column(self, index: int) -> Float:
        """One feature by place: (count,), NaN where nothing is there."""
        found = np.full(self.count, np.nan, np.float32)
        for places, features in self.batches():
            found[places] = features[:, index]
        return found

    def image(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (count,) as a picture (H, W)."""
        return values.reshape(self.target.height, self.target.width)

    def write(self, path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write values by place as a GeoTIFF, a band each.

        Args:
            path: File to write, in one move.
            columns: (count,) by name: all float32 with NaN, or all uint8 with 255 for no data.

        Raises:
            InputError: If it cannot be written.
        """
        values = np.stack([self.image(v) for v in columns.values()])
        partial = path.with_name(f'{path.name}.tmp.tif')
        try:
            with rasterio.open(
                partial, 'w', driver='COG', count=len(values), height=values.shape[1],
                width=values.shape[2], dtype=values.dtype, crs=self.target.crs,
                transform=self.target.transform, compress='DEFLATE',
                nodata=np.nan if values.dtype.kind == 'f' else 255,
                overview_resampling='AVERAGE' if values.dtype.kind == 'f' else 'MODE',
            ) as file:  # fmt: skip
                file.write(values)
                file.descriptions = tuple(columns)
            os.replace(partial, path)
        except (RasterioError, CPLE_BaseError, SystemError, OSError) as error:  # GDAL's own, too
            raise InputError(f'{path} cannot be written ({reason(error)}).') from error
        finally:
            partial.unlink(missing_ok=True)

    def _read(self, source: Any, window: Window) -> Any:
        try:
            # By number: a warped raster may have an alpha band behind its own.
            numbers = list(range(1, len(self.names) + 1))
            return source.read(numbers, window=window, masked=True)
        except RasterioError as error:
            raise InputError(
                f'{self.path} is broken ({reason(error)}); write it again with `gfm-jepa embed`.'
            ) from error

    def _warped(self, source: Any) -> Any:
        if self.like is None:
            return source
        return warped_to(source, self.like.grid, Resampling.nearest)


def warped_to(source: rasterio.DatasetReader, grid: Grid, how: Resampling) -> WarpedVRT:
    """A raster on another grid; beyond its own ground a masked read says that nothing is there."""
    beyond: dict[str, Any] = {}
    if all(flags == [MaskFlags.all_valid] for flags in source.mask_flag_enums):
        # Nothing in the raster says so: NaN does, and an alpha band where there is no NaN.
        floating = np.dtype(source.dtypes[0]).kind == 'f'
        beyond = {'nodata': np.nan} if floating else {'add_alpha': True}
    return WarpedVRT(source, crs=grid.crs, transform=grid.transform, width=grid.width,
                     height=grid.height, resampling=how, **beyond)  # fmt: skip


def require_crs(source: rasterio.DatasetReader) -> None:
    """Refuse a raster of which nobody says where it lies.

    Raises:
        InputError: If it states no coordinate reference system.
    """
    if source.crs is None:
        raise InputError(
            f'{source.name} states no coordinate reference system, so that its place is not known; '
            f'give it one, such as with rio edit-info --crs.'
        )


@dataclass(frozen=True)
class EmbeddedTable:
    """A GeoParquet of chips; its places are its rows.

    Attributes:
        path: The file.
        names: Of the features.
        scale: Factor from stored values to features.
        offset: Added after `scale`.
        weights: As of a map.
    """

    path: Path
    names: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    weights: str = ''

    @cached_property
    def count(self) -> int:
        """Number of places."""
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(self.path).num_rows)

    def batches(self) -> Iterator[tuple[Places, Float]]:
        """Places (n,) and their features (n, D), part by part."""
        import pyarrow.parquet

        start = 0
        file = pyarrow.parquet.ParquetFile(self.path)
        for batch in file.iter_batches(65536, columns=['embedding']):
            if not len(batch):
                continue
            flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            values = flat.astype(np.float32).reshape(len(batch), -1)
            values = values * np.array(self.scale, 'f4') + np.array(self.offset, 'f4')
            yield np.arange(start, start + len(values)), values
            start += len(values)

    @cached_property
    def table(self) -> 'geopandas.GeoDataFrame':
        """All columns but the embeddings."""
        import geopandas
        import pyarrow.parquet

        names = [n for n in pyarrow.parquet.read_schema(self.path).names if n != 'embedding']
        return geopandas.read_parquet(self.path, columns=names)

    def place_at(self, lon: float, lat: float) -> int:
        """The chip whose centre is nearest to a coordinate, degrees, of those that cover it.

        Raises:
            InputError: If none does.
        """
        point = Point(lon, lat)
        covers = np.flatnonzero(self.table.geometry.intersects(point))
        if not len(covers):
            raise InputError(f'{lon}, {lat} (longitude, latitude) lies on no chip of {self.path}.')
        gaps = self.positions(covers) - (lon, lat)
        return int(covers[np.square(gaps).sum(axis=1).argmin()])

    def positions(self, places: Places) -> NDArray[np.float64]:
        """Longitude and latitude (n, 2) of the centres of chips, degrees."""
        bounds = self.table.geometry.iloc[places].bounds.to_numpy()
        return np.stack([bounds[:, [0, 2]].mean(axis=1), bounds[:, [1, 3]].mean(axis=1)], axis=1)

    def write(
        self, path: Path, columns: Mapping[str, NDArray[Any]], places: Places | None = None
    ) -> None:
        """Write values by place beside the columns of the table, as a GeoParquet.

        Args:
            path: File to write, in one move.
            columns: (n,) by name.
            places: Rows that they are of; all by default.

        Raises:
            InputError: If it cannot be written.
        """
        table = self.table if places is None else self.table.iloc[places]
        partial = path.with_name(f'{path.name}.tmp')
        try:
            table.assign(**columns).to_parquet(partial, index=False)
            os.replace(partial, path)
        except OSError as error:
            raise InputError(f'{path} cannot be written ({error.strerror}).') from error
        finally:
            partial.unlink(missing_ok=True)


Embeddings = EmbeddingMap | EmbeddedTable


def open_embeddings(path: Path) -> Embeddings:
    """Open what `gfm-jepa embed` wrote: a ``.tif`` or a ``.parquet``.

    A map that does not say so is taken too, with a warning: other tools write embeddings as well.

    Raises:
        InputError: If it is none.
    """
    if path.suffix.lower() == '.parquet' and path.is_file():
        return _open_table(path)
    found = open_map(path)
    if not found.weights:
        warnings.warn(
            f'{path} was not written by `gfm-jepa embed`, and its values are taken for embeddings '
            f'as they are; if it is a scene, embed it first.',
            stacklevel=2,
        )
    return found


def open_map(path: Path) -> EmbeddingMap:
    """Open a map that `gfm-jepa embed` wrote, or a scene to be read as one.

    Raises:
        InputError: If it is none.
    """
    if path.is_dir():
        raise InputError(f'{path} is a folder; give one .tif or .parquet of `gfm-jepa embed`.')
    if not path.is_file():
        raise InputError(f'There is no file {path}; check the path.')
    if path.suffix.lower() not in ('.tif', '.tiff'):
        raise InputError(
            f'{path} is not a .tif or .parquet of embeddings; write one with `gfm-jepa embed`.'
        )
    try:
        with rasterio.open(path) as source:
            require_crs(source)
            grid = Grid(source.crs, source.transform, source.width, source.height)
            names = tuple(d or f'd{i}' for i, d in enumerate(source.descriptions))
            weights = source.tags().get('weights', '')
            scales, offsets = tuple(source.scales), tuple(source.offsets)
            return EmbeddingMap(path, grid, names, scales, offsets, weights=weights)
    except RasterioError as error:
        raise InputError(f'{path} cannot be opened ({reason(error)}).') from error


def _open_table(path: Path) -> EmbeddedTable:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise InputError(f'{path} is not Parquet ({type(error).__name__}).') from error
    about = json.loads((schema.metadata or {}).get(b'gfm_jepa_embeddings', b'null'))
    if about is None:
        raise InputError(f'{path} holds no embeddings; write it with `gfm-jepa embed`.')
    names = tuple(about['names'])
    return EmbeddedTable(path, names, tuple(about.get('scale', [1.0] * len(names))),
                         tuple(about.get('offset', [0.0] * len(names))),
                         about.get('weights', ''))  # fmt: skip


def sample(embeddings: Embeddings, most: int, seed: int = 0) -> Float:
    """At most so many features (n, D), drawn evenly at random from all places that hold data.

    Raises:
        InputError: If no place does.
    """
    rng = np.random.default_rng(seed)
    kept = np.zeros((0, len(embeddings.names)), dtype=np.float32)
    keys = np.zeros(0)
    for _, values in embeddings.batches():
        # Each place draws a number; those with the lowest ones stay.
        keys = np.concatenate([keys, rng.random(len(values))])
        kept = np.concatenate([kept, values])
        if len(keys) > most:
            lowest = np.sort(np.argpartition(keys, most)[:most])
            keys, kept = keys[lowest], kept[lowest]
    if not len(kept):
        raise InputError(f'No place of {embeddings.path} holds data.')
    return kept


def require_same_weights(one: Embeddings, other: Embeddings) -> None:
    """Refuse embeddings of two encoders, as far as the files say which they are of.

    Raises:
        InputError: If they differ.
    """
    if one.weights and other.weights and one.weights != other.weights:
        raise InputError(
            f'{one.path} and {other.path} were made with different weights ({one.weights[:8]} and '
            f'{other.weights[:8]}), whose features mean different things; embed both with the same.'
        )


def require_like(output: Path, embeddings: Embeddings) -> None:
    """Refuse an output that does not suit what it is made of, and make its folder.

    Raises:
        InputError: If a map should become a table, or the other way round, or take its place.
    """
    require_apart([output], [embeddings.path])
    wanted = ('.tif', '.tiff') if isinstance(embeddings, EmbeddingMap) else ('.parquet',)
    if output.suffix.lower() not in wanted:
        raise InputError(f'{output} should end in {wanted[0]}, as {embeddings.path.name} does.')
    make_folder(output.parent)
