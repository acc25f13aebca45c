"""Several data modules as one: what a model of many sensors is pretrained on."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.utils.data import ConcatDataset, Dataset

from ..errors import InputError
from ..modalities import Modality
from .datamodules import PretrainDataModule
from .rasters import collate
from .samplers import ResumableLoader, files_of


class JoinedDataModule(PretrainDataModule):
    """Batches from several data modules in turn, at random; a batch is of one of them.

    Args:
        parts: Data modules; their own batch size and processes do not matter.
        repeats: How often a part is seen in an epoch, by part; once by default. Small archives
            beside large ones want more. A part's own ``samples_per_epoch`` is refused.
        batch_size: Samples of a batch on one rank.
        num_workers: Processes that read.

    Raises:
        InputError: If there are no parts, repeats do not fit them, a part draws a number of samples
            of its own, or two parts disagree about a modality.
    """

    def __init__(
        self,
        parts: list[PretrainDataModule],
        repeats: Sequence[int] = (),
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        repeats = list(repeats) or [1] * len(parts)
        if not parts or len(repeats) != len(parts) or min(repeats) < 1:
            raise InputError(
                f'There are {len(parts)} parts and the repeats {repeats}; give at least one part, '
                f'and a number of at least 1 for each.'
            )
        if any(getattr(part, 'samples_per_epoch', None) for part in parts):
            raise InputError(
                'A part has samples_per_epoch, but an epoch takes all samples of each part; leave '
                'it out, and see repeats.'
            )
        known: dict[str, Modality] = {}
        for modality in (m for part in parts for m in part.modalities):
            if known.setdefault(modality.name, modality) != modality:
                raise InputError(
                    f'Two parts describe {modality.name} differently; give both the same '
                    f'bands and statistics.'
                )
        super().__init__([m.to_dict() for m in known.values()], batch_size, num_workers)
        self.parts, self.repeats = parts, repeats
        self.train_dataset: _Joined

    def setup(self, stage: str) -> None:
        """Set all parts up."""
        for part in self.parts:
            part.setup(stage)
        if stage == 'fit':
            self.train_dataset = _Joined([_Told(p.train_dataset, p) for p in self.parts])

    def train_groups(self) -> list[Sequence[int]]:
        """Groups of the parts, as often as they are repeated, numbered through."""
        groups: list[Sequence[int]] = []
        start = 0
        for part, repeat in zip(self.parts, self.repeats, strict=True):
            part.needs = self.needs
            own = [[start + i for i in group] for group in part.train_groups()]
            groups += own * repeat
            start += len(part.train_dataset)
        return groups

    def train_dataloader(self) -> ResumableLoader:
        """Batches of one group of one part each."""
        return self.train_loader(self.train_dataset, self.train_groups(), collate_fn=collate)

    def val_dataloader(self) -> list[Any]:
        """None: the online probe judges, on the first part that has labels."""
        return []

    @property
    def probe_datasets(self) -> Any:
        """Of the first part that has labels; None if none has."""
        for part in self.parts:
            if (found := getattr(part, 'probe_datasets', None)) is not None:
                return partial(_told, found, part)
        return None


def _told(datasets: Callable[[], Sequence[Any]], part: PretrainDataModule) -> tuple['_Told', ...]:
    return tuple(_Told(dataset, part) for dataset in datasets())


class _Told(Dataset[dict[str, Any]]):
    """Samples of a part, with what the part alone knows of them: metres per pixel."""

    def __init__(self, dataset: Any, part: PretrainDataModule) -> None:
        self.dataset, self.gsd = dataset, dict(part.gsd)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A sample, and its ``gsd`` by modality."""
        sample: dict[str, Any] = self.dataset[index]
        return {**sample, 'gsd': self.gsd} if self.gsd and 'gsd' not in sample else sample

    def files(self, index: int) -> list[str]:
        """What it was read from, or its number in its part."""
        return files_of(self.dataset, index)


class _Joined(ConcatDataset[Any]):
    """The training samples of all parts, one part after another."""

    def files(self, index: int) -> list[str]:
        """What a sample was read from."""
        at = bisect_right(self.cumulative_sizes, index)
        part: Any = self.datasets[at]
        found: list[str] = part.files(index - (self.cumulative_sizes[at - 1] if at else 0))
        return found
