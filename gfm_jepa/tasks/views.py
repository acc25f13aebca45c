"""What methods that compare views of a place share."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..metrics import effective_rank
from ..photo_views import PhotoViews
from ..views import Views
from .base import FEWEST_RANKED, EncoderConfig, ModalitySpecs, OptimizerConfig, PretrainTask


class ViewTask(PretrainTask):
    """Base of the tasks that embed several views of each sample.

    Args:
        modalities: What to embed: known names, YAML paths, or mappings of `Modality` fields.
        encoder: Which encoder to train.
        optimizer: How to train it.
        views: How views are made: `Views` of images from above, `PhotoViews` of photographs.
    """

    smallest_group = 2  # they are compared with each other

    def __init__(
        self,
        modalities: ModalitySpecs,
        encoder: EncoderConfig,
        optimizer: OptimizerConfig,
        views: Views | PhotoViews,
    ) -> None:
        # A checkpoint holds a mapping; only one of the two has colours.
        self.views: Views | PhotoViews = (
            views if not isinstance(views, Mapping)
            else PhotoViews(**views) if 'jitter' in views else Views(**views)
        )  # fmt: skip
        super().__init__(modalities, encoder, optimizer)

    @property
    def num_views(self) -> int:
        """Views V of a sample."""
        return self.views.num_global + self.views.num_local

    def embed_views(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Make the views of a batch and embed them: (V, B, D), the global ones first.

        A sample of which a view shows nothing valid is left out of the loss: its NaN would spread
        to all others in the projector's batch norms.

        Raises:
            InputError: If fewer than two samples are left.
        """
        views = self.views.make(
            batch, self.encoder.modalities, self.encoder.patch_sizes, self.generator(batch_idx)
        )
        embeddings = torch.cat([self.encoder(view) for view in views])
        self.log_health(embeddings[: len(embeddings) // self.views.num_global])
        by_view: Tensor = embeddings.unflatten(0, (self.num_views, -1))
        if by_view.shape[1] * (1 if self._trainer is None else self.trainer.world_size) < 2:
            raise InputError(
                f'A batch has one sample, and {type(self).__name__} compares samples; raise '
                f'data.batch_size, or leave out rasters whose kind gives one chip only.'
            )
        if bool(embeddings.detach().isfinite().all()):  # the common case: no second look at pixels
            return by_view
        shown = torch.cat([self.encoder.has_data(view) for view in views])
        there = shown.unflatten(0, (self.num_views, -1)).all(dim=0)
        if bool(there.all()):
            return by_view
        if int(there.sum()) < 2:
            raise InputError(
                f'{int(there.sum())} of {len(there)} samples of a batch have something valid in '
                f'all their views; take chips with more data, or larger batches.'
            )
        return by_view[:, there]

    def log_projections(self, projections: Tensor) -> None:
        """Log whether the projections (V, B, P) of the batch are alive.

        The projector's batch norms keep the embeddings spread while what the loss compares dies, so
        that collapse shows here first: their standard deviation, not normalised, and their rank.
        """
        if self.logs_this_step:
            first = projections[0].detach().float()
            self.log('projection_std', first.std(dim=0, correction=0).mean())
            if len(first) >= 2 * FEWEST_RANKED:  # the guard asks more of this rank
                self.log('projection_rank', effective_rank(first))
