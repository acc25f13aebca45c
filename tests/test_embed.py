"""Whole scenes: what stands in the map is what the encoder says of that ground."""

import resource

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from mapping import OPTICAL, RADAR, MeanEncoder, read, save_encoder, smooth, there
from rasterio.crs import CRS
from rasterio.warp import transform as warp_points

from gfm_jepa import InputError
from gfm_jepa.cli import main
from gfm_jepa.data.finding import find_rasters
from gfm_jepa.data.raster_files import RasterFile
from gfm_jepa.data.recognition import recognise
from gfm_jepa.inference.embed import EmbedSettings, embed
from gfm_jepa.inference.tiling import Tiling
from gfm_jepa.modalities import Modality

PLACES = Modality('places', ('east', 'north'), 10.0, 'm', (0.0, 0.0), (1.0, 1.0), 'made up')


@pytest.fixture
def scene(tmp_path, write_raster):
    """A scene of two modalities, one of which shows its western half; and weights."""
    save_encoder(tmp_path / 'weights')
    write_raster(tmp_path / 'in/optical.tif', values=smooth(3, 100, 180), dtype='float32')
    write_raster(tmp_path / 'in/radar.tif', values=smooth(2, 50, 45), gsd=20.0, dtype='float32')
    return tmp_path


def run(scene, output, *words, inputs=('in',)):
    paths = [str(scene / path) for path in inputs]
    return main(['embed', str(scene / 'weights'), *paths, '-o', str(scene / output),
                 '--window', '64', '--overlap', '32', '--batch-size', '2', *words])  # fmt: skip


def test_windows_cover_all_and_weights_of_neighbours_add_up():
    for height, width in ((1, 1), (64, 64), (65, 200), (300, 64), (97, 311)):
        tiling = Tiling(height, width, 64, 48, 16, 8, most=3)
        seen = np.zeros((height + 80, width + 80), int)
        for strip in tiling.strips:
            for row, col in strip.corners:
                assert row % 16 == 0 and col % 16 == 0
                seen[row : row + 64, col : col + 64] += 1
        assert seen[:height, :width].min() >= 1
        # No window lies beyond the raster by more than it must.
        assert not seen[max(height, 64) + 16 :].any() and not seen[:, max(width, 64) + 16 :].any()
    tiling = Tiling(160, 160, 64, 48, 8, 8)
    total = np.zeros((20, 20))
    for strip in tiling.strips:
        for row, col in strip.corners // 8:
            total[row : row + 8, col : col + 8] += tiling.taper
    assert np.allclose(total[2:-2, 2:-2], 1)


def test_a_map_is_what_the_encoder_says_of_the_whole(tmp_path, write_raster):
    values = smooth(3, 144, 208)
    values[:, 40:60, 90:120] = np.nan
    write_raster(tmp_path / 'optical.tif', values=values, dtype='float32', nodata=np.nan)
    exact = MeanEncoder().eval()
    embed(exact, [str(tmp_path / 'optical.tif')], tmp_path / 'exact.tif', EmbedSettings(64))
    whole = exact.forward_feature_map({'optical': torch.from_numpy(values)[None]})[0].numpy()
    found, transform, crs = read(tmp_path / 'exact.tif')
    assert np.allclose(found, whole, rtol=1e-5, equal_nan=True)
    assert transform == Affine(40, 0, 500000, 0, -40, 5000000) and crs.to_epsg() == 32633
    # An encoder that looks around sees less at the edges of a window.
    wide = MeanEncoder(reach=2).eval()
    whole = wide.forward_feature_map({'optical': torch.from_numpy(values)[None]})[0].numpy()
    gaps = {}
    for overlap in (0, 32):
        embed(wide, [str(tmp_path / 'optical.tif')], tmp_path / f'{overlap}.tif',
              EmbedSettings(64, overlap))  # fmt: skip
        found, _, _ = read(tmp_path / f'{overlap}.tif')
        assert (np.isfinite(found) == np.isfinite(whole)).all()
        gaps[overlap] = np.nanmax(np.abs(found - whole)) / np.nanstd(whole)
    assert gaps[32] < 0.4 * gaps[0]


