"""The bundled weights as torchvision's enums, which torchgeo's `weights=` takes.

GFMJEPA_Nano_Weights.RGB.get_state_dict() gives tensors for ``timm.create_model('gfm_jepa_nano')``.
"""

from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models import Weights, WeightsEnum

from ..bundled import bundled_folder
from ..modalities import resolve
from .encoder import Encoder
from .hub import from_pretrained
from .model_card import card_metadata
from .presets import PRESETS
from .timm_models import timm_state
from .weight_files import CONFIG, read_json


class BundledWeights(WeightsEnum):  # type: ignore[misc]  # torchvision carries no types
    """Weights of one bundled encoder: a member for each of its modalities, in capitals."""

    def get_state_dict(
        self, progress: bool = True, check_hash: bool = False, weights_only: bool = True
    ) -> dict[str, Tensor]:
        """Read the tensors out of the package, in timm's layout.

        Args:
            progress: Means nothing here: nothing is fetched.
            check_hash: Likewise; shapes and names are always checked.
            weights_only: Likewise; nothing is ever unpickled.
        """
        encoder = from_pretrained(self.meta['name'])
        assert isinstance(encoder, Encoder)
        return timm_state(encoder, self.meta['modality'])


def weights_of(size: str) -> type[BundledWeights]:
    """The enum of a size; without members if no such weights are bundled."""
    return _enum(size, bundled_folder(f'gfm-jepa-{size}'))


@cache
def _enum(size: str, folder: Path | None) -> type[BundledWeights]:
    members = {}
    found = read_json(folder / CONFIG)['modalities'] if folder else []
    folder = folder or Path()
    for fields in found:
        modality = resolve(fields)
        meta: dict[str, Any] = {
            'name': f'gfm-jepa-{size}', 'model': f'gfm_jepa_{size}', 'modality': modality.name,
            'in_chans': len(modality.bands), 'bands': list(modality.bands), 'gsd': modality.gsd,
            'unit': modality.unit, 'license': card_metadata(folder).get('license', 'not stated'),
        }  # fmt: skip
        # Raw units go in: there is nothing to transform.
        url = f'{folder.as_uri()}#{modality.name}'
        members[modality.name.upper()] = Weights(url=url, transforms=nn.Identity, meta=meta)
    name = f'GFMJEPA_{size.capitalize()}_Weights'
    enum: type[BundledWeights] = BundledWeights(name, members, module=__name__)
    return enum


def __getattr__(name: str) -> type[BundledWeights]:
    """Make an enum when it is first asked for: it depends on what is bundled."""
    for size in PRESETS:
        if name == f'GFMJEPA_{size.capitalize()}_Weights':
            return weights_of(size)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
