"""A cache: chips read once, kept as sharded zarr 3 at the training dtype."""

import hashlib
import json
import os
import shutil
from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..errors import InputError
from ..modalities import Modality
from .index import write_whole
from .raster_files import RasterFile
from .rasters import Rasters

MAX_OPEN = 256  # shards that a process keeps open
_EMPTY = 2**64 - 1  # where the index of a shard says that a chunk was left out
SHARD = 64  # chips of a shard: what is written, and lost when killed, at once
_FORMAT = 'gfm_jepa chips 1'


class CachedChips(Dataset[dict[str, Any]]):
    """Chips of a cache: what `Rasters` gave when it was written.

    Args:
        path: Folder that `write_cache` wrote.
        modalities: Which to take; they must be in the cache, with the same bands.

    Raises:
        InputError: If it is not a whole cache, or lacks a modality.
    """

    def __init__(self, path: str | Path, modalities: Sequence[Modality]) -> None:
        self.path = Path(path)
        meta = _metadata(self.path)
        self.meta = meta
        known = {m['name']: m for m in meta['modalities']}
        for modality in modalities:
            bands = known.get(modality.name, {}).get('bands')
            if bands != list(modality.bands):
                raise InputError(
                    f'The cache {path} holds {", ".join(known)}, not {modality.name} with the '
                    f'bands {" ".join(modality.bands)}; write one that does.'
                )
        self.modalities = tuple(modalities)
        self.chip_size = int(meta['chip_size'])
        names = {m.name for m in modalities}
        # Groups of which no modality is asked for would give empty samples.
        self.parts = [g for g in meta['groups'] if names & set(g['gsd'])]
        self.ends = np.cumsum([g['count'] for g in self.parts])
        if not self.parts:
            raise InputError(f'The cache {path} has no chip of {", ".join(names)}.')
        self._layouts: dict[str, tuple[tuple[int, ...], int]] = {}
        self._shards: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._owner = os.getpid()

    def __len__(self) -> int:
        """Number of chips."""
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one chip, as `Rasters` does.

        Raises:
            InputError: If the cache is damaged.
        """
        at = int(np.searchsorted(self.ends, index, side='right'))
        part = self.parts[at]
        row = int(index) - (int(self.ends[at - 1]) if at else 0)
        sample: dict[str, Any] = {'gsd': {}}
        for modality in self.modalities:
            if modality.name in part['gsd']:
                values = self._read(f'{part["name"]}/{modality.name}', row)
                sample[modality.name] = torch.from_numpy(values)
                sample['gsd'][modality.name] = part['gsd'][modality.name]
        return sample

    def groups(self) -> list[list[int]]:
        """Indices of the chips that may share a batch."""
        starts = [0, *self.ends.tolist()]
        return [list(range(a, b)) for a, b in zip(starts, self.ends.tolist(), strict=False)]

    def report(self) -> str:
        """What is in it."""
        lines = [f'{len(self)} chips of {self.chip_size} px in the cache {self.path}']
        counts: Counter[str] = Counter()
        for part in self.parts:
            counts.update(dict.fromkeys(part['gsd'], part['count']))
        lines += [f'  {name}: {count} chips' for name, count in counts.items()]
        return '\n'.join(lines)

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to other processes."""
        return {**self.__dict__, '_shards': OrderedDict()}

    def _read(self, name: str, row: int) -> NDArray[np.float32]:
        """One chunk, straight from its shard: zarr's own reading takes several times as long.

        Shards are uncompressed, so that a chunk is its values; its place stands in the index at the
        shard's end, as the sharding codec of zarr 3 lays down.
        """
        shape, shard = self._layout(name)
        values = np.empty(shape, dtype='<f4')
        try:
            file, offsets = self._shard(name, row // shard)
            if offsets[row % shard] == _EMPTY:
                return np.full(shape, np.nan, dtype='<f4')
            bytes_of = values.reshape(-1).view(np.uint8)
            if os.preadv(file, [bytes_of], int(offsets[row % shard])) == values.nbytes:
                return values
            reason = 'the shard ends before it'
        except (OSError, ValueError, OverflowError) as error:
            reason = str(error)
        raise InputError(
            f'{self.path} is damaged at {name}, chip {row} ({reason}); write the cache again.'
        )

    def _layout(self, name: str) -> tuple[tuple[int, ...], int]:
        """Shape of a chip in an array, and chips of a shard."""
        if name not in self._layouts:
            array = zarr.open_array(self.path, path=name, mode='r')
            self._layouts[name] = (array.shape[1:], array.shards[0] if array.shards else 1)
        return self._layouts[name]

    def _shard(self, name: str, number: int) -> tuple[int, NDArray[np.uint64]]:
        """Descriptor of a shard's file, and where each of its chunks begins."""
        if self._owner != os.getpid():  # the parent closes what it has opened
            self._shards, self._owner = OrderedDict(), os.getpid()
        key = (name, number)
        if key not in self._shards:
            shape, chips = self._layout(name)
            zeros = '/0' * len(shape)
            path = self.path / f'{name}/c/{number}{zeros}'
            file = os.open(path, os.O_RDONLY)
            # Offset and length of each chunk, and a checksum of four bytes.
            end = os.pread(file, 16 * chips, max(path.stat().st_size - 16 * chips - 4, 0))
            self._shards[key] = (file, np.frombuffer(end, dtype='<u8').reshape(chips, 2)[:, 0])
            if len(self._shards) > MAX_OPEN:
                os.close(self._shards.popitem(last=False)[1][0])
        self._shards.move_to_end(key)
        file, offsets = self._shards[key]
        return file, offsets

    def __del__(self) -> None:
        """Close the shards."""
        if getattr(self, '_owner', None) == os.getpid():
            for file, _ in self._shards.values():
                os.close(file)


def is_cache(path: Path) -> bool:
    """Whether a folder is a cache, whole or not."""
    content = path / 'zarr.json'
    return content.is_file() and _FORMAT in content.read_text()


def require_new(output: Path) -> None:
    """Refuse what is not called as a cache is, or is there.

    Raises:
        InputError: If the output is either.
    """
    if output.suffix != '.zarr':
        raise InputError(f'{output} should be a folder whose name ends in .zarr.')
    if output.exists():
        raise InputError(f'{output} is there already; delete it, or name another output.')


def write_cache(rasters: Rasters, output: Path, num_workers: int = 0) -> str:
    """Write all chips once; go on where an earlier call was broken off.

    Shards are written in order into ``<output>.partial``, and counted once they are whole; the
    folder gets its name when all are there.

    Args:
        rasters: Chips to write.
        output: Folder to write, which ends in .zarr.
        num_workers: Processes that read.

    Returns:
        A report.

    Raises:
        InputError: If the output exists or a file cannot be read.
    """
    require_new(output)
    partial = output.with_name(output.name + '.partial')
    description = _describe(rasters)
    progress = partial / 'progress.json'
    begun = json.loads(progress.read_text()) if progress.is_file() else {}
    if begun.get('description') != description:
        shutil.rmtree(partial, ignore_errors=True)
        _create(rasters, partial, description)
        begun = {'description': description, 'done': 0}
        write_whole(progress, json.dumps(begun).encode())
    # zarr would leave out chunks of nothing but NaN, and whole shards of them.
    with zarr.config.set({'array.write_empty_chunks': True}):
        _fill(rasters, partial, begun, num_workers)
    progress.unlink()
    partial.rename(output)
    size = sum(f.stat().st_size for f in output.rglob('*') if f.is_file())
    return f'{len(rasters)} chips written to {output}, {size / 1e6:.0f} MB'


def _describe(rasters: Rasters) -> dict[str, Any]:
    """What the cache says of itself."""
    groups = []
    for number, indices in enumerate(rasters.groups()):
        gsd = rasters[indices[0]]['gsd']
        boxes = [rasters.box(indices[0]), rasters.box(indices[-1])]
        groups.append({'name': f'group{number}', 'count': len(indices), 'gsd': gsd, 'ends': boxes})
    return {
        'format': _FORMAT,
        'chip_size': rasters.chip_size,
        'stride': rasters.stride,
        'modalities': json.loads(json.dumps([m.to_dict() for m in rasters.modalities])),
        'groups': json.loads(json.dumps(groups)),
        'files': sorted(rasters.valid_share),
        'inputs': _inputs(rasters),
    }


def _inputs(rasters: Rasters) -> str:
    """Digest of all that the chips are cut from, and where."""
    digest = hashlib.sha256()
    states: dict[RasterFile, list[Any]] = {}  # looking through a store takes time
    for place in rasters.places:
        of_place = [f for layer in place.layers for f in layer.files]
        states |= {f: f.state() for f in of_place if f not in states}
        files = [states[f] for f in of_place]
        digest.update(json.dumps(files, default=str).encode())
        digest.update(np.ascontiguousarray(place.corners).tobytes())
    return digest.hexdigest()


def _create(rasters: Rasters, path: Path, description: dict[str, Any]) -> None:
    """Make the arrays: one chip a chunk, and NaN where nothing is written yet."""
    root = zarr.create_group(path, attributes=description)
    for group, indices in zip(description['groups'], rasters.groups(), strict=True):
        within = root.create_group(group['name'], attributes={'gsd': group['gsd']})
        sample = rasters[indices[0]]
        for name in group['gsd']:
            shape = tuple(sample[name].shape)
            axes = ['chip', 'time', 'band', 'y', 'x'] if len(shape) == 4 else [
                'chip', 'band', 'y', 'x']  # fmt: skip
            within.create_array(
                name, shape=(len(indices), *shape), chunks=(1, *shape), shards=(SHARD, *shape),
                dtype='float32', fill_value=float('nan'), compressors=None, dimension_names=axes,
            )  # fmt: skip
        within.create_array(
            'box', data=np.array([rasters.box(i) for i in indices]),
            dimension_names=['chip', 'wsen'],
            attributes={'unit': 'degrees: west, south, east, north'},
        )  # fmt: skip


def _fill(rasters: Rasters, path: Path, begun: dict[str, Any], num_workers: int) -> None:
    """Write the shards that are missing."""
    root: Any = zarr.open_group(path, mode='r+')
    shards = [
        (group['name'], SHARD * k, chunk)
        for group, indices in zip(begun['description']['groups'], rasters.groups(), strict=True)
        for k, chunk in enumerate(batched(indices, SHARD))
    ]
    missing = shards[begun['done'] :]
    order = [i for _, _, chunk in missing for i in chunk]
    loader = DataLoader(
        _Ordered(rasters, order), batch_size=None, num_workers=num_workers, prefetch_factor=None
        if not num_workers else 8,
    )  # fmt: skip
    chips = iter(loader)
    with tqdm(total=len(rasters), initial=len(rasters) - len(order), desc='Caching', unit='chip',
              delay=2) as bar:  # fmt: skip
        for done, (name, start, chunk) in enumerate(missing, begun['done'] + 1):
            samples = [next(chips) for _ in chunk]
            for modality in samples[0]['gsd']:
                values = np.stack([s[modality].numpy() for s in samples])
                root[f'{name}/{modality}'][start : start + len(chunk)] = values
            write_whole(path / 'progress.json', json.dumps({**begun, 'done': done}).encode())
            bar.update(len(chunk))


class _Ordered(Dataset[dict[str, Any]]):
    """Chips in a given order."""

    def __init__(self, rasters: Rasters, order: Sequence[int]) -> None:
        self.rasters, self.order = rasters, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rasters[self.order[index]]


def _metadata(path: Path) -> dict[str, Any]:
    """Attributes of a whole cache."""
    if (path / 'progress.json').exists() or path.suffix == '.partial':
        raise InputError(f'{path} is a cache that is not whole; run `gfm-jepa cache` again.')
    if not is_cache(path):
        raise InputError(f'{path} is not a cache; write one with `gfm-jepa cache`.')
    return dict(zarr.open_group(path, mode='r').attrs)
