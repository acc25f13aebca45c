"""Where windows lie on a raster, how they are weighted, and what becomes of those that overlap."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..data.raster_files import Float


@dataclass(frozen=True)
class Cells:
    """A rectangle of cells of the map: first row and column, height and width."""

    top: int
    left: int
    height: int
    width: int

    def overlap(self, other: 'Cells') -> 'Cells | None':
        """What two rectangles share, if they do."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.height, other.top + other.height)
        right = min(self.left + self.width, other.left + other.width)
        return Cells(top, left, bottom - top, right - left) if bottom > top and right > left else (
            None)  # fmt: skip

    def within(self, other: 'Cells') -> tuple[slice, slice]:
        """Rows and columns of this rectangle in an array of another."""
        row, col = self.top - other.top, self.left - other.left
        return slice(row, row + self.height), slice(col, col + self.width)


@dataclass(frozen=True)
class Strip:
    """Windows that are computed together, in one batch order: all of one row, side by side.

    Attributes:
        number: In the order in which strips are read.
        corners: (n, 2) first row and column of each window, pixels.
        cells: Of the map, that its windows cover together.
    """

    number: int
    corners: NDArray[np.int32]
    cells: Cells


@dataclass(frozen=True)
class Tiling:
    """Windows that cover a raster, and cells of the map below them.

    Attributes:
        height: Of the raster, pixels.
        width: Of the raster, pixels.
        window: Side of a window, pixels.
        stride: Pixels from one window to the next, a multiple of `unit`.
        unit: Windows start at multiples of so many pixels; a multiple of `cell`.
        cell: Side of a cell of the map, pixels; it divides the window.
        most: Windows of a strip.
    """

    height: int
    width: int
    window: int
    stride: int
    unit: int
    cell: int
    most: int = 32

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the map, cells; the last ones may reach beyond the raster."""
        return -(-self.height // self.cell), -(-self.width // self.cell)

    def starts(self, length: int) -> NDArray[np.int32]:
        """First pixels of the windows along an axis.

        The last one is moved back until it ends where the raster does, or less than a unit beyond,
        so that it sees as much as the others.
        """
        last = max(-(-(length - self.window) // self.unit) * self.unit, 0)
        return np.array([*range(0, last, self.stride), last], dtype=np.int32)

    @cached_property
    def strips(self) -> list[Strip]:
        """All strips, column of strips by column, so that what was decoded last is needed next."""
        strips: list[Strip] = []
        size = self.window // self.cell
        rows, cols = self.starts(self.height), self.starts(self.width)
        for first in range(0, len(cols), self.most):
            some = cols[first : first + self.most]
            for row in rows:
                corners = np.stack([np.full_like(some, row), some], axis=1)
                left, right = int(some[0]) // self.cell, int(some[-1]) // self.cell + size
                cells = Cells(int(row) // self.cell, left, size, right - left)
                strips.append(Strip(len(strips), corners, cells))
        return strips

    @cached_property
    def taper(self) -> Float:
        """Weights (n, n) of the cells of a window: 1 within, falling to its edges.

        Along each axis sine squared over the cells that neighbours share, so that the weights of
        two neighbours add up to 1.
        """
        size, shared = self.window // self.cell, (self.window - self.stride) // self.cell
        rise = np.sin((np.arange(size) + 0.5) / max(shared, 1) * np.pi / 2) ** 2
        rise[shared:] = 1
        side = np.minimum(rise, rise[::-1])
        return np.outer(side, side).astype(np.float32)

    def accumulate(self, strip: Strip, maps: Float) -> Float:
        """Add up the windows of a strip, weighted.

        Args:
            strip: Whose windows.
            maps: (n, D, h, w) features of each window, NaN where nothing is there.

        Returns:
            (D + 1, rows, columns): weighted sums, and last the sum of the weights.
        """
        dims = maps.shape[1]
        total = np.zeros((dims + 1, strip.cells.height, strip.cells.width), dtype=np.float32)
        for (_, col), values in zip(strip.corners, maps, strict=True):
            left = int(col) // self.cell - strip.cells.left
            part = total[:, :, left : left + values.shape[2]]
            weight = np.where(np.isfinite(values[0]), self.taper, np.float32(0))
            part[:dims] += np.where(weight > 0, values, np.float32(0)) * weight
            part[dims] += weight
        return total

    def blend(self, cells: Cells, dims: int, load: Callable[[Strip], Float]) -> Float:
        """The finished map (D, rows, columns) of a rectangle, NaN where nothing is there.

        Strips are added in their order, so that the result does not depend on which was computed
        first.

        Args:
            cells: Which part of the map.
            dims: D.
            load: Returns what `accumulate` made of a strip, or a view of it.
        """
        total = np.zeros((dims + 1, cells.height, cells.width), dtype=np.float32)
        for strip in self.strips_at(cells):
            shared = strip.cells.overlap(cells)
            assert shared is not None
            rows, cols = shared.within(strip.cells)
            own = shared.within(cells)
            total[:, own[0], own[1]] += load(strip)[:, rows, cols]
        weight = total[dims]
        with np.errstate(invalid='ignore'):
            values: Float = np.where(weight > 0, total[:dims] / weight, np.float32(np.nan))
        return values

    def strips_at(self, cells: Cells) -> Iterator[Strip]:
        """The strips that cover any of the cells, in their order."""
        top, left, height, width = self._rectangles
        meets = (top < cells.top + cells.height) & (top + height > cells.top)
        meets &= (left < cells.left + cells.width) & (left + width > cells.left)
        return (self.strips[i] for i in np.flatnonzero(meets))

    @cached_property
    def _rectangles(self) -> NDArray[np.int64]:
        """(4, strips) cells of each strip, for a quick look."""
        found = [(s.cells.top, s.cells.left, s.cells.height, s.cells.width) for s in self.strips]
        return np.array(found).T

    def blocks(self, side: int) -> Iterator[Cells]:
        """The map cut into squares of `side` cells, row by row."""
        height, width = self.shape
        for top in range(0, height, side):
            for left in range(0, width, side):
                yield Cells(top, left, min(side, height - top), min(side, width - left))


def chip_strips(corners: NDArray[np.int32], most: int = 256) -> Sequence[Strip]:
    """Chips that are embedded one by one, in runs of at most so many."""
    nowhere = Cells(0, 0, 0, 0)
    return [
        Strip(number, corners[start : start + most], nowhere)
        for number, start in enumerate(range(0, len(corners), most))
    ]
