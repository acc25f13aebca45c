"""Spatial splits: chips of different splits never share ground."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from ..errors import InputError

if TYPE_CHECKING:
    import geopandas

NAMES = ('train', 'val', 'test')
NAMES_SORTED = tuple(sorted(NAMES))


@dataclass(frozen=True)
class SplitRule:
    """How chips are divided.

    Args:
        by: ``blocks`` (squares on the ground, drawn at random), ``longitude`` (west to east, as
            EuroSAT-spatial), or a column of the index, whose values stay together, and with them
            all that overlaps on the ground.
        block_size: Side of a block, metres.
        shares: Of the chips, for train, val and test.
        seed: Of the draw.

    Raises:
        InputError: If a share is negative or they do not sum to 1, or the block size is not
            positive.
    """

    by: str = 'blocks'
    block_size: float = 10_000.0
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be right."""
        if len(self.shares) != 3 or min(self.shares) < 0 or not abs(sum(self.shares) - 1) < 1e-6:
            raise InputError(
                f'Shares of train, val and test are {self.shares}; give three that sum to 1.'
            )
        if not self.block_size > 0:
            raise InputError(f'block_size is {self.block_size}; give metres above 0.')
        if self.seed < 0:
            raise InputError(f'seed is {self.seed}; give a whole number from 0.')


def assign_splits(table: 'geopandas.GeoDataFrame', rule: SplitRule) -> NDArray[Any]:
    """Name the split of each chip, or '' for one that lies across a border.

    Args:
        table: Rows of an index, with footprints in longitude and latitude.
        rule: How.

    Returns:
        (N,) names.

    Raises:
        InputError: If the column does not exist, or all chips lie across borders.
    """
    if rule.by == 'blocks':
        return _blocks(table, rule)
    if rule.by == 'longitude':
        return _longitude(table, rule)
    if rule.by not in table.columns:
        columns = [c for c in table.columns if c not in ('geometry', 'source', 'split')]
        raise InputError(
            f'There is no column {rule.by!r} to split by; give blocks, longitude or one of '
            f'{", ".join(columns)}.'
        )
    return _groups(table, rule)


def _blocks(table: 'geopandas.GeoDataFrame', rule: SplitRule) -> NDArray[Any]:
    """A chip belongs to its block; one across the border of two splits belongs to none."""
    from pyproj import Transformer

    bounds = shapely.bounds(_unwrapped(table))
    # Equal areas everywhere, in metres (EASE-Grid 2.0); x counts on beyond the date line.
    to_metres = Transformer.from_crs('OGC:CRS84', 'EPSG:6933', always_xy=True)
    bounds[:, ::2] *= to_metres.transform(180, 0)[0] / 180
    for axis in (1, 3):
        bounds[:, axis] = to_metres.transform(np.zeros(len(bounds)), bounds[:, axis])[1]
    # Of most chips: a coarse sensor's is in no split where it lies across borders, as any other.
    side = float(np.median((bounds[:, 2:] - bounds[:, :2]).min(axis=1)))
    if rule.block_size < side / 2:
        raise InputError(
            f'Blocks of {rule.block_size:g} m are smaller than chips of {side:.0f} m; give them '
            f'in metres, several chips wide.'
        )
    cells = np.floor(bounds / rule.block_size).astype(np.int64)
    span = cells[:, 2:] - cells[:, :2] + 1
    # Every block that a chip touches counts: two chips of different splits then share none.
    reach = [np.minimum(np.arange(n), s[:, None] - 1) for n, s in
             zip(span.max(axis=0), span.T, strict=True)]  # fmt: skip
    x = (cells[:, :1] + reach[0])[:, :, None]
    y = (cells[:, 1:2] + reach[1])[:, None, :]
    touched = np.stack(np.broadcast_arrays(x, y), axis=3).reshape(-1, 2)
    _, which = np.unique(touched, axis=0, return_inverse=True)
    drawn = np.searchsorted(NAMES_SORTED, _draw(np.bincount(which), rule).astype(str))
    of_chip = drawn[which].reshape(len(cells), -1)
    names: NDArray[Any] = np.array(NAMES_SORTED, dtype=object)[of_chip[:, 0]]
    names[(of_chip != of_chip[:, :1]).any(axis=1)] = ''
    if not names.astype(bool).any():
        raise InputError(
            f'Every chip lies across a border of blocks of {rule.block_size:g} m; give larger ones.'
        )
    return names


