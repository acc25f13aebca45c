"""The ground of a made-up landscape: relief, rivers, fields, towns, cover, materials.

Rivers carve the relief; slope, height and moisture decide the cover; fields, towns and roads lie
on top; and cover becomes fractions of materials. Sensors look at it in `gfm_jepa.data.synthetic`.
"""

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage, sparse, spatial
from scipy.sparse import csgraph

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

CLASSES = ('water', 'broadleaf forest', 'conifer forest', 'grassland', 'cropland', 'orchard',
           'bare', 'built-up', 'industry and roads')  # fmt: skip
WATER, BROADLEAF, CONIFER, GRASS, CROP, ORCHARD, BARE, BUILT, INDUSTRY = range(len(CLASSES))
MATERIALS = {  # reflectance x 10000 in the order of S2_BANDS, then VV and VH in dB
    'water': (320, 300, 290, 200, 170, 140, 130, 110, 100, 90, 60, 40, -20, -28),
    'silt': (500, 620, 900, 850, 700, 430, 400, 330, 280, 220, 120, 80, -20, -28),
    'broad': (180, 230, 450, 260, 700, 2300, 2900, 3150, 3300, 3350, 1600, 700, -9, -14.5),
    'conifer': (160, 200, 350, 230, 520, 1500, 1850, 2000, 2100, 2150, 1000, 450, -10.5, -15.5),
    'grass': (300, 400, 750, 560, 1150, 2500, 2950, 3150, 3300, 3400, 2200, 1200, -13.5, -20),
    'green': (230, 320, 680, 350, 950, 3000, 3900, 4200, 4350, 4400, 2000, 950, -11.5, -17.5),
    'straw': (650, 850, 1200, 1550, 1900, 2250, 2450, 2650, 2800, 2900, 3500, 2600, -13, -20.5),
    'soil': (600, 750, 1000, 1300, 1550, 1750, 1900, 2050, 2250, 2300, 3000, 2500, -12.5, -21.5),
    'rock': (900, 1050, 1250, 1450, 1600, 1700, 1780, 1880, 1950, 2000, 2450, 2200, -11, -19),
    'roof': (850, 950, 1150, 1600, 1800, 1950, 2100, 2250, 2350, 2400, 2600, 2300, -1, -10),
    'metal': (1700, 1950, 2150, 2300, 2400, 2450, 2500, 2600, 2600, 2500, 2400, 2100, 1, -10),
    'asphalt': (750, 800, 870, 940, 1000, 1060, 1120, 1180, 1240, 1280, 1450, 1350, -17, -25),
}


def _graph(weigh: np.ufunc, value: Array, outlets: Ids) -> sparse.coo_array:
    """Neighbouring cells linked with weight weigh(one, other), and the outlets to a last node."""
    cell = np.arange(value.size).reshape(value.shape)
    here = [cell[1:], cell[:, 1:], cell[1:, 1:], cell[1:, :-1], outlets]
    last = np.full(len(outlets), cell.size)
    there = [cell[:-1], cell[:, :-1], cell[:-1, :-1], cell[:-1, 1:], last]
    a, b = (np.concatenate([part.ravel() for part in parts]) for parts in (here, there))
    # as high as the highest outlet, the last node makes streams join before they leave the place
    value = np.append(value, value.flat[outlets].max(initial=0))
    # the small second term leads downhill to the lowest neighbour
    weight = weigh(value[a], value[b]) + 1e-3 * np.minimum(value[a], value[b])
    return sparse.coo_array((weight, (a, b)), (cell.size + 1, cell.size + 1))


def _distance(size: int, start: Array, end: Array) -> tuple[Array, Ids]:
    """Distance of each pixel to the nearest of the segments (K,2) to (K,2), and which one it is."""
    points = np.rint(start + np.linspace(0, 1, 6)[:, None, None] * (end - start)).astype(int)
    points = points.clip(0, size - 1)
    nearest = np.full((size, size), -1)
    nearest[points[..., 0], points[..., 1]] = np.arange(len(start))
    distance, (row, column) = ndimage.distance_transform_edt(nearest < 0, return_indices=True)
    return distance.astype(np.float32), nearest[row, column]


