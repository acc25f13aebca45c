"""What torchgeo's own command line needs for our models: a callback, and rasters with labels.

``torchgeo fit --config FILE`` with ``gfm_jepa.torchgeo.RawUnits`` among ``trainer.callbacks``. timm
has no entry point by which it would find our names; a class of ours in the config is imported
before the model is built, and makes them known.
"""

from collections.abc import Sequence
from typing import Any

import torch
from kornia.augmentation import Normalize
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchgeo.datamodules import NonGeoDataModule

from .data import Rasters
from .data.pixel_benchmarks import classes_on
from .errors import InputError
from .modalities import resolve_all


class RawUnits(Callback):
    """Let a torchgeo data module give values in raw units, which our encoders normalise.

    Its `Normalize` augmentations get mean 0 and standard deviation 1; all others stay.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look through all augmentations, once the data module has made them."""
        data: Any = getattr(trainer, 'datamodule', None)
        for part in ('aug', 'train_aug', 'val_aug', 'test_aug', 'predict_aug'):
            augmentation = getattr(data, part, None)
            if isinstance(augmentation, nn.Module):
                _keep_values(augmentation)


class LabelledRasters(Dataset[dict[str, Tensor]]):
    """Chips of two rasters on the same ground, as torchgeo's segmentation takes them.

    Args:
        split: ``train``, ``val`` or ``test``: which of the paths to read; chips that are trained
            on overlap by half.
        paths: Files, folders or URLs by split, as for `Rasters`; ``val`` is also the test part
            where ``test`` is empty.
        image: Modality that goes in.
        mask: Modality whose values are the classes.
        chip_size: Side of a chip, pixels.
        ignore_index: What stands for no label.

    Raises:
        InputError: If no chip has both, or a split has no paths.
    """

    def __init__(
        self, split: str, paths: dict[str, Sequence[str]], image: str, mask: str, chip_size: int,
        ignore_index: int,
    ) -> None:  # fmt: skip
        own = paths[split] or (paths['val'] if split == 'test' else [])
        if not own:
            raise InputError(f'There are no {split} rasters; set data.{split}_paths.')
        stride = chip_size // 2 if split == 'train' else chip_size
        self.chips = Rasters(own, resolve_all([image, mask]), chip_size, stride)
        self.image, self.mask, self.ignore_index = image, mask, ignore_index
        self.ids = [
            i for group in self.chips.groups() for i in group
            if {image, mask} <= {layer.name for layer in self.chips.locate(i)[0].layers}
        ]  # fmt: skip
        if not self.ids:
            raise InputError(f'No chip of {", ".join(own)} has both {image} and {mask}.')

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``image`` (C, H, W) in raw units, NaN where nothing is there, and ``mask`` (H, W)."""
        chip = self.chips[self.ids[index]]
        image = chip[self.image]
        classes = classes_on(chip[self.mask][0], image)
        return {'image': image, 'mask': torch.nan_to_num(classes, self.ignore_index).long()}


class LabelledRastersDataModule(NonGeoDataModule):  # type: ignore[misc]
    """`LabelledRasters` for torchgeo's tasks and its command line; values stay in raw units.

    Args:
        train_paths: Files, folders or URLs to learn from.
        val_paths: Other places, to validate on.
        test_paths: Yet other places; `val_paths` where there are none.
        image: Modality that goes in.
        mask: Modality whose values are the classes.
        chip_size: Side of a chip, pixels.
        ignore_index: What stands for no label; give the task the same.
        batch_size: Chips of a batch.
        num_workers: Processes that read.
    """

    def __init__(
        self,
        train_paths: Sequence[str],
        val_paths: Sequence[str],
        test_paths: Sequence[str] = (),
        image: str = 's2_l2a',
        mask: str = 'lulc',
        chip_size: int = 64,
        ignore_index: int = 255,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        paths = {'train': list(train_paths), 'val': list(val_paths), 'test': list(test_paths)}
        super().__init__(
            LabelledRasters, batch_size, num_workers, paths=paths, image=image, mask=mask,
            chip_size=chip_size, ignore_index=ignore_index,
        )  # fmt: skip
        self.aug = nn.Identity()


def _keep_values(augmentation: nn.Module) -> None:
    """Replace every `Normalize` by one that changes nothing."""
    for parent in list(augmentation.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Normalize):
                setattr(parent, name, Normalize(mean=0.0, std=1.0))
