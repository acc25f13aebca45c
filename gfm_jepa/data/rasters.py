"""Chips from folders of rasters: modalities joined on the ground, each at its own gsd."""

import math
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import InputError
from ..modalities import Modality
from .raster_files import UNRECOGNISED, Grid, RasterFile, find_files, open_file


@dataclass(frozen=True)
class Layer:
    """One modality of a place: its file on a grid that the place's chips cut into whole pixels.

    Attributes:
        file: Where it is read from.
        grid: That it is warped to, or None if its own fits.
        size: Pixels of a chip's side.
        step: Anchor pixels that one pixel of this layer covers.
        shift: Column and row of the anchor's corner in this layer.
        gsd: Metres per pixel as it is delivered.
    """

    file: RasterFile
    grid: Grid | None
    size: int
    step: float
    shift: tuple[int, int]
    gsd: float


@dataclass(frozen=True)
class Place:
    """A piece of ground, and the layers that show it; the first is the anchor."""

    layers: tuple[Layer, ...]
    corners: tuple[tuple[int, int], ...]  # row and column of each chip, anchor pixels

    @property
    def signature(self) -> tuple[tuple[str, int, float], ...]:
        """What samples must share to be put into one batch."""
        return tuple((x.file.modality.name, x.size, float(f'{x.gsd:.2g}')) for x in self.layers)


