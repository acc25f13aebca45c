"""Maps of embeddings as files: cloud-optimised GeoTIFF and zarr 3."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import zarr
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from ..data.grids import Grid
from ..data.raster_files import Float, gdal, reason
from ..data.zarr_cubes import is_store
from ..errors import InputError
from ..output_paths import require_clear, require_folder
from .projections import Projection
from .scenes import Scene
from .tiling import Cells, Strip, Tiling

SIDE = 256  # cells of a block that is blended and written at once
COG_SIDE = 512  # of a block of a finished map: overviews of smaller ones take GDAL 3 times as long
CHUNK = 128  # cells of a zarr chunk; it divides SIDE

# Projected values by block.
Blocks = Iterator[tuple[Cells, NDArray[Any]]]


@dataclass(frozen=True)
class EmbeddedMap:
    """A scene whose strips are finished.

    Attributes:
        scene: What was embedded.
        tiling: Of its windows.
        dims: Features D of a cell.
        load: Returns what `Tiling.accumulate` made of a strip.
    """

    scene: Scene
    tiling: Tiling
    dims: int
    load: Callable[[Strip], Float]

    @property
    def grid(self) -> Grid:
        """Of the map: a pixel is a cell."""
        return self.scene.grid.zoomed(self.tiling.cell)

    def pieces(self) -> Iterator[tuple[Cells, Float]]:
        """The blended map, block by block: (D, rows, columns)."""
        for cells in self.tiling.blocks(SIDE):
            yield cells, self.tiling.blend(cells, self.dims, self.load)


def write_cog(
    path: Path, grid: Grid, blocks: Blocks, projection: Projection, tags: Mapping[str, str],
) -> None:  # fmt: skip
    """Write a cloud-optimised GeoTIFF, one band a feature, with overviews.

    Args:
        path: File to write; a plain GeoTIFF lies beside it meanwhile.
        grid: Of the map.
        blocks: Its stored values (K, rows, columns), in any order.
        projection: What they are.
        tags: What the file says of itself.

    Raises:
        OSError: If it cannot be written; `Workspace.result` makes a sentence of it.
    """
    plain = path.with_name(f'{path.stem}.plain.tif')
    names = projection.names
    # Small maps have small blocks; GeoTIFF wants multiples of 16.
    whole = -(-max(grid.width, grid.height) // 16) * 16
    side = min(SIDE, whole)
    try:
        with gdal():
            with rasterio.open(
                plain, 'w', driver='GTiff', count=len(names), width=grid.width, height=grid.height,
                crs=grid.crs, transform=grid.transform, dtype=projection.dtype,
                nodata=projection.nodata, tiled=True, blockxsize=side, blockysize=side,
                interleave='band', BIGTIFF='YES',
            ) as target:  # fmt: skip
                target.update_tags(**tags)
                target.descriptions = names
                if projection.scale is not None and projection.offset is not None:
                    target.scales = projection.scale.tolist()
                    target.offsets = projection.offset.tolist()
                if projection.colours:
                    target.write_colormap(1, projection.colours)
                for cells, values in _ahead(blocks):
                    window = Window(cells.left, cells.top, cells.width, cells.height)
                    target.write(values, window=window)
            rasterio.shutil.copy(
                plain, path, driver='COG', blocksize=min(COG_SIDE, max(whole, 128)),
                compress='ZSTD', level=1, bigtiff='YES', interleave='TILE',
                resampling=projection.overviews, num_threads='ALL_CPUS',
            )  # fmt: skip
            _require_whole(path)
    except (RasterioError, CPLE_BaseError) as error:
        full = shutil.disk_usage(path.parent).free < 2**20
        raise OSError('No space left' if full else reason(error)) from error
    finally:
        plain.unlink(missing_ok=True)


def _ahead(blocks: Blocks) -> Blocks:
    """The same blocks; while one is written, a thread blends the next."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = pool.submit(next, blocks, None)
            yield block


def _require_whole(path: Path) -> None:
    """Read the last block of each band: GDAL closes a file on a full disk without a word."""
    with rasterio.open(path) as source:
        window = Window(source.width - 1, source.height - 1, 1, 1)
        source.read(window=window)
        if source.tags(ns='IMAGE_STRUCTURE').get('LAYOUT') != 'COG':
            raise OSError('the file is not whole')


def write_zarr(
    path: Path, maps: Sequence[tuple[str, Grid, Blocks]], projection: Projection,
    tags: Mapping[str, str],
) -> None:  # fmt: skip
    """Write a zarr 3 group with an array (K, y, x) per map, which our readers and GDAL read.

    Args:
        path: Folder to write.
        maps: Name, grid and blocks of each.
        projection: What the values are.
        tags: Attributes of the group.
    """
    root = zarr.create_group(path, attributes=dict(tags))
    count = len(projection.names)
    for name, grid, blocks in maps:
        shape = (count, grid.height, grid.width)
        crs = grid.to_dict()['crs']
        attributes: dict[str, Any] = {
            'crs': crs, 'transform': list(grid.transform)[:6], 'bands': list(projection.names),
            '_CRS': {'wkt': grid.crs.to_wkt()},
        }  # fmt: skip
        if projection.scale is not None and projection.offset is not None:
            attributes |= {'scale_factor': projection.scale.tolist(),
                           'add_offset': projection.offset.tolist(),
                           '_FillValue': projection.nodata}  # fmt: skip
        array = root.create_array(
            name, shape=shape, chunks=(count, min(CHUNK, shape[1]), min(CHUNK, shape[2])),
            dtype=projection.dtype, fill_value=projection.nodata,
            dimension_names=['band', 'y', 'x'], attributes=attributes,
        )  # fmt: skip
        if len(maps) == 1:  # one grid, which coordinates state once more for GDAL and xarray
            x = grid.transform.c + (np.arange(grid.width) + 0.5) * grid.transform.a
            y = grid.transform.f + (np.arange(grid.height) + 0.5) * grid.transform.e
            root.create_array('x', data=x, dimension_names=['x'])
            root.create_array('y', data=y, dimension_names=['y'])
        for cells, values in _ahead(blocks):
            rows = slice(cells.top, cells.top + cells.height)
            array[:, rows, cells.left : cells.left + cells.width] = values


def require_output(output: Path, scenes: Sequence[Scene]) -> str:
    """What an output's name says that should be written: cog, zarr, parquet or folder.

    Raises:
        InputError: If it says nothing of the kind, one file should hold several scenes, a raster of
            theirs is there or lies within, or what is there is of another kind.
    """
    kinds = {'.tif': 'cog', '.tiff': 'cog', '.zarr': 'zarr', '.parquet': 'parquet', '': 'folder'}
    kind = kinds.get(output.suffix.lower())
    if kind is None:
        raise InputError(
            f'{output} should end in .tif (a map), .zarr (maps), .parquet (chips), or have no '
            f'ending (a folder of maps).'
        )
    if kind == 'cog' and len(scenes) > 1:
        some = ', '.join(s.name for s in scenes[:3])
        raise InputError(
            f'There are {len(scenes)} scenes ({some}{"..." if len(scenes) > 3 else ""}), and '
            f'{output} holds one; name a folder or a .zarr, or fewer inputs.'
        )
    require_clear(output, [f.path for s in scenes for layer in s.layers for f in layer.files])
    if kind == 'folder':
        require_folder(output)
    elif output.is_dir() and any(output.iterdir()) and not (kind == 'zarr' and is_store(output)):
        raise InputError(f'{output} is a folder of other files; name another output.')
    return kind
