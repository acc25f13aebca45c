"""Sizes by name: the trunk's width, depth and heads."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..modalities import Modality
from .encoder import Encoder

PRESETS: Mapping[str, Mapping[str, int]] = {
    'nano': {'embed_dim': 128, 'depth': 4, 'num_heads': 4},
    'tiny': {'embed_dim': 192, 'depth': 6, 'num_heads': 3},
    'small': {'embed_dim': 384, 'depth': 12, 'num_heads': 6},
    'base': {'embed_dim': 768, 'depth': 12, 'num_heads': 12},
    'large': {'embed_dim': 1024, 'depth': 24, 'num_heads': 16},
}


def build_encoder(
    preset: str,
    modalities: Sequence[Modality | str | Mapping[str, Any]],
    patch_size: int | Mapping[str, int] = 8,
    stem: str | Mapping[str, str] = 'linear',
    drop_path_rate: float = 0.0,
) -> Encoder:
    """Build an encoder of a named size.

    Args:
        preset: ``nano``, ``tiny``, ``small``, ``base`` or ``large``.
        modalities: As for `Encoder`.
        patch_size: Side of a patch, pixels; one for all, or one per modality name.
        stem: ``linear``, ``conv`` or ``plain_conv``; one for all, or one per modality name.
        drop_path_rate: Stochastic depth of the last block.

    Raises:
        InputError: If the preset is unknown.
    """
    if preset not in PRESETS:
        raise InputError(f'Unknown preset {preset!r}: expected one of {", ".join(PRESETS)}.')
    return Encoder(
        modalities, patch_size=patch_size, stem=stem, drop_path_rate=drop_path_rate,
        **PRESETS[preset],
    )  # fmt: skip
