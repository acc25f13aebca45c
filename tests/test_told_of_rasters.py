"""What files, sidecars and the command line say of rasters, and who is believed."""

import geopandas
import numpy as np
import pytest
import rasterio
import torch
import zarr
from affine import Affine
from conftest import sensor
from rasterio.enums import ColorInterp
from test_mixed_archive import s2, utm, write

from gfm_jepa import InputError
from gfm_jepa.data import Rasters, RastersDataModule
from gfm_jepa.data.chips import ChipFilter
from gfm_jepa.data.index import IndexSettings, modalities_of, write_index
from gfm_jepa.data.sidecars import Facts
from gfm_jepa.data.splits import SplitRule, assign_splits
from gfm_jepa.modalities import DEM, S2_L2A, Modality

AERIAL = Modality(
    'aerial', ('red', 'green', 'blue', 'nir'), 10.0, 'DN', mean=(100.0,) * 4, std=(50.0,) * 4,
    source='made up',
)  # fmt: skip


def indexed(tmp_path, modalities, **more):
    write_index([str(tmp_path)], tmp_path / 'x.parquet', IndexSettings(modalities, **more))
    return geopandas.read_parquet(tmp_path / 'x.parquet')


def test_what_files_say_goes_before_the_command_line(tmp_path):
    relief = np.full((1, 96, 96), 100.0)
    relief[:, :48] = -9999
    relief[:, 48:72] = 0
    write(tmp_path / 'DEM.tif', relief, utm(), nodata=-9999)
    values = s2(0, bands=3) % 200
    values[:, :10] = 0
    path = write(tmp_path / 'named/sensor.tif', values, utm(), dtype='uint8')
    with rasterio.open(path, 'r+') as file:
        file.descriptions = ('B3', 'B2', 'B1')
    write(tmp_path / 'unnamed/sensor.tif', values, utm(), dtype='uint8')
    said = Facts(bands=('B2', 'B3', 'B1'), nodata=0.0)
    table = indexed(tmp_path, (sensor(), DEM), said=said)
    assert len(table) == 3
    chips = Rasters([tmp_path / 'x.parquet'], [sensor(), DEM]).file_chips
    by_name = {c.file.path.split('/')[-2]: c.file for c in chips}
    assert by_name['named'].band_ids == (3, 2, 1)
    assert by_name['unnamed'].band_ids == (3, 1, 2)
    assert by_name['named'].nodata == by_name['unnamed'].nodata == 0
    relief = next(c for c in chips if c.file.modality == DEM)
    assert relief.file.nodata == -9999 and relief.valid_share == 0.5


def test_a_fourth_band_of_eight_bits_is_alpha_only_where_nobody_says_otherwise(tmp_path):
    values = s2(0, (64, 64), 4) % 200 + 1
    values[3, :32] = 0  # water is dark in the near infrared
    for folder, names in (('a', ('red', 'green', 'blue', 'nir')), ('b', None)):
        path = write(tmp_path / folder / 'aerial.tif', values, utm(), dtype='uint8')
        with rasterio.open(path, 'r+') as file:
            assert file.colorinterp[3] is ColorInterp.alpha  # as GDAL has it
            if names:
                file.descriptions = names
        chip = Rasters([tmp_path / folder], [AERIAL], chip_size=64)[0]['aerial']
        assert torch.equal(chip, torch.from_numpy(values).float()), folder
    # A mask beside the four bands holds.
    path = write(tmp_path / 'f/aerial.tif', values, utm(), dtype='uint8')
    mask = np.full((64, 64), 255, 'uint8')
    mask[:, :20] = 0
    with rasterio.open(path, 'r+') as file:
        file.descriptions = ('red', 'green', 'blue', 'nir')
        file.write_mask(mask)
    chip = Rasters([path], [AERIAL], chip_size=64)[0]['aerial']
    assert chip[:, :, :20].isnan().all() and chip[:, :, 20:].isfinite().all()
    # Warped, too: by GDAL's reading of the fourth band the dark half would not be there.
    turned = utm() @ Affine.rotation(20)
    path = write(tmp_path / 'c/aerial.tif', values, turned, dtype='uint8')
    with rasterio.open(path, 'r+') as file:
        file.descriptions = ('red', 'green', 'blue', 'nir')
    data = Rasters([tmp_path / 'c'], [AERIAL], chip_size=64)
    middle = data[0]['aerial'][:, 28:36, 28:36]
    assert middle.isfinite().all() and (middle[3] < 20).any()
    # Alpha is what says so, what is of 0 and 255 alone, and what a sensor of three bands has more.
    border = values.copy()
    border[3] = np.where(np.arange(64)[:, None] < 32, 0, 255)
    write(tmp_path / 'e/aerial.tif', border, utm(), dtype='uint8')
    chip = Rasters([tmp_path / 'e'], [AERIAL], chip_size=64)[0]['aerial']
    assert chip[:, :32].isnan().all() and chip[:3, 32:].isfinite().all() and chip[3].isnan().all()
    for name in ('Band_4', 'Alpha channel'):
        path = write(tmp_path / f'{name}/rgb.tif', values, utm(), dtype='uint8')
        with rasterio.open(path, 'r+') as file:
            file.descriptions = ('Band_1', 'Band_2', 'Band_3', name)
        assert Rasters([path], modalities_of(['rgb']), chip_size=64)[0]['rgb'][:, :32].isnan().all()
    rgb = Modality('rgbx', ('red', 'green', 'blue'), 10.0, 'DN', mean=(1.0,) * 3, std=(1.0,) * 3,
                   source='made up')  # fmt: skip
    write(tmp_path / 'd/rgbx.tif', values, utm(), dtype='uint8')
    chip = Rasters([tmp_path / 'd'], [rgb], chip_size=64)[0]['rgbx']
    assert chip.shape[0] == 3 and chip[:, :32].isnan().all() and chip[:, 32:].isfinite().all()


