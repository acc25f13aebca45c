"""Patch embedders, the shared trunk, the predictor, and how weights come and go."""

from .base import BaseEncoder
from .encoder import Encoder, TokenLayout, Tokens
from .patch_embed import ConvStem, LinearStem, PatchEmbed, sincos_positions
from .predictor import Predictor
from .presets import PRESETS, build_encoder
from .timm_encoder import TimmEncoder

__all__ = [
    'PRESETS',
    'BaseEncoder',
    'ConvStem',
    'Encoder',
    'LinearStem',
    'PatchEmbed',
    'Predictor',
    'TimmEncoder',
    'TokenLayout',
    'Tokens',
    'build_encoder',
    'sincos_positions',
]