def test_no_seam_where_windows_meet(scene, write_raster):
    # All alike but for a little, so that windows show.
    values = 100 + 0.05 * (smooth(3, 128, 512) - 100)
    write_raster(scene / 'wide/optical.tif', values=values, dtype='float32')
    seams = {}
    for overlap in (0, 32):
        assert run(scene, f'{overlap}.tif', '--overlap', str(overlap), inputs=['wide']) == 0
        values, _, _ = read(scene / f'{overlap}.tif')
        steps = np.abs(np.diff(values, axis=2)).mean(axis=(0, 1))
        at = np.arange(7, 63, 8)  # windows of 8 cells meet there, or begin and end
        seams[overlap] = steps[at].mean() / np.delete(steps, at).mean()
    assert seams[0] > 1.5 and seams[32] < 1.1, seams


@pytest.mark.parametrize('kind', ['projected', 'rotated', 'geographic', 'other zone'])
def test_ground_positions_hold_to_half_a_pixel(tmp_path, kind):
    size = (120, 150)
    crs, own = CRS.from_epsg(32633), Affine(10, 0, 500000, 0, -10, 5000000)
    if kind == 'rotated':
        own = own @ Affine.rotation(30)
    elif kind == 'geographic':
        crs, own = CRS.from_epsg(4326), Affine(1.2e-4, 0, 15.01, 0, -9e-5, 45.2)
    elif kind == 'other zone':
        crs, own = CRS.from_epsg(3035), Affine(10, 0, 4600000, 0, -10, 2500000)
    rows, cols = np.indices(size) + 0.5
    x, y = own @ (cols.ravel(), rows.ravel())
    target = CRS.from_epsg(3035) if kind == 'other zone' else CRS.from_epsg(32633)
    east, north = warp_points(crs, target, x.tolist(), y.tolist())
    base = np.array([east[0], north[0]])
    values = (np.array([east, north]) - base[:, None]).reshape(2, *size).astype('float32')
    with rasterio.open(tmp_path / 'places.tif', 'w', driver='GTiff', count=2, height=size[0],
                       width=size[1], dtype='float32', crs=crs, transform=own,
                       nodata=-1e9) as file:  # fmt: skip
        file.write(values)
    embed(MeanEncoder(PLACES).eval(), [str(tmp_path / 'places.tif')], tmp_path / 'out.tif',
          EmbedSettings(64))  # fmt: skip
    found, transform, found_crs = read(tmp_path / 'out.tif')
    assert found_crs == target
    inside = there(found)
    # Cells that reach beyond the raster hold the mean of a part of their ground.
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        inside &= np.roll(there(found), shift, axis=(0, 1))
    inside[[0, -1]] = inside[:, [0, -1]] = False
    assert inside.sum() > 300
    rows, cols = np.nonzero(inside)
    x, y = transform @ (cols + 0.5, rows + 0.5)
    gap = np.abs(found[:, inside] + base[:, None] - np.array([x, y]))
    assert gap.max() < 5.0  # metres; a pixel has 10


def test_modalities_are_joined_and_one_may_lack_over_half_the_scene(scene):
    assert run(scene, 'both.tif') == 0 and run(scene, 'one.tif', inputs=['in/optical.tif']) == 0
    both, one = read(scene / 'both.tif')[0], read(scene / 'one.tif')[0]
    assert both.shape == (16, 13, 23) and there(both)[:12, :22].all()
    gap = np.abs(both - one).mean(axis=0)
    assert (gap[:12, :10] > 0.01).all()  # radar is seen in the west
    # Windows that begin beyond it are as if there were no radar.
    assert (gap[:12, 16:22] == 0).all()


def test_ground_may_be_that_of_another_modality(scene):
    assert run(scene, 'radar.tif', '--ground', 'radar') == 0
    values, transform, _ = read(scene / 'radar.tif')
    assert values.shape == (16, 7, 6) and transform.a == 160