class Landscape:
    """One place, laid layer on layer: each method builds on what the ones before it made.

    Arrays are (H,W) at 10 m, or flat over 30 m cells while the relief forms. Heights are in metres,
    slopes in degrees, lengths on the grid in pixels.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.n = size, size // 3
        self.rng = np.random.default_rng(seed)
        self.grid = np.mgrid[:size, :size].astype(np.float32)
        self.lay_relief()
        self.lay_parcels()
        self.lay_towns()
        self.lay_cover()
        self.lay_materials()

    def noise(self, beta: float, longest: float, n: int = 0) -> Array:
        """Unit-variance fractal field (n,n), power 1/f^beta for wavelengths up to the longest."""
        n = n or self.size
        period = fft.next_fast_len(n + n // 4, real=True)  # it repeats: keep only a part of it
        frequency = np.hypot(fft.fftfreq(period)[:, None], fft.rfftfreq(period)[None])
        amplitude = np.maximum(frequency, 1 / min(longest, period)) ** (-beta / 2)
        white = self.rng.standard_normal((period, period), np.float32)
        field = fft.irfft2(fft.rfft2(white) * amplitude, s=(period, period))[:n, :n]
        return np.asarray((field - field.mean()) / field.std(), np.float32)

    def erode(self) -> tuple[Array, Array, Ids, Array, Mask]:
        """Height, height above water, cell downstream, cells drained and lakes, flat at 30 m.

        Source: slope = uplift * area^-0.45, the steady state of rivers by the stream power law.
        """
        n, rng = self.n, self.rng
        angle = rng.uniform(0, 2 * np.pi)
        tilt = (np.sin(angle) * self.grid[0] + np.cos(angle) * self.grid[1])[:n, :n] / n
        edge = np.flatnonzero(np.pad(np.zeros((n - 2, n - 2), bool), 1, constant_values=True))
        outlets = edge[np.argsort(tilt.flat[edge])[: len(edge) * 2 // 5]]
        uplift = np.exp(rng.uniform(-2.2, -0.4) + 1.1 * self.noise(3.6, 140, n)).clip(0, 1).ravel()
        z = 2 * tilt + 0.6 * self.noise(3, 60, n)
        for _ in range(3):  # each time, rivers run off the relief that the last ones carved
            rough = z + 1.5 * self.noise(2.5, 30, n)
            graph = _graph(np.maximum, rough - rough.min() + 1, outlets)  # weights above zero
            tree = csgraph.minimum_spanning_tree(graph)
            order, down = csgraph.breadth_first_order(tree, n * n, directed=False)
            area, height = np.ones(n * n + 1), np.zeros(n * n + 1)
            for cell in order[:0:-1].tolist():
                area[down[cell]] += area[cell]
            rise = 30 * uplift * area[:-1] ** -0.45
            for cell in order[1:].tolist():
                height[cell] = height[down[cell]] + rise[cell]
            z = ndimage.gaussian_filter(height[:-1].reshape(n, n), 1)
        height[:-1], lake = z.ravel(), np.zeros(n * n + 1, bool)
        large = np.argsort(area[:-1])
        for dam in rng.choice(large[int(0.96 * n * n) : int(0.995 * n * n)], 3):
            basin = np.arange(n * n + 1) == dam
            for cell in order[1:].tolist():
                basin[cell] |= basin[down[cell]]
            flooded = np.flatnonzero(basin)
            flooded = flooded[np.argsort(height[flooded])][: int(rng.uniform(0.004, 0.02) * n * n)]
            lake[flooded], height[flooded] = True, height[flooded].max()
        base, wet = height.copy(), lake | (area > area[large[int(0.97 * n * n)]])
        for cell in order[1:].tolist():
            base[cell] = height[cell] if wet[cell] else min(height[cell], base[down[cell]])
        return height[:-1], (height - base)[:-1], down[:-1], area[:-1], lake[:-1]

    def lay_relief(self) -> None:
        """Elevation, height above water, slope, gradient, and the share of water in each pixel."""
        n, size = self.n, self.size
        height, above, down, area, lake = self.erode()
        bent = self.grid + 2 * np.stack([self.noise(4, 40), self.noise(4, 40)])  # hides the cells

        def draw(cells: npt.NDArray[np.generic], order: int = 1) -> Array:
            field, where = cells.reshape(n, n).astype(np.float32), (bent - 1) / 3
            return np.asarray(ndimage.map_coordinates(field, where, None, order, 'nearest'))

        river = np.flatnonzero((area > np.quantile(area, 0.97)) & (down < n * n))
        start, end = (3.0 * np.stack(np.divmod(cells, n), 1) + 1 for cells in (river, down[river]))
        distance, nearest = _distance(size, start, end)
        width = self.rng.uniform(0.012, 0.03) * np.sqrt(area[river])[nearest] - 0.2
        stream = ndimage.map_coordinates(width - distance, bent, None, 1, 'nearest')
        self.water = np.clip(np.maximum(stream + 0.5, 6 * draw(lake) - 2.5), 0, 1)
        self.above, self.elevation = draw(above), draw(height, 3)
        self.gradient = np.stack(np.gradient(ndimage.gaussian_filter(self.elevation, 1), 10))
        self.slope = np.degrees(np.arctan(np.hypot(*self.gradient)))
        bumps = (0.2 + 0.03 * self.slope) * self.noise(2.5, 60)
        self.elevation += (1 - self.water) * bumps - self.water

    def lay_parcels(self) -> None:
        """Voronoi blocks, each cut into strips of its own direction, each strip into fields."""
        size, rng = self.size, self.rng
        seeds = rng.uniform(-0.1, 1.1, (max(9, round((size / 50) ** 2)), 2)) * size
        bent = self.grid + 2 * np.stack([self.noise(3, 60), self.noise(3, 60)])
        self.block = spatial.cKDTree(seeds).query(bent.transpose(1, 2, 0))[1]
        lot = rng.random((4, len(seeds)))[:, self.block]
        cos, sin = np.cos(np.pi * lot[0]), np.sin(np.pi * lot[0])
        self.across, self.along = bent[0] * cos + bent[1] * sin, bent[1] * cos - bent[0] * sin
        strip = np.floor(self.across / (7 + 15 * lot[1])).astype(int)
        offset = rng.random(997)[(strip * 31 + self.block * 7) % 997]
        field = np.floor(self.along / (14 + 36 * lot[2]) + offset).astype(int)
        _, parcel = np.unique((self.block * 4096 + strip) * 4096 + field, return_inverse=True)
        self.parcel, self.block_luck = parcel.reshape(size, size), lot[3]
        # four numbers drawn for each parcel, seen at its pixels
        self.luck = rng.random((4, parcel.max() + 1), np.float32)[:, self.parcel]

    def lay_towns(self) -> None:
        """How urban each pixel is (0 to 1), and its distance to a main road in pixels."""
        n, size, rng = self.n, self.size, self.rng
        site = self.noise(3, 80) - self.slope / 3 - self.above / 30 - 9 * self.water
        self.urban, ends = np.zeros((size, size), np.float32), []
        ragged = np.exp(0.6 * self.noise(2.5, 50))
        for radius in rng.uniform(0.04, 0.11, rng.integers(3, 6)) * size:
            row, column = divmod(int(site.argmax()), size)
            ends.append(row // 3 * n + column // 3)
            away = (self.grid[0] - row) ** 2 + (self.grid[1] - column) ** 2
            self.urban = np.maximum(self.urban, np.exp(-away / radius**2 * ragged))
            site[away < (size / 4) ** 2] -= 9
        effort = (1 + self.slope**2 / 16 + 15 * self.water)[1::3, 1::3] + 0.3 * rng.random((n, n))
        ways = _graph(np.add, effort, np.array([], int))
        _, back = csgraph.dijkstra(ways, False, ends[0], return_predecessors=True)
        lines = []
        for cell in [*ends[1:], *rng.integers(0, n, 2), *(n * rng.integers(1, n, 2) - 1)]:
            path = [int(cell)]
            while back[path[-1]] >= 0:
                path.append(int(back[path[-1]]))
            line = np.stack(np.divmod(path, n), 1) * 3.0 + 1
            lines.append(ndimage.gaussian_filter1d(line, 2, axis=0, mode='nearest'))
        start, end = ([line[:-1] for line in lines], [line[1:] for line in lines])
        self.road = _distance(size, np.concatenate(start), np.concatenate(end))[0]

    def lay_cover(self) -> None:
        """The land cover, an index into CLASSES; in gentle terrain it follows the parcels."""

        def by_parcel(field: Array) -> Array:
            sums = np.bincount(self.parcel.ravel(), field.ravel())
            return (sums / np.bincount(self.parcel.ravel()))[self.parcel].astype(np.float32)

        luck, block_luck, rng = self.luck, self.block_luck, self.rng
        # ground that rises to the south is a north face, and colder
        slope, south = ndimage.gaussian_filter(np.stack([self.slope, self.gradient[0]]), (0, 4, 4))
        height = self.elevation / max(120.0, float(np.ptp(self.elevation)))
        wild = slope / 9 + 0.8 * self.noise(3, 110) + rng.uniform(-0.8, 0)
        wild = np.where(slope < 7, by_parcel(wild), wild)
        cold = height + 0.3 * self.noise(3, 110) + 0.2 * luck[0] + 1.5 * south + rng.normal(0, 0.15)
        meadow = by_parcel(slope) / 5 - np.log1p(by_parcel(self.above)) / 3 + luck[1]
        town = by_parcel(self.urban)
        cover = np.where(meadow > rng.uniform(0.3, 1), GRASS, CROP)
        cover[(block_luck > 0.8) & (slope < 9) & (luck[2] > 0.25)] = ORCHARD
        cover[wild > 0.7] = np.where(cold > 0.62, CONIFER, BROADLEAF)[wild > 0.7]
        cover[slope / 14 + height + 0.6 * self.noise(3, 80) > 2.8] = BARE
        cover[(np.abs(block_luck - 0.5) < 0.03) & (luck[2] > 0.2)] = BARE
        cover[(town > 0.4) & (slope < 12)] = BUILT
        cover[(town > 0.12) & (town < 0.8) & (block_luck < 0.3) & (slope < 8)] = INDUSTRY
        cover[self.water > 0.5] = WATER
        cover[self.road < 1] = INDUSTRY
        self.cover = cover

    def lay_materials(self) -> None:
        """Fraction of each of MATERIALS in each pixel, (M,H,W)."""
        luck, rng, cover = self.luck, self.rng, self.cover
        fine, coarse = self.noise(1, 12), self.noise(2.5, 60)
        sown = np.array([0, 0.1, 0.3, 0.4, 0.55, 0.7])[(luck[0] * 6).astype(int)]  # share of a year
        age = rng.uniform(0, 0.7) - sown + 0.05 * luck[1] + 0.02 * coarse
        green, ripe = np.exp(-((age / 0.13) ** 2)), np.exp(-(((age - 0.22) / 0.09) ** 2))
        dry = rng.uniform(0, 0.4) + 0.1 * coarse + 0.4 * luck[1] ** 2 + 0.05 * fine
        rows = 0.5 + 0.5 * np.sin(2 * np.pi * self.across / (2.6 + 1.6 * luck[2]))
        trees = np.clip(rows * (0.5 + 0.5 * luck[3]) + 0.15 * fine, 0, 1)
        gaps = 1 - trees
        conifer = np.where(cover == CONIFER, 0.75, 0.2) + 0.1 * coarse + 0.1 * fine
        street = (self.across % 9 < 1.3) | (self.along % 13 < 1.3) | (self.road < 1)
        house = ~street & (rng.random(cover.shape) < 0.35 + 0.25 * luck[0])
        yard = ~street * (1.2 - house)
        hall = ~street & (luck[1] + 0.15 * coarse > 0.35) & (self.along % 13 > 4)
        rock = 0.5 + 0.3 * coarse + 0.15 * fine
        recipe: list[tuple[int, str, npt.ArrayLike]] = [
            (WATER, 'water', 1 - 0.3 * dry), (WATER, 'silt', rng.uniform(0, 0.8) + 0.1 * coarse),
            (BROADLEAF, 'broad', 1 - conifer), (BROADLEAF, 'conifer', conifer),
            (CONIFER, 'broad', 1 - conifer), (CONIFER, 'conifer', conifer),
            (GRASS, 'grass', 1 - dry), (GRASS, 'straw', 0.7 * dry), (GRASS, 'soil', 0.3 * dry),
            (GRASS, 'broad', fine + 0.5 * coarse - 1.6 + luck[2]), (CROP, 'straw', ripe),
            (CROP, 'green', green * luck[2]), (CROP, 'grass', green * (1 - luck[2])),
            (CROP, 'soil', 1 - green - ripe), (ORCHARD, 'broad', trees),
            (ORCHARD, 'grass', gaps * luck[0]), (ORCHARD, 'soil', gaps * (1 - luck[0])),
            (BARE, 'rock', rock), (BARE, 'soil', 1 - rock), (BARE, 'grass', -0.4 - fine - coarse),
            (BUILT, 'asphalt', street), (BUILT, 'roof', 0.8 * house), (BUILT, 'metal', 0.1 * house),
            (BUILT, 'grass', yard * (1 - dry)), (BUILT, 'soil', yard * dry),
            (BUILT, 'broad', ~street * (fine - 0.5)), (INDUSTRY, 'metal', hall * luck[3]),
            (INDUSTRY, 'roof', hall * (1 - luck[3])), (INDUSTRY, 'asphalt', 0.8 * ~hall),
            (INDUSTRY, 'soil', 0.4 * ~hall * ~street),
        ]  # fmt: skip
        names = list(MATERIALS)
        mix = np.full((len(names), *cover.shape), 1e-3, np.float32)
        for index, name, share in recipe:
            mix[names.index(name)] += (cover == index) * np.clip(share, 0, 1)
        track = ndimage.maximum_filter(self.block, 2) != ndimage.minimum_filter(self.block, 2)
        mix[names.index('asphalt')] += 0.5 * (track & np.isin(cover, (GRASS, CROP, ORCHARD)))
        self.mix = mix / mix.sum(0)
