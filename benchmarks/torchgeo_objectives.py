"""torchgeo's own MAE, SimCLR and BYOL on EuroSAT RGB, on a backbone as large as ours.

Their defaults, but for what follows from the size of images, batch and backbone: every difference
stands in `build` with its reason. They see values in 0..1, as their augmentations expect.
"""

from collections.abc import Sized
from typing import Any, cast

import timm
from lightning.pytorch import Callback, Trainer
from timm.models import VisionTransformer, register_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, Dataset
from torchgeo.tasks import BYOL, MAE, SimCLR
from torchgeo.tasks.byol import BYOLModule

from gfm_jepa.data.eurosat import EuroSATRGB
from gfm_jepa.models import Encoder, build_encoder
from gfm_jepa.models.presets import PRESETS
from gfm_jepa.models.timm_models import to_timm

METHODS = ('torchgeo-mae', 'torchgeo-simclr', 'torchgeo-byol')
SIZE, BATCH_SIZE = 64, 64


@register_model  # type: ignore[untyped-decorator]  # timm carries no types
def gfm_jepa_objective_linear(
    pretrained: bool = False,
    in_chans: int = 3,
    num_classes: int = 0,
    **_: Any,  # what timm passes
) -> VisionTransformer:
    """Timm's own ViT, class token included, with nano's widths: MAE's decoder is made for that."""
    return VisionTransformer(
        img_size=SIZE, patch_size=8, in_chans=in_chans, num_classes=num_classes,
        global_pool='avg', fc_norm=False, **PRESETS['nano'],
    )  # fmt: skip


@register_model  # type: ignore[untyped-decorator]  # timm carries no types
def gfm_jepa_objective_conv(
    pretrained: bool = False,
    in_chans: int = 3,
    num_classes: int = 0,
    **_: Any,  # what timm passes
) -> VisionTransformer:
    """Our view methods' encoder, stem included, as a timm model."""
    return to_timm(build_encoder('nano', ['rgb'], stem='conv'), 'rgb', SIZE, num_classes)


class UnitImages(Dataset[dict[str, Tensor]]):
    """EuroSAT RGB as torchgeo's samples: ``image`` (3, 64, 64) in 0..1."""

    def __init__(self, root: str) -> None:
        self.images = EuroSATRGB(root, 'train', 'spatial')

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'image': self.images[index]['rgb'] / 255}


class Rescaled(nn.Module):
    """A backbone that takes 0..1, around ours, which takes 0..255."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features = backbone.num_features

    def forward(self, images: Tensor) -> Tensor:
        """Embed (B, 3, H, W)."""
        embedding: Tensor = self.backbone(images * 255)
        return embedding


def build(method: str, epochs: int) -> Any:
    """Make a task of torchgeo for so many epochs."""
    if method == 'torchgeo-mae':
        return MAE(
            model='gfm_jepa_objective_linear', size=SIZE,
            # The default rate and decoder are for ViT-B: small models take and need a higher rate
            # and less decoder. Warm-up: a twentieth of the run, which is shorter than 40 epochs.
            lr=1e-3, decoder_dim=128, decoder_num_heads=4, warmup_epochs=warmup_epochs(epochs),
        )  # fmt: skip
    if method == 'torchgeo-simclr':
        # Version 1, since a bank of 64,000 would hold every image of 16,200 four times, its own
        # positives among them; the rate is torchgeo's rule for the batch.
        task = ShortSimCLR(
            model='gfm_jepa_objective_conv', version=1, layers=2, memory_bank_size=0, size=SIZE,
            hidden_dim=512, output_dim=128, lr=0.3 * BATCH_SIZE / 256,
        )  # fmt: skip
        task.backbone = Rescaled(task.backbone)
        return task
    return SmallBYOL('gfm_jepa_objective_conv')


def warmup_epochs(epochs: int) -> int:
    """A twentieth of a run, and one epoch at least."""
    return max(epochs // 20, 1)


class ShortSimCLR(SimCLR):  # type: ignore[misc]  # torchgeo carries no types
    """SimCLR with the warm-up that MAE has here."""

    def configure_optimizers(self) -> Any:
        """The task's optimizer; its own warm-up is ten epochs, which a short run never leaves."""
        optimizer = super().configure_optimizers()['optimizer']
        for group in optimizer.param_groups:
            group['lr'] = group['initial_lr']  # which the task's own schedule has lowered
        epochs = self.trainer.max_epochs
        warmup = warmup_epochs(epochs)
        schedules = [LinearLR(optimizer, total_iters=warmup),
                     CosineAnnealingLR(optimizer, T_max=max(epochs - warmup, 1))]  # fmt: skip
        return [optimizer], [SequentialLR(optimizer, schedules, milestones=[warmup])]


class SmallBYOL(BYOL):  # type: ignore[misc]  # torchgeo carries no types
    """BYOL with the size of its images as an argument of its module: the task fixes 224 x 224."""

    def configure_models(self) -> None:
        """Build the online and target networks."""
        backbone = Rescaled(timm.create_model(self.hparams['model']))
        # The last child is the backbone: the projector stands on its embedding.
        self.model = BYOLModule(backbone, (SIZE, SIZE), hidden_layer=-1, in_channels=3)


def train(
    method: str,
    steps: int,
    images: Dataset[Any],
    callbacks: list[Callback],
    accelerator: str = 'cpu',
    precision: Any = '32-true',
) -> nn.Module:
    """Train a task of torchgeo; returns MAE's ViT, which takes 0..1, or our encoder."""
    loader = DataLoader(images, BATCH_SIZE, shuffle=True, drop_last=True)
    epochs = -(-steps // max(len(cast(Sized, images)) // BATCH_SIZE, 1))
    task = build(method, epochs)
    trainer = Trainer(
        max_steps=steps, max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=callbacks,
        accelerator=accelerator, precision=precision,
    )  # fmt: skip
    trainer.fit(task, loader)
    task.eval()
    if method == 'torchgeo-mae':
        vit: nn.Module = task.backbone.vit
        return vit
    return as_encoder(task.backbone if method == 'torchgeo-simclr' else task.model.backbone.model)


def as_encoder(trained: Rescaled) -> Encoder:
    """Our encoder with the weights of the timm model that was made of one."""
    encoder = build_encoder('nano', ['rgb'], stem='conv')
    state = trained.backbone.state_dict()
    state.pop('patch_embed.gsd')  # of the timm model alone
    own = {k.replace('patch_embed.embed.', 'patch_embeds.rgb.'): v for k, v in state.items()}
    encoder.load_state_dict(own)
    return encoder.eval()
