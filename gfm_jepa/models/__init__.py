"""Patch embedders, the shared trunk, the predictor, and how weights come and go."""

from .encoder import Encoder, TokenLayout, Tokens
from .patch_embed import ConvStem, LinearStem, PatchEmbed, sincos_positions
from .predictor import Predictor
from .presets import PRESETS, build_encoder

__all__ = [
    'PRESETS',
    'ConvStem',
    'Encoder',
    'LinearStem',
    'PatchEmbed',
    'Predictor',
    'TokenLayout',
    'Tokens',
    'build_encoder',
    'sincos_positions',
]
