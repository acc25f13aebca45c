"""Embeddings of chips as a GeoParquet table."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import shapely

from ..data.raster_files import Float
from .projections import Projection
from .scenes import Scene
from .tiling import Strip

ROW_GROUP = 16384  # chips
# Without a CRS, GeoParquet means longitude and latitude of OGC:CRS84.
_GEO = {
    'version': '1.1.0', 'primary_column': 'geometry',
    'columns': {'geometry': {'encoding': 'WKB', 'geometry_types': ['Polygon']}},
}  # fmt: skip


@dataclass(frozen=True)
class EmbeddedChips:
    """A scene whose chips are embedded.

    Attributes:
        scene: What was embedded.
        strips: Runs of its chips.
        load: Returns what is kept of a run: (D + 1, n), last the share of valid pixels.
    """

    scene: Scene
    strips: Sequence[Strip]
    load: Callable[[Strip], Float]

    def pieces(self) -> Iterator[tuple[Strip, Float]]:
        """Run by run: (D + 1, n)."""
        for strip in self.strips:
            yield strip, self.load(strip)


def write_chips(
    path: Path, scenes: Sequence[EmbeddedChips], projection: Projection, tags: Mapping[str, str],
) -> int:  # fmt: skip
    """Write a GeoParquet: a row a chip that holds data, with its footprint and embedding.

    Args:
        path: File to write.
        scenes: Chips by scene.
        projection: What is stored of an embedding.
        tags: What the file says of itself.

    Returns:
        How many rows.
    """
    stored = pyarrow.int8() if projection.dtype == 'int8' else pyarrow.float32()
    about: dict[str, Any] = {**tags, 'names': list(projection.names)}
    if projection.scale is not None and projection.offset is not None:
        about |= {'scale': projection.scale.tolist(), 'offset': projection.offset.tolist()}
    schema = pyarrow.schema(
        [
            ('scene', pyarrow.string()), ('file', pyarrow.string()), ('time', pyarrow.string()),
            ('row', pyarrow.int32()), ('col', pyarrow.int32()), ('size', pyarrow.int32()),
            ('gsd', pyarrow.float64()), ('valid_share', pyarrow.float32()),
            ('embedding', pyarrow.list_(stored, len(projection.names))),
            ('geometry', pyarrow.binary()),
        ],
        metadata={'geo': json.dumps(_GEO), 'gfm_jepa_embeddings': json.dumps(about)},
    )  # fmt: skip
    waiting: list[pyarrow.Table] = []
    count = 0
    with pyarrow.parquet.ParquetWriter(path, schema, compression='zstd') as writer:
        for embedded in scenes:
            for strip, values in embedded.pieces():
                waiting.append(_rows(embedded.scene, strip, values, projection, schema))
                count += len(waiting[-1])
                if sum(map(len, waiting)) >= ROW_GROUP:
                    writer.write_table(pyarrow.concat_tables(waiting).combine_chunks())
                    waiting = []
        writer.write_table(pyarrow.concat_tables([schema.empty_table(), *waiting]).combine_chunks())
    return count


def _rows(
    scene: Scene, strip: Strip, values: Float, projection: Projection, schema: pyarrow.Schema
) -> pyarrow.Table:
    """The rows of a run of chips; a chip without data has none."""
    there = np.isfinite(values[0])
    corners, stored = strip.corners[there], projection(np.ascontiguousarray(values[:-1, there]))
    lon, lat = scene.grid.corners(corners, (scene.window, scene.window))
    flat = pyarrow.array(np.ascontiguousarray(stored.T).reshape(-1))
    size = len(corners)
    columns = {
        'scene': [scene.name] * size, 'file': [scene.file.path] * size,
        'time': [scene.file.time or None] * size, 'row': corners[:, 0], 'col': corners[:, 1],
        'size': [scene.window] * size, 'gsd': [scene.grid.gsd] * size,
        'valid_share': values[-1, there],
        'embedding': pyarrow.FixedSizeListArray.from_arrays(flat, len(projection.names)),
        'geometry': shapely.to_wkb(shapely.polygons(np.stack([lon, lat], axis=2))).tolist(),
    }  # fmt: skip
    return pyarrow.table(columns, schema=schema)
