"""SSL4EO-S12 v1.0, as torchgeo reads it, with the dates as an axis of their own."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio.errors import RasterioIOError
from torch import Tensor
from torch.utils.data import Dataset
from torchgeo.datasets import SSL4EOS12 as TorchgeoSSL4EOS12
from torchgeo.datasets import DatasetNotFoundError

from ..errors import InputError
from ..modalities import Modality
from .ssl4eo import GSD
from .ssl4eo_places import DATES, Windows, folder_of

SPLITS = {'S1GRD': 's1', 'S2L1C': 's2c', 'S2L2A': 's2a'}  # torchgeo's word for a modality


class SSL4EOS12V10(Dataset[dict[str, Any]]):
    """Chips of SSL4EO-S12 v1.0: folders ``s1``, ``s2c``, ``s2a`` of a GeoTIFF a band.

    Samples are counted as those of `SSL4EOS12`. torchgeo draws seasons at random; here all four
    are read and put in order of time, so that a date is the same season in all modalities. Values
    come from harmonised collections, without the +1000 offset.

    Args:
        root: Folder that holds those folders.
        modalities: Which to read.
        chip_size: Side of a chip, pixels of 10 m.
        num_dates: Dates of a sample, 1 to 4.

    Raises:
        InputError: If a folder is missing, or a modality is not in v1.0.
    """

    def __init__(
        self,
        root: str | Path,
        modalities: Sequence[Modality],
        chip_size: int = 128,
        num_dates: int = 2,
    ) -> None:
        self.modalities = tuple(modalities)
        self.sources: list[TorchgeoSSL4EOS12] = []
        places: set[str] = set()
        for modality in modalities:
            split = SPLITS.get(folder_of(modality))
            if split is None:
                raise InputError(f'SSL4EO-S12 v1.0 has no {modality.name}; take v1.1 for it.')
            try:
                self.sources.append(TorchgeoSSL4EOS12(root, split, seasons=DATES))
            except DatasetNotFoundError as error:
                raise InputError(
                    f'{Path(root) / split} holds no images of SSL4EO-S12 v1.0; download it through '
                    f'torchgeo (datasets.SSL4EOS12, split {split}).'
                ) from error
            places |= {n for n in os.listdir(Path(root) / split) if n.isdigit()}
        self.places = sorted(places)
        self.windows = Windows(TorchgeoSSL4EOS12.size, chip_size, num_dates)
        self.chip_size = chip_size

    def __len__(self) -> int:
        """Places times windows times choices of dates."""
        return len(self.places) * self.windows.per_place

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read (T, C, H, W) float32 by modality, and ``gsd``, metres per pixel by modality."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        at, (top, left), dates = self.windows.find(index)
        sample: dict[str, Any] = {'gsd': {m.name: GSD for m in self.modalities}}
        for modality, source in zip(self.modalities, self.sources, strict=True):
            chips = torch.full((len(dates), len(modality.bands), *2 * [self.chip_size]), torch.nan)
            folder = Path(source.root) / source.split / self.places[at]
            if folder.is_dir():
                images = self._images(source, folder)[
                    list(dates), :, top : top + self.chip_size, left : left + self.chip_size
                ]
                if modality.nodata is not None:
                    missing = (images == modality.nodata).all(1, keepdim=True)
                    images = images.masked_fill(missing, torch.nan)
                stored = [_padded(band) for band in source.bands]
                for i, band in enumerate(modality.bands):
                    if band in stored:
                        chips[:, i] = images[:, stored.index(band)]
            sample[modality.name] = chips
        return sample

    def _images(self, source: TorchgeoSSL4EOS12, folder: Path) -> Tensor:
        """All dates of a place in order of time, (4, C, 264, 264)."""
        if (found := len(list(folder.iterdir()))) != DATES:
            raise InputError(f'{folder} has {found} dates; expected {DATES}, download it again.')
        try:
            sample = source[int(folder.name)]
        except RasterioIOError as error:
            raise InputError(f'{folder} cannot be read: {error}; download it again.') from error
        images: Tensor = sample['image'].unflatten(0, (DATES, -1))
        return images[torch.from_numpy(np.argsort(sample['t'].numpy(), kind='stable'))]


def _padded(band: str) -> str:
    """Sentinel-2's band as the product writes it: ``B1`` -> ``B01``."""
    return f'B0{band[1]}' if len(band) == 2 and band[1].isdigit() else band
