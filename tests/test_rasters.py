from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from conftest import sensor
from rasterio.enums import ColorInterp
from rasterio.warp import transform as warp_points

from gfm_jepa import InputError
from gfm_jepa.data import Rasters, RastersDataModule
from gfm_jepa.data.rasters import collate
from gfm_jepa.data.samplers import GroupBatchSampler, ResumableLoader, shuffled
from gfm_jepa.data.statistics import RunningStatistics, describe

S2, RELIEF = sensor('s2', 3), sensor('relief', 1, gsd=30.0)


def coordinates(size, gsd, origin):
    """Two bands that hold each pixel's easting and northing, in metres from a point."""
    x = origin[0] - 500000 + (np.arange(size[1]) + 0.5) * gsd
    y = 5000000 - origin[1] + (np.arange(size[0]) + 0.5) * gsd
    return np.stack(np.meshgrid(x, y)).astype('float32')


def test_modalities_of_a_place_are_aligned_at_their_own_gsd(tmp_path, write_raster):
    fine, coarse = sensor('fine', 2), sensor('coarse', 2, gsd=30.0)
    origin = (500000.0, 5000000.0)
    write_raster(
        tmp_path / 'p/fine.tif', values=coordinates((192, 192), 10, origin), dtype='float32'
    )
    write_raster(
        tmp_path / 'p/coarse.tif', values=coordinates((64, 64), 30, origin), dtype='float32',
        gsd=30.0,
    )  # fmt: skip
    data = Rasters([tmp_path], [fine, coarse], chip_size=96, stride=24)
    assert len(data.places) == 1 and len(data) == 25
    for index in (0, 7, 24):
        sample = data[index]
        assert sample['fine'].shape == (2, 96, 96) and sample['coarse'].shape == (2, 32, 32)
        gap = sample['fine'].mean((1, 2)) - sample['coarse'].mean((1, 2))
        assert gap.abs().max() < 1e-2
    assert sample['gsd'] == {'fine': 10.0, 'coarse': 30.0}


@pytest.mark.parametrize('shift', [(0.0, 0.0), (37.0, -23.0)])
@pytest.mark.parametrize('gsd', [10.0, 20.0, 25.0])
def test_other_grids_and_crs_agree_to_half_a_pixel(tmp_path, write_raster, shift, gsd):
    fine, other = sensor('fine', 2), sensor('other', 2, gsd=gsd)
    write_raster(
        tmp_path / 'fine/a.tif', dtype='float32',
        values=coordinates((96, 96), 10, (500000.0, 5000000.0)),
    )  # fmt: skip
    # The neighbouring UTM zone, in folders of one modality each: joined on the ground alone.
    (x,), (y,) = warp_points('EPSG:32633', 'EPSG:32632', [500000.0], [5000000.0])
    origin = (x - 500 + shift[0], y + 500 + shift[1])
    size = int(2200 / gsd)
    rows, cols = np.indices((size, size)) + 0.5
    east, north = warp_points(
        'EPSG:32632', 'EPSG:32633',
        (origin[0] + cols * gsd).ravel().tolist(), (origin[1] - rows * gsd).ravel().tolist(),
    )  # fmt: skip
    values = np.stack([np.array(east) - 500000, 5000000 - np.array(north)]).reshape(2, size, size)
    write_raster(
        tmp_path / 'other/b.tif', values=values, dtype='float32', gsd=gsd, origin=origin, epsg=32632
    )
    data = Rasters([tmp_path], [fine, other], chip_size=96)
    assert len(data.places[0].layers) == 2 and len(data.places[0].corners) == 1
    sample = data[0]
    own = sample['gsd']['other']
    line = (torch.arange(sample['other'].shape[1]) + 0.5) * own
    there = sample['other'].isfinite().all(0)
    assert there.float().mean() > 0.9
    assert (sample['other'][0] - line[None, :])[there].abs().max() < own / 2
    assert (sample['other'][1] - line[:, None])[there].abs().max() < own / 2