def test_8_bits_and_components_stand_for_the_features(scene):
    for name, words in (('all', ()), ('int8', ('--int8',)), ('pca', ('--pca', '3')),
                        ('both', ('--pca', '3', '--int8'))):  # fmt: skip
        assert run(scene, f'{name}.tif', *words) == 0
    values, _, _ = read(scene / 'all.tif')
    with rasterio.open(scene / 'int8.tif') as file:
        assert file.dtypes[0] == 'int8' and file.nodata == -128
        stored, scale, offset = file.read(), np.array(file.scales), np.array(file.offsets)
    assert (stored == -128).all(axis=0).sum() == (~there(values)).sum()
    again = stored * scale[:, None, None] + offset[:, None, None]
    assert np.abs(again - values)[:, there(values)].max() <= scale.max() / 2 + 1e-5
    flat = values[:, there(values)].T.astype('f8')
    flat -= flat.mean(axis=0)
    largest = np.linalg.svd(flat, compute_uv=False)[:3] ** 2 / (flat**2).sum()
    with rasterio.open(scene / 'pca.tif') as file:
        components = file.read()[:, there(values)].T
        said = [float(x) for x in file.tags()['explained_variance'].split(', ')]
        assert file.descriptions == ('pc0', 'pc1', 'pc2')
    assert np.allclose(said, largest, atol=1e-4)
    assert np.allclose((components**2).sum(axis=0) / (flat**2).sum(), largest, rtol=1e-3)
    with rasterio.open(scene / 'both.tif') as file:
        assert file.count == 3 and file.dtypes[0] == 'int8'


def test_cog_zarr_and_folder_hold_the_same(scene, write_raster):
    write_raster(scene / 'in/second/optical.tif', values=smooth(3, 64, 64), dtype='float32',
                 origin=(900000.0, 5000000.0))  # fmt: skip
    assert run(scene, 'maps') == 0 and run(scene, 'maps.zarr') == 0
    maps = sorted((scene / 'maps').iterdir())
    assert [m.name for m in maps] == ['in_optical.tif', 'second_optical.tif']
    kind = Modality('map', tuple(f'd{i}' for i in range(16)), 80.0, '')
    stored = {}
    for file in recognise(find_rasters([f'map={scene}/maps.zarr'], [kind])[0], [kind]):
        assert isinstance(file, RasterFile)
        stored[file.grid.transform.c] = file.read(file.open())
    for path in maps:
        values, transform, _ = read(path)
        assert np.array_equal(values, stored[transform.c], equal_nan=True)
        with rasterio.open(path) as file:
            assert file.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
            assert file.tags()['file'] == 'optical.tif'  # not where it lay
    assert run(scene, 'one.tif') == 2  # two scenes


def test_a_table_of_chips_says_where_they_are(scene, capfd):
    assert run(scene, 'chips.parquet', '--overlap', '0') == 0
    table = geopandas.read_parquet(scene / 'chips.parquet')
    assert len(table) == 6 and str(table.crs) == 'OGC:CRS84'
    with rasterio.open(scene / 'in/optical.tif') as file:
        values = torch.from_numpy(file.read())
    for row in table.itertuples():
        chip = values[:, row.row : row.row + 64, row.col : row.col + 64]
        chip = torch.nn.functional.pad(chip, (0, 64 - chip.shape[2], 0, 64 - chip.shape[1]),
                                       value=torch.nan)  # fmt: skip
        (x,), (y,) = warp_points('EPSG:4326', 'EPSG:32633', [row.geometry.centroid.x],
                                 [row.geometry.centroid.y])  # fmt: skip
        assert abs(x - 500000 - (row.col + 32) * 10) < 5
        assert abs(5000000 - y - (row.row + 32) * 10) < 5
        if row.col >= 96:  # without radar
            from gfm_jepa import from_pretrained

            expected = from_pretrained(scene / 'weights')({'optical': chip[None]})[0]
            assert np.allclose(row.embedding, expected.detach(), atol=1e-5)
            assert abs(row.valid_share - chip.isfinite().float().mean()) < 1e-6
    assert main(['index', str(scene / 'in'), '-o', str(scene / 'index.parquet'), '--modalities',
                 *modality_files(scene), '--chip-size', '32']) == 0  # fmt: skip
    assert main(['embed', str(scene / 'weights'), str(scene / 'index.parquet'), '-o',
                 str(scene / 'small.parquet')]) == 0  # fmt: skip
    small = geopandas.read_parquet(scene / 'small.parquet')
    assert (small['size'] == 32).all() and len(small) == 15


