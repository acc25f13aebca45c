"""Latent masked image modelling: tell hidden patches apart by frozen random projections."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..losses import info_nce, patch_discrimination
from ..masks import Mask, RandomCells, as_mask
from ..models import Encoder, PatchEmbed, Predictor
from ..models.encoder import by_date, masked_mean, one_by_one, take
from .base import (
    EncoderConfig,
    ModalitySpecs,
    OptimizerConfig,
    PretrainTask,
    frozen_copy,
)
from .ijepa import sample_masks


class LatentMIM(PretrainTask):
    """Patch discrimination against frozen random projections, and InfoNCE between two maskings.

    The targets are what the patch embedders, as they were initialised, make of each patch: they
    cannot collapse, and suit maps that only decode, such as DEM and NDVI.

    Args:
        modalities: What to embed: known names, YAML paths, or mappings of `Modality` fields.
        encoder: Which encoder to train; its stem must not leak between patches.
        optimizer: How to train it.
        masks: How cells are hidden.
        predictor_dim: Width P of the predictor.
        predictor_depth: Blocks of the predictor.
        instance_weight: Of InfoNCE between the embeddings of a sample's two contexts.
        temperature: Of both losses.

    Raises:
        InputError: If the stem leaks, the temperature is not above 0, or the weight is negative.

    Source: OlmoEarth (Allen Institute for AI, 2025), "Latent MIM Lite"; Wei et al., "Towards Latent
        Masked Image Modeling" (2024).
    Differs from the sources: OlmoEarth multiplies the loss of patches by 2 tau (0.2), so that its
        0.1 weighs InfoNCE five times more than here; `instance_weight: 0.5` is its balance.
    """

    encoder: Encoder

    def __init__(
        self,
        modalities: ModalitySpecs,
        encoder: EncoderConfig = EncoderConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        masks: Mask = RandomCells(),
        predictor_dim: int = 96,
        predictor_depth: int = 2,
        instance_weight: float = 0.1,
        temperature: float = 0.1,
    ) -> None:
        if not temperature > 0:
            raise InputError(f'temperature is {temperature}; give a number above 0, such as 0.1.')
        if not instance_weight >= 0:
            raise InputError(f'instance_weight is {instance_weight}; give 0 or more.')
        self.masks = as_mask(masks)
        self.predictor_dims = (predictor_dim, predictor_depth)
        self.instance_weight = instance_weight
        self.temperature = temperature
        super().__init__(modalities, encoder, optimizer)

    def configure_models(self) -> None:
        """Build the encoder, the frozen projections and the predictor."""
        super().configure_models()
        self.require_tight_stem()
        self.target_embeds: nn.ModuleDict = frozen_copy(self.encoder.patch_embeds)
        dim, depth = self.predictor_dims
        self.predictor = Predictor(self.encoder.embed_dim, len(self.encoder.modalities), dim, depth)

    @torch.no_grad()
    def forward_targets(self, batch: Mapping[str, Any], target_ids: Tensor) -> Tensor:
        """Random projections (B, T, D) of the hidden patches, without their place."""
        names = self.encoder.layout(batch).names
        rasters = self.encoder.rasters(batch)
        tokens = []
        for name in names:
            embed = self.target_embeds[name]
            assert isinstance(embed, PatchEmbed)
            x = rasters[name]
            tokens.append(by_date(x, embed.project(one_by_one(x))[0]))
        return take(torch.cat(tokens, dim=1), target_ids.clamp_min(0))

    def forward_context(
        self, batch: Mapping[str, Any], context_ids: Tensor, target_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predictions (B, T, D) of the hidden tokens, and the embedding (B, D) of the context."""
        context = self.encoder.forward_tokens(batch, context_ids)
        predictions = self.predictor(
            context.values, context.ids, target_ids[:, None], context.layout
        )
        return predictions.squeeze(1), masked_mean(context.values, context.valid)

    def compute_loss(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Mask twice, tell the hidden patches apart, and the samples by their contexts."""
        batch = self.dates_of(self.masks, batch, batch_idx)
        generator = self.generator(batch_idx)
        modality_ids = self.encoder.layout(batch).modality_ids
        losses, embeddings = [], []
        for _ in range(2):
            context_ids, target_ids = sample_masks(self.masks, self.encoder, batch, generator)
            target_ids = target_ids.flatten(1)
            targets = self.forward_targets(batch, target_ids)
            predictions, embedding = self.forward_context(batch, context_ids, target_ids)
            there = (target_ids >= 0) & (context_ids >= 0).any(dim=1, keepdim=True)
            kinds = modality_ids[target_ids.clamp_min(0)]
            losses.append(
                patch_discrimination(predictions, targets, there, self.temperature, kinds)
            )
            embeddings.append(embedding)
        self.log_health(embeddings[0])
        patches = torch.stack(losses).mean()
        instances = info_nce(embeddings[0], embeddings[1], self.temperature)
        if self.training:
            self.log_dict({'patches': patches, 'instances': instances})
        return patches + self.instance_weight * instances