def test_bands_that_are_called_nothing_known_are_named_by_the_command_line(tmp_path):
    path = write(tmp_path / 'sensor.tif', s2(0, bands=3), utm(), dtype='float32', nodata=np.nan)
    with rasterio.open(path, 'r+') as file:
        file.descriptions = ('Band_1', 'Band_2', 'Band_3')
    said = Facts(bands=('B3', 'B2', 'B1'), nodata=-9999.0)
    indexed(tmp_path, (sensor(),), said=said)
    (chips,) = Rasters([tmp_path / 'x.parquet'], [sensor()]).file_chips
    assert chips.file.band_ids == (3, 2, 1) and chips.file.nodata == -9999


def test_one_band_files_with_alpha_are_one_product(tmp_path):
    for i, name in enumerate(('B1', 'B2', 'B3')):
        path = write(tmp_path / f'sensor_{name}.tif', s2(i, bands=2), utm(), dtype='uint16')
        with rasterio.open(path, 'r+') as file:
            file.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
    data = Rasters([tmp_path], [sensor()], chip_size=96)
    assert data[0]['sensor'].shape == (3, 96, 96) and not data.left_out


def test_tiles_that_are_called_like_bands_are_rasters_of_their_own(tmp_path):
    for i, name in enumerate(('A1', 'B1', 'B2')):
        write(tmp_path / f'sensor_{name}.tif', s2(i, bands=3), utm(5e5 + 960 * i), dtype='uint16')
    for i, name in enumerate(('B1', 'B2')):
        write(tmp_path / f'DEM_{name}.tif', s2(i, bands=1), utm(5e5 + 960 * i))
    data = Rasters([tmp_path], [sensor(), *modalities_of([])], chip_size=96)
    files = {name for i in range(len(data)) for name in data.files(i)}
    assert len(files) == 5 and not data.left_out


def test_each_chip_has_the_cloud_mask_that_shows_it(tmp_path):
    for i, (name, cloud) in enumerate((('T1', 0), ('T2', 1))):
        ground = utm(5e5 + 900 * i)  # the tiles overlap by six pixels
        write(tmp_path / f'{name}_S2L2A.tif', s2(i), ground, dtype='uint16')
        write(tmp_path / f'{name}_CLOUDMASK.tif', np.full((1, 96, 96), cloud), ground,
              dtype='uint8')  # fmt: skip
    table = indexed(tmp_path, (S2_L2A,))
    rows = table[table.modality == 's2_l2a'].sort_values('file')
    assert rows.cloud_share.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ('fields', 'told'),
    [
        ({'end': '2019-6-30'}, 'give a day'),
        ({'max_cloud': 20}, 'share from 0 to 1'),
        ({'start': '2019-02-01', 'end': '20190131'}, 'swap them'),
    ],
)
def test_a_filter_that_would_filter_nothing_is_refused(fields, told):
    with pytest.raises(InputError, match=told):
        ChipFilter(**fields)


