"""The index and the cache: right rows, splits that share no ground, and the same after a kill."""

import json
import signal
import subprocess
import sys
from collections import Counter

import geopandas
import numpy as np
import pytest
import shapely
import torch
import zarr
from conftest import sensor

from gfm_jepa import InputError
from gfm_jepa.cli import main
from gfm_jepa.data import Rasters, RastersDataModule, caches
from gfm_jepa.data.caches import CachedChips, write_cache
from gfm_jepa.data.chips import ChipFilter
from gfm_jepa.data.index import IndexSettings, read_index, write_index
from gfm_jepa.data.rasters import collate
from gfm_jepa.data.samplers import GroupBatchSampler, ResumableLoader
from gfm_jepa.data.splits import SplitRule
from gfm_jepa.modalities import CLOUD_MASK, NDVI, S2_L2A

S2, DEM = sensor('s2', 3), sensor('relief', 1, gsd=30.0)


@pytest.fixture
def archive(tmp_path, write_raster):
    """Six places west to east, of s2 at 10 m and relief at 30 m, and a broken file."""
    for i in range(6):
        origin = (400000.0 + 4000 * i, 5000000.0)
        values = np.random.default_rng(i).integers(500, 3000, (3, 192, 192))
        path = tmp_path / f'in/place{i}/s2_2020-0{i + 1}-01.tif'
        write_raster(path, values=values, origin=origin, nodata=0)
        write_raster(tmp_path / f'in/place{i}/relief.tif', 1, (64, 64), 30.0, origin)
    (tmp_path / 'in/broken').mkdir()
    (tmp_path / 'in/broken/s2.tif').touch()
    return tmp_path / 'in'


def settings(**fields):
    return IndexSettings((S2, DEM), chip_size=96, **fields)


def test_rows_say_where_each_chip_lies(archive, tmp_path):
    report = write_index([str(archive)], tmp_path / 'chips.parquet', settings())
    table = geopandas.read_parquet(tmp_path / 'chips.parquet')
    assert 'broken/s2.tif: cannot be opened' in report and '1 files left out' in report
    assert Counter(table['modality']) == {'s2': 24, 'relief': 6}
    row = table[table['file'].str.contains('place2/s2')].iloc[3]
    assert (row['window_row'], row['window_col'], row['window_size']) == (96, 96, 96)
    assert row['gsd'] == 10.0 and row['crs'] == 'EPSG:32633' and row['bands'] == 'B1 B2 B3'
    assert str(row['time'])[:10] == '2020-03-01' and row['valid_share'] == 1.0
    ground = table.to_crs('EPSG:32633').loc[row.name].geometry
    assert np.allclose(ground.bounds, (408960, 4998080, 409920, 4999040), atol=0.01)
    relief = table[table['modality'] == 'relief'].iloc[0]
    assert relief['gsd'] == 30.0 and np.isclose(relief['valid_share'], (64 / 96) ** 2, atol=0.01)


def test_an_index_reads_as_the_folder_does(archive, tmp_path):
    path = tmp_path / 'chips.parquet'
    write_index([str(archive)], path, settings())
    direct = Rasters([archive], [S2, DEM], chip_size=96)
    indexed = Rasters([path], [S2, DEM])
    assert len(direct) == len(indexed) == 24 and indexed.chip_size == 96
    for a, b in zip(direct, indexed, strict=True):
        assert a['gsd'] == b['gsd']
        assert all(torch.equal(a[k], b[k]) for k in ('s2', 'relief'))
    assert read_index(path, [S2])[0][0].file == direct.places[0].layers[0].files[0]


def test_wrong_use_of_an_index_is_explained(archive, tmp_path):
    path = tmp_path / 'chips.parquet'
    write_index([str(archive)], path, settings())
    with pytest.raises(InputError, match='holds the modalities relief, s2, and none of ndvi'):
        Rasters([path], [NDVI])
    with pytest.raises(InputError, match='give it alone'):
        Rasters([path, archive], [S2])
    (tmp_path / 'x.parquet').write_text('no')
    with pytest.raises(InputError, match='is not an index'):
        Rasters([tmp_path / 'x.parquet'], [S2])
    with pytest.raises(InputError, match=r'ends in \.parquet'):
        write_index([str(archive)], tmp_path / 'chips.csv', settings())


