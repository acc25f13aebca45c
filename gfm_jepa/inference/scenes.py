"""Scenes: a raster whose ground is mapped, and the rasters of other modalities that show it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from ..data.chips import ChipFilter, LeftOut
from ..data.finding import Found, find_rasters
from ..data.grids import Grid
from ..data.index import read_index
from ..data.open_files import OpenFiles
from ..data.places import Layer, coverage, days_between, make_layer, outline, unwrap
from ..data.raster_files import Float, RasterFile
from ..data.recognition import UNRECOGNISED, recognise
from ..errors import InputError
from ..modalities import Modality


@dataclass(frozen=True)
class Scene:
    """A piece of ground that is mapped as one.

    Attributes:
        name: Of its map, unlike those of the other scenes of a call.
        layers: What shows it, one per modality; the first has one file, whose grid is mapped. The
            files of another come one after the other: each fills what those before it leave open.
        window: Side of a window, pixels of the mapped grid.
        corners: (n, 2) first row and column of the chips that an index lists, else None.
    """

    name: str
    layers: tuple[Layer, ...]
    window: int
    corners: NDArray[np.int32] | None = None

    @property
    def file(self) -> RasterFile:
        """The raster whose ground is mapped."""
        return self.layers[0].files[0]

    @property
    def grid(self) -> Grid:
        """What is mapped."""
        return self.file.grid

    @property
    def unit(self) -> int:
        """Windows start at multiples of so many pixels, where every layer has a pixel corner."""
        return math.lcm(*(self.window // math.gcd(self.window, x.size) for x in self.layers))

    @property
    def gsd(self) -> dict[str, float]:
        """Metres per pixel, by modality, as windows are read."""
        return {layer.name: layer.gsd for layer in self.layers}

    def read(self, files: OpenFiles, row: int, col: int) -> dict[str, Float]:
        """Read a window: (C, H, W) by modality in its unit, NaN where there is no data.

        Args:
            files: To read from.
            row: First row, a multiple of `unit`; windows may reach beyond the scene.
            col: First column.

        Raises:
            InputError: If a file cannot be read.
        """
        return {k: v[0] for k, v in self.read_row(files, row, [col]).items()}

    def read_row(self, files: OpenFiles, row: int, cols: Sequence[int]) -> dict[str, Float]:
        """Read windows side by side, what they share once: (n, C, H, W) by modality, as `read`.

        Args:
            files: To read from.
            row: First row of all.
            cols: First column of each, ascending.
        """
        found = {}
        for layer in self.layers:
            starts = [int(layer.at(0, row, c).col_off - layer.at(0, row, cols[0]).col_off)
                      for c in cols]  # fmt: skip
            values = self._read_wide(files, layer, row, cols[0], starts[-1])
            windows = np.empty((len(cols), *values.shape[:2], layer.size), np.float32)
            for window, start in zip(windows, starts, strict=True):
                window[:] = values[:, :, start : start + layer.size]
            found[layer.name] = windows
        return found

    def _read_wide(self, files: OpenFiles, layer: Layer, row: int, col: int, more: int) -> Float:
        """A window of a layer that goes on to the right for some pixels more."""

        def read(number: int) -> Float:
            at = layer.at(number, row, col)
            window = Window(at.col_off, at.row_off, at.width + more, at.height)
            return files.read(layer.files[number], layer.grids[number], window)

        values = read(0)
        for number in range(1, len(layer.files)):
            missing = np.isnan(values).all(axis=0)
            if not missing.any():
                break
            values[:, missing] = read(number)[:, missing]
        return values

    def describe(self) -> str:
        """Which file feeds which modality."""
        lines = [f'{self.name}: {self.grid.height} x {self.grid.width} px of {self.grid.gsd:g} m']
        for layer in self.layers:
            for file, grid in zip(layer.files, layer.grids, strict=True):
                notes = [*(['warped'] if file.warped or grid else []), *file.notes]
                lines.append(
                    f'  {layer.name:<9} {layer.gsd:>7.2f} m  {len(file.bands)}/'
                    f'{len(file.band_ids)} bands  {file.path} ({"; ".join(notes)})'
                )
        return '\n'.join(lines)


def find_scenes(
    paths: Sequence[str], modalities: Mapping[str, Modality], patch_sizes: Mapping[str, int],
    window: int | None = None, ground: str | None = None, keep: ChipFilter | None = None,
) -> tuple[list[Scene], list[LeftOut]]:  # fmt: skip
    """Sort rasters into scenes.

    The rasters of the first modality are scenes. A raster of another one belongs to those that it
    overlaps, and is a scene of its own if it overlaps none.

    Args:
        paths: Files, folders, URLs; ``name=path`` says which modality lies there; or one index.
        modalities: What the encoder embeds, the one whose ground is mapped first.
        patch_sizes: Side of a patch, pixels, by modality.
        window: Side of a window, pixels of the mapped grid; 128 by default, an index has its own.
        ground: Name of the modality whose ground is mapped, if it should not be the first.
        keep: Which chips of an index to take.

    Returns:
        Scenes, and what was left out, each with one phrase that says why.

    Raises:
        InputError: If there is no scene, a raster that was named itself cannot be used, or sizes
            do not fit.
    """
    if ground is not None and ground not in modalities:
        raise InputError(
            f'The weights embed {", ".join(modalities)}, not {ground}; name one of them as ground.'
        )
    order = sorted(modalities, key=lambda name: name != ground)
    corners: dict[RasterFile, NDArray[np.int32]] = {}
    left_out: list[LeftOut] = []
    if len(paths) == 1 and Path(paths[0]).suffix == '.parquet':
        chips, size, _ = read_index(Path(paths[0]), list(modalities.values()))
        if window not in (None, size):
            raise InputError(f'{paths[0]} has chips of {size} pixels, not {window}; leave it out.')
        window = size
        kept = [c.take(keep.mask(c)) if keep else c for c in chips]
        corners = {c.file: c.corners for c in kept}
        files = [c.file for c in kept]
    else:
        files, left_out = _recognised(paths, list(modalities.values()))
    window = 128 if window is None else window
    _check_window(window, patch_sizes)
    scenes = _sort(files, order, window, patch_sizes, corners)
    if not scenes:
        why = '; '.join(sorted({f'{path} {reason}' for path, reason in left_out})[:3])
        raise InputError(
            f'There is nothing to embed in {", ".join(paths)}: the weights embed '
            f'{", ".join(modalities)}{", but " + why if why else ""}.'
        )
    return scenes, left_out


def _check_window(window: int, patch_sizes: Mapping[str, int]) -> None:
    step = math.lcm(*patch_sizes.values())
    if window < step or window % step:
        fitting = max(round(window / step), 1) * step
        raise InputError(
            f'The window is {window} pixels, which patches of {step} do not divide; take {fitting}.'
        )


def _recognised(
    paths: Sequence[str], modalities: Sequence[Modality]
) -> tuple[list[RasterFile], list[LeftOut]]:
    """Open each raster once; one that was named itself must be usable."""
    files: list[RasterFile] = []
    left_out: list[LeftOut] = []
    for found in find_rasters(paths, modalities):
        named = not found.parts and found.path in (p.partition('=')[2] or p for p in paths)
        if named and not found.stated and len(modalities) == 1:
            found = Found(found.path, modalities[0].name)  # what else could it be
        for file in recognise(found, modalities):
            if isinstance(file, RasterFile):
                files.append(file)
            elif named:
                known = ', '.join(f'{m.name}={found.path}' for m in modalities)
                hint = f'; say what it is ({known})' if file == UNRECOGNISED else ''
                raise InputError(f'{found.path} {file}{hint}.')
            else:
                left_out.append((found.path, file))
    return files, left_out


def _sort(
    files: Sequence[RasterFile], order: Sequence[str], window: int,
    patch_sizes: Mapping[str, int], corners: Mapping[RasterFile, NDArray[np.int32]],
) -> list[Scene]:  # fmt: skip
    """Which file is a scene, and which others show it."""
    if not files:
        return []
    files = sorted(files, key=lambda f: order.index(f.modality.name))
    boxes = np.array([outline(f.grid) for f in files])
    unwrap(boxes)
    tree = shapely.STRtree(shapely.box(*boxes.T))
    places: dict[int, list[list[RasterFile]]] = {}
    for i, file in enumerate(files):
        near = sorted(tree.query(tree.geometries[i], predicate='intersects').tolist())
        cover = {j: float(coverage(boxes[i][None], boxes[j])[0]) for j in near}
        by_name = {name: [(files[j], cover[j]) for j in near if cover[j] > 0.001
                          and files[j].modality.name == name] for name in order}  # fmt: skip
        own = by_name.pop(file.modality.name)
        if own and not any(j in places and files[j].modality != file.modality for j in near
                           if cover[j] > 0.001):  # fmt: skip
            places[i] = [_best(file, some) for some in by_name.values() if some]
    names = _names([files[i] for i in places])
    return [
        Scene(
            name,
            (
                make_layer(files[i], window, [files[i]], patch_sizes[files[i].modality.name]),
                *(make_layer(files[i], window, o, patch_sizes[o[0].modality.name])
                  for o in others),
            ),
            window, corners.get(files[i]),
        )
        for name, (i, others) in zip(names, places.items(), strict=True)
    ]  # fmt: skip


def _best(file: RasterFile, candidates: Sequence[tuple[RasterFile, float]]) -> list[RasterFile]:
    """Files of one modality that show a scene, the best first: most ground, own folder, in time.

    Only files of the first one's day, as far as days are known, may fill what it leaves open.
    """

    def rank(candidate: tuple[RasterFile, float]) -> tuple[Any, ...]:
        other, cover = candidate
        away = other.folder != file.folder
        return (-round(min(cover, 0.95), 1), away, days_between(file.time, other.time), other.path)

    ranked = [f for f, _ in sorted(candidates, key=rank)]
    first = ranked[0]
    same_day = (days_between(first.time, f.time) <= 1 or not (first.time or f.time) for f in ranked)
    return [f for f, fits in zip(ranked, same_day, strict=True) if fits]


def _names(files: Sequence[RasterFile]) -> list[str]:
    """One name per file, as short as they can be told apart by."""
    stems = [Path(f.path).stem.replace('*', 'x') for f in files]
    many = Counter(stems)
    longer = [
        f'{Path(f.path).parent.name}_{s}' if many[s] > 1 else s
        for f, s in zip(files, stems, strict=True)
    ]
    many = Counter(longer)
    dated = [
        f'{s}_{f.time[:10]}' if many[s] > 1 and f.time else s
        for f, s in zip(files, longer, strict=True)
    ]
    many, seen = Counter(dated), Counter[str]()
    names = []
    for name in dated:
        names.append(f'{name}_{seen[name]}' if many[name] > 1 else name)
        seen[name] += 1
    return names
