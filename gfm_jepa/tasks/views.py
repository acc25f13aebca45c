"""What methods that compare views of a place share."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..losses import count_over_ranks
from ..metrics import effective_rank
from ..photo_views import PhotoViews
from ..views import Views
from .base import FEWEST_RANKED, EncoderConfig, ModalitySpecs, OptimizerConfig, PretrainTask


class ViewTask(PretrainTask):
    """Base of the tasks that embed several views of each sample, and `compare` them.

    Args:
        modalities: What to embed: known names, YAML paths, or mappings of `Modality` fields.
        encoder: Which encoder to train.
        optimizer: How to train it.
        views: How views are made: `Views` of images from above, `PhotoViews` of photographs.

    Raises:
        InputError: If there is one view.
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
        if self.num_views < 2:
            raise InputError(
                f'{type(self).__name__} compares the views of a sample, but views asks for one; '
                f'raise views.num_global or views.num_local.'
            )
        super().__init__(modalities, encoder, optimizer)

    @property
    def num_views(self) -> int:
        """Views V of a sample."""
        return self.views.num_global + self.views.num_local

    def compute_loss(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        """Embed the views, and compare them; None for too few samples, outside training."""
        embeddings = self.embed_views(batch, batch_idx)
        return None if embeddings is None else self.compare(embeddings, batch_idx)

    def compare(self, embeddings: Tensor, batch_idx: int) -> Tensor:
        """The method's loss of the embedded views (V, B, D)."""
        raise NotImplementedError

    def embed_views(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        """Make the views of a batch and embed them: (V, B, D), the global ones first.

        A sample of which a view shows nothing valid is left out of the loss: its NaN would spread
        to all others in the projector's batch norms.

        Returns:
            The embeddings; None outside training if fewer than two samples are left, as they may
            be of the last batch of a part.

        Raises:
            InputError: If they are in training.
        """
        views = self.views.make(
            batch, self.encoder.modalities, self.encoder.patch_sizes, self.generator(batch_idx)
        )
        embeddings = torch.cat([self.encoder(view) for view in views])
        by_view: Tensor = embeddings.unflatten(0, (self.num_views, -1))
        self.log_health(by_view[0])
        count = left = by_view.shape[1]
        if not bool(embeddings.detach().isfinite().all()):  # the rare case: look at the pixels
            has_data = torch.cat([self.encoder.has_data(view) for view in views])
            there = has_data.unflatten(0, (self.num_views, -1)).all(dim=0)
            by_view, left = by_view[:, there], int(there.sum())
        # Of all ranks: none may go on where another does not, and few of one have others beside.
        device = embeddings.device
        count, left = (count_over_ranks(number, device) for number in (count, left))
        if left >= 2:
            return by_view
        if not self.training:
            return None
        if count < 2:
            raise InputError(
                f'A batch has one sample, and {type(self).__name__} compares samples; raise '
                f'data.batch_size, or leave out rasters whose kind gives one chip only.'
            )
        raise InputError(
            f'{left} of {count} samples of a batch have something valid in all their views; '
            f'take chips with more data, or larger batches.'
        )

    def log_projections(self, projections: Tensor) -> None:
        """Log whether the projections (V, B, P) of the batch are alive.

        The projector's batch norms keep the embeddings spread while what the loss compares dies, so
        that collapse shows here first: their standard deviation, not normalised, and their rank.
        """
        if self.logs_this_step:
            first = projections[0].detach().float()
            if not len(first):  # other ranks have samples
                return
            self.log('projection_std', first.std(dim=0, correction=0).mean())
            if len(first) >= 2 * FEWEST_RANKED:  # the guard asks more of this rank
                self.log('projection_rank', effective_rank(first))
