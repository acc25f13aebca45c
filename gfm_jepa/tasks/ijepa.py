"""I-JEPA: predict the latents of hidden blocks from the tokens that are seen."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from ..errors import InputError
from ..losses import cross_rank_mean
from ..masks import Ground, Mask, Mixture, MultiBlock, SignalBiased, as_mask, token_cells
from ..models import Encoder, Predictor, TokenLayout, Tokens
from ..models.block import Block
from ..models.encoder import masked_mean, take
from .base import (
    EncoderConfig,
    ModalitySpecs,
    OptimizerConfig,
    PretrainTask,
    frozen_copy,
)


class IJEPA(PretrainTask):
    """Smooth-L1 between predicted and actual latents of target blocks, targets from an EMA encoder.

    Masks are drawn on one ground grid for all modalities: a block hides the same ground in each of
    them, and targets of any modality are predicted from the context of any.

    Args:
        modalities: What to embed: known names, YAML paths, or mappings of `Modality` fields.
        encoder: Which encoder to train; its stem must not leak between patches.
        optimizer: How to train it.
        masks: How masks are drawn.
        predictor_dim: Width P of the predictor.
        predictor_depth: Blocks of the predictor.
        ema: Momentum of the target encoder at the start and at the end, linear between.

    Raises:
        InputError: If the stem leaks, or ``ema`` is none.

    Source: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
        Architecture" (2023), equation 1 and appendix A.
    Differs from the source: smooth-L1 on layer-normed targets, as in the authors' code, where the
        paper writes a squared distance.
    """

    encoder: Encoder

    def __init__(
        self,
        modalities: ModalitySpecs,
        encoder: EncoderConfig = EncoderConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        masks: Mask = MultiBlock(),
        predictor_dim: int = 96,
        predictor_depth: int = 3,
        ema: tuple[float, float] = (0.996, 1.0),
    ) -> None:
        self.masks = as_mask(masks)
        self.predictor_dim = predictor_dim
        self.predictor_depth = predictor_depth
        if not 0 <= ema[0] <= ema[1] <= 1:
            raise InputError(
                f'ema is {list(ema)}; expected momentum at the start and at the end, rising, each '
                f'0 to 1, such as [0.996, 1.0].'
            )
        self.ema = ema
        super().__init__(modalities, encoder, optimizer)

    def configure_models(self) -> None:
        """Build the encoder, its EMA copy and the predictor."""
        super().configure_models()
        self.require_tight_stem()
        self.target_encoder = frozen_copy(self.encoder)
        for block in self.target_encoder.blocks:
            cast(Block, block).drop_path = 0.0  # targets are whole
        self.predictor = Predictor(
            self.encoder.embed_dim, len(self.encoder.modalities), self.predictor_dim,
            self.predictor_depth,
        )  # fmt: skip

    def on_fit_start(self) -> None:
        """Say so where the run is too short for the target encoder to follow.

        Raises:
            InputError: If weights are kept in 16 bits, in which so small a step is none.
        """
        super().on_fit_start()
        if self.trainer.precision in ('bf16-true', '16-true'):
            raise InputError(
                f'trainer.precision is {self.trainer.precision}, and 16-bit weights are too coarse '
                f'for the small steps of the target encoder; take bf16-mixed.'
            )
        slow = 1 - sum(self.ema) / 2
        left = math.exp(-slow * self.total_steps())
        if left > 0.05:
            weights = self.encoder_config.weights
            start = 'its random start' if weights is None else f'as in {weights}'
            steps = self.total_steps()
            lower = f', or a lower ema than {list(self.ema)}, such as [{1 - 10 / steps:.4f}, 1.0]'
            rank_zero_info(
                f'After {steps} steps {100 * left:.0f} % of the target encoder, which is what you '
                f'get, are still {start}; take more steps{lower if steps >= 100 else ""}.'
            )

    @property
    def evaluated_encoder(self) -> Encoder:
        """The target encoder, as in the paper."""
        return self.target_encoder

    def sample_masks(self, batch: Mapping[str, Any], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Draw context_ids (B, K) and target_ids (B, M, T) of a batch."""
        return sample_masks(self.masks, self.encoder, batch, self.generator(batch_idx))

    @torch.no_grad()
    def forward_targets(self, batch: Mapping[str, Any], target_ids: Tensor) -> Tensor:
        """Latents (B, M, T, D) of the target tokens, layer-normed, from the whole raster."""
        tokens = self.target_encoder.forward_tokens(batch)
        self.log_health(masked_mean(tokens.values, tokens.valid))
        latents = F.layer_norm(tokens.dense(), (self.encoder.embed_dim,))
        targets = take(latents, target_ids.flatten(1).clamp_min(0))
        # What is not there is left out of the loss, but a NaN would still poison its gradient.
        return targets.nan_to_num(0.0).view(*target_ids.shape, -1)

    def forward_context(
        self, batch: Mapping[str, Any], context_ids: Tensor, target_ids: Tensor
    ) -> Tensor:
        """Predictions (B, M, T, D) of the target tokens, from the context alone."""
        context: Tokens = self.encoder.forward_tokens(batch, context_ids)
        layout: TokenLayout = context.layout
        predictions: Tensor = self.predictor(context.values, context.ids, target_ids, layout)
        return predictions

    def compute_loss(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Predict the targets, and compare."""
        batch = self.dates_of(self.masks, batch, batch_idx)
        context_ids, target_ids = self.sample_masks(batch, batch_idx)
        targets = self.forward_targets(batch, target_ids)
        predictions = self.forward_context(batch, context_ids, target_ids)
        return masked_smooth_l1(predictions, targets, target_ids, context_ids)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the target encoder follow: per optimizer step, not per micro-batch."""
        super().optimizer_step(*args, **kwargs)
        momentum = self.ema[0] + (self.ema[1] - self.ema[0]) * self.progress()
        self.log('ema_momentum', momentum)
        update_ema(self.target_encoder, self.encoder, momentum)


def sample_masks(
    masks: Mask, encoder: Encoder, batch: Mapping[str, Any], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw context_ids (B, K) and target_ids (B, M, T) on the ground grid of a batch.

    Raises:
        InputError: If not even a sample without gaps has both, so that nothing can be learned.
    """
    layout, valid = encoder.layout(batch), encoder.valid_patches(batch)
    cells = token_cells(layout.positions, layout.extent, layout.finest)
    wanted = masks.signal if isinstance(masks, SignalBiased | Mixture) else ''
    signal = encoder.patch_signal(batch, wanted).cpu() if wanted else None
    ground = Ground(valid.cpu(), cells.cpu(), layout.finest, layout.modality_ids.cpu(), signal)
    context_ids, target_ids = masks.sample(ground, generator)
    usable = (context_ids >= 0).any(dim=1) & (target_ids >= 0).flatten(1).any(dim=1)
    if not bool(usable.any()) and bool(ground.valid.all(dim=1).any()):
        raise InputError(
            f'{type(masks).__name__} leaves a chip of {valid.shape[1]} patches nothing to see or '
            f'nothing to predict; take larger chips, a smaller encoder.patch_size, or other masks.'
        )
    return context_ids.to(valid.device), target_ids.to(valid.device)


def masked_smooth_l1(
    predictions: Tensor, targets: Tensor, target_ids: Tensor, context_ids: Tensor
) -> Tensor:
    """Mean smooth-L1 over the target tokens that are there, of samples that have a context.

    Args:
        predictions: (B, M, T, D).
        targets: (B, M, T, D).
        target_ids: (B, M, T), -1 where there is no target.
        context_ids: (B, K), -1 where there is no context.
    """
    there = (target_ids >= 0) & (context_ids >= 0).any(dim=1)[:, None, None]
    errors = F.smooth_l1_loss(predictions, targets, reduction='none').mean(dim=-1)
    # Of all ranks: one whose samples have gaps counts for what it has.
    count = cross_rank_mean(there.sum().to(errors.dtype))
    return errors.masked_fill(~there, 0.0).sum() / count.clamp_min(1e-6)


@torch.no_grad()
def update_ema(target: torch.nn.Module, source: torch.nn.Module, momentum: float) -> None:
    """Move the target's weights towards the source's by 1 - momentum; copy its buffers.

    Sharded weights are moved shard by shard: both are sharded alike.
    """
    ours, theirs = (
        [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
        for module in (source, target)
    )
    torch._foreach_lerp_(theirs, ours, 1 - momentum)
    for buffer, value in zip(target.buffers(), source.buffers(), strict=True):
        buffer.copy_(value)
