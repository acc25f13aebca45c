"""Whatever way the bands, units and masks of a raster are stored, the chips are the same."""

import base64
import json
import struct
import zipfile

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
import yaml
import zarr
from affine import Affine
from conftest import sensor
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from gfm_jepa import InputError
from gfm_jepa.data import Rasters
from gfm_jepa.data.chips import ChipFilter
from gfm_jepa.data.finding import Found
from gfm_jepa.data.grids import Grid
from gfm_jepa.data.places import outline
from gfm_jepa.data.recognition import recognise
from gfm_jepa.modalities import LULC, MODALITIES, S1, S2_L1C, S2_L2A, Modality, resolve

S2 = sensor('s2', 3)
COLOURS = Modality(
    'colours', ('B02', 'B03', 'B04'), 10.0, 'DN', common_names=('blue', 'green', 'red')
)


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(500, 3000, (3, 64, 64))


def only(paths, modality, **options):
    """The one chip of a folder."""
    data = Rasters([paths], [modality], chip_size=64, **options)
    assert len(data) == 1, data.report()
    return data[0][modality.name], data


def test_one_file_per_band_at_several_resolutions(tmp_path, write_raster, values):
    for i, name in enumerate(('B02', 'B03')):
        write_raster(tmp_path / f'T33_2019_{name}_10m.tif', values=values[i : i + 1])
    coarse = values[2:, ::2, ::2]
    write_raster(tmp_path / 'T33_2019_B04_20m.tif', values=coarse, gsd=20.0)
    chip, data = only(tmp_path, COLOURS)
    assert torch.equal(chip[:2], torch.from_numpy(values[:2]).float())
    # Bilinear from 20 m: right on average, and equal where four pixels agree.
    assert abs(chip[2].mean() - coarse.mean()) < 20
    assert 'by name' in data.report() and '*' in data.files(0)[0]
    (tmp_path / 'T33_2019_B04_20m.tif').unlink()
    chip, _ = only(tmp_path, COLOURS)
    assert chip[:2].isfinite().all() and chip[2].isnan().all()


def test_safe_product_takes_the_finest_of_each_band(tmp_path, write_raster, values):
    safe = tmp_path / 'S2A_MSIL2A_20230115T100000_N0509_R022_T33TUL_20230115T120000.SAFE'
    for gsd, step in ((10, 1), (20, 2)):
        for i, band in enumerate(('B02', 'B03', 'B04')):
            write_raster(
                safe / f'GRANULE/R{gsd}m/T33TUL_20230115T100000_{band}_{gsd}m.tif',
                values=values[i : i + 1, ::step, ::step] + 1000, gsd=float(gsd),
            )  # fmt: skip
    data = Rasters([tmp_path], [S2_L2A], chip_size=64)
    chip = data[0]['s2_l2a']
    # Baseline 05.09 is in the name: the offset goes.
    assert torch.equal(chip[1:4], torch.from_numpy(values).float())
    assert '1000 subtracted (baseline 05.09)' in data.report()
    assert data.places[0].layers[0].files[0].time == '2023-01-15T10:00:00'


def test_what_a_safe_product_holds_beside_its_bands_is_no_band(tmp_path, write_raster, values):
    safe = tmp_path / 'S2A_MSIL2A_20230115T100000_N0509_R022_T33TUL_20230115T120000.SAFE'
    for i, band in enumerate(('B02', 'B03', 'B04')):
        path = safe / f'GRANULE/IMG_DATA/T33TUL_20230115T100000_{band}_10m.tif'
        write_raster(path, values=values[i : i + 1] + 1000)
        write_raster(safe / f'GRANULE/QI_DATA/MSK_DETFOO_{band}.tif', values=values[:1])
    for beside in ('TCI', 'AOT', 'SCL'):
        bands = values if beside == 'TCI' else values[:1]
        write_raster(
            safe / f'GRANULE/IMG_DATA/T33TUL_20230115T100000_{beside}_10m.tif', values=bands
        )
    data = Rasters([tmp_path], [S2_L2A], chip_size=64)
    assert len(data) == 1
    assert torch.equal(data[0]['s2_l2a'][1:4], torch.from_numpy(values).float())


