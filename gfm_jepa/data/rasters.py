"""Chips from rasters: modalities joined on the ground, each at its own gsd."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import InputError
from ..modalities import Modality
from .chips import ChipFilter, FileChips, LeftOut, scan, summed_up
from .finding import find_rasters
from .grids import Grid
from .index import read_index
from .open_files import OpenFiles
from .places import Layer, Place, join
from .raster_files import Float, RasterFile, gdal
from .recognition import UNRECOGNISED


class Rasters(Dataset[dict[str, Any]]):
    """Aligned chips of any rasters.

    A place is an anchor file, of the earliest modality in the list that shows its ground, and the
    best file of each other modality there. What is in another CRS or on another grid is warped to
    the anchor's; geographic CRS are warped to their UTM zone. Pixels without data, and beyond a
    raster, are NaN.

    Args:
        paths: Files, folders, URLs, searched recursively (``name=path`` says which modality is
            there), or one index that `gfm-jepa index` wrote.
        modalities: Which to read, the anchor's candidates first.
        chip_size: Side of a chip, pixels of the anchor; an index has its own.
        stride: Anchor pixels from one chip to the next; chip_size by default.
        patch_size: Chips of modalities with another gsd are so many pixels wide, or a multiple.
        num_dates: Dates of the anchor that a sample holds, as (T, C, H, W): with 1, each date is a
            sample of its own without that axis; 0 takes all.
        keep: Which chips to take.
        strict: Refuse broken files, where by default they are named and left out.

    Raises:
        InputError: If no raster or no usable chip is found, or a file is broken and `strict` set.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        modalities: Sequence[Modality],
        chip_size: int = 96,
        stride: int | None = None,
        patch_size: int = 8,
        num_dates: int = 1,
        keep: ChipFilter = ChipFilter(),
        strict: bool = False,
    ) -> None:
        self.modalities = tuple(modalities)
        self.chip_size, self.patch_size = chip_size, patch_size
        self.stride = chip_size if stride is None else stride
        self.left_out: list[LeftOut] = []
        index = [p for p in paths if Path(p).suffix == '.parquet']
        if index and len(paths) > 1:
            raise InputError(f'{index[0]} is an index; give it alone, not with other paths.')
        if index:
            chips, self.chip_size, self.stride = read_index(Path(index[0]), self.modalities)
        self._check_size(num_dates)
        some = chips if index else self._scan(paths, strict)
        if keep.split and not any(c.split.any() for c in some):
            raise InputError(
                f'There are no splits, so that {keep.split!r} is none; make an index with --split.'
            )
        if keep.split and keep.split not in (names := {n for c in some for n in c.split}):
            there = ', '.join(sorted(names - {''}))
            raise InputError(f'There is no split {keep.split!r}; the index has {there}.')
        self.file_chips = some
        chips = [c for c in some if keep.in_time(c.file, undated=True)]
        order = [m.name for m in modalities]
        self.places = join(chips, order, patch_size, num_dates, keep)
        self.valid_share = {c.file.path: c.valid_share for c in chips}
        self.ends = np.cumsum([len(p.corners) for p in self.places])
        if not self.places:
            reasons = sorted({why for _, why in self.left_out})[:3]
            reasons += [self._why_none(keep)] if some else []
            raise InputError(
                f'No usable chip in {", ".join(map(str, paths))}: {len(self.left_out)} files left '
                f'out ({"; ".join(reasons)}).'
            )
        self._files = OpenFiles()

    def __len__(self) -> int:
        """Number of chips."""
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one chip: (C, H, W) float32 by modality, and ``gsd``, metres per pixel by modality.

        With several dates, (T, C, H, W) for those modalities that have them.

        Raises:
            InputError: If a file cannot be read; the message names it.
        """
        place, at = self.locate(index)
        row, col = place.corners[at]
        sample: dict[str, Any] = {'gsd': {}}
        with gdal(any(f.is_remote for layer in place.layers for f in layer.files)):
            for layer in place.layers:
                dates = [self._read(layer, t, row, col) for t in range(len(layer.files))]
                values = np.stack(dates) if layer.dated else dates[0]
                sample[layer.name] = torch.from_numpy(values)
                sample['gsd'][layer.name] = layer.gsd
        return sample

    def box(self, index: int) -> tuple[float, float, float, float]:
        """West, south, east, north of a chip, degrees."""
        place, at = self.locate(index)
        west, south, east, north = place.boxes[at].tolist()
        return west, south, east, north

    def files(self, index: int) -> list[str]:
        """Paths of the files that a chip is read from."""
        place, _ = self.locate(index)
        return [f.path for layer in place.layers for f in layer.files]

    def groups(self) -> list[list[int]]:
        """Indices of the chips that may share a batch: the same modalities, sizes, gsd, dates."""
        found: dict[Any, list[int]] = {}
        start = 0
        for place, end in zip(self.places, self.ends.tolist(), strict=True):
            found.setdefault(place.signature, []).extend(range(start, end))
            start = end
        return list(found.values())

    def report(self, most: int = 200) -> str:
        """Which file feeds which modality, and what was left out and why.

        Args:
            most: Places to list.
        """
        lines = [f'{len(self)} chips of {self.chip_size} px from {len(self.places)} places']
        for place in self.places[:most]:
            ground = place.layers[0].size * place.layers[0].gsd
            lines.append(f'place: {len(place.corners)} chips of {ground:g} m')
            for layer in place.layers:
                lines += [self._describe(layer, file, grid) for file, grid in
                          zip(layer.files, layer.grids, strict=True)]  # fmt: skip
        if len(self.places) > most:
            lines.append(f'and {len(self.places) - most} places more')
        if self.left_out:
            lines.append(f'{len(self.left_out)} files left out:')
            lines += [f'  {path}: {why}' for path, why in summed_up(self.left_out)]
        return '\n'.join(lines)

    def _why_none(self, keep: ChipFilter) -> str:
        """Why no chip of the files that can be read is taken."""
        largest = max((c.file.grid for c in self.file_chips), key=lambda g: g.height * g.width)
        if all((c.on_raster < keep.min_valid).all() for c in self.file_chips):
            return (
                f'chip_size is {self.chip_size}, and the largest raster has {largest.height} x '
                f'{largest.width} pixels; take smaller chips'
            )
        return 'no chip passes the filters'

    def _check_size(self, num_dates: int) -> None:
        least = min(self.patch_size, self.chip_size, self.stride, num_dates + 1)
        if least < 1:
            raise InputError(
                f'patch_size is {self.patch_size}, chip_size {self.chip_size}, stride '
                f'{self.stride} and num_dates {num_dates}; expected each 1 or '
                f'more; num_dates 0 is all.'
            )
        if self.chip_size % self.patch_size or self.chip_size < self.patch_size:
            fitting = max(round(self.chip_size / self.patch_size), 1) * self.patch_size
            raise InputError(
                f'chip_size is {self.chip_size} pixels, which patches of {self.patch_size} do not '
                f'divide; take {fitting}.'
            )

    def _describe(self, layer: Layer, file: RasterFile, grid: Grid | None) -> str:
        """One line of the report."""
        has = f'{len(file.bands)}/{len(file.band_ids)} {file.notes[0]}'
        more = [*(['warped'] if file.warped or grid else []), *file.notes[1:]]
        return (
            f'  {layer.name:<9} {layer.size:>4} px {layer.gsd:>7.2f} m  {has:<23} '
            f'{self.valid_share[file.path]:>4.0%} valid  {file.path}'
            f'{"  (" + "; ".join(more) + ")" if more else ""}'
        )

    def _scan(self, paths: Sequence[str | Path], strict: bool) -> list[FileChips]:
        """Open every file once; remember what is left out."""
        found = find_rasters(paths, self.modalities)
        chips: list[FileChips] = []
        scanned = scan(found, self.modalities, self.chip_size, self.stride)
        for some, problems in tqdm(scanned, 'Scanning rasters', total=len(found), delay=2):
            chips += some
            for path, why in problems:
                if strict and why != UNRECOGNISED:
                    raise InputError(f'{path} {why}; mend it, or run without --strict.')
            self.left_out += problems
        return chips

    def locate(self, index: int) -> tuple[Place, int]:
        """The place of a chip, and its number there."""
        at = int(np.searchsorted(self.ends, index, side='right'))
        return self.places[at], index - (int(self.ends[at - 1]) if at else 0)

    def _read(self, layer: Layer, date: int, row: int, col: int) -> Float:
        """Read a chip of one file."""
        return self._files.read(layer.files[date], layer.grids[date], layer.at(date, row, col))


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples of one group: (B, C, H, W) by modality, and their ``gsd``, if they have one."""
    first = samples[0]
    batch: dict[str, Any] = {
        name: torch.stack([s[name] for s in samples])
        for name, value in first.items()
        if isinstance(value, Tensor)
    }
    if 'gsd' in first:
        batch['gsd'] = first['gsd']
    return batch
