"""Chips at another size than their files have."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..errors import InputError
from .benchmarks import Benchmark
from .few_labels import labels_of_dataset


class ResizedChips(Dataset[dict[str, Any]]):
    """Chips resampled bilinearly, with antialiasing, to a square.

    Args:
        dataset: Of chips.
        modality: Key of their raster.
        size: Side, pixels.
    """

    def __init__(self, dataset: Dataset[Any], modality: str, size: int) -> None:
        self.dataset, self.modality, self.size = dataset, modality, size
        if (files := getattr(dataset, 'files', None)) is not None:
            self.files = files

    @property
    def labels(self) -> Tensor:
        """Labels of all chips."""
        return labels_of_dataset(self.dataset)

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The chip at its new size, and what else the sample holds."""
        sample = self.dataset[index]
        x = resample(sample[self.modality], (self.size, self.size))
        return {**sample, self.modality: x}


def resample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resample a chip (C, H, W) bilinearly, with antialiasing, to a height and width."""
    return F.interpolate(x[None], tuple(size), mode='bilinear', antialias=True)[0]


def resize(benchmark: Benchmark, size: int) -> Benchmark:
    """The benchmark with chips of another size, pixels, on the same ground.

    Raises:
        InputError: If the size is not positive, or classes of pixels would have to be resized.
    """
    if benchmark.target != 'label':
        raise InputError(f'{benchmark.name} has a class for every pixel; leave --image-size out.')
    if size < 1:
        raise InputError(f'The image size is {size}; give pixels above 0.')
    key = benchmark.modality
    height, width = benchmark.test[0][key].shape[-2:]
    train, val, test = (
        ResizedChips(part, key, size) for part in (benchmark.train, benchmark.val, benchmark.test)
    )
    gsd = None if benchmark.gsd is None else benchmark.gsd * width / size
    return replace(
        benchmark, gsd=gsd, train=train, val=val, test=test, resized_from=(height, width)
    )