def _longitude(table: 'geopandas.GeoDataFrame', rule: SplitRule) -> NDArray[Any]:
    """West to east; a chip that a border crosses belongs to none."""
    bounds = shapely.bounds(_unwrapped(table))
    centre = (bounds[:, 0] + bounds[:, 2]) / 2
    borders = np.quantile(centre, np.cumsum(rule.shares)[:2])
    names: NDArray[Any] = np.array(NAMES, dtype=object)[
        np.searchsorted(borders, centre, side='left')
    ]
    for border in borders:
        names[(bounds[:, 0] < border) & (bounds[:, 2] > border)] = ''
    return names


def _groups(table: 'geopandas.GeoDataFrame', rule: SplitRule) -> NDArray[Any]:
    """Chips of one value stay together, and values that share ground too."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, which = np.unique(table[rule.by].astype(str).to_numpy(), return_inverse=True)
    footprints = _unwrapped(table)
    a, b = shapely.STRtree(footprints).query(footprints, predicate='intersects')
    a, b = (x[which[a] < which[b]] for x in (a, b))
    # Tiles that only touch share no ground: what is left of it is rounding.
    shared = shapely.area(shapely.intersection(footprints[a], footprints[b]))
    share = shared / np.minimum(shapely.area(footprints[a]), shapely.area(footprints[b]))
    pairs = np.unique(np.stack([which[a], which[b]])[:, share > 1e-6], axis=1)
    size = int(which.max()) + 1
    graph = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(size, size))
    _, joined = connected_components(graph, directed=False)
    group = joined[which]
    if group.max() == 0 and max(rule.shares) < 1:
        raise InputError(
            f'All chips of one {rule.by} stay together, and so do those that overlap, which here '
            f'are all; split by blocks or longitude.'
        )
    names: NDArray[Any] = _draw(np.bincount(group), rule)[group].astype(object)
    return names


def _unwrapped(table: 'geopandas.GeoDataFrame') -> NDArray[Any]:
    """Footprints, degrees; those just west of the date line's end too, if one lies across it."""
    footprints: NDArray[Any] = table.geometry.to_numpy().copy()
    bounds = shapely.bounds(footprints)
    if (bounds[:, 2] > 180).any():
        west = bounds[:, 2] < -90
        footprints[west] = shapely.transform(
            footprints[west], lambda xy: xy + np.array([360.0, 0.0])
        )
    return footprints


def _draw(counts: NDArray[np.int64], rule: SplitRule) -> NDArray[Any]:
    """Give each group of chips to the split that is furthest below its share, in random order."""
    names = np.empty(len(counts), dtype=object)
    got = np.zeros(3)
    wanted = np.array(rule.shares) * counts.sum()
    for i in np.random.default_rng(rule.seed).permutation(len(counts)):
        lack = np.where(wanted > 0, (wanted - got) / np.maximum(wanted, 1e-9), -np.inf)
        best = int(np.argmax(lack))
        names[i] = NAMES[best]
        got[best] += counts[i]
    return names


def draw_splits(table: 'geopandas.GeoDataFrame', path: Path) -> None:
    """Write a map of the splits as PNG.

    Args:
        table: Rows of an index.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    colours = {'train': '#0072b2', 'val': '#e69f00', 'test': '#d55e00', '': '#999999'}
    figure = Figure(figsize=(7, 6), layout='constrained')
    axes = figure.subplots()
    for name, colour in colours.items():
        rows = table[table['split'] == name]
        if len(rows):
            label = name or ('across borders' if (table['split'] != '').any() else 'chips')
            rows.plot(ax=axes, color=colour, edgecolor=colour, alpha=0.6, linewidth=1)
            axes.plot([], [], 's', color=colour, label=f'{label} ({len(rows)})')
    axes.set(xlabel='longitude, degrees', ylabel='latitude, degrees', title='Splits')
    axes.legend()
    figure.savefig(path, dpi=150)
