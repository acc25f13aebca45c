"""Where a supervised task starts: weights, for the modalities of its data."""

from lightning_utilities.core.rank_zero import rank_zero_info

from ..models import BaseEncoder, Encoder
from ..models.band_matching import format_matches, match_bands
from ..models.hub import from_pretrained
from .base import ModalitySpecs


def encoder_from(weights: str, modalities: ModalitySpecs) -> BaseEncoder:
    """Load an encoder and fit it to modalities; trained bands keep their filters and statistics.

    Args:
        weights: As `from_pretrained` takes them.
        modalities: What the data holds; a timm model keeps its own.

    Raises:
        InputError: If there are no such weights, or a new band has no statistics.
    """
    encoder = from_pretrained(weights)
    if isinstance(encoder, Encoder):
        encoder, matches = match_bands(encoder, None, modalities)
        rank_zero_info(format_matches(matches))
    return encoder
