"""SSL4EO-S12 v1.1 on disk: zips that hold a Zarr of 64 places, or tars of one such zip a place.

Source: https://github.com/DLR-MF-DAS/SSL4EO-S12-v1.1 (README.md, zarr_dataset.py,
ssl4eos12_dataset.py), for names and layout.
"""

import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import finalize
from zipfile import ZipFile

import numpy as np
import zarr
from zarr.core.buffer import Buffer, cpu
from zarr.storage import MemoryStore

from ..errors import InputError
from .zarr_cubes import BROKEN

Image = np.ndarray[Any, np.dtype[Any]]
RowDate = tuple[int, int]  # a place within its file, and one of its dates

_METADATA = ('zarr.json', '.zarray', '.zattrs', '.zgroup', '.zmetadata')
_BROKEN = (*BROKEN, tarfile.TarError)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn whatever zip, tar, Zarr and codecs raise into one sentence about `what`."""
    try:
        yield
    except InputError:
        raise
    except _BROKEN as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip('.')
        raise InputError(f'{what} cannot be read ({reason}); download it again.') from error


class _Members(dict[str, Buffer]):
    """Members of a zip, read when asked for and not kept; a chunk that is not there is an error."""

    def __init__(self, archive: ZipFile, what: str) -> None:
        super().__init__()
        self.archive, self.what = archive, what
        self.names = frozenset(archive.namelist())

    def __missing__(self, key: str) -> Buffer:
        if key in self.names:
            return cpu.Buffer.from_bytes(self.archive.read(key))
        if key.rsplit('/')[-1] in _METADATA:  # Zarr tries those of both formats
            raise KeyError(key)
        # Zarr would put its fill value here, and nobody would know.
        raise InputError(f'{self.what} lacks the chunk {key}; download it again.')


class ZarrZip:
    """A Zarr group, of format 2 or 3, in a zip.

    Args:
        file: The zip, or its bytes.
        what: How messages call it.
        dims: Of the array ``bands``: 5 (sample, time, band, y, x) or 4 without sample.

    Raises:
        InputError: If it is no zip, or has no such array.
    """

    def __init__(self, file: Path | io.BytesIO, what: str, dims: int) -> None:
        self.what = what
        with naming(what):
            self.archive = ZipFile(file)
            self._store = MemoryStore(_Members(self.archive, what), read_only=True)
            self.bands = self._open('bands')
        if self.bands.ndim != dims:
            raise InputError(
                f'{what} holds bands of shape {self.bands.shape}; expected {dims} dimensions.'
            )

    def texts(self, name: str) -> list[str] | None:
        """Values of a coordinate, such as ``band`` or ``sample``; None if there is none."""
        with naming(self.what):
            if not {f'{name}/.zarray', f'{name}/zarr.json'} & set(self.archive.namelist()):
                return None
            return [str(text) for text in np.atleast_1d(np.asarray(self._open(name)[...]))]

    def close(self) -> None:
        """Close the zip."""
        self.archive.close()

    def _open(self, name: str) -> zarr.Array[Any]:
        return zarr.open_array(self._store, path=name, mode='r')


class OpenChunkFile:
    """An open ``.zarr.zip`` of many places."""

    def __init__(self, shard: 'Shard') -> None:
        self.zarr = ZarrZip(shard.path, str(shard.path), 5)
        self.close = self.zarr.close
        self.places_together = self.zarr.bands.chunks[0]  # in one Zarr chunk

    def read(self, wanted: Iterable[RowDate]) -> Iterator[tuple[RowDate, Image]]:
        """Yield images (C, H, W) as stored; dates that the file lacks are left out.

        A Zarr chunk that holds several places is decoded once for all of them.
        """
        bands = self.zarr.bands
        together: dict[RowDate, list[int]] = defaultdict(list)
        for row, date in wanted:
            if date < bands.shape[1]:
                together[row // bands.chunks[0], date].append(row)
        for (_, date), rows in together.items():
            with naming(self.zarr.what):
                if len(rows) == 1:  # twice as fast as oindex
                    block = np.asarray(bands[rows[0], date])[None]
                else:
                    block = np.asarray(bands.oindex[np.asarray(rows), date])
            for row, image in zip(rows, block, strict=True):
                yield (row, date), image

    def band_names(self) -> list[str] | None:
        """The coordinate ``band``, if there is one."""
        return self.zarr.texts('band')


class OpenTar:
    """An open tar of one zip a place, of which only the members asked for are read."""

    def __init__(self, shard: 'Shard') -> None:
        self.shard = shard
        with naming(str(shard.path)):
            self.file = shard.path.open('rb')
        self.places_together = 1
        self.close = finalize(self, self.file.close)  # when let go of, at the latest

    def read(self, wanted: Iterable[RowDate]) -> Iterator[tuple[RowDate, Image]]:
        """Yield images (C, H, W) as stored; dates that a place lacks are left out."""
        together: dict[int, list[int]] = defaultdict(list)
        for row, date in wanted:
            together[row].append(date)
        for row, dates in together.items():
            member = self._member(row)
            for date in dates:
                if date < member.bands.shape[0]:
                    with naming(member.what):
                        image = np.asarray(member.bands[date])
                    yield (row, date), image

    def band_names(self) -> list[str] | None:
        """The coordinate ``band`` of the first place, if there is one."""
        return self._member(0).texts('band')

    def _member(self, row: int) -> ZarrZip:
        what = f'{self.shard.path}, member {self.shard.keys[row]}.zarr.zip,'
        offset, size = (int(x) for x in self.shard.spans[row])
        with naming(what):
            self.file.seek(offset)
            return ZarrZip(io.BytesIO(self.file.read(size)), what, 4)


@dataclass(frozen=True)
class Shard:
    """One file of one modality.

    Attributes:
        path: Where it is.
        keys: Names of its places.
        spans: Offset and bytes of each place's member in a tar, (places, 2); empty for a zip.
    """

    path: Path
    keys: tuple[str, ...]
    spans: np.ndarray[Any, np.dtype[np.int64]]

    def open(self) -> OpenChunkFile | OpenTar:
        """Open it for reading."""
        return OpenTar(self) if len(self.spans) else OpenChunkFile(self)


def scan_chunk_file(path: Path) -> Shard:
    """Read which places a ``.zarr.zip`` holds."""
    store = ZarrZip(path, str(path), 5)
    keys = store.texts('sample') or [str(i) for i in range(store.bands.shape[0])]
    store.close()
    return Shard(path, tuple(keys), np.empty((0, 2), np.int64))


def scan_tar(path: Path) -> Shard:
    """Read the headers of a tar, and where its members lie.

    Raises:
        InputError: If it ends before its end mark, or a header is broken.
    """
    keys, spans, end = [], [], 0
    with naming(str(path)), path.open('rb') as file:
        with tarfile.open(fileobj=file, mode='r:') as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.name.endswith('.zarr.zip'):
                    keys.append(Path(member.name).name.removesuffix('.zarr.zip'))
                    spans.append((member.offset_data, member.size))
        # tarfile takes a broken header, and a file that stops between members, for the end.
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            after = f'after member {keys[-1]}.zarr.zip' if keys else 'at its start'
            raise InputError(f'{path} is truncated or broken {after}; download it again.')
    if not keys:
        raise InputError(f'{path} has no member *.zarr.zip; download it again.')
    return Shard(path, tuple(keys), np.array(spans, np.int64))
