"""SSL4EO-S12 v1.1 for ``gfm-jepa fit``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from .datamodules import PretrainDataModule
from .rasters import collate
from .samplers import OrderedBatchSampler, ResumableLoader
from .ssl4eo import SSL4EOS12, Offset


class SSL4EOS12DataModule(PretrainDataModule):
    """SSL4EO-S12 v1.1: trains on ``train``, validates and predicts on ``val``.

    Args:
        root: Folder that holds ``train/`` and ``val/``; see `SSL4EOS12`.
        modalities: Which to read.
        chip_size: Side of a chip, pixels of 10 m.
        num_dates: Dates of a sample, 1 to 4; batches are (B, T, C, H, W).
        offset: ``auto``, or whether Sentinel-2's +1000 offset is ``present`` or ``removed``.
        samples_per_epoch: Samples drawn for one epoch; all by default.
        batch_size: Samples of a batch on one rank.
        num_workers: Processes that read.
    """

    def __init__(
        self,
        root: str,
        modalities: Sequence[str | dict[str, Any]] = ('s2_l2a', 's1'),
        chip_size: int = 128,
        num_dates: int = 2,
        offset: Offset = 'auto',
        samples_per_epoch: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(modalities, batch_size, num_workers)
        self.root = root
        self.chip_size, self.num_dates, self.offset = chip_size, num_dates, offset
        self.samples_per_epoch = samples_per_epoch
        self.train_dataset: SSL4EOS12
        self.val_dataset: SSL4EOS12

    def setup(self, stage: str) -> None:
        """Scan the files, and print what they hold; ``fit`` goes without ``val/``."""
        if stage == 'fit' and not hasattr(self, 'train_dataset'):
            self.train_dataset = self._dataset('train')
        wanted = stage != 'fit' or (Path(self.root) / 'val').is_dir()
        if wanted and not hasattr(self, 'val_dataset'):
            self.val_dataset = self._dataset('val')

    def train_dataloader(self) -> ResumableLoader:
        """Batches (B, T, C, H, W) by modality, (B, C, H, W) for what has no dates."""
        groups = self.train_groups()
        return self.train_loader(self.train_dataset, groups, self.samples_per_epoch, collate)

    def train_groups(self) -> list[Sequence[int]]:
        """Samples of one file each."""
        return list(self.train_dataset.groups())

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Samples of ``val`` in order; none where it is not there."""
        if not hasattr(self, 'val_dataset'):
            return []
        return DataLoader(
            self.val_dataset,
            batch_sampler=OrderedBatchSampler(self.val_dataset.groups(), self.batch_size),
            num_workers=self.num_workers,
            collate_fn=collate,
        )

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """As `val_dataloader`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """As `val_dataloader`."""
        return self.val_dataloader()

    def _dataset(self, split: str) -> SSL4EOS12:
        dataset = SSL4EOS12(
            self.root, split, self.modalities, self.chip_size, self.num_dates, self.offset
        )
        rank_zero_info(dataset.report())
        return dataset
