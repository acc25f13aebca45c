"""Made-up SSL4EO-S12 in each of its layouts, all from one truth.

Source: https://github.com/DLR-MF-DAS/SSL4EO-S12-v1.1 (README.md, zarr_dataset.py,
ssl4eos12_dataset.py) for names, dimensions, types and attributes, and torchgeo's SSL4EOS12 for
version 1.0.
"""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import rasterio
import zarr
from rasterio.transform import from_origin
from zarr.storage import MemoryStore

DATES = 4
BANDS = {
    'S2L1C': ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B10', 'B11',
              'B12'),
    'S2L2A': ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12'),
    'S1GRD': ('vv', 'vh'),
    'S2RGB': ('R', 'G', 'B'),
    'NDVI': ('NDVI',),
    'DEM': ('DEM',),
}  # fmt: skip
OPTICAL = ('S2L1C', 'S2L2A', 'S2RGB', 'NDVI')
CHUNK_FOLDERS = ('S2L1C', 'S2L2A', 'S1GRD', 'S2RGB')
NANOSECONDS = {'units': 'nanoseconds since 1970-01-01', 'calendar': 'proleptic_gregorian'}

Truth = dict[str, np.ndarray]


def ground(places: int, size: int, seed: int = 0) -> np.ndarray:
    """What all modalities show, (place, date, y, x), 0..1."""
    return np.random.default_rng(seed).random((places, DATES, size, size))


def make_truth(places: int = 3, size: int = 48, seed: int = 0) -> Truth:
    """Images by folder, (place, date, band, y, x), Sentinel-2 without the offset."""
    shown = ground(places, size, seed)[:, :, None]
    truth = {}
    for folder, bands in BANDS.items():
        steps = np.arange(len(bands))[:, None, None]
        if folder in ('S2L1C', 'S2L2A'):
            values = np.rint(100 + 3000 * shown + 10 * steps).astype(np.int16)
            if 'B10' in bands:
                values[:, :, bands.index('B10')] = np.rint(5 + 20 * shown[:, :, 0])
            truth[folder] = values
        elif folder == 'S1GRD':
            truth[folder] = (-25 + 20 * shown - 5 * steps).astype(np.float16)
        elif folder == 'S2RGB':
            truth[folder] = np.rint(255 * np.repeat(shown, 3, 2)).astype(np.uint8)
        elif folder == 'NDVI':
            truth[folder] = (2 * shown - 1).astype(np.float32)
        else:
            truth[folder] = (3000 * shown[:, :1]).astype(np.float32)
    return truth


def stored(images: np.ndarray, folder: str, offset: bool) -> np.ndarray:
    """Values as they lie in a file: Sentinel-2 1000 higher where it has data."""
    if not offset or folder not in ('S2L1C', 'S2L2A'):
        return images
    return np.where((images == 0).all(-3, keepdims=True), images, images + 1000).astype(np.int16)


def zarr_zip(arrays: Mapping[str, tuple], zarr_format: int = 2) -> bytes:
    """A zip with a Zarr group of {name: (dimensions, values, chunks or None, attributes)}."""
    members: dict = {}
    store = MemoryStore(members)
    group = zarr.open_group(store, mode='w', zarr_format=zarr_format)
    for name, (dimensions, values, chunks, attributes) in arrays.items():
        values = np.asarray(values)
        names = {'attributes': {**attributes, '_ARRAY_DIMENSIONS': list(dimensions)}}
        if zarr_format == 3:
            names = {'attributes': dict(attributes), 'dimension_names': list(dimensions)}
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=chunks or values.shape or 'auto',
            fill_value=None if zarr_format == 2 else 0 if values.dtype.kind != 'U' else '',
            config={'write_empty_chunks': True}, **names,
        )  # fmt: skip
        array[...] = values
    if zarr_format == 2:
        zarr.consolidate_metadata(store)
    packed = io.BytesIO()
    with ZipFile(packed, 'w') as archive:
        for name, value in members.items():
            archive.writestr(name, value.to_bytes())
    return packed.getvalue()


def times(places: int) -> np.ndarray:
    """Nanoseconds since 1970, (place, date): a season apart."""
    start = np.datetime64('2020-03-01T10:00', 'ns').astype(np.int64)
    season = 91 * 86400 * 10**9
    return start + season * np.arange(DATES) + 10**9 * np.arange(places)[:, None]


