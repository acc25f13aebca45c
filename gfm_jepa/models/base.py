"""What tasks, probes and the hub use of any encoder."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modalities import LABELS, MODALITIES, Modality

Batch = Mapping[str, Any]
UNTRAINED = 'untrained'  # what `BaseEncoder.untrained` is called in configs and checkpoints
# What rasters may be stored in, and torch has few operations for.
_BARE_TYPES = (torch.uint16, torch.uint32, torch.uint64, torch.bool)


class BaseEncoder(nn.Module, ABC):
    """An encoder: raw physical units in, NaN = not there, one embedding a sample out.

    Attributes:
        config: Plain values, from which `from_config` builds the same encoder with new weights.
        embed_dim: Width D of the tokens.
        revision: Commit on the Hub of which `from_pretrained` took the weights, else None.
        untrained: Modalities of which its training saw nothing, as far as is known.
    """

    config: dict[str, Any]
    embed_dim: int
    revision: str | None = None
    untrained: frozenset[str] = frozenset()
    needs_half = True  # whether nothing is seen of less than half of the bands of a modality

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build an encoder, with new weights, from the `config` of another."""
        return cls(**config)

    @property
    def num_features(self) -> int:
        """Width of the embedding."""
        return self.embed_dim

    @property
    @abstractmethod
    def modalities(self) -> dict[str, Modality]:
        """The modalities that it embeds, by name."""

    @property
    @abstractmethod
    def patch_sizes(self) -> dict[str, int]:
        """What the sides of a raster must be a multiple of, pixels, by modality."""

    def example_size(self, name: str) -> int:
        """Side of a small raster of a modality that it takes, pixels."""
        step = self.patch_sizes[name]
        return -(-max(4 * step, 32) // step) * step

    @abstractmethod
    def check(self, batch: Batch) -> None:
        """Refuse a batch that it cannot embed, without computing anything.

        Raises:
            InputError: If no modality fits, band counts or sizes are wrong.
        """

    @abstractmethod
    def has_data(self, batch: Batch) -> Tensor:
        """Which samples have something valid to embed, (B,) boolean, without computing it."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Embed a batch: (B, D); NaN for a sample without valid pixels."""

    @abstractmethod
    def forward_depths(self, batch: Batch, num_depths: int = 3) -> Tensor:
        """Embed a batch with several depths: (B, D'), richer features for probes."""

    @abstractmethod
    def forward_feature_map(self, batch: Batch, modality: str | None = None) -> Tensor:
        """Features on a grid over the chip: (B, D', h, w), NaN where nothing is there."""

    def rasters(self, batch: Batch) -> dict[str, Tensor]:
        """Pick this encoder's modalities out of a batch.

        Raises:
            InputError: If the batch holds none of them, or what is no raster.
        """
        names = list(self.modalities)
        if not isinstance(batch, Mapping):
            raise InputError(
                f'A batch came as {type(batch).__name__}; give rasters by modality: '
                f'{{"{names[0]}": tensor (B, C, H, W)}}.'
            )
        rasters = {name: batch[name] for name in names if name in batch}
        if not rasters and len(names) == 1 and 'image' in batch:
            rasters = {names[0]: batch['image']}
        if not rasters:
            raise InputError(
                f'The batch holds {", ".join(map(str, batch)) or "nothing"}, but this encoder '
                f'embeds {", ".join(names)}; name at least one of them.'
            )
        stated = batch.get('gsd')
        known = {*names, *batch, *MODALITIES, *LABELS}
        if isinstance(stated, Mapping) and (odd := [n for n in stated if n not in known]):
            raise InputError(
                f'gsd of the batch names {odd[0]!r}, which it does not hold; name what it holds, '
                f'such as {next(iter(rasters))}.'
            )
        for name, raster in rasters.items():
            if not isinstance(raster, Tensor) or raster.ndim not in (4, 5):
                came = tuple(raster.shape) if hasattr(raster, 'shape') else ''
                raise InputError(
                    f'{name} came as {type(raster).__name__} {came}; give a tensor (B, C, H, W), '
                    f'or (B, T, C, H, W) of several dates.'
                )
            if raster.dtype in _BARE_TYPES:
                rasters[name] = raster.float()
        if len({len(raster) for raster in rasters.values()}) > 1:
            sizes = ', '.join(f'{len(raster)} of {name}' for name, raster in rasters.items())
            raise InputError(f'The batch holds {sizes} samples; give each sample all, NaN where '
                             f'nothing is.')  # fmt: skip
        return rasters


class MapModel(BaseEncoder):
    """Something other than features at each cell of a grid, as an encoder whose features it is.

    So it goes through windows, blending and files as any encoder does. A subclass sets `embed_dim`
    and writes `forward_feature_map`; what goes in is as its encoder says.

    Args:
        encoder: That it stands on.
    """

    def __init__(self, encoder: BaseEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def modalities(self) -> dict[str, Modality]:
        """Those of the encoder."""
        return self.encoder.modalities

    @property
    def patch_sizes(self) -> dict[str, int]:
        """Those of the encoder."""
        return self.encoder.patch_sizes

    def check(self, batch: Batch) -> None:
        """Refuse what the encoder refuses."""
        self.encoder.check(batch)

    def has_data(self, batch: Batch) -> Tensor:
        """As the encoder says, (B,) boolean."""
        return self.encoder.has_data(batch)

    def forward(self, batch: Batch) -> Tensor:
        """Mean over the cells of a chip that are there: (B, D)."""
        mean: Tensor = self.forward_feature_map(batch).flatten(2).nanmean(dim=2)
        return mean

    def forward_depths(self, batch: Batch, num_depths: int = 3) -> Tensor:
        """The same as `forward`: there are no depths."""
        return self.forward(batch)


def is_dated(value: Any) -> bool:
    """Whether a batch's tensor is (B, T, C, H, W)."""
    return isinstance(value, Tensor) and value.ndim == 5


@contextmanager
def evaluating(embed: object) -> Iterator[None]:
    """Put a module, if it is one, into evaluation mode for a while."""
    modes = {m: m.training for m in embed.modules()} if isinstance(embed, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
