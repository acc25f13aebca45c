"""Seeded landscapes: co-registered tiles of every modality from one terrain model, no download.

The fractions of materials that `gfm_jepa.data.landscapes` lays give optical spectra and radar
backscatter alike. Light, haze and season differ by place and classes share materials, so the mean
colour of a chip does not give its class away: texture, context and other modalities have to help.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.transform import from_origin
from scipy import ndimage

from ..errors import InputError
from .landscapes import BUILT, CROP, MATERIALS, Array, Landscape

S2_BANDS = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12')
WAVELENGTHS = np.array((443, 490, 560, 665, 705, 740, 783, 842, 865, 945, 1610, 2190))  # nm
NATIVE = (6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 2, 2)  # what a band really resolves, in 10 m pixels
FILES: dict[str, tuple[str, tuple[str, ...], float | None]] = {  # key of synthesize, bands, nodata
    'RGB.tif': ('rgb', ('red', 'green', 'blue'), None),
    'S2L2A.tif': ('s2_l2a', S2_BANDS, 0),
    'S1RTC.tif': ('s1', ('VV', 'VH'), np.nan),
    'NDVI.tif': ('ndvi', ('ndvi',), np.nan),
    'DEM.tif': ('dem', ('elevation',), np.nan),
    'LULC.tif': ('lulc', ('lulc',), 255),
}
# contrast of brightness from pixel to pixel, by class: crowns and roofs are rough, fields smooth
ROUGHNESS = np.array((0.02, 0.16, 0.13, 0.04, 0.04, 0.08, 0.12, 0.14, 0.10), np.float32)


def _see_optical(place: Landscape) -> Array:
    """Sentinel-2 digital numbers (12,H,W): sun and shade, haze, clouds, sensor."""
    rng, size = place.rng, place.size
    spectra = np.array([values[:12] for values in MATERIALS.values()], float)
    spectra *= rng.normal(1, 0.15, (len(spectra), 1)) * rng.normal(1, 0.06, spectra.shape)
    height, azimuth = np.radians(rng.uniform(28, 62)), np.radians(rng.uniform(140, 185))
    sun = np.array([-np.cos(azimuth), np.sin(azimuth)]) * np.cos(height)  # to the south, east
    facing = np.sin(height) - np.tensordot(sun, place.gradient, 1)
    facing = facing / np.sqrt(1 + (place.gradient**2).sum(0)) / np.sin(height)
    light = rng.uniform(0.85, 1.15) * (0.3 + 0.7 * np.clip(facing, 0, 2))
    light *= np.clip(1 + ROUGHNESS[place.cover] * place.noise(0.7, 10), 0.3, None)
    cloud = place.noise(3.4, 120) + 0.25 * place.noise(2.2, 40) - rng.uniform(1, 3)
    cloud = 0.95 * (1 - np.exp(-2 * np.clip(ndimage.gaussian_filter(cloud, 1), 0, None)))
    away = -sun / np.sin(height) * rng.uniform(40, 90)
    shadow = ndimage.gaussian_filter(ndimage.shift(cloud, away, order=1), 1.5)
    light *= 1 - 0.65 * np.sqrt(shadow)
    haze = rng.uniform(0, 450) * (WAVELENGTHS / 443) ** -2.5
    veil = 1 + 0.15 * place.noise(3, 300)
    bands = np.empty((12, size, size), np.float32)
    for band, (native, values) in enumerate(zip(NATIVE, spectra.T, strict=True)):
        seen = np.tensordot(values.astype(np.float32), place.mix, 1) * light + haze[band] * veil
        seen += cloud * (6800 - 0.9 * WAVELENGTHS[band] - seen)
        seen = ndimage.gaussian_filter(ndimage.uniform_filter(seen, native), 0.5)
        noise = rng.standard_normal((size, size), np.float32)
        bands[band] = seen * (1 + 0.01 * noise) + 8 * noise
    return bands


def _see_radar(place: Landscape) -> Array:
    """Sentinel-1 backscatter VV and VH in dB, (2,H,W), with four looks of speckle."""
    rng, cover = place.rng, place.cover
    power = np.array([values[12:] for values in MATERIALS.values()], float)
    power = 10 ** ((power + rng.normal(0, 0.8, power.shape)) / 10)
    extra = 8 * np.tanh(1.2 * rng.choice([-1, 1]) * place.gradient[1])  # what RTC leaves, dB
    extra += 4 * (place.luck[3] - 0.5) * (cover == CROP)  # moisture and ploughing of a field
    corners = np.where(cover == BUILT, rng.exponential(1, cover.shape), 1) * 10 ** (extra / 10)
    seen = np.tensordot(power.T, place.mix, 1) * corners + 10**-2.9  # the noise of the receiver
    return np.asarray(10 * np.log10(seen * rng.gamma(4.4, 1 / 4.4, seen.shape)), np.float32)


def _check(size: int, seed: int) -> None:
    if size < 96 or size % 3:
        raise InputError(
            f'size is {size} pixels, but a 30 m DEM needs a multiple of 3 and a town at least 96: '
            f'pass for example size={max(96, round(size / 3) * 3)}.'
        )
    if seed < 0:
        raise InputError(f'seed is {seed}, but it must be 0 or more: pass for example seed=0.')


def synthesize(size: int, seed: int) -> dict[str, npt.NDArray[np.generic]]:
    """Draw one place of size x size pixels of 10 m.

    Returns:
        'rgb' (3,H,W) uint8; 's2_l2a' (12,H,W) uint16, reflectance x 10000; 's1' (2,H,W) float32,
        dB; 'ndvi' (1,H,W) float32; 'dem' (1,H/3,W/3) float32, metres at 30 m; 'lulc' (H,W) uint8,
        an index into CLASSES, also below clouds.

    Raises:
        InputError: The size is under 96 or not a multiple of 3, or the seed is negative.
    """
    _check(size, seed)
    place = Landscape(size, seed)
    s2 = _see_optical(place).clip(1, 16000).round().astype(np.uint16)  # 0 is nodata
    red, nir = s2[3].astype(np.float32), s2[7].astype(np.float32)
    return {
        'rgb': (s2[[3, 2, 1]] / 2750 * 255).clip(0, 255).round().astype(np.uint8),
        's2_l2a': s2,
        's1': _see_radar(place),
        'ndvi': ((nir - red) / (nir + red))[None],
        'dem': place.elevation.reshape(1, size // 3, 3, size // 3, 3).mean((2, 4)),
        'lulc': place.cover.astype(np.uint8),
    }


@dataclass(frozen=True)
class SyntheticLandscapes:
    """Folders of co-registered GeoTIFFs: root/place_000/RGB.tif and the rest of FILES.

    Places lie side by side in UTM zone 32N and never overlap. Place i depends on the seed and i
    only, so that a larger num_places adds places to a root and leaves the old ones as they are.

    Args:
        root: Folder to write to; made when missing.
        num_places: How many places.
        size: Width and height of a place in pixels of 10 m.
        seed: Same seed, same bytes, as long as the numerical libraries are the same.

    Raises:
        InputError: A value is out of range, or root holds places of another seed or size.
    """

    root: str | Path
    num_places: int = 8
    size: int = 480
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.size, self.seed)
        if self.num_places < 1:
            raise InputError(
                f'num_places is {self.num_places}, but it must be at least 1: pass num_places=1.'
            )

    def write(self, progress: bool = False) -> list[Path]:
        """Write the places that are not there yet and return the folders of all of them.

        Each place is written aside and renamed, so that a killed run leaves no half place.
        """
        root = self._claimed_root()
        places = [root / f'place_{index:03d}' for index in range(self.num_places)]
        for index, place in enumerate(places):
            if all((place / name).is_file() for name in FILES):
                continue
            partial = root / f'.{place.name}.partial'
            for leftover in (partial, place):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            self._write_place(partial, index)
            partial.rename(place)
            if progress:
                print(f'{place} ({index + 1} of {self.num_places})', flush=True)
        return places

    def _claimed_root(self) -> Path:
        """The root, with landscapes.json in it to say whose places these are."""
        root = Path(self.root)
        note, partial = root / 'landscapes.json', root / '.landscapes.json.partial'
        wanted = {'size': self.size, 'seed': self.seed, 'num_places': self.num_places}
        if note.is_file():
            try:
                found = json.loads(note.read_text())
                found = {key: found[key] for key in wanted}
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f'{note} is broken ({error}); delete {root}, or give another folder.'
                ) from error
            if (found['size'], found['seed']) != (self.size, self.seed):
                raise InputError(
                    f'{root} holds landscapes of size {found["size"]} and seed {found["seed"]}, '
                    f'not of size {self.size} and seed {self.seed}: give another root or delete it.'
                )
            wanted['num_places'] = max(self.num_places, found['num_places'])
        elif root.exists() and (not root.is_dir() or set(root.iterdir()) - {partial}):
            raise InputError(
                f'{root} is not an empty folder and has no landscapes.json: give a new folder.'
            )
        root.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(wanted) + '\n')
        partial.replace(note)
        return root

    def _write_place(self, folder: Path, index: int) -> None:
        """Draw place number index and write its files into the folder."""
        seed = np.random.SeedSequence([self.seed, index]).generate_state(1)
        arrays = synthesize(self.size, int(seed[0]))
        pitch = self.size * 10 + 1200  # metres; a gap keeps neighbours apart
        row, column = divmod(index, max(1, 400_000 // pitch))  # stay inside the zone
        for name, (key, bands, nodata) in FILES.items():
            array = arrays[key].reshape(len(bands), *arrays[key].shape[-2:])
            width = array.shape[-1]
            gsd = 10 * self.size / width
            layout = {'tiled': True, 'blockxsize': 256, 'blockysize': 256} if width >= 256 else {}
            with rasterio.open(
                folder / name, 'w', driver='GTiff', crs='EPSG:32632', dtype=array.dtype,
                count=len(bands), height=width, width=width, nodata=nodata, compress='deflate',
                transform=from_origin(300_000 + column * pitch, 5_500_000 - row * pitch, gsd, gsd),
                **layout,
            ) as file:  # fmt: skip
                file.write(array)
                file.descriptions = bands