def write_chunk_files(
    root: Path,
    truth: Truth,
    split: str = 'train',
    folders: Sequence[str] = CHUNK_FOLDERS,
    places_per_file: int = 2,
    places_per_chunk: int = 1,
    zarr_format: int = 2,
    offset: bool = True,
) -> list[str]:
    """Write the form of embed2scale/SSL4EO-S12-v1.1-Zarr; returns the names of the files."""
    count, size = len(truth['S2L2A']), truth['S2L2A'].shape[-1]
    names = []
    for number, start in enumerate(range(0, count, places_per_file), 1):
        part = slice(start, min(start + places_per_file, count))
        ids = [f'{7 * i + 173:07d}' for i in range(part.start, part.stop)]
        n = len(ids)
        names.append(f'ssl4eos12_{split}_seasonal_data_{number:06d}.zarr.zip')
        for folder in folders:
            images = stored(truth[folder][part], folder, offset)
            chunks = (min(places_per_chunk, n), 1, *images.shape[2:])
            st, sty, stx = ('sample', 'time'), ('sample', 'y'), ('sample', 'x')
            grid = 10.0 * np.arange(size) + np.zeros((n, 1))
            arrays = {
                'bands': ((*st, 'band', 'y', 'x'), images, chunks, {}),
                'center_lat': (('sample',), np.linspace(-30, 40, n), None, {}),
                'center_lon': (('sample',), np.linspace(10, 20, n), None, {}),
                'crs': (('sample',), np.full(n, 32633), None, {}),
                'time_': (st, times(count)[part], None, NANOSECONDS),
                'file_id': (st, np.array([[f'{i}T{t}' for t in range(4)] for i in ids]), None, {}),
                'sample_id': (st, np.array([[f'{i}_{t}' for t in range(4)] for i in ids]), None,
                              {}),
                'x_': (stx, 500000 + grid, None, {}),
                'y_': (sty, 4000000 - grid, None, {}),
                'band': (('band',), np.array(BANDS[folder]), None, {}),
                'sample': (('sample',), np.array(ids), None, {}),
                'time': (('time',), np.arange(DATES), None, {}),
                'x': (('x',), np.arange(size), None, {}),
                'y': (('y',), np.arange(size), None, {}),
            }  # fmt: skip
            if folder in OPTICAL:
                clouds = np.zeros((n, DATES, size, size), np.uint8)
                arrays['cloud_mask'] = ((*st, 'y', 'x'), clouds, None, {})
            path = root / split / folder / names[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(zarr_zip(arrays, zarr_format))
    (root / 'splits').mkdir(exist_ok=True)
    (root / 'splits' / f'ssl4eos12_{split}.txt').write_text('\n'.join(names) + '\n')
    return names


def member(images: np.ndarray, folder: str, place: int, zarr_format: int = 2) -> bytes:
    """The zip of one place of a tar shard; images (date, band, y, x)."""
    size = images.shape[-1]
    time = times(place + 1)[place] if len(images) == DATES else np.zeros(len(images), np.int64)
    arrays = {
        'bands': (('time', 'band', 'y', 'x'), images, (1, *images.shape[1:]), {}),
        'center_lat': ((), np.float64(place), None, {}),
        'center_lon': ((), np.float64(place), None, {}),
        'crs': ((), np.int64(32633), None, {}),
        'time': (('time',), time, None, NANOSECONDS),
        'band': (('band',), np.array(BANDS[folder]), None, {}),
        'x': (('x',), 500000 + 10.0 * np.arange(size), None, {}),
        'y': (('y',), 4000000 - 10.0 * np.arange(size), None, {}),
    }
    if folder in OPTICAL:
        clouds = np.zeros((len(images), size, size), np.uint8)
        arrays['cloud_mask'] = (('time', 'y', 'x'), clouds, None, {})
    return zarr_zip(arrays, zarr_format)


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write members as ``<key>.zarr.zip``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as archive:
        for key, content in members.items():
            info = tarfile.TarInfo(f'{key}.zarr.zip')
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def place_key(place: int, split: str = 'train') -> str:
    """Key of a place in tar shards."""
    return f'ssl4eos12_{split}_seasonal_data_{place + 1:07d}'


def write_shards(
    root: Path,
    truth: Truth,
    split: str = 'train',
    folders: Sequence[str] = tuple(BANDS),
    places_per_file: int = 2,
    zarr_format: int = 2,
    offset: bool = False,
    absent: Sequence[tuple[str, int]] = (),
) -> list[str]:
    """Write the form of embed2scale/SSL4EO-S12-v1.1; `absent`: (folder, place) left out."""
    count = len(truth['S2L2A'])
    names = []
    for number, start in enumerate(range(0, count, places_per_file), 1):
        names.append(f'ssl4eos12_shard_{number:06d}.tar')
        for folder in folders:
            members = {
                place_key(i, split): member(
                    stored(truth[folder][i], folder, offset), folder, i, zarr_format
                )
                for i in range(start, min(start + places_per_file, count))
                if (folder, i) not in absent
            }
            write_tar(root / split / folder / names[-1], members)
    return names


def write_v10(root: Path, places: int = 1, size: int = 33) -> np.ndarray:
    """Write version 1.0: a folder a place and date, a GeoTIFF a band; returns what it shows."""
    shown = ground(places, size)
    bands = {'s2c': BANDS['S2L1C'], 's1': ('VV', 'VH')}
    days = ('20200301T100000', '20200601T100000', '20200901T100000', '20201201T100000')
    for split, names in bands.items():
        for place in range(places):
            for date, day in enumerate(days):
                name = f'S1A_IW_GRDH_1SDV_{day}_x' if split == 's1' else f'{day}_{day}_T33UUP'
                folder = root / split / f'{place:07d}' / name
                folder.mkdir(parents=True)
                for step, band in enumerate(names):
                    values = 100 + 3000 * shown[place, date] + 10 * step
                    if split == 's1':
                        values = -25 + 20 * shown[place, date] - 5 * step
                    band = band.replace('B0', 'B')
                    with rasterio.open(
                        folder / f'{band}.tif', 'w', driver='GTiff', count=1, height=size,
                        width=size, dtype='float32' if split == 's1' else 'uint16',
                        crs='EPSG:32633', transform=from_origin(5e5, 5e6, 80, 80),
                    ) as target:  # fmt: skip
                        target.write(np.rint(values) if split != 's1' else values, 1)
    return shown
