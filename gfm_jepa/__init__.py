"""JEPA pretraining on any rasters, and what torchgeo can do with the encoder afterwards.

import gfm_jepa

encoder = gfm_jepa.from_pretrained('runs/lejepa/checkpoints/last.ckpt')
embedding = encoder({'rgb': chips})  # (B, C, H, W) raw units to (B, D)

Importing it has one effect: timm knows the names of our models (`timm_names`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .timm_names import register_when_timm_is_there

__version__ = '0.1.0'

if TYPE_CHECKING:
    from .errors import InputError
    from .modalities import MODALITIES, Modality
    from .models import Encoder, build_encoder
    from .models.golden import verify_golden
    from .models.hub import from_pretrained, save_pretrained
    from .models.torchvision_weights import GFMJEPA_Nano_Weights

__all__ = [
    'MODALITIES',
    'Encoder',
    'GFMJEPA_Nano_Weights',
    'InputError',
    'Modality',
    'build_encoder',
    'from_pretrained',
    'save_pretrained',
    'verify_golden',
]

_HOMES = {
    'InputError': 'errors',
    'MODALITIES': 'modalities',
    'Modality': 'modalities',
    'Encoder': 'models',
    'build_encoder': 'models',
    'from_pretrained': 'models.hub',
    'save_pretrained': 'models.hub',
    'verify_golden': 'models.golden',
    'GFMJEPA_Nano_Weights': 'models.torchvision_weights',
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and timm take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_HOMES[name]}', __name__), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, '__version__']


register_when_timm_is_there()
