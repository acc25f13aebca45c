"""Which places SSL4EO-S12 v1.1 has on disk, joined over its modalities, and their samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from ..errors import InputError
from ..modalities import Modality
from .ssl4eo_files import Shard, scan_chunk_file, scan_tar

Form = Literal['chunks', 'shards']

DATES = 4
FOLDERS = ('S2L1C', 'S2L2A', 'S1GRD', 'S2RGB', 'NDVI', 'DEM', 'LULC')
ONLY_SHARDS = ('NDVI', 'DEM', 'LULC')  # came with the tar shards
UNDATED = ('DEM',)  # one image of a place, where the others have four
HUB: dict[Form, str] = {
    'chunks': 'embed2scale/SSL4EO-S12-v1.1-Zarr',
    'shards': 'embed2scale/SSL4EO-S12-v1.1',
}
SUFFIX: dict[Form, str] = {'chunks': '.zarr.zip', 'shards': '.tar'}


@dataclass(frozen=True)
class Part:
    """The files of one name, one of each modality, and the places in them.

    Attributes:
        keys: Names of the places.
        shards: File of each modality.
        rows: Where each modality's file has each place, (modalities, places); -1 where it has not.
    """

    keys: tuple[str, ...]
    shards: tuple[Shard, ...]
    rows: np.ndarray[Any, np.dtype[np.int32]]


class Windows:
    """Which window of a place, and which of its dates, each sample shows.

    Args:
        size: Side of an image, pixels.
        chip_size: Side of a window, pixels.
        num_dates: Dates of a sample.

    Raises:
        InputError: If no window fits, or there are not so many dates.
    """

    def __init__(self, size: int, chip_size: int, num_dates: int) -> None:
        if not 1 <= chip_size <= size:
            raise InputError(f'chip_size is {chip_size} pixels; images have 1 to {size}.')
        if not 1 <= num_dates <= DATES:
            raise InputError(f'num_dates is {num_dates}; SSL4EO-S12 has 1 to {DATES} dates.')
        count = size // chip_size
        free = size - chip_size
        starts = [round(free * i / (count - 1)) for i in range(count)] if count > 1 else [free // 2]
        self.corners = [(row, col) for row in starts for col in starts]
        self.dates = list(combinations(range(DATES), num_dates))
        self.per_place = len(self.corners) * len(self.dates)

    def find(self, index: int) -> tuple[int, tuple[int, int], tuple[int, ...]]:
        """Place, its window's upper left pixel (row, column), and the dates of a sample."""
        place, rest = divmod(index, self.per_place)
        corner, dates = divmod(rest, len(self.dates))
        return place, self.corners[corner], self.dates[dates]


def folder_of(modality: Modality) -> str:
    """The archive's folder for a modality, by its aliases (``s2_l2a`` -> ``S2L2A``)."""
    for alias in (modality.name, *modality.aliases):
        if alias in FOLDERS:
            return alias
    raise InputError(
        f'SSL4EO-S12 does not hold {modality.name}; expected a modality that has one of '
        f'{", ".join(FOLDERS)} among its aliases.'
    )


def find_parts(
    root: Path, split: str, folders: Sequence[str]
) -> tuple[Form, list[Part], int | None]:
    """Find the files of all modalities, and join them place by place.

    Returns:
        The form, the parts, and how many files the split's list names (None without a list).

    Raises:
        InputError: If a folder or file is missing or broken, or modalities hold other places.
    """
    form, names = _file_names(root / split, folders)
    listed = None
    split_list = root / 'splits' / f'ssl4eos12_{split}.txt'
    if form == 'chunks' and split_list.is_file():
        lines = set(split_list.read_text().split())
        names, listed = [n for n in names if n in lines], len(lines)
        if not names:
            raise InputError(f'{split_list} names no file of {root / split / folders[0]}.')
    scan = scan_chunk_file if form == 'chunks' else scan_tar
    parts = []
    for name in tqdm(names, 'Scanning SSL4EO-S12', delay=2):
        parts.append(_join([scan(root / split / folder / name) for folder in folders]))
    return form, parts, listed


def _file_names(base: Path, folders: Sequence[str]) -> tuple[Form, list[str]]:
    """In which form the folders hold their files, and the names, the same in each."""
    found: dict[str, set[str]] = {}
    forms: dict[str, Form] = {}
    for folder in folders:
        files = [p.name for p in (base / folder).iterdir()] if (base / folder).is_dir() else []
        for form, suffix in SUFFIX.items():
            if names := {name for name in files if name.endswith(suffix)}:
                if set(forms.values()) - {form} or folder in found:
                    raise InputError(
                        f'{base / folder} has files *{suffix}, but another form is there too; keep '
                        f'either the *.zarr.zip of {HUB["chunks"]} or the *.tar of {HUB["shards"]}.'
                    )
                found[folder], forms[folder] = names, form
        if folder not in found:
            form = 'chunks' if 'chunks' in forms.values() else 'shards'
            if form == 'chunks' and folder in ONLY_SHARDS:
                raise InputError(
                    f'{base / folder} has no files: {HUB["chunks"]} has no {folder}; leave the '
                    f'modality out, or download all modalities of {HUB["shards"]}.'
                )
            raise InputError(
                f'{base / folder} has no files *.zarr.zip or *.tar; download the folder '
                f'{base.name}/{folder} of the data set {HUB[form]}, or leave the modality out.'
            )
    every = set().union(*found.values())
    for folder, names in found.items():
        if missing := sorted(every - names):
            other = next(f for f in folders if missing[0] in found[f])
            raise InputError(
                f'{base / folder / missing[0]} is missing, but {other} has a file of that name; '
                f'download it, or remove {base / other / missing[0]}.'
            )
    return forms[folders[0]], sorted(every)


def _join(shards: Sequence[Shard]) -> Part:
    """Match the places of the modalities by name; some may lack places that the longest has."""
    longest = max(shards, key=lambda s: len(s.keys))
    position = {key: i for i, key in enumerate(longest.keys)}
    rows = np.full((len(shards), len(position)), -1, np.int32)
    joined = []
    for i, shard in enumerate(shards):
        at = [position.get(key, -1) for key in shard.keys]
        for before, here, key in zip([-1, *at], at, shard.keys, strict=False):
            if here <= before:
                raise InputError(
                    f'{shard.path} diverges at {key}, which {longest.path} has elsewhere or not '
                    f'at all; expected the same places in the same order, download both again.'
                )
        rows[i, at] = range(len(at))
        same = shard.keys == longest.keys  # then one copy of the names is enough
        joined.append(Shard(shard.path, longest.keys if same else shard.keys, shard.spans))
    return Part(longest.keys, tuple(joined), rows)
