"""SSL4EO-S12: four dates of each place, in several modalities, read where they lie."""

import os
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..modalities import Modality
from .ssl4eo_files import Image, OpenChunkFile, OpenTar, RowDate, Shard
from .ssl4eo_places import DATES, UNDATED, Form, Windows, find_parts, folder_of

GSD = 10.0  # metres per pixel: all modalities come on Sentinel-2's 10 m grid
MAX_OPEN = 64  # files that a process keeps open

Offset = Literal['auto', 'present', 'removed']


@dataclass(frozen=True)
class Layer:
    """How one modality is read.

    Attributes:
        modality: What it is delivered as.
        folder: Its name in the archive.
        band_ids: Stored band that feeds each band of the modality; -1 if there is none.
        by_name: Whether bands were matched by name, and not by position.
        shift: What is subtracted from stored values.
        shape: Of an image as stored: bands, rows, columns.
    """

    modality: Modality
    folder: str
    band_ids: tuple[int, ...]
    by_name: bool
    shift: float
    shape: tuple[int, ...]

    @property
    def dates(self) -> int:
        """How many images of a place there are."""
        return 1 if self.folder in UNDATED else DATES

    def physical(self, image: Image) -> Tensor:
        """Turn stored values (stored bands, H, W) into the modality's unit, (C, H, W), and NaN."""
        values = image.astype(np.float32)
        nodata = self.modality.nodata
        if nodata is not None:  # no data in all bands, before the offset came or went
            missing = (values == nodata).all(0)
            if not self.shift:
                missing |= (values == nodata - self.modality.added_offset).all(0)
            values[:, missing] = np.nan
        values[~np.isfinite(values)] = np.nan
        values -= self.shift
        picked = values[list(self.band_ids)]
        picked[[i < 0 for i in self.band_ids]] = np.nan
        return torch.from_numpy(picked)


