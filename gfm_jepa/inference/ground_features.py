"""What an encoder says of a window: features of each cell of its ground, or one embedding."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..models import BaseEncoder, Encoder
from ..models.heads import encode

Batch = dict[str, Any]


def ground_features(encoder: BaseEncoder, batch: Batch, modality: str) -> Tensor:
    """Embed each cell of the ground: the mean of the tokens of all modalities that lie on it.

    The mean over all cells of a chip whose modalities have the same token grid is thus its
    embedding. With one modality this is `forward_feature_map`.

    Args:
        encoder: In evaluation mode.
        batch: Rasters (B, C, H, W) by modality, raw units, NaN = not there.
        modality: Whose token grid the cells are; it must be in the batch, and may be all NaN.

    Returns:
        (B, D, h, w); NaN where no modality has a token.

    Raises:
        InputError: If the encoder cannot embed the batch.
    """
    if not isinstance(encoder, Encoder):
        return encoder.forward_feature_map(batch, modality)
    tokens = encoder.forward_tokens(batch)
    layout, dense = tokens.layout, tokens.dense()
    shape = layout.grids[layout.names.index(modality)]
    total = dense.new_zeros(len(dense), encoder.embed_dim, *shape)
    count = dense.new_zeros(len(dense), 1, *shape)
    start = 0
    for height, width in layout.grids:
        own = dense[:, start : start + height * width].mT.unflatten(2, (height, width))
        start += height * width
        there = own[:, :1].isfinite().to(own)
        values, share = own.nan_to_num(0.0), there
        if (height, width) != shape:
            # Finer tokens are averaged, coarser ones lie on several cells.
            values, share = (F.adaptive_avg_pool2d(x, shape) for x in (values, share))
            values = values / share.clamp_min(1e-6)
            there = (share > 0).to(own)
        total += values * there
        count += there
    return (total / count).where(count > 0, torch.nan)


def cell_size(encoder: BaseEncoder, modality: str, window: int) -> int:
    """Side of a cell, pixels, of windows of one modality.

    Raises:
        InputError: If the encoder cannot embed such windows.
    """
    bands = len(encoder.modalities[modality].bands)
    device = next(encoder.parameters()).device
    mean = torch.tensor(encoder.modalities[modality].mean, device=device)
    batch = {modality: mean.view(1, bands, 1, 1).expand(-1, -1, window, window)}
    encoder.check(batch)
    with torch.inference_mode():
        return window // ground_features(encoder, batch, modality).shape[-1]


def embed_windows(
    encoder: BaseEncoder,
    windows: Batch,
    batch_size: int,
    modality: str | None,
    features: str = 'embedding',
) -> NDArray[np.float32]:
    """Embed windows in batches of one size, in their order.

    Args:
        encoder: In evaluation mode, on any device.
        windows: Rasters (n, C, H, W) by modality, and ``gsd``, metres per pixel by modality.
        batch_size: Windows of a batch.
        modality: Whose token grid the cells are; None for one embedding a window.
        features: Of a window: ``embedding``, or ``depths``, several depths pooled.

    Returns:
        (n, D, h, w), or (n, D); NaN where nothing is there.
    """
    device = next(encoder.parameters()).device
    names = list(windows['gsd'])
    found = []
    with torch.inference_mode():  # holds for this thread alone
        for start in range(0, len(windows[names[0]]), batch_size):
            batch: Batch = {n: windows[n][start : start + batch_size].to(device) for n in names}
            batch['gsd'] = windows['gsd']
            embedded = encode(encoder, batch, features) if modality is None else (
                ground_features(encoder, batch, modality))  # fmt: skip
            found.append(embedded.float().cpu().numpy())
    return np.concatenate(found)