class Rasters(Dataset[dict[str, Any]]):
    """Aligned chips of any rasters.

    A place is an anchor file, of the earliest modality in the list that it has, and those of the
    other modalities that show the same ground: from the same folder if there are any, else from
    anywhere. What is in another CRS or on another grid is warped to the anchor's; geographic CRS
    are warped to their UTM zone. Pixels without data, and beyond a raster, are NaN.

    Args:
        paths: Files or folders, searched recursively; ``name=path`` says which modality is there.
        modalities: Which to read, the anchor's candidates first.
        chip_size: Side of a chip, pixels of the anchor.
        stride: Anchor pixels from one chip to the next; chip_size by default.
        patch_size: Chips of modalities with another gsd are so many pixels wide, or a multiple.
        min_valid: Share of valid anchor pixels below which a chip is left out.
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
        min_valid: float = 0.25,
        strict: bool = False,
    ) -> None:
        if chip_size % patch_size or chip_size < patch_size:
            raise InputError(
                f'chip_size is {chip_size} pixels, which patches of {patch_size} do not divide; '
                f'take {max(round(chip_size / patch_size), 1) * patch_size}.'
            )
        self.modalities = tuple(modalities)
        self.chip_size, self.patch_size, self.min_valid = chip_size, patch_size, min_valid
        self.stride = stride or chip_size
        self.left_out: list[tuple[Path, str]] = []
        files = self._scan(paths, strict)
        self.places = [p for group in self._join(files) if (p := self._place(group)).corners]
        self.ends = np.cumsum([len(p.corners) for p in self.places])
        if not self.places:
            reasons = {reason for _, reason in self.left_out} or {'no chip has enough valid pixels'}
            raise InputError(
                f'No usable chip in {", ".join(map(str, paths))}: {len(self.left_out)} files left '
                f'out ({"; ".join(sorted(reasons)[:3])}).'
            )
        self._handles: OrderedDict[tuple[Path, Grid | None], Any] = OrderedDict()
        self._owner = os.getpid()

    def __len__(self) -> int:
        """Number of chips."""
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one chip: (C, H, W) float32 by modality, and ``gsd``, metres per pixel by modality.

        Raises:
            InputError: If a file cannot be read; the message names it.
        """
        at = int(np.searchsorted(self.ends, index, side='right'))
        place = self.places[at]
        first = int(self.ends[at - 1]) if at else 0
        row, col = place.corners[index - first]
        sample: dict[str, Any] = {'gsd': {}}
        for layer in place.layers:
            name = layer.file.modality.name
            corner = (col / layer.step + layer.shift[0], row / layer.step + layer.shift[1])
            window = Window(round(corner[0]), round(corner[1]), layer.size, layer.size)
            sample[name] = torch.from_numpy(layer.file.read(self._handle(layer), window))
            sample['gsd'][name] = layer.gsd
        return sample

    def groups(self) -> list[list[int]]:
        """Indices of the chips that may share a batch: the same modalities, sizes and gsd."""
        found: dict[Any, list[int]] = {}
        start = 0
        for place, end in zip(self.places, self.ends.tolist(), strict=True):
            found.setdefault(place.signature, []).extend(range(start, end))
            start = end
        return list(found.values())

    def report(self) -> str:
        """Which file feeds which modality, and what was left out and why."""
        lines = [f'{len(self)} chips of {self.chip_size} px from {len(self.places)} places']
        for place in self.places:
            ground = place.layers[0].size * place.layers[0].gsd
            lines.append(f'place: {len(place.corners)} chips of {ground:g} m')
            for layer in place.layers:
                file = layer.file
                bands = f'{sum(b > 0 for b in file.band_ids)}/{len(file.band_ids)} bands by '
                lines.append(
                    f'  {file.modality.name:<9} {layer.size:>4} px {layer.gsd:>7.2f} m  '
                    f'{bands + ("name" if file.by_name else "position"):<23} '
                    f'{file.valid_share:>4.0%} valid  {file.path}'
                    f'{"  (warped)" if file.warped or layer.grid else ""}'
                )
        if self.left_out:
            lines.append(f'{len(self.left_out)} files left out:')
            others = Counter(p.name for p, reason in self.left_out if reason == UNRECOGNISED)
            lines += [f'  {path}: {reason}' for path, reason in self.left_out
                      if reason != UNRECOGNISED]  # fmt: skip
            lines += [f'  {count} x {name}: {UNRECOGNISED}' for name, count in others.items()]
        return '\n'.join(lines)

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to other processes."""
        return {**self.__dict__, '_handles': OrderedDict()}

    def _scan(self, paths: Sequence[str | Path], strict: bool) -> list[RasterFile]:
        """Open every file once; remember what is left out."""
        files = []
        for path, stated in tqdm(list(find_files(paths)), 'Scanning rasters', delay=2):
            result = open_file(path, self.modalities, stated)
            if isinstance(result, RasterFile):
                files.append(result)
            else:
                if strict and result != UNRECOGNISED:
                    raise InputError(f'{path} {result}; mend it, or run without --strict.')
                self.left_out.append((path, result))
        return files

    def _join(self, files: Sequence[RasterFile]) -> list[list[RasterFile]]:
        """Group the files that show the same ground, the anchor first."""
        order = [m.name for m in self.modalities]
        box = {f.path: transform_bounds(f.grid.crs, 'EPSG:4326', *f.grid.bounds) for f in files}
        groups: list[list[RasterFile]] = []
        used: set[Path] = set()
        for anchor in sorted(files, key=lambda f: order.index(f.modality.name)):
            if anchor.path in used:
                continue
            group = [anchor]
            for name in order[order.index(anchor.modality.name) + 1 :]:
                best = max(
                    (f for f in files if f.modality.name == name),
                    key=lambda f: (
                        _overlap(box[anchor.path], box[f.path]) > 0.5
                        and f.path.parent == anchor.path.parent,
                        _overlap(box[anchor.path], box[f.path]),
                    ),
                    default=None,
                )
                if best is not None and _overlap(box[anchor.path], box[best.path]) > 0.5:
                    group.append(best)
            used.update(f.path for f in group)
            groups.append(group)
        return groups

    def _place(self, group: Sequence[RasterFile]) -> Place:
        """Put the files of a group on one ground grid, and cut it into chips."""
        anchor = group[0]
        layers = tuple(self._layer(anchor, file) for file in group)
        # Chips start where every layer has a pixel corner.
        unit = math.lcm(*(self.chip_size // math.gcd(self.chip_size, x.size) for x in layers))
        stride = max(round(self.stride / unit), 1) * unit
        rows = range(0, max(anchor.grid.height - self.chip_size, 0) + 1, stride)
        cols = range(0, max(anchor.grid.width - self.chip_size, 0) + 1, stride)
        valid = self._valid_map(anchor)
        zoom = (valid.shape[0] / anchor.grid.height, valid.shape[1] / anchor.grid.width)
        corners = []
        for row in rows:
            for col in cols:
                top, left = int(row * zoom[0]), int(col * zoom[1])
                bottom = max(math.ceil((row + self.chip_size) * zoom[0]), top + 1)
                right = max(math.ceil((col + self.chip_size) * zoom[1]), left + 1)
                if valid[top:bottom, left:right].mean() >= self.min_valid:
                    corners.append((row, col))
        return Place(layers, tuple(corners))

    def _layer(self, anchor: RasterFile, file: RasterFile) -> Layer:
        """How a file is read so that its chips cover the ground of the anchor's."""
        own, base = file.grid, anchor.grid
        if file is anchor:
            return Layer(file, None, self.chip_size, 1.0, (0, 0), base.gsd)
        patches = round(self.chip_size * base.gsd / own.gsd / self.patch_size)
        size = max(patches, 1) * self.patch_size
        step = self.chip_size / size
        wanted = base.zoomed(step)
        shift = ((wanted.transform.c - own.transform.c) / own.transform.a,
                 (wanted.transform.f - own.transform.f) / own.transform.e)  # fmt: skip
        fits = (
            not file.warped
            and own.crs == wanted.crs
            and abs(own.transform.a / wanted.transform.a - 1) * wanted.width < 0.1
            and abs(own.transform.e / wanted.transform.e - 1) * wanted.height < 0.1
            and all(abs(s - round(s)) < 0.1 for s in shift)
        )
        if fits:
            return Layer(
                file, None, size, step, (round(shift[0]), round(shift[1])), base.gsd * step
            )
        return Layer(file, wanted, size, step, (0, 0), base.gsd * step)

    def _valid_map(self, file: RasterFile) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Where the file holds data, reduced to 256 x 256 at most."""
        grid = file.grid
        with file.open() as source:
            shape = (min(grid.height, 256), min(grid.width, 256))
            return np.isfinite(file.read(source, shape=shape)).any(axis=0)

    def _handle(self, layer: Layer) -> Any:
        """Open file of a layer, kept open in this process; GDAL caches its decoded blocks."""
        if self._owner != os.getpid():  # a handle must not cross a fork
            self._handles, self._owner = OrderedDict(), os.getpid()
        key = (layer.file.path, layer.grid)
        if key not in self._handles:
            self._handles[key] = layer.file.open(layer.grid)
            if len(self._handles) > 256:
                self._handles.popitem(last=False)[1].close()
        self._handles.move_to_end(key)
        return self._handles[key]


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples of one group: (B, C, H, W) by modality, and their common ``gsd``."""
    first = samples[0]
    batch: dict[str, Any] = {
        name: torch.stack([s[name] for s in samples])
        for name, value in first.items()
        if isinstance(value, Tensor)
    }
    batch['gsd'] = first['gsd']
    return batch


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Share of box a (left, bottom, right, top) that box b covers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    area = (a[2] - a[0]) * (a[3] - a[1])
    return max(width, 0) * max(height, 0) / area if area else 0.0