def test_classes_of_a_safe_product_are_read_where_they_are_asked_for(
    tmp_path, write_raster, values
):
    safe = tmp_path / 'S2A_MSIL2A_20230115T100000_N0509_R022_T33TUL_20230115T120000.SAFE'
    for i, band in enumerate(('B02', 'B03', 'B04')):
        path = safe / f'GRANULE/IMG_DATA/T33TUL_20230115T100000_{band}_10m.tif'
        write_raster(path, values=values[i : i + 1] + 1000)
    classes = np.full((1, 64, 64), 4)
    write_raster(safe / 'GRANULE/IMG_DATA/T33TUL_20230115T100000_SCL_10m.tif', values=classes)
    write_raster(safe / 'GRANULE/IMG_DATA/T33TUL_20230115T100000_AOT_10m.tif', values=classes)
    scl = Modality('scl', ('class',), 10.0, 'class', categorical=True)
    data = Rasters([tmp_path], [S2_L2A, scl], chip_size=64)
    assert len(data) == 1 and (data[0]['scl'] == 4).all()


def test_areas_that_are_numbered_are_no_bands(tmp_path, write_raster, values):
    for i in range(2, 5):
        path = tmp_path / f'colours/area_B{i}.tif'
        write_raster(path, values=values, origin=(5e5 + 1e4 * i, 5e6))
    assert len(Rasters([tmp_path], [COLOURS], chip_size=64)) == 3


def test_landsat_files_are_named_without_a_zero(tmp_path, write_raster, values):
    stem = 'LC08_L2SP_158072_20170118_20200905_02_T1'
    for i in range(3):
        write_raster(tmp_path / f'{stem}_SR_B{i + 2}.tif', values=values[i : i + 1])
    write_raster(tmp_path / f'{stem}_QA_PIXEL.tif', values=values[:1])
    write_raster(tmp_path / f'{stem}_ST_B10.tif', values=values[:1])
    bands = [b for b in MODALITIES['landsat8'].bands if b.lstrip('B0') in ('2', '3', '4')]
    modality = resolve({'name': 'landsat8', 'bands': bands})
    chip, data = only(tmp_path, modality)
    assert chip.isfinite().all() and 'by name' in data.report()


def test_common_names_and_colour_interpretation(tmp_path, write_raster, values):
    path = write_raster(tmp_path / 'colours/a.tif', values=values, dtype='uint8')
    with rasterio.open(path, 'r+') as target:
        target.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    chip, _ = only(tmp_path, COLOURS)
    assert torch.equal(chip, torch.from_numpy(values.astype('uint8')[::-1].copy()).float())


def test_stac_item_names_bands_scale_and_time(tmp_path, write_raster, values):
    write_raster(tmp_path / 'colours.tif', values=values)
    bands = [{'name': n, 'scale': 0.0001, 'offset': -0.1} for n in ('B04', 'B02', 'B03')]
    item = {
        'type': 'Feature', 'properties': {'datetime': '2021-07-04T10:20:30Z'},
        'assets': {'data': {'href': './colours.tif', 'bands': bands}},
    }  # fmt: skip
    (tmp_path / 'item.json').write_text(json.dumps(item))
    (tmp_path / 'other.json').write_text('[1, 2]')
    quantified = Modality(**{**COLOURS.__dict__, 'quantification': 10000.0})
    chip, data = only(tmp_path, quantified)
    assert torch.allclose(chip, torch.from_numpy(values[[1, 2, 0]] - 1000).float(), atol=0.01)
    assert data.places[0].layers[0].files[0].time == '2021-07-04T10:20:30'


def test_stac_item_of_one_band_files(tmp_path, write_raster, values):
    assets = {}
    for i, name in enumerate(('B02', 'B03', 'B04')):
        write_raster(tmp_path / f'colours/T33_{name}.tif', values=values[i : i + 1])
        assets[name] = {
            'href': f'T33_{name}.tif', 'eo:bands': [{'name': ['blue', 'green', 'red'][i]}],
            'raster:bands': [{'scale': 0.0001 * (i + 1), 'offset': -0.1 * i}],
        }  # fmt: skip
    item = {'type': 'Feature', 'properties': {'datetime': '2021-07-04'}, 'assets': assets}
    (tmp_path / 'colours/item.json').write_text(json.dumps(item))
    quantified = Modality(**{**COLOURS.__dict__, 'quantification': 10000.0})
    chip, data = only(tmp_path, quantified)
    for i in range(3):
        expected = torch.from_numpy(values[i] * (i + 1) - 1000 * i).float()
        assert torch.allclose(chip[i], expected, atol=0.01)
    assert data.places[0].layers[0].files[0].time == '2021-07-04T00:00:00'


