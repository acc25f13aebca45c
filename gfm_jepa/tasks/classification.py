"""Classes of chips: a head on an encoder, frozen or fine-tuned, of one or several modalities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)
from torchmetrics.utilities import dim_zero_cat

from ..errors import InputError
from ..evaluation.classifiers import accuracy_of
from ..models.heads import (
    ClassificationHead,
    HeadFacts,
    classify_turned,
    encode,
    feature_width,
    head_facts,
)
from ..views import Views
from .base import (
    EncoderConfig,
    ModalitySpecs,
    OptimizerConfig,
    as_config,
    plain,
)
from .mixup import mix
from .supervised import SupervisedTask


@dataclass(frozen=True)
class HeadConfig:
    """How the head learns, and the encoder with it.

    Args:
        frozen: Whether the encoder stays as it is, in evaluation mode; only the head learns then.
        features: What the head reads: ``embedding``, or ``depths`` (several depths pooled, wider).
        layer_decay: Factor of the learning rate from one layer to the one below.
        label_smoothing: Share of the target that goes to all classes alike.
        mixup: Both parameters of the Beta distribution from which mixing weights are drawn; 0 mixes
            nothing. Where one of two mixed samples has no data, the mixture has none.
        multilabel: Whether a sample may have several classes; labels are (B, K) of 0 and 1 then.
        turns: Whether a sample is classified by the mean over its flips and quarter turns, which
            costs eight times as much; training turns its views anyway.

    Raises:
        InputError: If a share is none, or `mixup` is negative.
    """

    frozen: bool = False
    features: str = 'embedding'
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    multilabel: bool = False
    turns: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no share or parameter."""
        if not 0 < self.layer_decay <= 1 or not 0 <= self.label_smoothing < 1:
            raise InputError(
                f'head has layer_decay {self.layer_decay} and label_smoothing '
                f'{self.label_smoothing}; give a factor above 0 and up to 1, and a share from 0 to '
                f'below 1.'
            )
        if not self.mixup >= 0:
            raise InputError(f'head.mixup is {self.mixup}; give a number above 0, or 0 for none.')


# One view, whole (of a chip that is not square, the largest square somewhere in it): what of
# `Views` is left are flips and quarter turns.
TURNED = Views(num_global=1, global_scale=(1.0, 1.0), gain=0.0, offset=0.0)