def test_geographic_crs_with_unequal_steps_becomes_metres(tmp_path, write_raster):
    write_raster(
        tmp_path / 's2.tif', 3, (200, 200), gsd=(0.00013, 0.00009), origin=(15.0, 45.0), epsg=4326
    )
    data = Rasters([tmp_path], [S2], chip_size=64)
    file = data.places[0].layers[0].files[0]
    assert file.warped and file.grid.crs.to_epsg() == 32633
    assert 9 < data[0]['gsd']['s2'] < 11
    assert '(warped)' in data.report()


def test_nodata_and_what_lies_beyond_is_nan(tmp_path, write_raster):
    values = np.full((3, 40, 40), 700)
    values[:, :20] = 0
    values[0, 30] = 0  # one band alone may be 0
    write_raster(tmp_path / 's2.tif', values=values, nodata=0)
    sample = Rasters([tmp_path], [S2], chip_size=48)[0]['s2']
    assert sample.shape == (3, 48, 48)
    assert sample[:, :20].isnan().all() and sample[:, 40:].isnan().all()
    assert sample[:, 20:40, :40].isfinite().all() and sample[0, 30, 0] == 0


def test_bands_match_by_name_and_missing_ones_are_nan(tmp_path, write_raster):
    values = np.stack([np.full((64, 64), v) for v in (300, 100)])
    write_raster(tmp_path / 's2.tif', values=values, names=['B03', 'b1'])
    sample = Rasters([tmp_path], [S2], chip_size=64)[0]['s2']
    assert (sample[0] == 100).all() and sample[1].isnan().all() and (sample[2] == 300).all()


def test_groups_keep_unlike_places_apart(tmp_path, write_raster):
    for i in range(3):
        origin = (500000.0 + 5000 * i, 5000000.0)
        write_raster(tmp_path / f'p{i}/s2.tif', 3, origin=origin)
        if i:
            write_raster(tmp_path / f'p{i}/relief.tif', 1, (32, 32), 30.0, origin, dtype='float32')
    data = Rasters([tmp_path], [S2, RELIEF], chip_size=48)
    groups = data.groups()
    assert sorted(len(g) for g in groups) == [4, 8]
    batch = collate([data[i] for i in max(groups, key=len)])
    assert batch['s2'].shape == (8, 3, 48, 48) and batch['relief'].shape == (8, 1, 16, 16)


def test_broken_files_are_named_and_left_out(tmp_path, write_raster):
    write_raster(tmp_path / 'good/s2.tif', 3, (128, 128))
    whole = write_raster(tmp_path / 'cut/s2.tif', 3, (128, 128), tiled=True)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty/s2.tif').touch()
    write_raster(tmp_path / 'void/s2.tif', values=np.zeros((3, 64, 64)), nodata=0)
    write_raster(tmp_path / 'nowhere/s2.tif', 3, epsg=None)
    write_raster(tmp_path / 'other/landcover.tif', 1)
    data = Rasters([tmp_path], [S2], chip_size=64)
    reasons = {Path(path).parent.name: reason for path, reason in data.left_out}
    assert set(reasons) == {'cut', 'empty', 'void', 'nowhere', 'other'}
    assert 'truncated' in reasons['cut'] and 'nodata' in reasons['void']
    assert 'no CRS' in reasons['nowhere'] and 'cannot be opened' in reasons['empty']
    assert '5 files left out' in data.report() and len(data.places) == 1
    with pytest.raises(InputError, match=r'cut.s2.tif is truncated.*without --strict'):
        Rasters([tmp_path / 'good', tmp_path / 'cut'], [S2], chip_size=64, strict=True)


def test_what_cannot_be_used_at_all_is_explained(tmp_path, write_raster):
    with pytest.raises(InputError, match='There is no file or folder'):
        Rasters([tmp_path / 'missing'], [S2])
    with pytest.raises(InputError, match='No raster found'):
        Rasters([tmp_path], [S2])
    write_raster(tmp_path / 'void/s2.tif', values=np.zeros((3, 64, 64)), nodata=0)
    with pytest.raises(InputError, match=r'No usable chip.*nothing but nodata'):
        Rasters([tmp_path], [S2])
    write_raster(tmp_path / 'two/s2.tif', 2)
    with pytest.raises(InputError, match='has 2 bands, but s2 has 3'):
        Rasters([tmp_path / 'two'], [S2])
    with pytest.raises(InputError, match='not among the modalities'):
        Rasters([f'sar={tmp_path}'], [S2])
    with pytest.raises(InputError, match='patches of 8 do not divide; take 96'):
        Rasters([tmp_path], [S2], chip_size=100)