@pytest.mark.parametrize('applied', [False, True])
def test_a_stac_item_that_says_nothing_of_scale(tmp_path, write_raster, values, applied):
    write_raster(tmp_path / 'S2L2A_x.tif', values=np.repeat(values, 4, 0) + 1000)
    band = {'scale': 0.0001, 'offset': -0.1} if applied else {'scale': 1.0, 'offset': 0.0}
    item = {
        'type': 'Feature',
        'properties': {
            'earthsearch:boa_offset_applied': applied, 's2:processing_baseline': '04.00',
        },
        'assets': {'data': {'href': 'S2L2A_x.tif', 'raster:bands': [band] * 12}},
    }  # fmt: skip
    (tmp_path / 'item.json').write_text(json.dumps(item))
    chip, _ = only(tmp_path, S2_L2A)
    stored = torch.from_numpy(values[0]).float()
    assert torch.allclose(chip[0], stored + 1000 if applied else stored, atol=0.01)


def test_bands_that_nothing_is_called_after_are_left(tmp_path, write_raster, values):
    write_raster(tmp_path / 's1_a.tif', values=values[:2], names=('VV', 'angle'), dtype='float32')
    chip, data = only(tmp_path, S1)
    assert torch.equal(chip[0], torch.from_numpy(values[0]).float()) and chip[1].isnan().all()
    assert 'by name' in data.report()


def test_nodata_that_cannot_be_measured_counts_in_each_band(tmp_path, write_raster):
    radar = np.full((2, 64, 64), -12.0)
    radar[1, :8] = -9999
    for name, gsd in (('a', 10.0), ('b', (10.0, 20.0))):  # the second has to be warped
        write_raster(tmp_path / f'{name}/s1.tif', values=radar, gsd=gsd, dtype='float32',
                     nodata=-9999)  # fmt: skip
        data = Rasters([tmp_path / name], [S1], chip_size=32)
        chip = data[0]['s1']
        assert chip[0].isfinite().all() and chip[1, 0].isnan().all() and (chip[0] == -12).all()
        assert (chip[1][chip[1].isfinite()] == -12).all()


def test_nodata_counts_in_each_band_of_a_sensor_of_unknown_range(tmp_path, write_raster):
    values = np.full((2, 64, 64), 7.0)
    values[1, :, :32] = -9999
    write_raster(tmp_path / 'drone.tif', values=values, dtype='float32', nodata=-9999)
    chip, _ = only(tmp_path, Modality('drone', ('a', 'b'), 10.0, 'reflectance'))
    assert chip[0].isfinite().all() and chip[1, :, :32].isnan().all()
    assert (chip[1, :, 32:] == 7).all()


def test_a_saturated_band_is_no_gap(tmp_path, write_raster):
    values = np.full((2, 64, 64), 200.0)
    values[0, :, :32] = 255
    write_raster(tmp_path / 'drone.tif', values=values, dtype='uint8', nodata=255)
    chip, _ = only(tmp_path, Modality('drone', ('a', 'b'), 10.0, 'reflectance'))
    assert chip.isfinite().all()


def test_one_band_files_lie_where_they_say(tmp_path, write_raster):
    easting = 5 + 10.0 * np.arange(64)[None, None].repeat(64, 1)
    write_raster(tmp_path / 'T33_B02.tif', values=easting, dtype='float32')
    later = 20 + 10 + 20.0 * np.arange(32)[None, None].repeat(32, 1)
    write_raster(tmp_path / 'T33_B03.tif', values=later, gsd=20.0, dtype='float32',
                 origin=(500020.0, 5000000.0))  # fmt: skip
    chip, _ = only(tmp_path, COLOURS)
    assert (chip[1] - chip[0])[:, 4:-2].abs().max() <= 5  # half a pixel of 10 m