def test_days_without_dashes_compare_as_days():
    assert ChipFilter(end='20190630').end == '2019-06-30'


def test_zarr_says_what_was_never_written_and_a_group_speaks_for_arrays_it_fits(tmp_path):
    group = zarr.open_group(tmp_path / 'sensor.zarr', mode='w', zarr_format=3)
    group.attrs.update(crs='EPSG:32633', transform=list(utm())[:6], bands=['B3', 'B2', 'B1'])
    cube = group.create_array('cube', shape=(3, 96, 96), chunks=(3, 48, 48), dtype='int16',
                              fill_value=-9999)  # fmt: skip
    cube[:, :48, :48] = s2(0, (48, 48), 3)
    mask = group.create_array('mask', shape=(96, 96), chunks=(96, 96), dtype='uint8')
    mask[:] = 1
    assert len(indexed(tmp_path, (sensor(),))) == 1
    chip = Rasters([tmp_path / 'x.parquet'], [sensor()])[0]['sensor']
    assert chip[:, :48, :48].isfinite().all() and int(chip.isfinite().sum()) == 3 * 48 * 48


def test_a_damaged_chunk_is_one_sentence(tmp_path):
    group = zarr.open_group(tmp_path / 'sensor.zarr', mode='w', zarr_format=2)
    group.attrs.update(crs='EPSG:32633', transform=list(utm())[:6])
    from numcodecs import GZip

    cube = group.create_array('cube', shape=(3, 96, 96), chunks=(3, 96, 96), dtype='float32',
                              compressors=GZip())  # fmt: skip
    cube[:] = s2(0, (96, 96), 3)
    data = Rasters([tmp_path], [sensor()], chip_size=96)
    chunk = tmp_path / 'sensor.zarr/cube/0.0.0'
    chunk.write_bytes(chunk.read_bytes()[:500])
    with pytest.raises(InputError, match=r'sensor.zarr cannot be read'):
        data[0]
    (tmp_path / 'sensor.zarr').rename(tmp_path / 'moved.zarr')
    with pytest.raises(InputError, match=r'sensor.zarr cannot be opened'):
        data.file_chips[0].file.open()


@pytest.fixture
def split(tmp_path):
    """An index of one sensor with splits, and another place."""
    write(tmp_path / 'in/sensor.tif', s2(0, (256, 256), 3), utm(), dtype='uint16')
    write(tmp_path / 'other/sensor.tif', s2(1, bands=3), utm(9e5), dtype='uint16')
    rule = SplitRule('blocks', 500.0, (0.5, 0.25, 0.25))
    write_index([str(tmp_path / 'in')], tmp_path / 'x.parquet',
                IndexSettings((sensor(),), 16, split=rule))  # fmt: skip
    return tmp_path


def module(split, **words):
    return RastersDataModule(
        [str(split / 'x.parquet')], [sensor().to_dict()], stride=16, batch_size=2, **words
    )


def corners(dataset):
    return {tuple(c) for place in dataset.places for c in place.corners.tolist()}


def test_held_out_splits_are_never_trained_on(split):
    table = geopandas.read_parquet(split / 'x.parquet')
    wanted = {
        name: {(r.window_row, r.window_col) for r in table[table.split == name].itertuples()}
        for name in ('train', 'val', 'test')
    }
    data = module(split, val_paths=[str(split / 'other')], chip_size=16)
    data.setup('fit')
    data.setup('test')
    assert corners(data.train_dataset) == wanted['train']
    assert data.val_dataset.files(0) == [str(split / 'other/sensor.tif')]
    assert corners(data.test_dataset) == wanted['test']
    data = module(split, keep=ChipFilter(split='train'))
    data.setup('fit')
    data.setup('test')
    assert corners(data.train_dataset) == wanted['train']
    assert corners(data.val_dataset) == wanted['val']
    assert corners(data.test_dataset) == wanted['test']
    data = module(split, val_paths=[str(split / 'x.parquet')], chip_size=16)
    data.setup('validate')
    assert corners(data.val_dataset) == wanted['val']
    data = module(split, keep=ChipFilter(split='test'))
    with pytest.raises(InputError, match='held out'):
        data.setup('fit')
    data.setup('predict')
    assert corners(data.val_dataset) == wanted['test']


