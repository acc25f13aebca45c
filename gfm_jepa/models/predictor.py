"""The predictor: from context tokens to the latents of target blocks."""

import math

import torch
from torch import Tensor, nn

from ..errors import InputError
from .block import Block
from .encoder import TokenLayout, _init_linear, take
from .patch_embed import order_encoding, sincos_positions


class Predictor(nn.Module):
    """A narrow ViT that predicts the latents of target tokens of any modality and place.

    All target blocks of a sample travel in one sequence with its context. An attention mask lets
    the context see itself, and each block see the context and itself, so that blocks are predicted
    independently of each other as if each had a sequence of its own, at half the cost.

    Args:
        embed_dim: Width D of the encoder.
        num_modalities: Modalities of the encoder.
        predictor_dim: Width P of the predictor, a multiple of 4 and of num_heads.
        depth: Blocks.
        num_heads: Attention heads.

    Raises:
        InputError: If the width is no multiple of both.

    Source: Assran et al. (2023), section 3.
    Differs from the source: context tokens do not attend to mask tokens.
    """

    def __init__(
        self,
        embed_dim: int,
        num_modalities: int,
        predictor_dim: int = 96,
        depth: int = 3,
        num_heads: int = 3,
    ) -> None:
        super().__init__()
        if predictor_dim <= 0 or predictor_dim % math.lcm(4, num_heads):
            raise InputError(
                f'predictor_dim is {predictor_dim}; expected a multiple of 4 and of its '
                f'{num_heads} heads, such as 96, 192 or 384.'
            )
        self.predictor_dim = predictor_dim
        self.embed = nn.Linear(embed_dim, predictor_dim)
        self.mask_token = nn.Parameter(torch.zeros(predictor_dim))
        self.modality_vectors = nn.Parameter(torch.randn(num_modalities, predictor_dim) * 0.02)
        self.blocks = nn.ModuleList(Block(predictor_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(predictor_dim, eps=1e-6)
        self.head = nn.Linear(predictor_dim, embed_dim)
        self.apply(_init_linear)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self, context: Tensor, context_ids: Tensor, target_ids: Tensor, layout: TokenLayout
    ) -> Tensor:
        """Predict the target tokens.

        Args:
            context: (B, K, D) encoded context tokens.
            context_ids: (B, K) their indices in the layout, -1 where there is none.
            target_ids: (B, M, T) indices of the tokens to predict, -1 where there is none.
            layout: Of the batch's tokens.

        Returns:
            (B, M, T, D); no meaning where target_ids is -1.
        """
        batch, blocks, length = target_ids.shape
        place = sincos_positions(layout.positions, self.predictor_dim)
        place = place + order_encoding(layout.date_ids, self.predictor_dim)
        place = place.to(self.mask_token.dtype)  # of weights in 16 bits
        place = (place + self.modality_vectors[layout.modality_ids]).expand(batch, -1, -1)
        queries = self.mask_token + take(place, target_ids.flatten(1).clamp_min(0))
        known = self.embed(context) + take(place, context_ids.clamp_min(0))
        mask = block_mask(context_ids >= 0, target_ids >= 0)
        sequence = torch.cat([known, queries], dim=1)
        for block in self.blocks:
            sequence = block(sequence, attn_mask=mask)
        predicted: Tensor = self.head(self.norm(sequence[:, context.shape[1] :]))
        return predicted.view(batch, blocks, length, -1)


def block_mask(context_valid: Tensor, target_valid: Tensor) -> Tensor:
    """Attention mask of one sequence that holds the context and several target blocks.

    Args:
        context_valid: (B, K) boolean.
        target_valid: (B, M, T) boolean.

    Returns:
        (B or 1, 1, K + M T, K + M T) boolean, True where the row's token may attend to the
        column's: context to context, a block to context and itself.
    """
    (_, context_length), (_, blocks, length) = context_valid.shape, target_valid.shape
    device = context_valid.device
    owner = torch.cat(
        [
            torch.full((context_length,), -1, device=device),
            torch.arange(blocks, device=device).repeat_interleave(length),
        ]
    )
    allowed = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    valid = torch.cat([context_valid, target_valid.flatten(1)], dim=1)
    if bool(valid.all()):
        return allowed[None, None]
    # A token may always attend to itself, so that no row is empty and every output is finite.
    itself = torch.eye(len(owner), dtype=torch.bool, device=device)
    return ((allowed[None] & valid[:, None, :]) | itself)[:, None]