def test_metres_of_web_mercator_are_not_those_of_the_ground(tmp_path, write_raster, values):
    write_raster(tmp_path / 's2.tif', values=values, epsg=3857, origin=(1.5e6, 8.4e6))  # 60 N
    (result,) = recognise(Found(str(tmp_path / 's2.tif')), [S2])
    assert result.warped and result.grid.gsd == pytest.approx(5.0, abs=0.1)
    assert result.grid.crs.to_epsg() == 32633


def test_the_outline_of_a_conic_or_polar_raster_holds_all_of_it():
    europe = Grid(CRS.from_epsg(3035), from_origin(0.9e6, 5.5e6, 1e4, 1e4), 650, 460)
    west, south, east, north = outline(europe)
    assert north > 70 and south < 35
    assert west < -20 and east > 50
    arctic = Grid(CRS.from_epsg(3413), from_origin(-1e6, 1e6, 1e4, 1e4), 200, 200)
    west, south, east, north = outline(arctic)
    assert (west, east, north) == (-180, 180, 90) and 70 < south < 85


def test_yaml_beside_a_file_or_for_a_folder(tmp_path, write_raster, values):
    values[:, :5] = 7
    write_raster(tmp_path / 'a/scene.tif', values=values)
    said = {'modality': 's2', 'bands': ['B3', 'B1', 'B2'], 'nodata': 7, 'scale': 2, 'offset': 1}
    (tmp_path / 'a/bands.yaml').write_text(yaml.safe_dump(said))
    chip, _ = only(tmp_path / 'a', S2)
    assert chip[:, :5].isnan().all()
    assert torch.equal(chip[:, 5:], torch.from_numpy(values[[1, 2, 0], 5:] * 2 + 1).float())
    (tmp_path / 'a/scene.yaml').write_text('band: [B1]')
    with pytest.raises(InputError, match=r"scene.yaml has the field 'band'; a sidecar has bands"):
        Rasters([tmp_path / 'a'], [S2], chip_size=64)


def test_masks_and_alpha_say_where_data_is(tmp_path, write_raster, values):
    path = write_raster(tmp_path / 'masked/s2.tif', values=values)
    mask = np.full((64, 64), 255, dtype='uint8')
    mask[:10] = 0
    with rasterio.open(path, 'r+') as target:
        target.write_mask(mask)
    path = tmp_path / 'alpha/s2.tif'
    path.parent.mkdir()
    with rasterio.open(
        path, 'w', driver='GTiff', width=64, height=64, count=4, dtype='uint8', crs='EPSG:32633',
        transform=from_origin(5e5, 5e6, 10, 10), photometric='RGB', alpha='yes',
    ) as target:  # fmt: skip
        target.write(np.concatenate([values % 200 + 1, mask[None]]).astype('uint8'))
    for folder in ('masked', 'alpha'):
        data = Rasters([tmp_path / folder], [S2], chip_size=64)
        chip = data[0]['s2']
        assert chip.shape[0] == 3
        assert chip[:, :10].isnan().all() and chip[:, 10:].isfinite().all()
        assert data.valid_share[str(tmp_path / folder / 's2.tif')] == pytest.approx(54 / 64)


def test_masks_hold_when_warped(tmp_path, values):
    path = tmp_path / 's2.tif'
    with rasterio.open(
        path, 'w', driver='GTiff', width=64, height=64, count=3, dtype='uint16', crs='EPSG:4326',
        transform=from_origin(15.0, 45.0, 0.00013, 0.00009),
    ) as target:  # fmt: skip
        target.write(values.astype('uint16'))
        mask = np.full((64, 64), 255, dtype='uint8')
        mask[:, :32] = 0
        target.write_mask(mask)
    chip = Rasters([tmp_path], [S2], chip_size=48)[0]['s2']
    assert chip[:, 10:40, 2:28].isnan().all() and chip[:, 10:40, 40:46].isfinite().all()


def test_scale_and_offset_tags_are_honoured(tmp_path, write_raster, values):
    path = write_raster(tmp_path / 's2.tif', values=values, names=['B1', 'B2', 'B3'])
    with rasterio.open(path, 'r+') as target:
        target.scales, target.offsets = (0.5, 1.0, 2.0), (0.0, 3.0, 0.0)
    chip, _ = only(tmp_path, S2)
    expected = values * np.array([0.5, 1, 2])[:, None, None] + np.array([0, 3, 0])[:, None, None]
    assert torch.allclose(chip, torch.from_numpy(expected).float())


