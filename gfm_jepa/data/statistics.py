"""Mean and standard deviation of bands, in one streaming pass over any amount of rasters."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from rasterio.windows import Window
from tqdm import tqdm

from ..errors import InputError
from ..modalities import MODALITIES, Modality, resolve
from .finding import Found, find_rasters
from .raster_files import RasterFile
from .recognition import UNRECOGNISED, headers_of, recognise

Float = NDArray[np.float64]


class RunningStatistics:
    """Count, mean and squared deviations per band, updated block by block.

    Args:
        num_bands: Bands C.

    Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances" (1979).
    """

    def __init__(self, num_bands: int) -> None:
        self.count = np.zeros(num_bands)
        self.mean = np.zeros(num_bands)
        self.deviations = np.zeros(num_bands)

    def update(self, values: NDArray[np.floating]) -> None:
        """Take in a block (C, H, W); NaN is left out."""
        flat = values.reshape(len(values), -1).astype(np.float64)
        there = np.isfinite(flat)
        count = there.sum(axis=1)
        total = np.where(there, flat, 0.0).sum(axis=1)
        mean = total / np.maximum(count, 1)
        deviations = np.where(there, (flat - mean[:, None]) ** 2, 0.0).sum(axis=1)
        merged = self.count + count
        delta = mean - self.mean
        share = count / np.maximum(merged, 1)
        self.deviations += deviations + delta**2 * self.count * share
        self.mean += delta * share
        self.count = merged

    @property
    def std(self) -> Float:
        """Standard deviation per band; NaN for a band without data."""
        with np.errstate(invalid='ignore', divide='ignore'):
            return np.sqrt(self.deviations / self.count)


def compute(files: Iterable[RasterFile]) -> RunningStatistics:
    """Statistics over files of one modality, read block by block.

    Raises:
        InputError: If a file cannot be read, or no pixel holds data.
    """
    statistics: RunningStatistics | None = None
    for file in files:
        statistics = statistics or RunningStatistics(len(file.band_ids))
        # On its own pixels: warping would repeat some and average others.
        source = replace(file, warped=False).open()
        try:
            for top in range(0, source.height, 256):
                for left in range(0, source.width, 4096):  # in parts, however wide it is
                    height, width = min(256, source.height - top), min(4096, source.width - left)
                    window = Window(left, top, width, height)
                    statistics.update(file.read(source, window))
        finally:
            source.close()
    if statistics is None or not statistics.count.all():
        raise InputError('No pixel holds data in at least one band; statistics need some.')
    return statistics


def describe(
    paths: Sequence[str],
    name: str | None = None,
    bands: Sequence[str] | None = None,
    unit: str = '',
    nodata: float | None = None,
) -> str:
    """Describe a modality with the statistics of rasters, as YAML that a config can name.

    Args:
        paths: Files or folders of one modality.
        name: A known modality, whose bands, unit and aliases are kept, or a new one.
        bands: Band names of a new one; from the files by default.
        unit: Physical unit of a new one.
        nodata: Value of "not there" in files without a tag.

    Returns:
        YAML text.

    Raises:
        InputError: If no raster fits.
    """
    found = find_rasters(paths, tuple(MODALITIES.values()))
    modality = _modality(found[0], name, bands, unit)
    if nodata is not None:
        modality = replace(modality, nodata=nodata)
    # A known modality takes the files that are called so, a new one all of them.
    known = name in MODALITIES and not all(p.is_file() for p in map(Path, paths))
    files, reasons = [], []
    for place in found:
        stated = place if known else replace(place, stated=modality.name)
        for result in recognise(stated, [modality]):
            if isinstance(result, RasterFile):
                files.append(result)
            else:
                reasons.append(f'{place.path}: {result}')
    if not files:
        raise InputError(f'None of {len(found)} files feeds {modality.name}: {reasons[0]}.')
    gsds = sorted({float(f'{file.grid.gsd:.2g}') for file in files})
    if gsds[-1] > 1.1 * gsds[0]:
        warnings.warn(
            f'The rasters have pixels of {", ".join(f"{g:g}" for g in gsds)} m, and the gsd of '
            f'{files[0].path}, {files[0].grid.gsd:.4g} m, is written; describe rasters of one gsd '
            f'at a time, if they are of different sensors.',
            stacklevel=2,
        )
    statistics = compute(tqdm(files, 'Reading', delay=2))
    described = replace(
        modality,
        gsd=float(f'{files[0].grid.gsd:.4g}'),
        mean=tuple(float(f'{m:.6g}') for m in statistics.mean),
        std=tuple(float(f'{s:.6g}') for s in statistics.std),
        source=f'gfm-jepa stats on {len(files)} files, {int(statistics.count.max())} pixels',
    )
    broken = [r for r in reasons if UNRECOGNISED not in r]
    left_out = ''.join(f'# left out: {r}\n' for r in broken)
    if others := len(reasons) - len(broken):
        left_out += f'# left out: {others} files of other modalities\n'
    return left_out + yaml.safe_dump(described.to_dict(), sort_keys=False)


def _modality(found: Found, name: str | None, bands: Sequence[str] | None, unit: str) -> Modality:
    """The known modality of that name, or a new one described from a file."""
    if name is not None and name in MODALITIES:
        if not bands:
            return MODALITIES[name]
        if not unit and set(bands) <= set(MODALITIES[name].bands):
            return resolve({'name': name, 'bands': list(bands)})
    headers = headers_of(found, len(bands or ()))
    if isinstance(headers, str):
        raise InputError(f'{found.path} {headers}; put a readable file first.')
    if bands is None:
        described = [b.strip() for b in headers[0].bands]
        unique = all(described) and len(set(described)) == len(described)
        bands = described if unique else [f'band{i + 1}' for i in range(len(described))]
    return Modality(name or 'my_sensor', tuple(bands), gsd=1.0, unit=unit or 'unknown')
