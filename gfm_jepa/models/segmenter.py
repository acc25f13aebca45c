"""A trained head for pixels and its encoder, as one model that maps scenes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import BaseEncoder, Batch, MapModel
from .encoder import Encoder
from .heads import load_head
from .pixel_heads import make_pixel_head


class Segmenter(MapModel):
    """Answers as the features of cells that are single pixels, so that `embed` can map them.

    Args:
        encoder: Embeds.
        head: Of `gfm_jepa.models.pixel_heads`.
        facts: What the head is for: ``kind``, ``modality`` (whose grid the answer is on),
            ``outputs``, ``target``, ``classes`` (their names, if they have any); and ``mean`` and
            ``std`` of a quantity, None for classes.
    """

    def __init__(self, encoder: BaseEncoder, head: nn.Module, facts: dict[str, Any]) -> None:
        super().__init__(encoder)
        self.head, self.facts = head, facts
        self.embed_dim = facts['outputs']
        self.answers_on: str = facts['modality']

    def forward_feature_map(self, batch: Batch, modality: str | None = None) -> Tensor:
        """Probabilities, or values in the target's unit.

        Returns:
            (B, K, H, W) on the grid of the head's modality, NaN where that has no data.
        """
        answers: Tensor = self.head(self.encoder, batch)
        if self.facts['mean'] is None:
            shown = answers.softmax(dim=1)
        else:
            shown = answers * self.facts['std'] + self.facts['mean']
        there = batch[self.facts['modality']].isfinite().any(dim=1, keepdim=True)
        found: Tensor = shown.where(there, torch.nan)
        return found


def load_segmenter(path: str | Path) -> Segmenter:
    """Load a checkpoint of `SemanticSegmentation` or `PixelwiseRegression`.

    Returns:
        In evaluation mode.

    Raises:
        InputError: If there is no such file, or it holds no head for pixels.
    """

    def make(encoder: BaseEncoder, facts: dict[str, Any]) -> nn.Module:
        assert isinstance(encoder, Encoder)  # the tasks for pixels take no other
        if lacking := [k for k in ('target', 'mean', 'std') if k not in facts]:
            raise KeyError(f'no {lacking[0]}')
        return make_pixel_head(
            facts['kind'], encoder, facts['modality'], facts['outputs'], facts['pixels'],
            facts['width'],
        )  # fmt: skip

    encoder, head, facts = load_head(
        path, 'pixel_head', make, 'holds no head for pixels; name a checkpoint of gfm_jepa.tasks.'
        'SemanticSegmentation or PixelwiseRegression.',
    )  # fmt: skip
    return Segmenter(encoder, head, facts).eval()