def test_added_offset_is_told_from_the_cirrus_band(tmp_path, write_raster):
    rng = np.random.default_rng(0)
    truth = rng.integers(300, 3000, (13, 64, 64))
    truth[10] = rng.integers(2, 30, (64, 64))
    truth[:, :4] = 0
    with_offset = np.where(truth > 0, truth + 1000, 0)
    write_raster(tmp_path / 'old/S2L1C.tif', values=truth)
    write_raster(tmp_path / 'new/S2L1C.tif', values=with_offset)
    chips = {}
    for name in ('old', 'new'):
        chips[name], data = only(tmp_path / name, S2_L1C)
        assert ('1000 subtracted (B10 says so)' in data.report()) == (name == 'new')
    assert torch.equal(chips['old'].nan_to_num(-1), chips['new'].nan_to_num(-1))
    assert chips['new'][:, :4].isnan().all()


def test_rasters_in_a_zip(tmp_path, write_raster, values):
    path = write_raster(tmp_path / 'x/s2.tif', values=values)
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
        archive.write(path, 'inner/s2.tif')
    chip, _ = only(tmp_path / 'all.zip', S2)
    assert torch.equal(chip, torch.from_numpy(values).float())
    chip, _ = only(f'/vsizip/{tmp_path}/all.zip/inner/s2.tif', S2)
    assert torch.equal(chip, torch.from_numpy(values).float())


@pytest.mark.parametrize(('zarr_format', 'sharded'), [(2, False), (3, False), (3, True)])
def test_zarr_cubes_with_affine_and_crs(tmp_path, zarr_format, sharded):
    # Smooth: GDAL's warper may be an eighth of a pixel off.
    values = (1000 + np.indices((64, 64)).sum(0) * np.array([3, 5, 9])[:, None, None]).astype(int)
    group = zarr.open_group(tmp_path / 's2.zarr', mode='w', zarr_format=zarr_format)
    array = group.create_array(
        'cube', shape=(2, 3, 64, 64), chunks=(1, 1, 32, 32), dtype='uint16',
        shards=(1, 3, 64, 64) if sharded else None,
    )  # fmt: skip
    array[:] = np.stack([values, values + 5])
    array.attrs.update(
        crs='EPSG:32633', transform=[10, 0, 5e5, 0, -10, 5e6], bands=['B1', 'B2', 'B3'], nodata=0
    )
    data = Rasters([tmp_path], [S2], chip_size=32, num_dates=1)
    assert len(data) == 8
    both = {tuple(data[i]['s2'][:, 0, 0].tolist()) for i in range(8)}
    assert tuple(map(float, values[:, 0, 32] + 5)) in both
    # Warped, it lies where GDAL puts the same values.
    other = Modality('dem', ('elevation',), 10.0, 'm')
    with rasterio.open(
        tmp_path / 'dem.tif', 'w', driver='GTiff', width=48, height=48, count=1, dtype='float32',
        crs='EPSG:32633', transform=from_origin(5e5 + 33, 5e6 - 47, 10, 10),
    ) as target:  # fmt: skip
        target.write(np.ones((1, 48, 48), 'float32'))
    with rasterio.open(
        tmp_path / 'copy.tif', 'w', driver='GTiff', width=64, height=64, count=3, dtype='uint16',
        crs='EPSG:32633', transform=from_origin(5e5, 5e6, 10, 10),
    ) as target:  # fmt: skip
        target.write(values.astype('uint16'))
    from_zarr = Rasters([tmp_path / 's2.zarr', tmp_path / 'dem.tif'], [other, S2], chip_size=48)
    from_tif = Rasters([f's2={tmp_path / "copy.tif"}', tmp_path / 'dem.tif'], [other, S2],
                       chip_size=48)  # fmt: skip
    assert torch.allclose(from_zarr[0]['s2'], from_tif[0]['s2'], atol=2.0)


