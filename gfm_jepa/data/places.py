"""Places: chips of an anchor raster, and the rasters of other modalities on the same ground."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from .chips import ChipFilter, FileChips
from .grids import Grid, boxes_of, to_degrees
from .raster_files import RasterFile


@dataclass(frozen=True)
class Layer:
    """One modality of a place: files on a grid that the place's chips cut into whole pixels.

    Attributes:
        files: Where it is read from: one, or one per date.
        grids: That each is warped to, or None if its own fits.
        shifts: Column and row of the anchor's corner in each file's grid; parts of a pixel where
            chips begin between the pixels of its zoomed grid.
        size: Pixels of a chip's side.
        step: Anchor pixels that one pixel of this layer covers.
        gsd: Metres per pixel as it is delivered.
        dated: Whether its tensor has an axis of dates.
    """

    files: tuple[RasterFile, ...]
    grids: tuple[Grid | None, ...]
    shifts: tuple[tuple[float, float], ...]
    size: int
    step: float
    gsd: float
    dated: bool

    @property
    def name(self) -> str:
        """Of the modality."""
        return self.files[0].modality.name

    def at(self, number: int, row: int, col: int) -> Window:
        """The window of one of its files for the chip that starts at an anchor pixel."""
        left, top = self.shifts[number]
        return Window(
            round(col / self.step + left), round(row / self.step + top), self.size, self.size
        )


@dataclass(frozen=True)
class Place:
    """A piece of ground, and the layers that show it; the first is the anchor.

    Attributes:
        layers: One per modality.
        corners: (n, 2) first row and column of each chip, anchor pixels.
        boxes: (n, 4) west, south, east, north of each chip, degrees.
    """

    layers: tuple[Layer, ...]
    corners: NDArray[np.int32]
    boxes: NDArray[np.float64]

    @property
    def signature(self) -> tuple[Any, ...]:
        """What samples must share to be put into one batch."""
        return tuple(
            (x.name, x.size, float(f'{x.gsd:.2g}'), len(x.files) if x.dated else 0)
            for x in self.layers
        )


def join(
    chips: Sequence[FileChips],
    order: Sequence[str],
    patch_size: int,
    num_dates: int = 1,
    keep: ChipFilter = ChipFilter(min_valid=0.0),
) -> list[Place]:
    """Join modalities on the ground.

    A chip is an anchor if no raster of an earlier modality shows its ground. Of each later
    modality, it takes the raster that covers most of it; of those that cover the same, one from
    its own folder, and of those the nearest in time.

    Args:
        chips: By file.
        order: Names of the modalities, the anchor's candidates first.
        patch_size: Layers of another gsd are so many pixels wide, or a multiple.
        num_dates: Dates of the anchor's modality that a sample holds: 1 makes each date a sample
            of its own, 0 takes all that there are.
        keep: Which chips may be anchors.
    """
    files = sorted(chips, key=lambda c: order.index(c.file.modality.name))
    if not files:
        return []
    outlines = np.array([outline(c.file.grid) for c in files])
    boxes_by_file = [c.boxes for c in files]
    unwrap(outlines, *boxes_by_file)
    tree = shapely.STRtree(shapely.box(*outlines.T))
    near: list[list[int]] = [[] for _ in files]
    for i, j in zip(*tree.query(tree.geometries, predicate='intersects'), strict=True):
        near[i].append(int(j))
    places: list[Place] = []
    for i, anchor in enumerate(files):
        rank = order.index(anchor.file.modality.name)
        earlier = [j for j in near[i] if order.index(files[j].file.modality.name) < rank]
        boxes = _clip(boxes_by_file[i], outlines[i])
        covered = np.zeros(len(boxes))
        over = np.unique(outlines[earlier], axis=0)  # dates of a place have one outline
        for one in over:
            covered = np.maximum(covered, coverage(boxes, one))
        if len(over) > 1 and (covered < 0.5).any():  # or several of them together
            ground, union = shapely.box(*boxes.T), shapely.union_all(shapely.box(*over.T))
            shared = shapely.area(shapely.intersection(ground, union))
            covered = np.maximum(covered, shared / shapely.area(ground).clip(1e-300))
        dates, others = _dates(i, files, near[i], outlines, num_dates)
        free = (covered < 0.5) & ~others & keep.mask(anchor)
        if not free.any():
            continue
        own = anchor.take(free)
        partners = [
            _partners(dates, [j for j in near[i] if files[j].file.modality.name == name],
                      files, outlines, boxes[free])
            for name in order[rank + 1 :]
        ]  # fmt: skip
        choices = np.concatenate(
            [np.full((len(own.corners), len(dates)), dates), *partners], axis=1
        )
        for chosen in np.unique(choices, axis=0):
            some = own.take((choices == chosen).all(axis=1))
            per_modality = chosen.reshape(-1, len(dates))
            layers = [[files[j].file for j in js] for js in per_modality if js[0] >= 0]
            places += _places(some, layers, patch_size)
    return places


def outline(grid: Grid) -> NDArray[np.float64]:
    """West, south, east, north of a whole raster, degrees."""
    # Along the edges too: in conic and polar projections they bend far beyond the corners.
    t, low = np.linspace(0, 1, 21), np.zeros(21)
    rows = np.concatenate([low, t, low + 1, t])[None] * grid.height
    cols = np.concatenate([t, low + 1, t, low])[None] * grid.width
    box: NDArray[np.float64] = boxes_of(*grid.degrees(rows, cols))[0]
    for pole in (-90, 90):
        at = to_degrees(grid.crs.to_wkt()).transform(0, pole, direction='INVERSE')
        col, row = ~grid.transform @ at
        if 0 <= col <= grid.width and 0 <= row <= grid.height:
            box = np.array([-180.0, min(box[1], pole), 180.0, max(box[3], pole)])
    return box


def unwrap(outlines: NDArray[np.float64], *others: NDArray[np.float64]) -> None:
    """Let boxes west of the date line count on beyond 180, in place, if an outline crosses it."""
    if (outlines[:, 2] > 180).any():
        for box in (outlines, *others):
            box[box[:, 2] < -90] += (360, 0, 360, 0)


def _clip(boxes: NDArray[np.float64], outline: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of each box that lies on the raster: what reaches beyond it shows nothing."""
    low, high = np.maximum(boxes[:, :2], outline[:2]), np.minimum(boxes[:, 2:], outline[2:])
    return np.concatenate([low, np.maximum(high, low + 1e-12)], axis=1)