def test_chips_may_have_several_depths_and_maps_may_not(scene, capfd):
    from gfm_jepa import from_pretrained

    assert run(scene, 'deep.parquet', '--overlap', '0', '--features', 'depths') == 0
    table = geopandas.read_parquet(scene / 'deep.parquet')
    with rasterio.open(scene / 'in/optical.tif') as file:
        values = torch.from_numpy(file.read())
    row = next(r for r in table.itertuples() if r.col >= 96)  # without radar
    chip = values[:, row.row : row.row + 64, row.col : row.col + 64]
    chip = torch.nn.functional.pad(chip, (0, 64 - chip.shape[2], 0, 64 - chip.shape[1]),
                                   value=torch.nan)  # fmt: skip
    expected = from_pretrained(scene / 'weights').forward_depths({'optical': chip[None]})[0]
    assert np.allclose(row.embedding, expected.detach(), atol=1e-5)
    capfd.readouterr()
    assert run(scene, 'deep.tif', '--features', 'depths') == 2
    assert 'features of chips; name a .parquet' in capfd.readouterr().err


def modality_files(scene):
    import yaml

    for modality in (OPTICAL, RADAR):
        (scene / f'{modality.name}.yaml').write_text(yaml.safe_dump(modality.to_dict()))
    return [str(scene / f'{m.name}.yaml') for m in (OPTICAL, RADAR)]


def test_bad_input_gets_one_sentence(scene, write_raster, capfd):
    def said(*args, **kwargs):
        capfd.readouterr()
        assert run(scene, *args, **kwargs) == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith('gfm-jepa: error: ')
        return error

    (scene / 'there.tif').write_text('mine')
    assert 'there already' in said('there.tif')
    assert (scene / 'there.tif').read_text() == 'mine'
    write_raster(scene / 'nowhere/optical.tif', 3, epsg=None)
    assert 'has no CRS' in said('a.tif', inputs=['nowhere/optical.tif'])
    assert 'has no CRS' in said('a.tif', inputs=['nowhere'])
    assert 'should end in' in said('a.png')
    assert 'take 64' in said('a.tif', '--window', '60')
    assert 'cannot share' in said('a.tif', '--overlap', '64')
    assert 'not s2' in said('a.tif', '--ground', 's2')
    write_raster(scene / 'unknown.tif', 3)
    assert f'optical={scene}/unknown.tif' in said('a.tif', inputs=['unknown.tif'])
    assert '16 features, of which 17' in said('a.tif', '--pca', '17')
    assert not list(scene.glob('a.tif'))


def test_one_row_of_pixels_and_nothing_but_nodata(scene, write_raster, capfd):
    write_raster(scene / 'row/optical.tif', values=smooth(3, 1, 100), dtype='float32')
    assert run(scene, 'row.tif', inputs=['row']) == 0
    values, transform, _ = read(scene / 'row.tif')
    # A patch of 8 x 8 with one row of data has too little of it.
    assert values.shape == (16, 1, 13) and np.isnan(values).all() and transform.a == 80
    assert 'only nodata, since there is nothing valid to embed: optical' in capfd.readouterr().out
    row = smooth(3, 1, 100)
    embed(MeanEncoder().eval(), [str(scene / 'row/optical.tif')], scene / 'mean.tif')
    found, _, _ = read(scene / 'mean.tif')
    assert np.allclose(found[:, 0], row.reshape(3, 25, 4).mean(axis=2), rtol=1e-5)
    assert 'only nodata' not in capfd.readouterr().out


@pytest.mark.parametrize(('limit', 'parts'), [(10_000, 0), (15_000, 3)])  # bytes of a file
def test_a_full_disk_gets_one_sentence_and_leaves_no_output(scene, capfd, limit, parts):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for output in ('out.tif', 'out.zarr', 'out'):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            assert run(scene, output) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert 'cannot be written' in capfd.readouterr().err.strip().splitlines()[-1]
        assert not (scene / output).exists()
        work = scene / f'{output}.work'
        assert len(list(work.glob('*.npy'))) == parts and not list(work.glob('result*'))
        assert run(scene, output) == 0 and (scene / output).exists() and not work.exists()


def test_scenes_without_an_encoder_for_them(tmp_path, write_raster):
    write_raster(tmp_path / 'radar.tif', 2)
    with pytest.raises(InputError, match='has 2 bands, but optical has 3'):
        embed(MeanEncoder().eval(), [str(tmp_path / 'radar.tif')], tmp_path / 'a.tif')
