"""Data modules: what `gfm-jepa fit` takes under ``data:``."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from ..modalities import resolve_all
from .caches import CachedChips, is_cache
from .chips import ChipFilter
from .eurosat import EuroSATRGB
from .index import splits_of
from .rasters import Rasters, collate
from .samplers import GroupBatchSampler, OrderedBatchSampler, ResumableLoader


class PretrainDataModule(LightningDataModule):
    """Base of the data modules: raw physical units, no normalisation (the encoder does that).

    Args:
        modalities: What the batches hold: known names, YAML paths, or mappings of fields.
        batch_size: Samples of a batch on one rank.
        num_workers: Processes that read; 0 reads in the training process.
    """

    def __init__(
        self, modalities: Sequence[str | dict[str, Any]], batch_size: int, num_workers: int
    ) -> None:
        super().__init__()
        self.modalities = resolve_all(modalities)
        if batch_size < 1:
            raise InputError(f'batch_size is {batch_size}; give at least 1.')
        if num_workers < 0:
            raise InputError(f'num_workers is {num_workers}; give 0 or more.')
        self.batch_size = batch_size
        self.num_workers = num_workers

    @property
    def modality_specs(self) -> list[dict[str, Any]]:
        """The modalities with the statistics that the data may have given them, for the task."""
        return [m.to_dict() for m in self.modalities]

    @property
    def class_names(self) -> list[str]:
        """Names by label, for tasks that learn from labels; none without labels."""
        return []

    @property
    def gsd(self) -> Mapping[str, float]:
        """Metres that a pixel covers, by modality, where samples do not say it themselves."""
        return {}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Tell the encoder how many metres a pixel covers, where that is known."""
        if isinstance(batch, Mapping) and self.gsd and 'gsd' not in batch:
            return {**batch, 'gsd': dict(self.gsd)}
        return batch

    train_dataset: Any  # a dataset, once `setup` has run for ``fit``
    needs: str | None = None  # a modality without which a sample is of no use to the task
    smallest_group = 1  # samples that may share a batch, of which the task needs as many

    def train_groups(self) -> list[Sequence[int]]:
        """Indices of the training samples that may share a batch; all, unless they differ."""
        return [range(len(self.train_dataset))]

    def train_loader(
        self,
        dataset: Dataset[Any],
        groups: Sequence[Sequence[int]],
        samples_per_epoch: int | None = None,
        collate_fn: Any = None,
    ) -> ResumableLoader:
        """A loader that shards by rank and resumes; run Lightning without its own sampler.

        Raises:
            InputError: If no two samples may share a batch, and the task compares samples.
        """
        trainer = self.trainer
        kept = [g for g in groups if len(g) >= self.smallest_group]
        if groups and not kept:
            raise InputError(
                'No two chips are of one kind (modalities, sizes, gsd, dates), and the task '
                'compares the chips of a batch; take a smaller chip size, or more rasters.'
            )
        if alone := [i for g in groups if len(g) < self.smallest_group for i in g]:
            files = getattr(dataset, 'files', None)
            named = [', '.join(map(str, files(i))) for i in alone[:5]] if callable(files) else []
            names = '; '.join(named)
            rank_zero_info(
                f'{len(alone)} chips left out that are the only ones of their kind, where the task '
                f'compares chips of a batch: {names or "no files known"}'
            )
        sampler = GroupBatchSampler(
            kept,
            self.batch_size,
            seed=int(os.environ.get('PL_GLOBAL_SEED', '0')),
            samples_per_epoch=samples_per_epoch,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        limit = trainer.limit_train_batches if trainer else 1.0
        return ResumableLoader(dataset, sampler, self.num_workers, collate_fn, limit)


class EuroSATRGBDataModule(PretrainDataModule):
    """EuroSAT RGB: pretrains on the training list only, and probes on the validation list.

    Args:
        root: Folder that holds the images and the split lists; see `EuroSATRGB`.
        split_lists: ``spatial``, ``random0``, ``csv``, or a folder of lists.
        modalities: ``rgb``, perhaps with statistics of its own.
        batch_size: Samples of a batch on one rank.
        num_workers: Processes that read; the images are decoded once and kept in memory.
    """

    def __init__(
        self,
        root: str,
        split_lists: str = 'spatial',
        modalities: Sequence[str | dict[str, Any]] = ('rgb',),
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(modalities, batch_size, num_workers)
        if [m.name for m in self.modalities] != ['rgb']:
            raise InputError('EuroSAT RGB holds the modality rgb, and no other.')
        self.root = root
        self.split_lists = split_lists
        self.train_dataset: EuroSATRGB
        self.val_dataset: EuroSATRGB
        self.test_dataset: EuroSATRGB

    def setup(self, stage: str) -> None:
        """Read the lists and decode the images, once."""
        if stage == 'test':
            if not hasattr(self, 'test_dataset'):
                self.test_dataset = EuroSATRGB(self.root, 'test', self.split_lists)
        elif not hasattr(self, 'train_dataset'):
            self.train_dataset = EuroSATRGB(self.root, 'train', self.split_lists)
            self.val_dataset = EuroSATRGB(self.root, 'val', self.split_lists)

    def train_dataloader(self) -> ResumableLoader:
        """Batches ``{'rgb': (B, 3, 64, 64), 'label': (B,)}``, 0..255."""
        return self.train_loader(self.train_dataset, self.train_groups())

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation list, in order."""
        return self._in_order(self.val_dataset)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test list, in order."""
        return self._in_order(self.test_dataset)

    def _in_order(self, dataset: EuroSATRGB) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The validation list, in order."""
        return self.val_dataloader()

    def probe_datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        """Labelled training and validation parts, for the online kNN probe."""
        return self.train_dataset, self.val_dataset


type Chips = Rasters | CachedChips


class RastersDataModule(PretrainDataModule):
    """Chips from rasters: mixed CRS, resolutions, modalities and gaps.

    Args:
        paths: Files, folders and URLs, one or several (``name=path`` says which modality is there);
            one index (``gfm-jepa index``), or one cache (``gfm-jepa cache``).
        modalities: Which to read, the candidates for a place's anchor first.
        val_paths: Other places, for validation, an index's ``val`` or all; by default the ``val``
            split of `paths`, of which ``train`` alone is trained on in any case. Where there is
            neither, `paths` are predicted.
        chip_size: Side of a chip, pixels of the anchor; an index or a cache has its own.
        stride: Anchor pixels from one training chip to the next; a quarter chip by default.
        patch_size: Of the encoder, pixels; chips of other gsd are multiples of it wide.
        num_dates: Dates of a place that a sample holds; 1 makes each a sample, 0 takes all.
        keep: Which chips to take. A split other than ``train`` is what is validated, tested or
            predicted.
        samples_per_epoch: Chips drawn for one epoch; all by default.
        batch_size: Samples of a batch on one rank.
        num_workers: Processes that read.
        strict: Refuse broken files, where by default they are named and left out.

    Raises:
        InputError: From `setup`, if there is no usable chip, nothing to validate on, a held-out
            split to train on, or something to keep of a cache, of which all chips are taken.
    """

    def __init__(
        self,
        paths: Sequence[str] | str,
        modalities: Sequence[str | dict[str, Any]],
        val_paths: Sequence[str] | str = (),
        chip_size: int = 96,
        stride: int | None = None,
        patch_size: int = 8,
        num_dates: int = 1,
        keep: ChipFilter = ChipFilter(),
        samples_per_epoch: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        strict: bool = False,
    ) -> None:
        super().__init__(modalities, batch_size, num_workers)
        self.paths, self.val_paths = (
            [some] if some and isinstance(some, str) else list(some) for some in (paths, val_paths)
        )
        self.chip_size, self.patch_size, self.num_dates = chip_size, patch_size, num_dates
        self.stride = max(chip_size // 4, 1) if stride is None else stride
        self.keep, self.strict = keep, strict
        self.samples_per_epoch = samples_per_epoch
        self.train_dataset: Chips
        self.val_dataset: Chips
        self.test_dataset: Chips
        self.predict_dataset: Chips

    def setup(self, stage: str) -> None:
        """Scan the folders, or read the index, and print what feeds what."""
        splits = _splits(self.paths)
        chosen = None if self.keep.split == 'train' else self.keep.split
        if stage == 'fit' and chosen:
            raise InputError(
                f'keep.split is {chosen}, which is held out; leave it out, and fit takes train.'
            )
        if stage == 'fit' and not hasattr(self, 'train_dataset'):
            split = 'train' if splits else self.keep.split
            self.train_dataset = self._open(self.paths, self.stride, split)
        if stage == 'test' and (chosen or 'test' in splits):
            if not hasattr(self, 'test_dataset'):
                self.test_dataset = self._open(self.paths, self.chip_size, chosen or 'test')
            return
        if self.val_paths or chosen or 'val' in splits:
            if not hasattr(self, 'val_dataset'):
                paths = self.val_paths or self.paths
                split = chosen or ('val' if _splits(paths) else None)
                self.val_dataset = self._open(paths, self.chip_size, split)
        elif stage == 'predict':
            if not hasattr(self, 'predict_dataset'):
                self.predict_dataset = self._open(self.paths, self.chip_size, self.keep.split)
        elif stage != 'fit':
            raise InputError(f'There is nothing to {stage}; set data.val_paths to other places.')

    def train_dataloader(self) -> ResumableLoader:
        """Batches of one group each: the same modalities, sizes, gsd and dates."""
        groups = self.train_groups()
        return self.train_loader(self.train_dataset, groups, self.samples_per_epoch, collate)

    def train_groups(self) -> list[Sequence[int]]:
        """Chips of the same modalities, sizes, gsd and dates."""
        return list(self._groups(self.train_dataset))

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Chips of `val_paths` side by side, in order; none without such paths."""
        return self._in_order(self.val_dataset) if hasattr(self, 'val_dataset') else []

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The ``test`` split of an index; else as `val_dataloader`."""
        has_test = hasattr(self, 'test_dataset')
        return self._in_order(self.test_dataset) if has_test else self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """As `val_dataloader`; without anything to validate on, all chips of `paths`, in order."""
        alone = hasattr(self, 'predict_dataset')
        return self._in_order(self.predict_dataset) if alone else self.val_dataloader()

    def _in_order(self, dataset: Chips) -> DataLoader[Any]:
        batches = OrderedBatchSampler(self._groups(dataset), self.batch_size)
        return DataLoader(
            dataset, batch_sampler=batches, num_workers=self.num_workers, collate_fn=collate
        )

    def _open(self, paths: Sequence[str], stride: int, split: str | None) -> Chips:
        """Rasters, an index, or a cache; said in a table."""
        dataset: Chips
        if len(paths) == 1 and is_cache(Path(paths[0])):
            if self.keep != ChipFilter() and paths == self.paths:
                raise InputError(
                    f'{paths[0]} is a cache, of which all chips are taken; say what to keep when '
                    f'it is written, or name the rasters.'
                )
            dataset = CachedChips(paths[0], self.modalities)
        else:
            dataset = Rasters(
                paths, self.modalities, self.chip_size, stride, self.patch_size, self.num_dates,
                replace(self.keep, split=split), self.strict,
            )  # fmt: skip
        rank_zero_info(dataset.report())
        return dataset

    def _groups(self, dataset: Chips) -> list[list[int]]:
        """Chips that may share a batch, but for those without what the task `needs`."""
        groups = dataset.groups()
        kept = [g for g in groups if self.needs is None or self.needs in dataset[g[0]]]
        if not kept:
            raise InputError(
                f'No chip shows {self.needs}, which is to be learned or judged; name rasters of it '
                f'among the paths.'
            )
        if lost := sum(map(len, groups)) - sum(map(len, kept)):
            rank_zero_info(f'{lost} chips left out that do not show {self.needs}')
        return kept


def _splits(paths: Sequence[str]) -> set[str]:
    """Of an index, if that is what the paths are."""
    return splits_of(Path(paths[0])) if [Path(p).suffix for p in paths] == ['.parquet'] else set()