def coverage(boxes: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each box (west, south, east, north) that another covers."""
    width = np.minimum(boxes[:, 2], other[2]) - np.maximum(boxes[:, 0], other[0])
    height = np.minimum(boxes[:, 3], other[3]) - np.maximum(boxes[:, 1], other[1])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    share: NDArray[np.float64] = np.maximum(width, 0) * np.maximum(height, 0) / area
    return share


def _dates(
    i: int, files: Sequence[FileChips], near: Sequence[int], outlines: NDArray[np.float64],
    num_dates: int,
) -> tuple[list[int], NDArray[np.bool_]]:  # fmt: skip
    """Files of the dates that samples of file i hold, and which of its chips others stand for."""
    anchor = files[i]
    none = np.zeros(len(anchor.corners), dtype=bool)
    if num_dates == 1 or not anchor.file.time:
        return [i], none
    own = outlines[i][None]
    same = [
        j for j in near
        if files[j].file.modality.name == anchor.file.modality.name and files[j].file.time
        and coverage(own, outlines[j])[0] > 0.9 and coverage(outlines[j][None], own[0])[0] > 0.9
    ]  # fmt: skip
    same.sort(key=lambda j: (files[j].file.time, j))
    if num_dates == 0:
        # The first date stands for all of them.
        return same, none if same[0] == i else ~none
    count = min(num_dates, len(same))
    start = same.index(i)
    spread = sorted({(start + k * len(same) // count) % len(same) for k in range(count)})
    return [same[k] for k in spread], none


def _partners(
    dates: Sequence[int], candidates: Sequence[int],
    files: Sequence[FileChips], outlines: NDArray[np.float64], boxes: NDArray[np.float64],
) -> NDArray[np.int64]:  # fmt: skip
    """(n, T) which file of a modality shows each chip best at each date, or -1."""
    best = np.full((len(boxes), len(dates)), -1)
    if not candidates:
        return best
    kinds, which = np.unique(outlines[candidates], axis=0, return_inverse=True)
    cover = np.stack([coverage(boxes, one) for one in kinds])[which.reshape(-1)]
    folders = [files[j].file.folder for j in candidates]
    for t, date in enumerate(dates):
        own = files[date].file
        beside = np.array([folder == own.folder for folder in folders])[:, None]
        days = np.array([days_between(own.time, files[j].file.time) for j in candidates])[:, None]
        # Whole tenths of the ground first, then the folder, then the time.
        score = np.round(cover, 1) * 20 + beside - days / (days + 1) * 0.5
        which = score.argmax(axis=0)
        found = np.take_along_axis(cover, which[None], axis=0)[0] > 0.01
        best[found, t] = np.array(candidates)[which[found]]
    # A sample has all dates of a modality or none; where one lacks, the nearest stands in.
    lacking = best < 0
    best = np.where(lacking & (~lacking).any(axis=1, keepdims=True),
                    best.max(axis=1, keepdims=True), best)  # fmt: skip
    return best


def days_between(a: str, b: str) -> float:
    """Days between two times; a century if one is unknown."""
    if not a or not b:
        return 36500.0
    return abs((datetime.fromisoformat(a) - datetime.fromisoformat(b)).total_seconds()) / 86400


def _places(
    chips: FileChips, layers: Sequence[Sequence[RasterFile]], patch_size: int
) -> Iterator[Place]:
    """Put files on one ground grid, and start chips where every layer has a pixel corner.

    A chip moves there, by less than a pixel of the coarsest layer. One that has a split stays where
    it is, since beside it the ground may be another split's: the layers' grids move instead, for
    all chips at once that lie alike on them.
    """
    anchor = chips.file

    def place(corners: NDArray[np.int32], layers: tuple[Layer, ...]) -> Place:
        boxes = boxes_of(*anchor.grid.corners(corners, (chips.size, chips.size)))
        return Place(layers, corners, boxes)

    made = tuple(make_layer(anchor, chips.size, files, patch_size) for files in layers)
    unit = math.lcm(*(chips.size // math.gcd(chips.size, x.size) for x in made))
    if not chips.split.astype(bool).any():
        yield place(np.unique(chips.corners // unit * unit, axis=0), made)
        return
    phases, which = np.unique(chips.corners % unit, axis=0, return_inverse=True)
    for number, phase in enumerate(phases.tolist()):
        corners = np.unique(chips.corners[which.reshape(-1) == number], axis=0)
        yield place(corners, tuple(
            make_layer(anchor, chips.size, files, patch_size, phase) for files in layers
        ))  # fmt: skip


def make_layer(
    anchor: RasterFile,
    chip_size: int,
    files: Sequence[RasterFile],
    patch_size: int,
    phase: Sequence[int] = (0, 0),
) -> Layer:
    """How files are read so that their chips cover the ground of the anchor's.

    Args:
        anchor: Whose pixels chips are counted in.
        chip_size: Of those pixels.
        files: Of one modality: one, or one per date.
        patch_size: Chips of another gsd are so many pixels wide, or a multiple.
        phase: Row and column of an anchor pixel where a pixel of the layer's grid begins.
    """
    base = anchor.grid.moved(*phase)
    # Dates of one file, such as a DEM beside images of many dates, are one.
    dated = len({f.uri for f in files}) > 1
    files = files if dated else files[:1]
    if files[0].modality == anchor.modality:
        size = chip_size
    else:
        patches = round(chip_size * base.gsd / files[0].grid.gsd / patch_size)
        size = max(patches, 1) * patch_size
    step = chip_size / size
    placed = [_fit(base.zoomed(step), file) for file in files]
    grids = tuple(grid for grid, _ in placed)
    shifts = tuple((x - phase[1] / step, y - phase[0] / step) for _, (x, y) in placed)
    return Layer(tuple(files), grids, shifts, size, step, base.gsd * step, dated)


def _fit(wanted: Grid, file: RasterFile) -> tuple[Grid | None, tuple[int, int]]:
    """The grid to warp a file to, or None and where the wanted grid begins in the file's own."""
    own = file.grid
    shift = ((wanted.transform.c - own.transform.c) / own.transform.a,
             (wanted.transform.f - own.transform.f) / own.transform.e)  # fmt: skip
    fits = (
        own.crs == wanted.crs
        and abs(own.transform.a / wanted.transform.a - 1) * wanted.width < 0.1
        and abs(own.transform.e / wanted.transform.e - 1) * wanted.height < 0.1
        and all(abs(s - round(s)) < 0.1 for s in shift)
    )
    if fits:
        return None, (round(shift[0]), round(shift[1]))
    return wanted, (0, 0)