def test_zarr_with_xarray_coordinates_and_times(tmp_path, values):
    group = zarr.open_group(tmp_path / 's2.zarr', mode='w')
    cube = group.create_array('b', data=np.stack([values, values]).astype('int16'),
                              dimension_names=['time', 'band', 'y', 'x'])  # fmt: skip
    group.create_array('band', data=np.array(['B1', 'B2', 'B3']), dimension_names=['band'])
    group.create_array('x', data=5e5 + 5 + 10.0 * np.arange(64), dimension_names=['x'])
    group.create_array('y', data=5e6 - 5 - 10.0 * np.arange(64), dimension_names=['y'])
    time = group.create_array('time', data=np.array([0, 31]), dimension_names=['time'])
    time.attrs['units'] = 'days since 2020-01-01'
    group.create_array('spatial_ref', shape=(), dtype='int32').attrs['crs_wkt'] = CRS.from_epsg(
        32633
    ).to_wkt()
    assert cube.ndim == 4
    data = Rasters([tmp_path], [S2], chip_size=64, num_dates=0)
    assert data[0]['s2'].shape == (2, 3, 64, 64) and data[0]['gsd'] == {'s2': 10.0}
    times = [f.time for f in data.places[0].layers[0].files]
    assert times == ['2020-01-01T00:00:00', '2020-02-01T00:00:00']


def test_zarr_as_xarray_writes_it(tmp_path, values):
    for zarr_format in (2, 3):
        group = zarr.open_group(tmp_path / f'{zarr_format}/s2.zarr', mode='w',
                                zarr_format=zarr_format)  # fmt: skip
        stored = np.stack([values, values]).astype('int16')
        stored[:, :, 0] = -9999
        array = group.create_array('b', shape=stored.shape, chunks=stored.shape, dtype='int16',
                                   fill_value=-9999 if zarr_format == 2 else 0)  # fmt: skip
        array[:] = stored
        array.attrs.update(
            crs='EPSG:32633', transform=[10, 0, 5e5, 0, -10, 5e6], bands=['B1', 'B2', 'B3'],
            scale_factor=0.5, add_offset=3.0, _ARRAY_DIMENSIONS=['time', 'band', 'y', 'x'],
        )  # fmt: skip
        if zarr_format == 3:
            array.attrs['_FillValue'] = base64.b64encode(struct.pack('<d', -9999.0)).decode()
        time = group.create_array('time', data=np.array([0.0, 1.25]))
        time.attrs['units'] = 'days since 2020-04-08 10:30:00'
        data = Rasters([tmp_path / str(zarr_format)], [S2], chip_size=64, num_dates=0)
        chip = data[0]['s2'][0]
        assert chip[:, 0].isnan().all()
        assert torch.equal(chip[:, 1:], torch.from_numpy(values[:, 1:] * 0.5 + 3).float())
        times = [f.time for f in data.places[0].layers[0].files]
        assert times == ['2020-04-08T10:30:00', '2020-04-09T16:30:00']


def test_netcdf_variables_are_bands(tmp_path, write_raster, values):
    path = write_raster(tmp_path / 'plain.tif', values=values, names=['B1', 'B2', 'B3'])
    with rasterio.open(path) as source:
        (tmp_path / 'nc').mkdir()
        rasterio.shutil.copy(source, tmp_path / 'nc/s2.nc', driver='netCDF')
    chip, _ = only(tmp_path / 'nc', S2)
    assert torch.equal(chip, torch.from_numpy(values).float())


def test_labels_are_never_averaged(tmp_path, write_raster, values):
    write_raster(tmp_path / 'p/s2.tif', values=values)
    classes = np.random.default_rng(1).choice([10, 20, 80], (1, 48, 48))
    write_raster(tmp_path / 'p/LULC.tif', values=classes, gsd=13.7, origin=(5e5 + 3, 5e6 - 4))
    chip = Rasters([tmp_path], [S2, LULC], chip_size=64)[0]['lulc']
    assert set(chip[chip.isfinite()].tolist()) <= {10.0, 20.0, 80.0}


def test_partial_overlap_is_nan_and_what_is_left_is_its_own(tmp_path, write_raster, values):
    write_raster(tmp_path / 's2.tif', values=values)
    write_raster(
        tmp_path / 'dem.tif', values=np.full((1, 64, 64), 5.0), dtype='float32',
        origin=(5e5 + 320, 5e6),
    )  # fmt: skip
    dem = Modality('dem', ('elevation',), 10.0, 'm')
    data = Rasters([tmp_path], [S2, dem], chip_size=64, keep=ChipFilter(min_valid=0.1))
    assert [x.name for x in data.places[0].layers] == ['s2', 'dem']
    assert data[0]['dem'][:, :, :32].isnan().all() and (data[0]['dem'][:, :, 32:] == 5).all()