def test_a_cache_takes_no_filter(split):
    from gfm_jepa.data.caches import write_cache

    write_cache(Rasters([split / 'x.parquet'], [sensor()]), split / 'c.zarr')
    data = RastersDataModule([str(split / 'c.zarr')], [sensor().to_dict()],
                             keep=ChipFilter(max_cloud=0.1))  # fmt: skip
    with pytest.raises(InputError, match='is a cache'):
        data.setup('fit')


def test_chips_with_a_split_stay_where_they_are(tmp_path):
    relief = Modality('relief', ('b',), 30.0, 'm', mean=(0.0,), std=(1.0,), source='made up')
    rows, cols = np.mgrid[:300, :300] * 1.0
    write(tmp_path / 'p/sensor.tif', np.stack([rows, cols, rows]), utm())
    write(tmp_path / 'p/relief.tif', 3 * cols[None, :100, :100] + 1, utm(step=30.0))
    rule = SplitRule('blocks', 1600.0)
    table = indexed(tmp_path, (sensor(), relief), chip_size=96, stride=34, split=rule)
    chips = table[(table.modality == 'sensor') & (table.split != '')]
    seen = set()
    for name in set(chips.split):
        data = Rasters([tmp_path / 'x.parquet'], [sensor(), relief], keep=ChipFilter(split=name))
        for i in range(len(data)):
            sample = data[i]
            row, col = (int(sample['sensor'][b, 0, 0]) for b in (0, 1))
            seen.add((row, col))
            # A pixel of the relief, in the middle, shows the ground of three of the sensor's.
            expected = sample['sensor'][1, 45:48, 45:48].mean()
            assert abs(float(sample['relief'][0, 15, 15]) - float(expected)) < 0.1
    assert seen == set(zip(chips.window_row, chips.window_col, strict=True))


def squares(*west, lat=0.0, side=0.1):
    from shapely import box

    shapes = [box(w, lat, w + side, lat + side) for w in west]
    return geopandas.GeoDataFrame({'file': [str(i) for i in range(len(west))]}, geometry=shapes,
                                  crs='OGC:CRS84')  # fmt: skip


def test_splits_know_that_the_earth_is_round():
    west = np.arange(178.0, 179.9, 0.1)
    table = squares(*west, 179.95, *(west - 358.0))
    names = assign_splits(table, SplitRule('longitude'))
    assert set(names[-5:]) == {'test'}
    assert set(names[:10]) == {'train'}
    # A copy of the same ground, counted from the other side.
    table = squares(10.0, 179.95, -180.05)
    names = assign_splits(table, SplitRule('file', shares=(0.5, 0.5, 0.0)))
    assert names[1] == names[2] != names[0]
    names = assign_splits(squares(179.85, 179.95, -179.95), SplitRule('blocks', 5e6))
    assert len(set(names)) == 1 and names[0]


def test_tiles_that_touch_share_no_ground_and_one_group_is_no_split():
    table = squares(*np.arange(10.0, 11.0, 0.1))
    names = assign_splits(table, SplitRule('file'))
    assert set(names) == {'train', 'val', 'test'}
    with pytest.raises(InputError, match='stay together'):
        assign_splits(squares(*np.arange(10.0, 10.3, 0.05)), SplitRule('file'))


def test_an_index_goes_on_from_no_part_of_another_area_or_store(tmp_path):
    from gfm_jepa.data.finding import find_rasters
    from gfm_jepa.data.index import _fingerprint

    group = zarr.open_group(tmp_path / 'sensor.zarr', mode='w')
    group.attrs.update(crs='EPSG:32633', transform=list(utm())[:6])
    cube = group.create_array('cube', shape=(3, 96, 96), chunks=(3, 96, 96), dtype='float32')
    cube[:] = 1
    found = find_rasters([tmp_path], [sensor()])
    made = IndexSettings((sensor(),))
    before = _fingerprint(found, made)
    assert _fingerprint(found, made) == before
    cube[:] = 2
    assert _fingerprint(found, made) != before


def test_sizes_of_nothing_are_refused(tmp_path):
    write(tmp_path / 'sensor.tif', s2(0, bands=3), utm(), dtype='uint16')
    with pytest.raises(InputError, match='expected each 1 or more'):
        Rasters([tmp_path], [sensor()], stride=0)
    with pytest.raises(InputError, match='give 1 or more'):
        write_index([str(tmp_path)], tmp_path / 'x.parquet', IndexSettings((sensor(),), stride=0))
