"""Made-up rasters and small models: no test needs data from outside."""

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch  # noqa: F401  # its log handler keeps the stream of its first import
import numpy as np
import pytest
import rasterio
import torch
from rasterio.crs import CRS
from rasterio.transform import from_origin

from gfm_jepa.modalities import Modality

WriteRaster = Callable[..., Path]


@pytest.fixture(autouse=True)
def seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts from one seed, in a folder of its own."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write_raster() -> WriteRaster:
    """Write a GeoTIFF of smooth noise, or of given values."""

    def write(
        path: Path,
        bands: int = 1,
        size: tuple[int, int] = (96, 96),
        gsd: float | tuple[float, float] = 10.0,
        origin: tuple[float, float] = (500000.0, 5000000.0),
        epsg: int | None = 32633,
        dtype: str = 'uint16',
        nodata: float | None = None,
        names: Sequence[str] | None = None,
        values: np.ndarray | None = None,
        tiled: bool = False,
    ) -> Path:
        rng = np.random.default_rng(bands)
        if values is None:
            values = rng.integers(500, 3000, (bands, *size))
        path.parent.mkdir(parents=True, exist_ok=True)
        x, y = (gsd, gsd) if isinstance(gsd, float) else gsd
        tiles = {'tiled': True, 'blockxsize': 64, 'blockysize': 64} if tiled else {}
        with rasterio.open(
            path, 'w', driver='GTiff', count=len(values), height=values.shape[1],
            width=values.shape[2], dtype=dtype, nodata=nodata,
            crs=CRS.from_epsg(epsg) if epsg else None, transform=from_origin(*origin, x, y),
            **tiles,
        ) as target:  # fmt: skip
            target.write(values.astype(dtype))
            if names:
                target.descriptions = tuple(names)
        return path

    return write


def sensor(name: str = 'sensor', bands: int = 3, gsd: float = 10.0) -> Modality:
    """A modality of made-up statistics."""
    return Modality(
        name,
        tuple(f'B{i + 1}' for i in range(bands)),
        gsd,
        'DN',
        mean=tuple(100.0 + 10 * i for i in range(bands)),
        std=tuple(50.0 + i for i in range(bands)),
        source='made up',
    )
