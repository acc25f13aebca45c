"""Labels for chips, from a raster of classes on the same ground."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .rasters import Rasters


class MajorityLabels(Dataset[dict[str, Any]]):
    """Chips with the most frequent class of their label raster.

    Args:
        chips: Must read the label modality too; its raster leaves the sample.
        modality: Name of the label modality.
    """

    def __init__(self, chips: Rasters, modality: str = 'lulc') -> None:
        self.chips = chips
        self.modality = modality

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.chips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The chip, and ``label``: its most frequent class, the lowest of those that tie."""
        sample = self.chips[index]
        classes: Tensor = sample.pop(self.modality)
        del sample['gsd'][self.modality]
        sample['label'] = torch.bincount(classes[classes.isfinite()].long()).argmax()
        return sample
