"""Answers for every pixel, from several modalities: classes, or a quantity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from ..data.datamodules import PretrainDataModule
from ..errors import InputError
from ..modalities import Modality, resolve
from ..models import Encoder
from ..models.pixel_heads import make_pixel_head
from ..views import are_square, turned
from .base import EncoderConfig, ModalitySpecs, OptimizerConfig, as_config
from .supervised import SupervisedTask


@dataclass(frozen=True)
class PixelHeadConfig:
    """How the head is made, and what learns.

    Args:
        kind: ``linear`` or ``upernet``.
        frozen: Whether the encoder stays as it is, in evaluation mode.
        layer_decay: Factor of the learning rate from one layer to the one below.
        pixels: Whether the linear head sees each pixel's own bands beside its token.
        width: Of UPerNet's decoder.
        turn: Whether training chips are flipped and turned by quarters.

    Raises:
        InputError: If the factor or the width is none.
    """

    kind: str = 'linear'
    frozen: bool = True
    layer_decay: float = 1.0
    pixels: bool = True
    width: int = 64
    turn: bool = True

    def __post_init__(self) -> None:
        """Refuse what is no factor or width."""
        if not 0 < self.layer_decay <= 1 or self.width < 1:
            raise InputError(
                f'head has layer_decay {self.layer_decay} and width {self.width}; give a factor '
                f'above 0 and up to 1, and 1 channel or more.'
            )


class PixelTask(SupervisedTask):
    """Base of the tasks that predict a raster of the batch from its other modalities.

    Pixels where the target or the first input is NaN teach and count nothing, as maps say nothing
    there. A sample may lack any modality but that first one, on whose grid the answer is.

    Args:
        modalities: What the data holds, the target included; the encoder embeds the others.
        target: Name of the modality to predict.
        encoder: Which encoder; its `weights` are what to start from.
        optimizer: How to train.
        head: How the head is made.

    Raises:
        InputError: If the target is not among the modalities, or there is no other.
    """

    outputs = 1
    class_names: Sequence[str] = ()
    head_config: PixelHeadConfig

    def __init__(
        self,
        modalities: ModalitySpecs,
        target: str,
        encoder: EncoderConfig,
        optimizer: OptimizerConfig,
        head: PixelHeadConfig,
    ) -> None:
        self.target, self.dated_beside = target, [target]
        self.head_config = as_config(PixelHeadConfig, head)
        known = {m.name: m for m in map(resolve, modalities)}
        if target not in known or len(known) < 2:
            raise InputError(
                f'The data holds {", ".join(known)}; to predict {target or "nothing"} it has to '
                f'hold that and another modality: see data.modalities.'
            )
        self.target_modality: Modality = known.pop(target)
        self.inputs = [m.to_dict() for m in known.values() if not m.categorical]
        super().__init__(modalities, encoder, optimizer)

    def configure_models(self) -> None:
        """Load or build the encoder of the inputs, and put a head on it."""
        self.modality_specs = self.inputs
        super().configure_models()
        c = self.head_config
        if not isinstance(self.encoder, Encoder):
            raise InputError('Pixels need our own encoder; for timm models take torchgeo.tasks.')
        first = self.inputs[0]['name']
        head = make_pixel_head(c.kind, self.encoder, first, self.outputs, c.pixels, c.width)
        self.put_head(head)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the head is for, so that `gfm-jepa segment` loads it without this task."""
        super().on_save_checkpoint(checkpoint)
        c = self.head_config
        checkpoint['pixel_head'] = {
            'kind': c.kind, 'pixels': c.pixels, 'width': c.width, 'outputs': self.outputs,
            'modality': self.inputs[0]['name'], 'target': self.target,
            'classes': self.class_names, **self.unit(),
        }  # fmt: skip

    def unit(self) -> dict[str, float | None]:
        """Mean and standard deviation that answers are measured in; None for classes."""
        return {'mean': None, 'std': None}

    def setup(self, stage: str) -> None:
        """Tell the data that samples without the target are of no use."""
        super().setup(stage)
        data = getattr(self.trainer, 'datamodule', None)
        if isinstance(data, PretrainDataModule):
            data.needs = None if stage == 'predict' else self.target

    def answer(self, batch: Mapping[str, Any]) -> Tensor:
        """Answers (B, K, H, W) on the grid of the first input."""
        features = self.encoder.forward_feature_map(batch, self.inputs[0]['name'])
        self.log_health(features.detach().flatten(2).nanmean(dim=2))  # over the ground: (B, D)
        found: Tensor = self.head(self.encoder, batch, features)
        return found

    def compute_loss(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Loss of a batch, turned."""
        batch = self.one_date(batch, batch_idx)
        if self.head_config.turn:
            batch = turn(batch, self.generator(batch_idx))
        answers, truth = self._pair(batch)
        return self.criterion(answers, truth)

    def _pair(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Answers (B, K, H, W) and the target (B, H, W) on their grid, NaN without an input."""
        answers, truth = self.answer(batch), batch[self.target][:, 0]
        if truth.shape[-2:] != answers.shape[-2:]:
            truth = F.interpolate(truth[:, None], answers.shape[-2:], mode='nearest-exact')[:, 0]
        first = self.encoder.rasters(batch)[self.inputs[0]['name']]
        shown = first.isfinite().any(dim=1)  # where `Segmenter` maps something
        return answers, truth.where(shown, torch.nan)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Answers in the end's unit: see `present`."""
        return self.present(self.answer(self.one_date(batch, batch_idx)))

    def evaluate(self, part: str, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log loss and metrics, over the pixels that have a target."""
        answers, truth = self._pair(self.one_date(batch, batch_idx))
        there = self.known(truth)
        if not bool(there.any()):
            return
        size = len(truth)
        loss = self.criterion(answers, truth)
        self.log(f'{part}_loss', loss, batch_size=size, sync_dist=True)
        metrics = self.metrics[part]
        shown = self.present(answers).movedim(1, -1)[there]
        self.count(metrics, shown, truth[there])
        self.log_dict(metrics, batch_size=size)

    def known(self, truth: Tensor) -> Tensor:
        """Where a target (B, H, W) says something."""
        return truth.isfinite()

    def criterion(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Loss of answers (B, K, H, W) against (B, H, W), what is not `known` left out."""
        raise NotImplementedError

    def present(self, answers: Tensor) -> Tensor:
        """What a user wants of answers (B, K, H, W)."""
        raise NotImplementedError

    def count(self, metrics: Any, shown: Tensor, truth: Tensor) -> None:
        """Update metrics with what `present` gave of P pixels, (P, K), and the truth (P,)."""
        raise NotImplementedError


class SemanticSegmentation(PixelTask):
    """A class for every pixel.

    Args:
        modalities: What the data holds, the target included.
        num_classes: Classes K: the target's values are 0 to K - 1.
        target: Name of the categorical modality to predict.
        encoder: Which encoder; its `weights` are what to start from.
        optimizer: How to train.
        head: How the head is made.
        class_names: By number, for the tags of maps; none, or one a class.

    Raises:
        InputError: If the target is not among the modalities, or has other values, or there are
            more or fewer names than classes.
    """

    monitor = 'val_mean_iou'
    mode = 'max'

    def __init__(
        self,
        modalities: ModalitySpecs,
        num_classes: int,
        target: str = 'lulc',
        encoder: EncoderConfig = EncoderConfig(stem='conv'),
        optimizer: OptimizerConfig = OptimizerConfig(),
        head: PixelHeadConfig = PixelHeadConfig(),
        class_names: Sequence[str] = (),
    ) -> None:
        if len(class_names) not in (0, num_classes):
            raise InputError(
                f'There are {len(class_names)} class_names of {num_classes} classes; name all or '
                f'none.'
            )
        self.outputs, self.class_names = num_classes, list(class_names)
        super().__init__(modalities, target, encoder, optimizer, head)

    def configure_metrics(self) -> None:
        """Mean intersection over union, and accuracy over pixels."""
        self.put_metrics({
            'mean_iou': MulticlassJaccardIndex(self.outputs),
            'accuracy': MulticlassAccuracy(self.outputs, average='micro'),
        })  # fmt: skip

    def known(self, truth: Tensor) -> Tensor:
        """Where there is a class; below 0 stands for none, as is usual."""
        return truth.isfinite() & (truth >= 0)

    def criterion(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Mean cross entropy over the pixels that have a class."""
        labels = truth.masked_fill(~self.known(truth), -1.0).long()
        if bool((labels >= self.outputs).any()):
            raise InputError(
                f'{self.target} holds the class {int(labels.max())}, but num_classes is '
                f'{self.outputs}; classes are numbered from 0.'
            )
        total = F.cross_entropy(answers, labels, ignore_index=-1, reduction='sum')
        return total / (labels >= 0).sum().clamp_min(1)

    def present(self, answers: Tensor) -> Tensor:
        """Probabilities (B, K, H, W)."""
        return torch.softmax(answers, dim=1)

    def count(self, metrics: Any, shown: Tensor, truth: Tensor) -> None:
        """Count the likeliest class of each pixel."""
        metrics.update(shown.argmax(dim=1), truth.long())


class PixelwiseRegression(PixelTask):
    """A quantity for every pixel, in its modality's unit.

    Args:
        modalities: What the data holds, the target included.
        target: Name of the modality to predict; it needs statistics.
        encoder: Which encoder; its `weights` are what to start from.
        optimizer: How to train.
        head: How the head is made.

    Raises:
        InputError: If the target is not among the modalities, or has no statistics.
    """

    monitor = 'val_mae'
    mode = 'min'

    def __init__(
        self,
        modalities: ModalitySpecs,
        target: str,
        encoder: EncoderConfig = EncoderConfig(stem='conv'),
        optimizer: OptimizerConfig = OptimizerConfig(),
        head: PixelHeadConfig = PixelHeadConfig(),
    ) -> None:
        super().__init__(modalities, target, encoder, optimizer, head)
        found = self.target_modality.require_statistics()
        self.register_buffer('target_mean', torch.tensor(found.mean[0]))
        self.register_buffer('target_std', torch.tensor(found.std[0]))

    target_mean: Tensor
    target_std: Tensor

    def configure_metrics(self) -> None:
        """Mean absolute error and root mean square error, in the unit, and R2."""
        self.put_metrics({
            'mae': MeanAbsoluteError(), 'rmse': MeanSquaredError(squared=False), 'r2': R2Score(),
        })  # fmt: skip

    def unit(self) -> dict[str, float | None]:
        """Of the target."""
        return {'mean': float(self.target_mean), 'std': float(self.target_std)}

    def criterion(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Mean Huber loss in standard deviations of the target."""
        there = truth.isfinite()
        wanted = (torch.nan_to_num(truth) - self.target_mean) / self.target_std
        loss = F.smooth_l1_loss(answers[:, 0], wanted, reduction='none')
        return (loss * there).sum() / there.sum().clamp_min(1)

    def present(self, answers: Tensor) -> Tensor:
        """Values (B, 1, H, W) in the target's unit."""
        return answers * self.target_std + self.target_mean

    def count(self, metrics: Any, shown: Tensor, truth: Tensor) -> None:
        """Compare values."""
        metrics.update(shown[:, 0], truth)


def turn(batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Flip and turn a whole batch by quarters, all its rasters alike: one of eight ways.

    Chips that are not square are flipped, or turned by half, only.
    """
    flip = int(torch.randint(2, (1,), generator=generator))
    turns = int(torch.randint(4, (1,), generator=generator))
    rasters = {k: v for k, v in batch.items() if isinstance(v, Tensor) and v.ndim == 4}
    count = turns if are_square(rasters.values()) else 2 * (turns // 2)
    return {**batch, **{k: turned(v, bool(flip), count) for k, v in rasters.items()}}
