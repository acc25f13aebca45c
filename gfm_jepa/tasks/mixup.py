"""Mixtures of two samples, and of what they should be taken for."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def mix(
    batch: Mapping[str, Any], targets: Tensor, alpha: float, generator: torch.Generator
) -> tuple[dict[str, Any], Tensor]:
    """Mix each sample with another of the batch, and its targets in the same share.

    Args:
        batch: Rasters (B, C, H, W) by modality; anything else stays as it is.
        targets: (B, K).
        alpha: Both parameters of the Beta distribution of the share.
        generator: Source of randomness.

    Source: Zhang et al., "mixup: beyond empirical risk minimization" (2018), equation 2.
    """
    random = np.random.default_rng(generator.initial_seed())
    share = float(random.beta(alpha, alpha))
    order = torch.from_numpy(random.permutation(len(targets)))
    mixed = {
        k: share * v + (1 - share) * v[order] if isinstance(v, Tensor) else v
        for k, v in batch.items()
    }
    return mixed, share * targets + (1 - share) * targets[order]