def test_ground_comes_before_the_folder(tmp_path, write_raster, values):
    dem = Modality('dem', ('elevation',), 10.0, 'm')
    write_raster(tmp_path / 'a/s2.tif', values=values)
    level = np.full((1, 64, 64), 5.0)
    write_raster(tmp_path / 'a/dem.tif', values=level, dtype='float32', origin=(5e5 + 160, 5e6))
    write_raster(tmp_path / 'b/dem.tif', values=level + 2, dtype='float32')
    data = Rasters([tmp_path], [S2, dem], chip_size=64)
    assert (data[0]['dem'] == 7).all()


def test_what_several_rasters_cover_together_is_no_place_of_its_own(tmp_path, write_raster, values):
    dem = Modality('dem', ('elevation',), 10.0, 'm')
    for i in range(4):
        origin = (5e5 + 320 * (i % 2), 5e6 - 320 * (i // 2))
        write_raster(tmp_path / f'{i}/s2.tif', values=values[:, :32, :32], origin=origin)
    write_raster(tmp_path / 'dem.tif', values=np.full((1, 64, 64), 5.0), dtype='float32')
    data = Rasters([tmp_path], [S2, dem], chip_size=32)
    assert len(data) == 4
    assert all([x.name for x in p.layers] == ['s2', 'dem'] for p in data.places)


@pytest.mark.parametrize('options', [{'patch_size': 0}, {'stride': -5}, {'num_dates': -1}])
def test_sizes_below_one_are_refused(tmp_path, write_raster, values, options):
    write_raster(tmp_path / 's2.tif', values=values)
    with pytest.raises(InputError, match='num_dates 0 is all'):
        Rasters([tmp_path], [S2], chip_size=64, **options)


def test_dates_nearest_in_time_or_all(tmp_path, write_raster, values):
    dem = Modality('dem', ('elevation',), 10.0, 'm')
    for i, day in enumerate(('2020-01-01', '2020-06-01', '2020-12-01')):
        write_raster(tmp_path / f'opt/s2_{day}.tif', values=values + i)
    for i, day in enumerate(('2020-01-05', '2020-11-20')):
        write_raster(tmp_path / f'alt/dem_{day}.tif', values=np.full((1, 64, 64), i))
    data = Rasters([tmp_path], [S2, dem], chip_size=64)
    assert [data[i]['dem'][0, 0, 0].item() for i in range(3)] == [0, 0, 1]
    every = Rasters([tmp_path], [S2, dem], chip_size=64, num_dates=0)
    assert len(every) == 1 and every[0]['s2'].shape == (3, 3, 64, 64)
    assert every[0]['dem'][:, 0, 0, 0].tolist() == [0, 0, 1]
    two = Rasters([tmp_path], [S2, dem], chip_size=64, num_dates=2)
    assert len(two) == 3 and two[0]['s2'].shape == (2, 3, 64, 64)
    assert all((two[i]['s2'][0] != two[i]['s2'][1]).all() for i in range(3))


def test_affine_of_a_rotated_raster_is_kept(tmp_path):
    # Each pixel holds its true easting and northing, of a grid turned by 20 degrees.
    turned = Affine.translation(5e5, 5e6) @ Affine.rotation(20) @ Affine.scale(10, -10)
    rows, cols = np.indices((96, 96)) + 0.5
    x, y = turned @ (cols, rows)
    with rasterio.open(
        tmp_path / 's2.tif', 'w', driver='GTiff', width=96, height=96, count=2, dtype='float64',
        crs='EPSG:32633', transform=turned,
    ) as target:  # fmt: skip
        target.write(np.stack([x - 5e5, y - 5e6]))
    data = Rasters(
        [tmp_path], [sensor('s2', 2)], chip_size=64, stride=16, keep=ChipFilter(min_valid=0.0)
    )
    seen = 0
    for i in range(len(data)):
        chip, file = data[i]['s2'], data.places[0].layers[0].files[0]
        row, col = data.places[0].corners[i]
        there = chip.isfinite().all(0)
        seen += int(there.sum())
        east = file.grid.transform.c - 5e5 + (col + torch.arange(64) + 0.5) * file.grid.transform.a
        north = file.grid.transform.f - 5e6 + (row + torch.arange(64) + 0.5) * file.grid.transform.e
        assert (chip[0] - east[None])[there].abs().max() < file.grid.gsd / 2
        assert (chip[1] - north[:, None])[there].abs().max() < file.grid.gsd / 2
    assert seen > 5000


def test_reflectance_is_said_and_may_be_stated(tmp_path, write_raster, values):
    quantified = Modality(**{**COLOURS.__dict__, 'quantification': 10000.0})
    path = write_raster(tmp_path / 'colours.tif', values=values / 10000, dtype='float32')
    _, data = only(tmp_path, quantified)
    assert 'looks like reflectance, 0..1: say `scale: 1`' in data.report()
    (tmp_path / 'bands.yaml').write_text('scale: 1')
    chip, data = only(tmp_path, quantified)
    assert torch.allclose(chip, torch.from_numpy(values).float(), rtol=1e-5)
    assert 'looks like' not in data.report()
    # Of stored numbers, it is no scale.
    write_raster(path, values=values, dtype='float32')
    chip, _ = only(tmp_path, quantified)
    assert torch.equal(chip, torch.from_numpy(values).float())
    (tmp_path / 'bands.yaml').write_text('scale: 1\noffset: -100')
    chip, _ = only(tmp_path, quantified)
    assert torch.allclose(chip, torch.from_numpy(values - 100).float(), rtol=1e-5)


def test_bands_called_as_another_sensor_calls_them(tmp_path, write_raster, values):
    aerial = MODALITIES['naip']
    four = values[[0, 1, 2, 0]] // 20
    write_raster(tmp_path / 'naip_a.tif', values=four, names=('B02', 'B03', 'B04', 'B08'))
    chip, data = only(tmp_path, aerial)
    assert torch.equal(chip, torch.from_numpy(four[[2, 1, 0, 3]]).float())  # red, green, blue, nir
    assert 'by name' in data.report()
    write_raster(tmp_path / 'naip_a.tif', values=four, names=('B1', 'B2', 'B3', 'B4'))
    chip, data = only(tmp_path, aerial)  # they are counted
    assert torch.equal(chip, torch.from_numpy(four).float()) and 'by position' in data.report()
    for names in (('n', 'g', 'r', 'b'), ('x nir', 'x_green', 'Red (x)', '4 blue')):  # contained
        write_raster(tmp_path / 'naip_a.tif', values=four, names=names)
        chip, data = only(tmp_path, aerial)
        assert torch.equal(chip, torch.from_numpy(four[[2, 1, 3, 0]]).float())
        assert 'by name' in data.report()
    names = ('x nir', 'sun angle', 'Red (x)', '4 blue')  # an angle is no band
    write_raster(tmp_path / 'naip_a.tif', values=four, names=names)
    chip, _ = only(tmp_path, aerial)
    assert torch.equal(chip[[0, 2, 3]], torch.from_numpy(four[[2, 3, 0]]).float())
    assert chip[1].isnan().all()
    write_raster(tmp_path / 'naip_a.tif', values=four, names=('one', 'red edge', 'two', 'three'))
    chip, data = only(tmp_path, aerial)  # unknown names are told of
    assert torch.equal(chip, torch.from_numpy(four).float())
    assert 'its names say nothing of naip' in data.report()
    # A sensor of the user's own: names that tell of a part of its bands only do not reorder it.
    own = Modality('own', ('blue', 'green', 'red', 'infra'), 10.0, 'DN')
    write_raster(tmp_path / 'own_a.tif', values=four, names=('B02', 'B03', 'B04', 'B8A'))
    chip, _ = only(tmp_path / 'own_a.tif', own)
    assert torch.equal(chip, torch.from_numpy(four).float())
    write_raster(tmp_path / 'ndvi.tif', values=values[:1], names=('B8',))
    only(tmp_path / 'ndvi.tif', MODALITIES['ndvi'])
    write_raster(tmp_path / 'naip_a.tif', values=four, names=('VV', 'VH', 'x', 'y'))
    with pytest.raises(InputError, match=r'naip has 4 .*calls its VV VH x y; .*bands\.yaml'):
        only(tmp_path / 'naip_a.tif', aerial)
