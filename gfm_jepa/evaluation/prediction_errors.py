"""How badly an I-JEPA predicts each place from those around it: its surprise, as a map."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..masks import keep_ids
from ..models import Encoder, Predictor
from ..models.base import Batch, MapModel
from ..models.building import build
from ..models.hub import load_checkpoint
from ..models.weight_files import Source, part_of

SIDE = 3  # patches of a hidden block
FEATURES = ('cosine_error', 'l1_error')
# The blocks are hidden in so many turns, so that a hidden block has seen ones beside it.
TURNS = 4


class Latents(NamedTuple):
    """Predicted and actual latents of the tokens of one modality.

    Attributes:
        predicted: (B, D, h, w), each from the tokens outside of its block.
        actual: (B, D, h, w), layer-normed, of the target encoder that sees all.
        there: (B, h, w), True where a token is there and something was seen to predict it from.
    """

    predicted: Tensor
    actual: Tensor
    there: Tensor


class PredictionErrors(MapModel):
    """A trained I-JEPA as an encoder, whose features are how wrong its predictor is.

    Args:
        encoder: That embeds the context.
        target_encoder: Whose latents are predicted.
        predictor: Trained with both.
    """

    encoder: Encoder

    def __init__(self, encoder: Encoder, target_encoder: Encoder, predictor: Predictor) -> None:
        super().__init__(encoder)
        self.target_encoder, self.predictor = target_encoder, predictor
        self.config: dict[str, Any] = {'prediction_errors_of': encoder.config}
        self.embed_dim = 2
        self.eval()

    @staticmethod
    def is_in(path: Path) -> bool:
        """Whether a checkpoint holds a predictor."""
        return 'predictor.mask_token' in load_checkpoint(path)['state_dict']

    @classmethod
    def from_checkpoint(cls, path: Path) -> 'PredictionErrors':
        """Take the three parts out of a checkpoint of `gfm-jepa fit`.

        Raises:
            InputError: If it is none, or holds no predictor.
        """
        if not path.is_file():
            raise InputError(
                f'{path} is no checkpoint, which the predictor comes from; name the .ckpt of an '
                f'I-JEPA run.'
            )
        checkpoint = load_checkpoint(path)
        state = checkpoint['state_dict']
        if 'predictor.mask_token' not in state:
            raise InputError(
                f'{path} holds no predictor, which I-JEPA alone has; take the distance to '
                f'embeddings, without --predictor.'
            )

        encoders = [
            build(Source(checkpoint['encoder_config'], part_of(state, prefix), str(path)))
            for prefix in ('encoder.', 'target_encoder.')
        ]
        weights = part_of(state, 'predictor.')
        depth = 1 + max(int(k.split('.')[1]) for k in weights if k.startswith('blocks.'))
        width, embed_dim = weights['embed.weight'].shape
        predictor = Predictor(embed_dim, len(weights['modality_vectors']), width, depth)
        predictor.load_state_dict(weights)
        context, target = encoders
        if not isinstance(context, Encoder) or not isinstance(target, Encoder):
            raise InputError(f'{path} holds a timm model, which has no predictor.')
        return cls(context, target, predictor)

    def forward_feature_map(self, batch: Batch, modality: str | None = None) -> Tensor:
        """Errors on the token grid of one modality.

        Returns:
            (B, 2, h, w): 1 - cosine of prediction and target, 0 to 2, and their smooth L1; NaN
            where no token is there.
        """
        found = self.latents(batch, modality)
        cosine = 1 - F.cosine_similarity(found.predicted, found.actual, dim=1)
        gaps = F.smooth_l1_loss(found.predicted, found.actual, reduction='none').mean(dim=1)
        errors = torch.stack([cosine, gaps], dim=1)
        return errors.where(found.there[:, None], torch.nan)

    def latents(self, batch: Batch, modality: str | None = None) -> Latents:
        """Predict every token of a modality from what lies outside of its block.

        A block hides its ground in all modalities, as in training.
        """
        layout = self.encoder.layout(batch)
        valid = self.encoder.valid_patches(batch)
        name = modality or layout.names[0]
        own, grid = layout.span(name), layout.grid(name)
        tokens = self.target_encoder.forward_tokens(batch)
        actual = F.layer_norm(tokens.dense(), (self.encoder.embed_dim,)).nan_to_num(0.0)
        predicted = torch.zeros_like(actual)
        there = torch.zeros_like(valid)
        # Blocks on the ground, of a side of SIDE of the smallest patches.
        step = layout.extent[0] / layout.finest[0] * SIDE
        row, col = (layout.positions / step).floor().long().unbind(dim=1)
        turn = row % 2 * 2 + col % 2
        for number in range(TURNS):
            hidden = (turn == number) & valid
            seen = valid & (turn != number)
            if not bool(hidden.any()) or not bool(seen.any()):
                continue
            context_ids, target_ids = keep_ids(seen), keep_ids(hidden)
            context = self.encoder.forward_tokens(batch, context_ids)
            guess = self.predictor(context.values, context.ids, target_ids[:, None], layout)[:, 0]
            known = (target_ids >= 0) & seen.any(dim=1, keepdim=True)
            for sample in range(len(valid)):
                ids = target_ids[sample][known[sample]]
                predicted[sample, ids] = guess[sample][known[sample]]
                there[sample, ids] = True
        return Latents(
            predicted[:, own].mT.unflatten(2, grid), actual[:, own].mT.unflatten(2, grid),
            there[:, own].unflatten(1, grid),
        )  # fmt: skip