def test_filters(archive, tmp_path):
    def left(**fields):
        data = Rasters([archive], [S2], chip_size=96, keep=ChipFilter(**fields))
        return sorted({data.files(i)[0].split('/')[-2] for i in range(len(data))})

    assert left(start='2020-03-01', end='2020-04-30') == ['place2', 'place3']
    west, south, east, north = Rasters([archive / 'place1'], [S2], chip_size=192).box(0)
    area = shapely.box(west + 0.001, south - 1, east - 0.001, north + 1)
    (tmp_path / 'a.geojson').write_text(shapely.to_geojson(area))
    assert left(area=str(tmp_path / 'a.geojson')) == ['place1']
    with pytest.raises(InputError, match='no chip passes the filters'):
        left(start='2031-01-01')
    with pytest.raises(InputError, match='is not GeoJSON'):
        left(area=str(archive / 'broken/s2.tif'))


def test_cloud_share_comes_from_the_mask_beside(tmp_path, write_raster):
    write_raster(tmp_path / 'p/S2L2A.tif', 12, (96, 192))
    mask = np.zeros((1, 48, 96))
    mask[:, :24, :48] = 1
    write_raster(tmp_path / 'p/CLOUDMASK.tif', values=mask, gsd=20.0, dtype='uint8')
    write_index([str(tmp_path)], tmp_path / 'c.parquet', IndexSettings((S2_L2A,), chip_size=96))
    table = geopandas.read_parquet(tmp_path / 'c.parquet')
    rows = table[table['modality'] == 's2_l2a']
    assert rows['cloud_share'].tolist() == [0.5, 0.0]
    assert (table['modality'] == CLOUD_MASK.name).sum() == 1
    few = Rasters([tmp_path / 'c.parquet'], [S2_L2A], keep=ChipFilter(max_cloud=0.2))
    assert len(few) == 1


@pytest.mark.parametrize('by', ['blocks', 'longitude', 'folder'])
def test_splits_share_no_ground(archive, tmp_path, by):
    rule = SplitRule(by, block_size=3000.0, shares=(0.5, 0.25, 0.25))
    write_index([str(archive)], tmp_path / 'chips.parquet', settings(split=rule))
    table = geopandas.read_parquet(tmp_path / 'chips.parquet')
    parts = {k: rows.geometry for k, rows in table[table['split'] != ''].groupby('split')}
    assert set(parts) == {'train', 'val', 'test'}
    for a in parts:
        for b in set(parts) - {a}:
            assert not parts[a].union_all().intersection(parts[b].union_all()).area
    if by == 'folder':
        assert (table.groupby('folder')['split'].nunique() == 1).all() and '' not in set(
            table.split
        )
    train = Rasters([tmp_path / 'chips.parquet'], [S2], keep=ChipFilter(split='train'))
    wanted = table[(table['split'] == 'train') & (table['modality'] == 's2')]
    assert len(train) == len(wanted)


def test_a_rule_that_cannot_be_is_refused():
    for wrong in ({'shares': (float('nan'),) * 3}, {'seed': -1}, {'block_size': 0}):
        with pytest.raises(InputError, match='give'):
            SplitRule(**wrong)


def test_splits_that_cannot_be(archive, tmp_path):
    for rule, message in (
        (SplitRule('colour'), "no column 'colour' to split by; give blocks, longitude or one of"),
        (SplitRule('blocks', block_size=10.0), 'Blocks of 10 m are smaller than chips of'),
    ):
        with pytest.raises(InputError, match=message):
            write_index([str(archive)], tmp_path / 'chips.parquet', settings(split=rule))
        assert not (tmp_path / 'chips.parquet').exists()
    with pytest.raises(InputError, match='give three that sum to 1'):
        SplitRule(shares=(0.5, 0.2, 0.2))