class SSL4EOS12(Dataset[dict[str, Any]]):
    """Chips of SSL4EO-S12 v1.1 in either published form, at one to four dates.

    Every place gives (size // chip_size) squared windows times the choices of `num_dates` out of
    four dates. All modalities of a sample show the same ground, and the same season under the same
    index. What a place lacks is NaN.

    Args:
        root: Folder that holds ``train/`` and ``val/``.
        split: ``train`` or ``val``.
        modalities: Which to read; their aliases say from which folder (``S2L2A``, ``DEM``).
        chip_size: Side of a chip, pixels of 10 m.
        num_dates: Dates of a sample, 1 to 4, in the order of the archive.
        offset: Whether stored Sentinel-2 values are 1000 higher, as since baseline 04.00:
            ``present`` or ``removed``; ``auto`` goes by the published form and looks at the data.

    Raises:
        InputError: If a folder, file, chunk or member is missing or broken, or the data contradict
            what the form says about the offset.

    Source:
        Blumenstiel et al., "SSL4EO-S12 v1.1" (2025), and DLR-MF-DAS/SSL4EO-S12-v1.1: the Zarr
        chunk files carry the offset, the tar shards do not.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        modalities: Sequence[Modality],
        chip_size: int = 128,
        num_dates: int = 2,
        offset: Offset = 'auto',
    ) -> None:
        if split not in ('train', 'val'):
            raise InputError(f'split is {split!r}; expected train or val.')
        if offset not in ('auto', 'present', 'removed'):
            raise InputError(f'offset is {offset!r}; expected auto, present or removed.')
        self.root, self.split, self.chip_size = Path(root), split, chip_size
        self.num_dates = num_dates
        self._handles: OrderedDict[Path, OpenChunkFile | OpenTar] = OrderedDict()
        self._owner = os.getpid()
        folders = [folder_of(m) for m in modalities]
        self.form: Form
        self.form, self.parts, self.listed = find_parts(self.root, split, folders)
        self.ends = np.cumsum([len(p.keys) for p in self.parts])
        self.present = offset == 'present' or (offset == 'auto' and self.form == 'chunks')
        self.layers = [self._layer(i, m) for i, m in enumerate(modalities)]
        sizes = {layer.folder: layer.shape[-2:] for layer in self.layers}
        if len(set(sizes.values())) > 1 or len(set(self.layers[0].shape[-2:])) > 1:
            raise InputError(
                f'{self.root / split} holds images of {sizes} pixels; expected the same square in '
                f'all modalities, download again what differs.'
            )
        self.windows = Windows(self.layers[0].shape[-1], chip_size, num_dates)
        self.evidence = [
            self._evidence(i, offset) for i, m in enumerate(modalities) if m.added_offset
        ]

    def __len__(self) -> int:
        """Places times windows times choices of dates."""
        return int(self.ends[-1]) * self.windows.per_place

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one sample; see `__getitems__`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Read the samples of a batch, each image that they share once.

        Returns:
            For each, (T, C, H, W) float32 by modality, (C, H, W) for what has no dates, and
            ``gsd``, metres per pixel by modality.

        Raises:
            InputError: If a file, member or chunk is missing or broken; the message names it.
        """
        samples: list[dict[str, Any]] = [{'gsd': {}} for _ in indices]
        for i, layer in enumerate(self.layers):
            wanted: dict[int, dict[RowDate, list[tuple[Tensor, int, int]]]] = defaultdict(dict)
            for sample, index in zip(samples, indices, strict=True):
                place, (top, left), dates = self.windows.find(index)
                at, row = self._row(i, place)
                chosen = dates if layer.dates > 1 else (0,)
                shape = (len(chosen), len(layer.band_ids), self.chip_size, self.chip_size)
                chips = torch.full(shape, torch.nan)
                sample[layer.modality.name] = chips if layer.dates > 1 else chips[0]
                sample['gsd'][layer.modality.name] = GSD
                for chip, date in zip(chips, chosen, strict=True):
                    if row >= 0:
                        wanted[at].setdefault((row, date), []).append((chip, top, left))
            for at, targets in wanted.items():
                for key, image in self._read(at, i, targets):
                    for chip, top, left in targets[key]:
                        window = image[:, top : top + self.chip_size, left : left + self.chip_size]
                        chip.copy_(layer.physical(window))
        return samples

    def files(self, index: int) -> list[Path]:
        """Files that a sample is read from."""
        at, _ = self._row(0, self.windows.find(index)[0])
        return [shard.path for shard in self.parts[at].shards]

    def groups(self) -> list[range]:
        """Indices of the samples that may share a batch.

        All may, but where a Zarr chunk holds several places, those of one file keep together, so
        that a batch decodes it once.
        """
        ends = [int(end) * self.windows.per_place for end in self.ends]
        if not any(self._handle(shard).places_together > 1 for shard in self.parts[0].shards):
            return [range(ends[-1])]
        return [range(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    def report(self) -> str:
        """What is read, from which form, and what became of Sentinel-2's offset."""
        files = f'{len(self.parts)} files'
        if self.listed is not None:
            files += f' of {self.listed} in the list'
        lines = [
            f'SSL4EO-S12 v1.1 {self.split} in {self.root}: {self.ends[-1]} places of {DATES} dates '
            f'in {files}, form: {"Zarr chunk files" if self.form == "chunks" else "tar shards"}',
            f'{len(self)} samples: {len(self.windows.corners)} windows of {self.chip_size} px, '
            f'{len(self.windows.dates)} choices of {self.num_dates} dates',
            *self.evidence,
        ]
        for i, layer in enumerate(self.layers):
            there = sum(int((part.rows[i] >= 0).sum()) for part in self.parts) / self.ends[-1]
            bands = f'{sum(b >= 0 for b in layer.band_ids)}/{len(layer.band_ids)} bands by '
            lines.append(
                f'  {layer.modality.name:<9} {layer.folder:<6} {there:>4.0%} of places, '
                f'{bands + ("name" if layer.by_name else "position")}'
            )
        return '\n'.join(lines)

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to other processes."""
        return {**self.__dict__, '_handles': OrderedDict()}

    def _layer(self, i: int, modality: Modality) -> Layer:
        """Look at the first image of a modality: its shape and band names."""
        shard, folder = self.parts[0].shards[i], folder_of(modality)
        handle = self._handle(shard)
        _, image = next(iter(handle.read([(0, 0)])))
        names = handle.band_names()
        stored = [name.upper() for name in names or ()]
        ids = tuple(stored.index(b.upper()) if b.upper() in stored else -1 for b in modality.bands)
        by_name = max(ids) >= 0
        if not by_name:
            if len(image) != len(modality.bands):
                raise InputError(
                    f'{shard.path} holds the bands {names or len(image)}, none of which '
                    f'{modality.name} names ({", ".join(modality.bands)}); check its bands.'
                )
            ids = tuple(range(len(image)))
        shift = modality.added_offset if self.present else 0.0
        return Layer(modality, folder, ids, by_name, shift, image.shape)

    def _evidence(self, i: int, offset: Offset) -> str:
        """Say whether a modality's values carry the offset; refuse data that say otherwise."""
        layer = self.layers[i]
        added = f'the +{layer.modality.added_offset:g} offset'
        state = 'present' if self.present else 'removed'
        verdict = f'{layer.folder}: {added} is {state}' + ', and subtracted' * self.present
        if offset != 'auto':
            return f'{verdict} (as you say)'
        band, floors = self._floors(i)
        if not floors:
            return f'{verdict} (by form; no valid pixel to check it on)'
        seen = f'lowest percentile of {band} in {len(floors)} places: {min(floors):.0f} to ' + (
            f'{max(floors):.0f}'
        )
        # With the offset, less than half of it is a reflectance below -0.05; without, nearly all of
        # it in the darkest pixels of every place is a world of clouds.
        half = layer.modality.added_offset / 2
        wrong = np.median(floors) < half if self.present else min(floors) > 1.8 * half
        if wrong:
            raise InputError(
                f'{self.root / self.split / layer.folder} should have {added} {state}, as this '
                f'form is published, but the data say otherwise ({seen}); set offset to present or '
                f'removed.'
            )
        return f'{verdict} (by form; {seen})'

    def _floors(self, i: int) -> tuple[str, list[float]]:
        """Band, and its lowest percentile as stored in up to eight places."""
        layer = self.layers[i]
        dark = layer.modality.dark_band
        band = dict(zip(layer.modality.bands, layer.band_ids, strict=True)).get(dark or '', -1)
        floors = []
        for place in sorted(set(np.linspace(0, self.ends[-1] - 1, 8, dtype=int).tolist())):
            at, row = self._row(i, place)
            if row >= 0:
                for _, image in self._read(at, i, {(row, 0): []}):
                    valid = layer.physical(image).isfinite().any(0).numpy()
                    values = image[band if band >= 0 else slice(None)][..., valid]
                    if values.size:
                        floors.append(float(np.percentile(values, 1)))
        return (dark if dark and band >= 0 else 'all bands'), floors

    def _row(self, i: int, place: int) -> tuple[int, int]:
        """Part that holds a place, and the place's row in the file of modality i, or -1."""
        at = int(np.searchsorted(self.ends, place, side='right'))
        first = int(self.ends[at - 1]) if at else 0
        return at, int(self.parts[at].rows[i, place - first])

    def _read(self, at: int, i: int, keys: Iterable[RowDate]) -> Iterator[tuple[RowDate, Image]]:
        """Read images as stored, and see that they have the shape of the others."""
        shard, shape = self.parts[at].shards[i], self.layers[i].shape
        for key, image in self._handle(shard).read(keys):
            if image.shape != shape:
                raise InputError(
                    f'{shard.path} holds an image of {shard.keys[key[0]]} of shape {image.shape}; '
                    f'the others have {shape}, download it again.'
                )
            yield key, image

    def _handle(self, shard: Shard) -> OpenChunkFile | OpenTar:
        """The file of a shard, kept open in this process."""
        if self._owner != os.getpid():  # a handle must not cross a fork
            self._handles, self._owner = OrderedDict(), os.getpid()
        if shard.path not in self._handles:
            self._handles[shard.path] = shard.open()
            if len(self._handles) > MAX_OPEN:
                self._handles.popitem(last=False)[1].close()
        self._handles.move_to_end(shard.path)
        return self._handles[shard.path]
