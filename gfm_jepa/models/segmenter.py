"""A trained head for pixels and its encoder, as one model that maps scenes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modalities import Modality
from .base import BaseEncoder, Batch
from .building import build
from .encoder import Encoder
from .hub import load_checkpoint
from .pixel_heads import make_pixel_head
from .weight_files import Source, part_of


class Segmenter(BaseEncoder):
    """Answers as the features of cells that are single pixels, so that `embed` can map them.

    Args:
        encoder: Embeds.
        head: Of `gfm_jepa.models.pixel_heads`.
        facts: What the head is for: ``kind``, ``modality`` (whose grid the answer is on),
            ``outputs``, ``target``, ``classes`` (their names, if they have any); and ``mean`` and
            ``std`` of a quantity, None for classes.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, facts: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.head, self.facts = encoder, head, facts
        self.embed_dim = facts['outputs']

    @property
    def modalities(self) -> dict[str, Modality]:
        """Those of the encoder."""
        return self.encoder.modalities

    @property
    def patch_sizes(self) -> dict[str, int]:
        """Those of the encoder."""
        return self.encoder.patch_sizes

    def check(self, batch: Batch) -> None:
        """Refuse what the encoder refuses."""
        self.encoder.check(batch)

    def has_data(self, batch: Batch) -> Tensor:
        """As the encoder says."""
        return self.encoder.has_data(batch)

    def forward(self, batch: Batch) -> Tensor:
        """Mean answers of a batch: (B, K)."""
        mean: Tensor = self.forward_feature_map(batch).nanmean(dim=(2, 3))
        return mean

    def forward_depths(self, batch: Batch, num_depths: int = 3) -> Tensor:
        """The same: answers have no depths."""
        return self.forward(batch)

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
    path = Path(path)
    if not path.is_file():
        raise InputError(f'There is no file {path}; name a checkpoint of a task for pixels.')
    checkpoint = load_checkpoint(path)
    if 'pixel_head' not in checkpoint:
        raise InputError(
            f'{path} holds no head for pixels; name a checkpoint of gfm_jepa.tasks.'
            f'SemanticSegmentation or PixelwiseRegression.'
        )
    facts, state = dict(checkpoint['pixel_head']), checkpoint['state_dict']
    encoder = build(Source(checkpoint['encoder_config'], part_of(state, 'encoder.'), str(path)))
    assert isinstance(encoder, Encoder)
    head = make_pixel_head(
        facts['kind'], encoder, facts['modality'], facts['outputs'], facts['pixels'], facts['width']
    )
    try:
        head.load_state_dict(part_of(state, 'head.'))
    except RuntimeError as error:
        raise InputError(f'The head of {path} does not fit its encoder; train it again.') from error
    return Segmenter(encoder, head, facts).eval()