# Each call in a child of a process that has imported everything, and started no thread.
KILL = """
import json, os, signal, sys
from gfm_jepa.data import caches, index
from gfm_jepa.evaluation import explore
import gfm_jepa.data.rasters, geopandas, matplotlib.figure
from gfm_jepa.cli import main
index.FILES_PER_PART = 2
caches.SHARD = 4
whole = index.write_whole
left = 0

def write(path, content):
    global left
    left -= 1
    if left == 0:
        # Half of the bytes are on the disk when the process dies.
        path.with_name(path.name + '.tmp').write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, content)

index.write_whole = caches.write_whole = write
statuses = []
for left, words in json.loads(sys.argv[1]):
    pid = os.fork()
    if pid == 0:
        os._exit(main(words))
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(statuses))
"""


def run(*calls):
    """Exit statuses of calls, each killed at its n-th write, or not at all with n = 0."""
    words = json.dumps([(at, [str(w) for w in words]) for at, words in calls])
    done = subprocess.run([sys.executable, '-c', KILL, words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_killed_index_goes_on_to_the_same(archive, tmp_path):
    modality = tmp_path / 's2.yaml'
    modality.write_text(json.dumps(S2.to_dict()))
    words = ['index', archive, '--modalities', modality, '--split', 'blocks', '--block-size', 5000]
    whole, killed, other = (tmp_path / f'{n}.parquet' for n in ('whole', 'killed', 'other'))
    died = -signal.SIGKILL
    assert run(
        (0, [*words, '-o', whole]), *((at, [*words, '-o', killed]) for at in (1, 3, 2, 5)),
        (0, [*words, '-o', killed]), (4, [*words, '-o', other]),
    ) == [0, died, died, died, died, 0, died]  # fmt: skip
    a, b = (geopandas.read_parquet(p) for p in (whole, killed))
    assert a.equals(b) and len(a) == 24
    assert whole.read_bytes() == killed.read_bytes()
    assert not other.exists() and len(list(tmp_path.glob('other.parquet.parts/*.parquet'))) == 2
    assert sorted(p.name for p in tmp_path.glob('killed*')) == ['killed.parquet', 'killed.png']
    # Parts of other settings are not taken.
    again = ['index', archive, '--modalities', modality, '--chip-size', '48', '-o', other]
    assert main([str(w) for w in again]) == 0
    table = geopandas.read_parquet(other)
    assert set(table['window_size']) == {48} and len(table) == 96


def test_a_killed_cache_goes_on_to_the_same(archive, tmp_path, monkeypatch):
    modality = tmp_path / 's2.yaml'
    modality.write_text(json.dumps(S2.to_dict()))
    words = ['cache', archive, '--modalities', modality, '--chip-size', '48', '-o']
    whole, killed = tmp_path / 'whole.zarr', tmp_path / 'killed.zarr'
    died = -signal.SIGKILL
    assert run((0, [*words, whole]), (1, [*words, killed]), (4, [*words, killed]),
               (9, [*words, killed])) == [0, died, died, died]  # fmt: skip
    assert not killed.exists()
    with pytest.raises(InputError, match='is not whole'):
        CachedChips(tmp_path / 'killed.zarr.partial', [S2])
    monkeypatch.setattr(caches, 'SHARD', 4)
    assert main([str(w) for w in (*words, killed)]) == 0
    contents = [
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
        for folder in (whole, killed)
    ]
    assert contents[0] == contents[1]
    cached, direct = CachedChips(killed, [S2]), Rasters([archive], [S2], chip_size=48)
    assert len(cached) == len(direct) == 96
    assert all(torch.equal(a['s2'], b['s2']) for a, b in zip(cached, direct, strict=True))


def test_a_cache_keeps_groups_nan_and_says_what_it_is(archive, tmp_path):
    data = Rasters([archive], [S2, DEM], chip_size=96)
    report = write_cache(data, tmp_path / 'c.zarr')
    assert report.startswith('24 chips written')
    cached = CachedChips(tmp_path / 'c.zarr', [S2, DEM])
    assert cached.groups() == data.groups()
    loader = ResumableLoader(cached, GroupBatchSampler(cached.groups(), 4), 2, collate)
    batch = next(iter(loader))
    assert batch['s2'].shape == (4, 3, 96, 96) and batch['relief'].shape == (4, 1, 32, 32)
    assert batch['gsd'] == {'s2': 10.0, 'relief': 30.0}
    meta = dict(zarr.open_group(tmp_path / 'c.zarr', mode='r').attrs)
    assert meta['modalities'][0]['bands'] == ['B1', 'B2', 'B3'] and len(meta['files']) == 12
    assert len(CachedChips(tmp_path / 'c.zarr', [DEM])) == 24
    # Ours reads shards by itself; zarr reads the same out of them.
    by_zarr = zarr.open_array(tmp_path / 'c.zarr', path='group0/s2', mode='r')
    assert by_zarr.shards == (64, 3, 96, 96)
    assert all(np.array_equal(by_zarr[i], cached[i]['s2'].numpy()) for i in range(24))
    shard = tmp_path / 'c.zarr/group0/relief/c/0/0/0/0'
    shard.write_bytes(shard.read_bytes()[-3000:])
    with pytest.raises(InputError, match=r'is damaged at group0/relief, chip 20'):
        CachedChips(tmp_path / 'c.zarr', [S2, DEM])[20]
    with pytest.raises(InputError, match='not ndvi with the'):
        CachedChips(tmp_path / 'c.zarr', [NDVI])
    with pytest.raises(InputError, match='is there already'):
        write_cache(data, tmp_path / 'c.zarr')


def test_a_cache_keeps_chips_of_nothing(tmp_path, write_raster):
    write_raster(tmp_path / 'in/s2.tif', 3, (96, 192))
    relief = np.ones((1, 32, 64))
    relief[..., 32:] = -9999  # nothing below the second chip
    write_raster(tmp_path / 'in/relief.tif', values=relief, gsd=30.0, dtype='float32', nodata=-9999)
    data = Rasters([tmp_path / 'in'], [S2, DEM], chip_size=96)
    assert [bool(data[i]['relief'].isnan().all()) for i in range(2)] == [False, True]
    write_cache(data, tmp_path / 'c.zarr')
    cached = CachedChips(tmp_path / 'c.zarr', [S2, DEM])
    for i in range(2):
        assert torch.equal(cached[i]['relief'].nan_to_num(-1), data[i]['relief'].nan_to_num(-1))


def test_fit_takes_an_index_with_splits_and_a_cache(archive, tmp_path):
    words = ['index', str(archive), '-o', str(tmp_path / 'i.parquet'), '--chip-size', '48',
             '--modalities', str(tmp_path / 's2.yaml'), '--split', 'longitude']  # fmt: skip
    (tmp_path / 's2.yaml').write_text(json.dumps(S2.to_dict()))
    assert main(words) == 0
    assert (tmp_path / 'i.png').stat().st_size > 5000
    assert main(['cache', str(tmp_path / 'i.parquet'), '--modalities', str(tmp_path / 's2.yaml'),
                 '--split', 'train', '-o', str(tmp_path / 'c.zarr')]) == 0  # fmt: skip
    config = f"""
model: {{class_path: gfm_jepa.tasks.LeJEPA, init_args: {{hidden_dim: 16, num_slices: 8}}}}
data:
  class_path: gfm_jepa.data.RastersDataModule
  init_args: {{paths: [x], modalities: [{tmp_path}/s2.yaml], batch_size: 4}}
trainer: {{max_steps: 2, accelerator: cpu, logger: false, enable_checkpointing: false,
          enable_progress_bar: false, enable_model_summary: false, limit_val_batches: 1}}
"""
    (tmp_path / 'c.yaml').write_text(config)
    for path in ('i.parquet', 'c.zarr'):
        batches = 1 if path == 'i.parquet' else 0  # a cache holds no other places
        assert main(['fit', '--config', str(tmp_path / 'c.yaml'),
                     f'--data.paths=[{tmp_path / path}]',
                     f'--trainer.limit_val_batches={batches}']) == 0  # fmt: skip


def test_fewer_processes_than_none_are_refused(archive, capfd):
    assert main(['cache', str(archive), '-o', 'c.zarr', '--num-workers', '-1']) == 2
    assert '--num-workers is -1; give 0 or more' in capfd.readouterr().err
    with pytest.raises(InputError, match='num_workers is -1; give 0 or more'):
        RastersDataModule(['x'], [S2.to_dict()], num_workers=-1)
