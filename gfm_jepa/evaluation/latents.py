"""What goes on inside: attention of a block, and pictures of rasters and features to draw it on."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..modalities import Modality
from ..models import Encoder, Tokens
from ..models.base import Batch
from .explore_looks import rgb

Picture = NDArray[np.float32]


def attention(encoder: Encoder, batch: Batch, block: int = -1) -> tuple[Tensor, Tokens]:
    """Attention of one block of the trunk.

    Args:
        encoder: In evaluation mode.
        batch: Rasters (B, C, H, W) by modality.
        block: Which; the last by default.

    Returns:
        (B, heads, K, K), how much of each column's token each row's takes, rows add up to 1; and
        the tokens, whose `ids` say which they are.

    Raises:
        InputError: If there is no such block.

    Source: Caron et al., "Emerging properties in self-supervised vision transformers" (2021),
        figure 1, for looking at it.
    """
    if not -len(encoder.blocks) <= block < len(encoder.blocks):
        raise InputError(f'The trunk has {len(encoder.blocks)} blocks, and none is {block}.')
    module: Any = encoder.blocks[block].attn
    seen: dict[str, Any] = {}

    def look(_: Any, args: tuple[Any, ...]) -> None:
        seen['x'], seen['mask'] = args

    handle = module.register_forward_pre_hook(look)
    try:
        with torch.inference_mode():
            tokens = encoder.forward_tokens(batch)
            x = seen['x']
            qkv = module.qkv(x).unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
            query, key = qkv[0], qkv[1]
            scores = query @ key.mT / query.shape[-1] ** 0.5
            if seen['mask'] is not None:
                scores = scores.masked_fill(~seen['mask'], -torch.inf)
            return scores.softmax(dim=-1), tokens
    finally:
        handle.remove()


def on_grid(values: Tensor, tokens: Tokens, sample: int, modality: str) -> Picture:
    """Values (K,) of the tokens of one sample on the token grid of a modality: (h, w), NaN if none.

    Raises:
        InputError: If the batch lacks that modality.
    """
    layout = tokens.layout
    own = layout.span(modality)
    full = torch.full((len(layout.positions),), torch.nan)
    there = tokens.valid[sample].cpu()
    full[tokens.ids[sample].cpu()[there]] = values.cpu().float()[there]
    return full[own].view(layout.grid(modality)).numpy()


def picture(raster: Tensor, modality: Modality) -> Picture:
    """A raster (C, H, W) as people see it: (H, W, 3), 0 to 1, from the 2nd to the 98th percentile.

    Red, green and blue where the modality has them, else its first band in grey; where there is no
    data, white.
    """
    chosen = rgb(modality) or (0, 0, 0)
    image = raster[list(chosen)].float().cpu().numpy().transpose(1, 2, 0)
    return stretch(image)


def stretch(image: NDArray[Any]) -> Picture:
    """Channels (H, W, 3), each from its 2nd to its 98th percentile, to 0 to 1; NaN to white."""
    there = np.isfinite(image).all(axis=2)
    if not there.any():
        return np.ones(image.shape, np.float32)
    low, high = np.percentile(image[there], [2, 98], axis=0)
    scaled = np.clip((image - low) / np.maximum(high - low, 1e-9), 0, 1)
    shown: Picture = np.where(there[..., None], scaled, 1).astype(np.float32)
    return shown


def pca_colours(feature_map: Tensor) -> Picture:
    """The three directions in which features (D, h, w) vary most, as red, green, blue: (h, w, 3).

    Each has the sign with which its largest entry is positive; NaN where nothing is there.
    """
    features = feature_map.float().cpu().flatten(1).mT
    there = features.isfinite().all(dim=1)
    values = features[there].double()
    if len(values) < 4:
        raise InputError(f'{len(values)} patches hold data, too few for three components.')
    values = values - values.mean(dim=0)
    directions = torch.linalg.eigh(values.mT @ values)[1].flip(1)[:, :3]
    at = directions.abs().argmax(dim=0, keepdim=True)
    directions = directions * directions.gather(0, at).sign()
    colours = torch.full((len(features), 3), torch.nan, dtype=torch.float64)
    colours[there] = values @ directions
    image: Picture = colours.view(*feature_map.shape[1:], 3).float().numpy()
    return image