class AveragePrecision(MultilabelAveragePrecision):
    """The mean over the classes that some sample has: of the others nothing can be found."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """As the probes do."""
        found = accuracy_of(dim_zero_cat(self.preds), dim_zero_cat(self.target))
        return torch.tensor(found, device=self.device)


class Classification(SupervisedTask):
    """Fit a head to labels, on an encoder of any of its modalities.

    A sample may lack modalities, in training and later. One that lacks all is left out of the
    loss, and refused when it should be classified.

    Args:
        modalities: What to embed: known names, YAML paths, or mappings of `Modality` fields.
        classes: Names by label.
        encoder: Which encoder; its `weights` are what to start from.
        optimizer: How to train; one weight decay from beginning to end.
        head: How the head learns, and what of the encoder.
        views: How a training sample is changed: one view of it.
        leave_out: Modalities that are taken away when validating and testing.

    Raises:
        InputError: If there are fewer than two classes, several views, or nothing of a name to
            leave out.
    """

    monitor = 'val_accuracy'
    mode = 'max'
    head_config: HeadConfig

    def __init__(
        self,
        modalities: ModalitySpecs,
        classes: Sequence[str],
        encoder: EncoderConfig = EncoderConfig(stem='conv'),
        optimizer: OptimizerConfig = OptimizerConfig(),
        head: HeadConfig = HeadConfig(),
        views: Views = TURNED,
        leave_out: Sequence[str] = (),
    ) -> None:
        self.classes = list(classes)
        self.head_config = as_config(HeadConfig, head)
        self.views, self.leave_out = as_config(Views, views), list(leave_out)
        self._refuse(as_config(OptimizerConfig, optimizer))
        # Of the chips that it learns from, by modality: as `HeadFacts` says it.
        self.shown: dict[str, dict[str, Any]] = {'image_sizes': {}, 'gsd': {}, 'resized_from': {}}
        super().__init__(modalities, encoder, optimizer)

    def _refuse(self, optimizer: OptimizerConfig) -> None:
        """Look at what can be wrong before anything is built."""
        if len(self.classes) < 2:
            raise InputError(f'There are {len(self.classes)} classes; expected two or more.')
        if self.views.num_global != 1 or self.views.num_local:
            raise InputError(
                f'Classification takes one view of a sample, but views ask for '
                f'{self.views.num_global} global and {self.views.num_local} local ones; set '
                f'num_global: 1 and num_local: 0.'
            )
        if optimizer.final_weight_decay is not None:
            raise InputError('Classification keeps one weight decay; leave out final_weight_decay.')

    def configure_models(self) -> None:
        """Load or build the encoder, and put a head on it."""
        super().configure_models()
        if unknown := set(self.leave_out) - set(self.encoder.modalities):
            raise InputError(
                f'leave_out names {", ".join(sorted(unknown))}; expected some of the encoder: '
                f'{", ".join(self.encoder.modalities)}.'
            )
        c = self.head_config
        width = feature_width(self.encoder, c.features)
        readout = getattr(self.encoder, 'readout', None)
        if c.features == 'depths' and isinstance(readout, nn.Module):
            self.freeze(readout)  # which has no part in them
        self.put_head(ClassificationHead(width, len(self.classes)))

    def configure_metrics(self) -> None:
        """Accuracy and calibration error; of several labels, average precision and F1."""
        count = len(self.classes)
        metrics: dict[str, Any] = {
            'accuracy': MulticlassAccuracy(count, average='micro'),
            'accuracy_by_class': MulticlassAccuracy(count, average='macro'),
            'calibration_error': MulticlassCalibrationError(count),
        }
        if self.head_config.multilabel:
            self.monitor = 'val_average_precision'
            metrics = {
                'average_precision': AveragePrecision(count),
                'f1': MultilabelF1Score(count),
            }
        self.put_metrics(metrics)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Embed a batch: (B, D)."""
        return encode(self.encoder, batch, self.head_config.features)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Probabilities (B, K)."""
        return classify_turned(self.encoder, self.head, self._without(batch), self._facts())

    def compute_loss(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Cross entropy of one changed, perhaps mixed, view of each sample."""
        generator = self.generator(batch_idx)
        modalities, patches = self.encoder.modalities, self.encoder.patch_sizes
        view = self.views.make(batch, modalities, patches, generator)[0]
        targets = self._targets(batch['label'])
        if self.head_config.mixup:
            view, targets = mix(view, targets, self.head_config.mixup, generator)
        features = self.forward(view)
        there = features.detach().isfinite().all(dim=1)
        if not bool(there.all()):
            features, targets = features[there], targets[there]
        if len(features) < 2:
            raise InputError('Fewer than two samples of a batch have valid pixels; leave them out.')
        self.log_health(features)
        return self._criterion(self.head(features), targets)

    def _targets(self, labels: Tensor) -> Tensor:
        """Labels (B,) or (B, K) as shares (B, K), smoothed."""
        smoothing, count = self.head_config.label_smoothing, len(self.classes)
        if self.head_config.multilabel:
            return labels.float() * (1 - smoothing) + smoothing / 2
        return F.one_hot(labels, count).float() * (1 - smoothing) + smoothing / count

    def _criterion(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.head_config.multilabel:
            return F.binary_cross_entropy_with_logits(logits, targets)
        return F.cross_entropy(logits, targets)

    def on_train_start(self) -> None:
        """Remember what size chips had, if the data module resamples them."""
        known = getattr(getattr(self.trainer, 'datamodule', None), 'benchmark', None)
        if known is not None and known.resized_from is not None:
            self.shown['resized_from'] = {known.modality: list(known.resized_from)}

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Remember what chips look like, and take the loss."""
        for name, raster in self.encoder.rasters(batch).items():
            self.shown['image_sizes'].setdefault(name, list(raster.shape[-2:]))
        for name, gsd in batch.get('gsd', {}).items():
            if name not in self.shown['gsd']:
                self.shown['gsd'][name] = float(torch.as_tensor(gsd).flatten()[0])
        return super().training_step(batch, batch_idx)

    def evaluate(self, part: str, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log loss and metrics; whoever has no valid pixel is refused."""
        labels = batch['label']
        scores = self.predict_step(batch, batch_idx)
        if lost := int((~scores.isfinite()).any(dim=1).sum()):
            raise InputError(
                f'{lost} of {len(labels)} samples have no valid pixel; leave them out.'
            )
        # The log of a probability is a logit as good as any.
        eps = torch.finfo(scores.dtype).tiny
        logits = torch.logit(scores, 1e-7) if self.head_config.multilabel else (
            scores.clamp_min(eps).log())  # fmt: skip
        loss = self._criterion(logits, self._targets(labels))
        self.log(f'{part}_loss', loss, batch_size=len(labels), sync_dist=True)
        metrics = self.metrics[part]
        metrics.update(scores, labels)  # type: ignore[operator]
        self.log_dict(metrics, batch_size=len(labels))

    def _facts(self) -> HeadFacts:
        """What the head is for."""
        c = self.head_config
        return HeadFacts(self.classes, c.features, c.multilabel, **self.shown, turns=c.turns)

    def _without(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch less the modalities that are left out."""
        return {k: v for k, v in batch.items() if k not in self.leave_out}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the head is for, so that encoder and head load without this task."""
        super().on_save_checkpoint(checkpoint)
        checkpoint['head'] = head_facts(self._facts())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on as the run that was broken off."""
        super().on_load_checkpoint(checkpoint)
        if head := checkpoint.get('head'):
            for key, known in self.shown.items():
                known.update(plain(head.get(key, {})))