def test_a_stated_modality_needs_no_name(tmp_path, write_raster):
    write_raster(tmp_path / 'scene.tif', 3)
    assert len(Rasters([f's2={tmp_path}'], [S2, RELIEF], chip_size=48)) == 4


def test_reading_across_processes_gives_the_same(tmp_path, write_raster):
    write_raster(tmp_path / 's2.tif', 3, (96, 144))
    data = Rasters([tmp_path], [S2], chip_size=48)
    data[0]  # opens a handle that must not reach the workers
    first, second = (
        [b['s2'] for b in ResumableLoader(data, GroupBatchSampler(data.groups(), 2), n, collate)]
        for n in (0, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and len(first) == 3


def test_order_shards_by_rank_and_resumes():
    groups = [range(0, 20), range(20, 50)]
    whole = GroupBatchSampler(groups, 4, seed=3)
    ranks = [GroupBatchSampler(groups, 2, seed=3, rank=r, world_size=2) for r in range(2)]
    batches = list(whole)
    assert len(batches) == len(whole) == 12
    assert all(len({i >= 20 for i in b}) == 1 for b in batches)
    for joined, *parts in zip(batches, *ranks, strict=True):
        assert sorted(joined) == sorted(parts[0] + parts[1])
    loader = ResumableLoader(range(50), GroupBatchSampler(groups, 4, seed=3))
    epochs = [[b.tolist() for b in loader] for _ in range(2)]
    assert epochs[0] == batches != epochs[1]
    broken = ResumableLoader(range(50), GroupBatchSampler(groups, 4, seed=3))
    for _, _ in zip(range(5), broken, strict=False):
        pass
    resumed = ResumableLoader(range(50), GroupBatchSampler(groups, 4, seed=3))
    resumed.load_state_dict(broken.state_dict())
    assert [b.tolist() for b in resumed] == epochs[0][5:]
    assert [b.tolist() for b in resumed] == epochs[1]


def test_an_epoch_that_is_cut_short_is_over():
    """As Lightning does with limit_train_batches: it asks anew after some batches."""
    loader = ResumableLoader(range(24), GroupBatchSampler([range(24)], 4))
    epochs = [[b.tolist() for _, b in zip(range(4), loader, strict=False)] for _ in range(3)]
    whole = ResumableLoader(range(24), GroupBatchSampler([range(24)], 4))
    expected = [[b.tolist() for b in whole][:4] for _ in range(3)]
    assert epochs == expected and loader.order.epoch == 2


@pytest.mark.parametrize('limit', [3, 0.75])
def test_a_run_resumed_at_the_end_of_a_cut_epoch_begins_the_next(limit):
    def loader(seed=5):
        order = GroupBatchSampler([range(8)], 2, seed=seed)
        return ResumableLoader(range(8), order, limit=limit)

    def epoch(of):
        batches = iter(of)
        return [next(batches).tolist() for _ in range(3)]

    whole = loader()
    first, state, second = epoch(whole), whole.state_dict(), epoch(whole)
    resumed = loader(seed=0)  # of a call that says no seed
    resumed.load_state_dict(state)
    assert epoch(resumed) == second != first


def test_chips_that_are_alone_of_their_kind_are_left_out_where_samples_are_compared(
    tmp_path, write_raster, caplog
):
    write_raster(tmp_path / 'a/s2.tif', 3, (96, 96))
    write_raster(tmp_path / 'b/s2.tif', 3, (48, 48), gsd=20.0, origin=(6e5, 5e6))
    data = RastersDataModule(
        [str(tmp_path)], [sensor('s2', 3).to_dict()], chip_size=48, stride=48, batch_size=2
    )
    data.setup('fit')
    assert len(data.train_dataloader()) == 3
    data.smallest_group = 2
    with caplog.at_level('INFO'):
        batches = list(data.train_dataloader())
    assert [len(b['s2']) for b in batches] == [2, 2]
    assert '1 chips left out that are the only ones of their kind' in caplog.text
    assert 'b/s2.tif' in caplog.text
    data.smallest_group = 5
    with pytest.raises(InputError, match='No two chips are of one kind'):
        data.train_dataloader()


def test_statistics_in_one_pass_equal_numpy(tmp_path, write_raster):
    rng = np.random.default_rng(0)
    values = rng.normal(1e6, 3, (2, 5000))
    values[0, ::7] = np.nan
    running = RunningStatistics(2)
    for part in np.array_split(values, 13, axis=1):
        running.update(part[:, :, None])
    assert np.allclose(running.mean, np.nanmean(values, 1), rtol=1e-12)
    assert np.allclose(running.std, np.nanstd(values, 1), rtol=1e-6)


def test_describe_writes_a_modality(tmp_path, write_raster):
    values = np.random.default_rng(0).integers(1, 100, (2, 80, 80))
    values[:, :40] = 0
    write_raster(tmp_path / 'drone/a.tif', values=values, nodata=0, names=['red', 'nir'], gsd=2.0)
    described = yaml.safe_load(describe([str(tmp_path)], 'drone', unit='DN'))
    assert described['bands'] == ['red', 'nir'] and described['gsd'] == 2.0
    assert np.allclose(described['mean'], values[:, 40:].mean((1, 2)), rtol=1e-4)
    assert np.allclose(described['std'], values[:, 40:].std((1, 2)), rtol=1e-4)
    assert '1 files, 3200 pixels' in described['source']


def test_describe_a_known_modality_among_others(tmp_path, write_raster):
    write_raster(tmp_path / 'p/DEM.tif', 1, dtype='float32')
    write_raster(tmp_path / 'p/S2L2A.tif', 12)
    text = describe([str(tmp_path)], 'dem')
    assert '1 files of other modalities' in text
    assert yaml.safe_load(text)['bands'] == ['elevation']


def test_files_are_closed(tmp_path, write_raster):
    path = write_raster(tmp_path / 's2.tif', 3)
    data = Rasters([tmp_path], [S2], chip_size=48)
    assert data[0]['s2'].isfinite().all()
    with rasterio.open(path) as source:
        expected = torch.from_numpy(source.read(window=((0, 48), (0, 48))).astype('float32'))
    assert torch.equal(data[0]['s2'], expected)


@pytest.mark.parametrize('size', [1, 5, 7, 8, 13])
def test_ranks_get_as_many_samples(size):
    ranks = [list(GroupBatchSampler([range(size)], 4, rank=r, world_size=2)) for r in range(2)]
    assert len(ranks[0]) == len(ranks[1]) > 0
    for first, second in zip(*ranks, strict=True):
        assert len(first) == len(second) > 0
        assert size == 1 or not set(first) & set(second)


def test_order_keeps_what_is_stored_together_near():
    order = shuffled(5000, 32, 1024, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(5000))
    for pool in order.split(1024):
        assert len(set((pool // 32).tolist())) <= 34
    assert (order[1:] - order[:-1]).abs().float().median() > 100  # and yet shuffled
    few = shuffled(1000, 32, 1024, torch.Generator().manual_seed(0))
    assert torch.equal(few, torch.randperm(1000, generator=torch.Generator().manual_seed(0)))


def test_stats_of_an_image_with_alpha_and_of_one_band_files(tmp_path, write_raster):
    path = write_raster(tmp_path / 'ortho.tif', 4, dtype='uint8')
    with rasterio.open(path, 'r+') as target:
        target.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue,
                              ColorInterp.alpha]  # fmt: skip
    said = yaml.safe_load(describe([path], 'drone'))
    assert said['bands'] == ['red', 'green', 'blue'] and len(said['mean']) == 3
    for name in ('B02', 'B03'):
        write_raster(tmp_path / f'bands/T33_{name}.tif')
    said = yaml.safe_load(describe([tmp_path / 'bands'], 'own'))
    assert said['bands'] == ['B02', 'B03']
