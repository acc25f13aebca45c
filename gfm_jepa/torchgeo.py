"""What torchgeo's own command line needs for our models: one callback.

``torchgeo fit --config FILE`` with ``gfm_jepa.torchgeo.RawUnits`` among ``trainer.callbacks``. timm
has no entry point by which it would find our names; a callback of ours in the config is imported
before the model is built, and makes them known.
"""

from typing import Any

from kornia.augmentation import Normalize
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn


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


def _keep_values(augmentation: nn.Module) -> None:
    """Replace every `Normalize` by one that changes nothing."""
    for parent in list(augmentation.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Normalize):
                setattr(parent, name, Normalize(mean=0.0, std=1.0))
