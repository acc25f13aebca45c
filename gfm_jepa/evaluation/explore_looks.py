"""One modality's chips in numbers, and beside what the modality states."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..data.chips import FileChips
from ..data.raster_files import RasterFile
from ..data.statistics import RunningStatistics
from ..modalities import Modality

Float = NDArray[np.float32]
PERCENTS = (1, 99)
MOST_PIXELS = 2**20  # kept per band for percentiles and histograms, from all chips together


@dataclass(frozen=True)
class BandNumbers:
    """A band in numbers, in the modality's unit; NaN where there is no data, or none is stated."""

    band: str
    mean: float
    std: float
    low: float
    first: float  # 1st percentile
    last: float  # 99th
    high: float
    stated_mean: float
    stated_std: float

    @property
    def remark(self) -> str:
        """Why the numbers look wrong beside the stated ones, or nothing."""
        if not np.isfinite(self.mean):
            return 'no data in the chips read'
        if not np.isfinite(self.stated_mean):
            return ''
        apart = abs(self.mean - self.stated_mean) / self.stated_std
        if apart > 2:
            return (
                f'mean is {apart:.1f} stated std away from the stated mean: unit, scale or offset?'
            )
        ratio = self.std / self.stated_std
        if ratio > 3:
            return f'std is {ratio:.1f} times the stated one: unit or scale?'
        if ratio < 1 / 3:
            return f'std is {ratio:.2f} of the stated one: unit or scale?'
        return ''


class Look:
    """What the chips of one modality hold, gathered chip by chip.

    Args:
        modality: Which.
        chips: Its chips, by file.
        num_read: Chips that will be read.
        seed: Of the pixels that are kept where a chip has more than its part.
    """

    def __init__(
        self, modality: Modality, chips: Sequence[FileChips], num_read: int, seed: int
    ) -> None:
        self.modality, self.chips, self.num_read = modality, tuple(chips), num_read
        count = len(modality.bands)
        self.statistics = RunningStatistics(count)
        self.low, self.high = np.full(count, np.inf), np.full(count, -np.inf)
        self._per_chip = max(MOST_PIXELS // max(num_read, 1), 1)
        self._kept: list[Float] = []
        self._rng = np.random.default_rng(seed)

    def update(self, values: Float) -> None:
        """Take in a chip (C, H, W); NaN is left out."""
        flat = values.reshape(len(values), -1)
        self.statistics.update(values)
        self.low = np.fmin(self.low, np.fmin.reduce(flat, axis=1))
        self.high = np.fmax(self.high, np.fmax.reduce(flat, axis=1))
        if flat.shape[1] > self._per_chip:
            flat = flat[:, self._rng.choice(flat.shape[1], self._per_chip, replace=False)]
        self._kept.append(flat)

    def pixels(self, band: int) -> Float:
        """(n,) values of a band, at most `MOST_PIXELS`, without NaN."""
        parts = [kept[band][np.isfinite(kept[band])] for kept in self._kept]
        return np.concatenate([np.empty(0, np.float32), *parts])

    @cached_property
    def numbers(self) -> list[BandNumbers]:
        """Every band in numbers, once all chips are in."""
        nan = (float('nan'),) * len(self.modality.bands)
        mean, std = self.modality.mean or nan, self.modality.std or nan
        return [
            BandNumbers(band, *self._seen(i), mean[i], std[i])
            for i, band in enumerate(self.modality.bands)
        ]

    def _seen(self, band: int) -> tuple[float, float, float, float, float, float]:
        """Mean, std, lowest, 1st and 99th percentile, highest."""
        if not self.statistics.count[band]:
            return (float('nan'),) * 6
        first, last = np.percentile(self.pixels(band), PERCENTS).tolist()
        mean, std = self.statistics.mean[band], self.statistics.std[band]
        return float(mean), float(std), float(self.low[band]), first, last, float(self.high[band])

    @property
    def files(self) -> list[RasterFile]:
        """Its files."""
        return [c.file for c in self.chips]

    @property
    def valid(self) -> Float:
        """(n,) share of each chip that holds data."""
        return np.concatenate([c.valid for c in self.chips])

    @property
    def cloud(self) -> Float:
        """(n,) share of each chip under cloud, NaN where no mask says."""
        return np.concatenate([c.cloud for c in self.chips])


def rgb(modality: Modality) -> tuple[int, ...]:
    """Positions of red, green and blue among the bands, or none."""
    for names in (modality.common_names, modality.bands):
        lower = [n.lower() for n in names]
        if {'red', 'green', 'blue'} <= set(lower):
            return tuple(lower.index(c) for c in ('red', 'green', 'blue'))
    return ()
