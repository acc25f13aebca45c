"""Whole files at reduced size, to look at."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from ..data.raster_files import RasterFile, gdal
from .explore_looks import Float, Look, rgb

MOST_SCENES = 12
SCENE_SIDE = 512  # pixels
MOST_LETTERS = 42  # of a line above a picture


@dataclass(frozen=True)
class Scene:
    """A whole file at reduced size, (C, H, W); bands that make no picture are NaN."""

    file: RasterFile
    values: Float

    @property
    def title(self) -> str:
        """Folder, name, and the date where it is known, a line each."""
        path = Path(self.file.path)
        name = (
            path.name if len(path.name) <= MOST_LETTERS else f'...{path.name[3 - MOST_LETTERS :]}'
        )
        return '\n'.join(filter(None, (path.parent.name[:MOST_LETTERS], name, self.file.time[:10])))


def scenes(looks: Mapping[str, Look], rgb_only: bool) -> Iterator[Scene]:
    """Read whole files at reduced size, taking turns between modalities.

    Args:
        looks: Their files.
        rgb_only: Whether modalities without red, green and blue are left out.
    """
    wanted = [x for x in looks.values() if rgb(x.modality) or not rgb_only]
    # Files of each modality from all over its list, not the first ones.
    turns = [
        [x.files[i] for i in np.unique(np.linspace(0, len(x.files) - 1, MOST_SCENES).astype(int))]
        for x in wanted
    ]
    order = [files[t] for t in range(MOST_SCENES) for files in turns if t < len(files)]
    for file in order[:MOST_SCENES]:
        at = rgb(file.modality) or (0,)
        some = tuple(b if i in at else 0 for i, b in enumerate(file.band_ids))
        if any(some):
            yield Scene(file, _reduced(replace(file, band_ids=some)))


def _reduced(file: RasterFile) -> Float:
    """Read a whole file, at most `SCENE_SIDE` pixels a side, in strips of bounded size."""
    with gdal(file.is_remote):
        source = file.open()
        try:
            step = max(-(-max(source.height, source.width) // SCENE_SIDE), 1)
            width = -(-source.width // step)
            rows = max(2**23 // (source.width * step), 1) * step
            strips = []
            for top in range(0, source.height, rows):
                height = min(rows, source.height - top)
                window = Window(0, top, source.width, height)
                strips.append(file.read(source, window, (-(-height // step), width)))
            return np.concatenate(strips, axis=1)
        finally:
            source.close()
