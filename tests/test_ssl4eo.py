"""SSL4EO-S12 on generated archives, of every published layout."""

import pickle
import shutil
import zipfile
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
import ssl4eo_archive as archive
import torch
import yaml
from torch.utils.data import DataLoader

from gfm_jepa import InputError
from gfm_jepa.cli import main
from gfm_jepa.data import SSL4EOS12, SSL4EOS12DataModule, ssl4eo
from gfm_jepa.data.rasters import collate
from gfm_jepa.data.ssl4eo_files import OpenTar
from gfm_jepa.data.ssl4eo_v10 import SSL4EOS12V10
from gfm_jepa.modalities import resolve_all

CONFIGS = Path(__file__).parent.parent / 'configs'
CHUNKS = ('s2_l1c', 's2_l2a', 's1', 'rgb')
SHARDS = (*CHUNKS, 'ndvi', 'dem')
FIRST_CHUNK_FILE = 'ssl4eos12_train_seasonal_data_000001.zarr.zip'
FIRST_TAR = 'ssl4eos12_shard_000001.tar'


@pytest.fixture(scope='session')
def made(tmp_path_factory):
    """Both forms of one truth, three places; tests that break something take a copy."""
    root = tmp_path_factory.mktemp('ssl4eo')
    truth = archive.make_truth()
    archive.write_chunk_files(root / 'chunks', truth)
    archive.write_shards(root / 'shards', truth)
    return root


@pytest.fixture
def copied(made, tmp_path):
    """A copy of both forms to break."""
    shutil.copytree(made, tmp_path / 'copy')
    return tmp_path / 'copy'


def opened(root, names=('s2_l2a', 's1'), chip_size=20, num_dates=2, offset='auto'):
    return SSL4EOS12(root, 'train', resolve_all(list(names)), chip_size, num_dates, offset)


def shown(sample):
    """What each modality of a sample shows of the ground, 0..1; see `archive.make_truth`."""
    decoded = {
        's2_l1c': lambda x: (x[..., 0, :, :] - 100) / 3000,
        's2_l2a': lambda x: (x[..., 0, :, :] - 100) / 3000,
        's1': lambda x: (x[..., 0, :, :] + 25) / 20,
        'rgb': lambda x: x[..., 1, :, :] / 255,
        'ndvi': lambda x: (x[..., 0, :, :] + 1) / 2,
    }
    return {name: decode(sample[name]) for name, decode in decoded.items() if name in sample}


def test_all_modalities_show_the_same_ground_and_dates(made):
    truth = torch.from_numpy(archive.ground(3, 48))
    dataset = opened(made / 'shards', SHARDS)
    samples = [dataset[i] for i in range(len(dataset))]
    seen = set()
    choices = list(combinations(range(4), 2))
    for index, sample in enumerate(samples):
        place, (corner, dates) = index // 24, divmod(index % 24, 6)
        top, left = 28 * (corner // 2), 28 * (corner % 2)  # 48 - 20
        expected = truth[place, choices[dates], top : top + 20, left : left + 20].float()
        for name, ground in shown(sample).items():
            tolerance = 2e-3 if name in ('s1', 'rgb') else 2e-4  # of float16 and uint8
            assert torch.allclose(ground, expected, atol=tolerance), name
        first = truth[place, 0, top : top + 20, left : left + 20].float()
        assert torch.allclose(sample['dem'][0] / 3000, first, atol=1e-5)
        seen.add((place, corner, choices[dates]))
    assert len(seen) == len(samples) == 3 * 4 * 6
    assert set(sample['gsd']) == set(SHARDS) and set(sample['gsd'].values()) == {10.0}
    assert sample['s2_l1c'].shape == (2, 13, 20, 20) and sample['dem'].shape == (1, 20, 20)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize('num_dates, choices', [(1, 4), (3, 4), (4, 1)])
def test_dates_and_windows_are_counted(made, num_dates, choices):
    dataset = opened(made / 'chunks', num_dates=num_dates, chip_size=16)
    assert len(dataset) == 3 * 9 * choices  # 48 // 16 squared
    assert dataset[0]['s1'].shape == (num_dates, 2, 16, 16)
    assert dataset.windows.corners[4] == (16, 16)
    assert opened(made / 'chunks', chip_size=30).windows.corners == [(9, 9)]


def test_both_forms_and_both_zarr_formats_give_equal_values(made, tmp_path):
    truth = archive.make_truth()
    archive.write_chunk_files(tmp_path / 'c3', truth, zarr_format=3, places_per_chunk=2)
    archive.write_shards(tmp_path / 's3', truth, zarr_format=3)
    roots = [made / 'chunks', made / 'shards', tmp_path / 'c3', tmp_path / 's3']
    whole = [opened(root, CHUNKS) for root in roots]
    batches = [dataset.__getitems__(range(0, 72, 5)) for dataset in whole]
    for name in CHUNKS:
        for samples in zip(*batches, strict=True):
            assert all(torch.equal(samples[0][name], s[name]) for s in samples[1:])
            assert samples[0][name].isfinite().all() and samples[0][name].dtype == torch.float32
    assert 'Zarr chunk files' in whole[0].report() and 'tar shards' in whole[1].report()
    assert 'present, and subtracted (by form; lowest percentile of B10' in whole[0].report()
    assert 'S2L2A: the +1000 offset is removed (by form' in whole[1].report()
    assert '2 files of 2 in the list' in whole[0].report()


def test_offset_that_the_data_contradict_is_refused(tmp_path):
    truth = archive.make_truth()
    archive.write_chunk_files(tmp_path / 'c', truth, offset=False)
    archive.write_shards(tmp_path / 's', truth, offset=True)
    for root, right, wrong in ((tmp_path / 'c', 'removed', 'present'),
                               (tmp_path / 's', 'present', 'removed')):  # fmt: skip
        for name in ('s2_l1c', 's2_l2a'):
            message = rf'train/S2L.. should have the \+1000 offset {wrong}.*set offset to present'
            with pytest.raises(InputError, match=message):
                opened(root, (name,))
        told = opened(root, ('s2_l1c', 's2_l2a'), offset=right)
        assert f'{right}' in told.report() and '(as you say)' in told.report()
        assert torch.allclose(shown(told[0])['s2_l1c'], shown(told[0])['s2_l2a'])
        assert shown(told[0])['s2_l2a'].min() >= 0
        off = opened(root, ('s2_l2a',), offset=wrong)[0]['s2_l2a'] - told[0]['s2_l2a']
        assert off.abs().unique().tolist() == [1000.0]


@pytest.mark.parametrize('form', ['chunks', 'shards'])
def test_nodata_stays_nodata(tmp_path, form):
    truth = archive.make_truth()
    truth['S2L2A'][:, :, :, :5, :7] = 0  # in all bands: not there
    truth['S2L2A'][:, :, 3, 10:12] = 0  # in one band: a dark pixel
    truth['S1GRD'][:, :, :, 8] = float('-inf')
    write = archive.write_chunk_files if form == 'chunks' else archive.write_shards
    write(tmp_path, truth, folders=('S2L2A', 'S1GRD'))
    sample = opened(tmp_path, num_dates=4, chip_size=48)[0]
    missing = sample['s2_l2a'].isnan()
    assert missing[..., :5, :7].all() and missing.sum() == 4 * 12 * 5 * 7
    assert (sample['s2_l2a'][:, 3, 10:12] == 0).all()
    assert sample['s1'][:, :, 8].isnan().all() and sample['s1'].isnan().sum() == 4 * 2 * 48


def test_removed_offset_of_nodata_is_nodata(tmp_path):
    truth = archive.make_truth()
    truth['S2L2A'][:, :, :, :5] = -1000  # 0 before somebody subtracted
    archive.write_shards(tmp_path, truth, folders=('S2L2A',))
    assert opened(tmp_path, ('s2_l2a',), 48)[0]['s2_l2a'].isnan().sum() == 2 * 12 * 5 * 48


def test_what_a_place_lacks_is_nan(tmp_path):
    truth = archive.make_truth(4)
    archive.write_shards(tmp_path, truth, folders=('S2L2A', 'S1GRD', 'DEM'),
                         absent=[('S1GRD', 1), ('DEM', 2)])  # fmt: skip
    tar = tmp_path / 'train/S2L2A/ssl4eos12_shard_000002.tar'
    members = {
        archive.place_key(2): archive.member(truth['S2L2A'][2], 'S2L2A', 2),
        archive.place_key(3): archive.member(truth['S2L2A'][3][:3], 'S2L2A', 3),  # three dates
    }
    archive.write_tar(tar, members)
    dataset = opened(tmp_path, ('s2_l2a', 's1', 'dem'), 48, 4)
    absent = [{k: v.isnan().all().item() for k, v in s.items() if k != 'gsd'} for s in dataset]
    assert [a['s1'] for a in absent] == [False, True, False, False]
    assert [a['dem'] for a in absent] == [False, False, True, False]
    assert not any(a['s2_l2a'] for a in absent)
    assert dataset[3]['s2_l2a'][3].isnan().all() and dataset[3]['s2_l2a'][:3].isfinite().all()
    batch = collate([dataset[i] for i in range(4)])
    assert batch['s1'].shape == (4, 4, 2, 48, 48) and batch['dem'].shape == (4, 1, 48, 48)
    assert 's1        S1GRD   75% of places' in dataset.report()


def test_bands_are_matched_by_name(made):
    rgb = {
        'name': 's2_l2a',
        'bands': ['B04', 'B03', 'B99'],
        'mean': [],
        'std': [],
        'common_names': [],
    }
    few, all_bands = opened(made / 'shards', (rgb,)), opened(made / 'shards', ('s2_l2a',))
    picked = few[5]['s2_l2a']
    assert torch.equal(picked[:, :2], all_bands[5]['s2_l2a'][:, [3, 2]])
    assert picked[:, 2].isnan().all()
    assert '2/3 bands by name' in few.report()
    unknown = {'name': 's2_l2a', 'bands': ['X'], 'mean': [], 'std': [], 'common_names': []}
    with pytest.raises(InputError, match=r'none of which s2_l2a names'):
        opened(made / 'shards', (unknown,))


def test_only_the_wanted_member_of_a_tar_is_read(made, monkeypatch):
    dataset = opened(made / 'shards', ('s2_l2a',), num_dates=1)
    read = []

    class Counted:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, size=-1):
            content = self.file.read(size)
            read.append(len(content))
            return content

    handle = dataset._handle(dataset.parts[0].shards[0])
    assert isinstance(handle, OpenTar)
    monkeypatch.setattr(handle, 'file', Counted(handle.file))
    dataset.__getitems__([0, 1, 5, 10])  # all of the first place: read once
    assert read == [int(dataset.parts[0].shards[0].spans[0, 1])]


def test_only_the_wanted_chunks_of_a_zip_are_read(made, monkeypatch):
    dataset = opened(made / 'chunks', ('s1',), num_dates=1)
    read, original = [], zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, 'read', lambda self, name: read.append(name) or original(self, name)
    )
    dataset.__getitems__([2, 6, 3])
    assert sorted(name for name in read if 'bands/0' in name) == ['bands/0.2.0.0.0',
                                                                  'bands/0.3.0.0.0']  # fmt: skip


def test_places_in_one_zarr_chunk_stay_together_and_are_decoded_once(tmp_path, monkeypatch):
    archive.write_chunk_files(tmp_path, archive.make_truth(4), places_per_chunk=2)
    dataset = opened(tmp_path, ('s1',), num_dates=1)
    assert [list(g) for g in dataset.groups()] == [list(range(32)), list(range(32, 64))]
    read, original = [], zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, 'read', lambda self, name: read.append(name) or original(self, name)
    )
    alone = [dataset[i] for i in (0, 16, 20)]
    assert len(read) == 3 and set(read) == {'bands/0.0.0.0.0'}
    read.clear()
    together = dataset.__getitems__([0, 16, 20])
    assert read == ['bands/0.0.0.0.0']
    assert all(torch.equal(a['s1'], b['s1']) for a, b in zip(alone, together, strict=True))


def test_places_in_chunks_of_their_own_are_one_group(made):
    assert [len(g) for g in opened(made / 'chunks').groups()] == [72]
    assert [len(g) for g in opened(made / 'shards').groups()] == [72]


def test_open_files_are_bounded_and_do_not_travel(made, monkeypatch):
    monkeypatch.setattr(ssl4eo, 'MAX_OPEN', 2)
    for form in ('chunks', 'shards'):
        dataset = opened(made / form)
        expected = [dataset[i] for i in (0, 71, 0)]
        assert len(dataset._handles) == 2
        again = pickle.loads(pickle.dumps(dataset))
        assert not again._handles and torch.equal(again[71]['s1'], expected[1]['s1'])


@pytest.mark.parametrize('form', ['chunks', 'shards'])
@pytest.mark.filterwarnings('ignore:.*use of fork.*:DeprecationWarning')
def test_two_workers_equal_none(made, form):
    dataset = opened(made / form)
    dataset[0]  # files are open when the workers fork

    def batches(workers):
        return list(DataLoader(dataset, 8, num_workers=workers, collate_fn=collate))

    for mine, theirs in zip(batches(0), batches(2), strict=True):
        assert torch.equal(mine['s2_l2a'], theirs['s2_l2a'])
        assert torch.equal(mine['s1'], theirs['s1'])


def rezip(path, keep=lambda name: True, change=lambda name, content: content):
    """Write a zip anew without some members, or with other content."""
    with zipfile.ZipFile(path) as source:
        members = {n: source.read(n) for n in source.namelist() if keep(n)}
    with zipfile.ZipFile(path, 'w') as target:
        for name, content in members.items():
            target.writestr(name, change(name, content))


def refused(root, names=('s2_l2a', 's1')):
    """The one sentence with which a dataset is refused, when opened or read."""
    with pytest.raises(InputError) as caught:
        dataset = opened(root, names)
        for i in range(len(dataset)):
            dataset[i]
    message = str(caught.value)
    assert '\n' not in message and message.endswith('.')
    return message


def test_missing_folder_says_what_to_download(copied):
    shutil.rmtree(copied / 'chunks/train/S1GRD')
    message = refused(copied / 'chunks')
    assert str(copied / 'chunks/train/S1GRD') in message
    assert 'download the folder train/S1GRD of the data set embed2scale/SSL4EO-S12-v1.1-Zarr' in (
        message
    )
    assert 'SSL4EO-S12-v1.1-Zarr has no DEM' in refused(copied / 'chunks', ('s2_l2a', 'dem'))
    assert 'data set embed2scale/SSL4EO-S12-v1.1,' in refused(copied / 'nowhere')
    assert 'SSL4EO-S12 does not hold naip' in refused(copied / 'shards', ('naip',))


def test_missing_file_of_one_modality_is_named(copied):
    for form, name in (('chunks', FIRST_CHUNK_FILE), ('shards', FIRST_TAR)):
        path = copied / form / 'train/S1GRD' / name
        path.unlink()
        assert f'{path} is missing, but S2L2A has a file of that name' in refused(copied / form)


def test_two_forms_in_one_folder_are_refused(copied):
    other = copied / 'chunks/train/S1GRD' / FIRST_TAR
    other.write_bytes((copied / 'shards/train/S1GRD' / FIRST_TAR).read_bytes())
    assert 'another form is there too' in refused(copied / 'chunks')


@pytest.mark.parametrize('folder', ['S2L2A', 'S1GRD'])
def test_missing_chunk_is_named_and_not_invented(copied, folder):
    path = copied / 'chunks/train' / folder / FIRST_CHUNK_FILE
    rezip(path, lambda name: name != 'bands/1.2.0.0.0')
    message = refused(copied / 'chunks')
    assert str(path) in message and 'lacks the chunk bands/1.2.0.0.0' in message
    tar = copied / 'shards/train' / folder / FIRST_TAR
    broken = tar.with_suffix('.zip')
    broken.write_bytes(archive.member(archive.make_truth()[folder][1], folder, 1))
    rezip(broken, lambda name: name != 'bands/2.0.0.0')
    rewrite(tar, {archive.place_key(1): broken.read_bytes()})
    message = refused(copied / 'shards')
    assert (
        f'{tar}, member {archive.place_key(1)}.zarr.zip, lacks the chunk bands/2.0.0.0' in message
    )


def rewrite(tar, replaced):
    """Write a tar of the first two places anew, with other bytes for some."""
    truth, folder = archive.make_truth(), tar.parent.name
    members = {archive.place_key(i): archive.member(truth[folder][i], folder, i) for i in range(2)}
    archive.write_tar(tar, {**members, **replaced})


def test_missing_chunk_of_format_3_is_named(tmp_path):
    archive.write_chunk_files(tmp_path, archive.make_truth(), zarr_format=3)
    rezip(tmp_path / 'train/S1GRD' / FIRST_CHUNK_FILE, lambda n: n != 'bands/c/0/3/0/0/0')
    assert 'lacks the chunk bands/c/0/3/0/0/0' in refused(tmp_path)


def test_broken_zip_is_named(copied):
    path = copied / 'chunks/train/S1GRD' / FIRST_CHUNK_FILE
    whole = path.read_bytes()
    for content in (b'', whole[: len(whole) // 2], b'junk' * 100):
        path.write_bytes(content)
        assert f'{path} cannot be read' in refused(copied / 'chunks')
    flipped = bytearray(whole)
    with zipfile.ZipFile(path.parent / path.name.replace('000001', '000002')):
        pass
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as source:
        start = source.getinfo('bands/1.1.0.0.0').header_offset + 200
    flipped[start] ^= 0xFF
    path.write_bytes(flipped)
    message = refused(copied / 'chunks')
    assert f'{path} cannot be read' in message and 'CRC' in message
    path.write_bytes(whole)
    rezip(path, change=lambda n, c: b'junk' if n == 'bands/0.0.0.0.0' else c)
    assert f'{path} cannot be read' in refused(copied / 'chunks')
    path.write_bytes(whole)
    rezip(path, lambda n: not n.startswith('bands/'))
    assert f'{path} cannot be read' in refused(copied / 'chunks')


def test_truncated_tar_is_named(copied):
    tar = copied / 'shards/train/S1GRD' / FIRST_TAR
    whole = tar.read_bytes()
    shard = opened(copied / 'shards').parts[0].shards[1]
    second = int(shard.spans[1, 0])
    for end in (0, 100, second - 700, second - 512, second + 100, int(shard.spans[1].sum())):
        tar.write_bytes(whole[:end])
        assert str(tar) in refused(copied / 'shards'), end
    header = bytearray(whole)
    header[second - 512 : second - 412] = b'#' * 100  # a broken header looks like the end
    tar.write_bytes(header)
    message = refused(copied / 'shards')
    assert f'{tar} is truncated or broken after member {archive.place_key(0)}.zarr.zip' in message
    archive.write_tar(tar, {})
    assert f'{tar} has no member' in refused(copied / 'shards')


def test_broken_member_is_named(copied):
    tar = copied / 'shards/train/S2L2A' / FIRST_TAR
    rewrite(tar, {archive.place_key(1): b'junk' * 300})
    message = refused(copied / 'shards')
    assert f'{tar}, member {archive.place_key(1)}.zarr.zip, cannot be read' in message
    wrong = archive.member(archive.make_truth(size=24)['S2L2A'][1], 'S2L2A', 1)
    rewrite(tar, {archive.place_key(1): wrong})
    message = refused(copied / 'shards')
    assert str(tar) in message and archive.place_key(1) in message and '(12, 24, 24)' in message


def test_keys_that_diverge_are_named(copied):
    tar = copied / 'shards/train/S1GRD' / FIRST_TAR
    keys = [archive.place_key(i) for i in range(2)]
    members = {k: archive.member(archive.make_truth()['S1GRD'][0], 'S1GRD', 0) for k in keys}
    for order in ([keys[1], keys[0]], [keys[0], archive.place_key(7)]):
        archive.write_tar(tar, dict.fromkeys(order, members[keys[0]]))
        message = refused(copied / 'shards')
        assert f'{tar} diverges at {order[1]}' in message and 'S2L2A' in message


def test_chunk_files_whose_samples_diverge_are_named(copied):
    first, second = (copied / 'chunks/train/S1GRD' / FIRST_CHUNK_FILE.replace('1.z', f'{i}.z')
                     for i in (1, 2))  # fmt: skip
    first.write_bytes(second.read_bytes())
    assert f'{first} diverges at 0000187' in refused(copied / 'chunks')


def test_bad_arguments_are_refused(made):
    with pytest.raises(InputError, match='chip_size is 49 pixels'):
        opened(made / 'chunks', chip_size=49)
    with pytest.raises(InputError, match='num_dates is 5'):
        opened(made / 'chunks', num_dates=5)
    with pytest.raises(InputError, match=r"offset is 'maybe'"):
        opened(made / 'chunks', offset='maybe')
    with pytest.raises(InputError, match=r"split is 'test'"):
        SSL4EOS12(made / 'chunks', 'test', resolve_all(['s1']))


def test_version_1_0_through_torchgeo(tmp_path):
    truth = torch.from_numpy(archive.write_v10(tmp_path, places=2))
    shutil.rmtree(tmp_path / 's1' / '0000001')
    dataset = SSL4EOS12V10(tmp_path, resolve_all(['s2_l1c', 's1']), 264, 3)
    assert len(dataset) == 2 * 4
    sample = dataset[1]  # dates 0, 1, 3
    expected = truth[0, [0, 1, 3]].float()
    assert sample['s2_l1c'].shape == (3, 13, 264, 264)
    assert sample['gsd'] == {'s2_l1c': 10.0, 's1': 10.0}
    ground = shown({k: v[..., 4::8, 4::8] for k, v in sample.items() if k != 'gsd'})
    for name in ('s2_l1c', 's1'):
        assert torch.allclose(ground[name], expected, atol=2e-4), name
    assert torch.equal(dataset[1]['s2_l1c'], sample['s2_l1c'])
    assert dataset[5]['s1'].isnan().all() and dataset[5]['s2_l1c'].isfinite().all()
    with pytest.raises(InputError, match='download it through torchgeo'):
        SSL4EOS12V10(tmp_path, resolve_all(['s2_l2a']))
    with pytest.raises(InputError, match=r'v1\.0 has no dem'):
        SSL4EOS12V10(tmp_path, resolve_all(['dem']))
    shutil.rmtree(next((tmp_path / 's2c' / '0000001').iterdir()))
    with pytest.raises(InputError, match='0000001 has 3 dates'):
        dataset[4]


def test_data_module_goes_without_validation_places(made):
    data = SSL4EOS12DataModule(str(made / 'chunks'), chip_size=20, batch_size=6)
    data.setup('fit')
    assert data.val_dataloader() == []
    batches = list(data.train_dataloader())
    assert len(batches) == 12 and batches[0]['s2_l2a'].shape == (6, 2, 12, 20, 20)
    with pytest.raises(InputError, match='val/S2L2A'):
        SSL4EOS12DataModule(str(made / 'chunks')).setup('predict')


@pytest.mark.parametrize('config, form', [('lejepa', 'chunks'), ('lejepa', 'shards'),
                                          ('ijepa', 'shards')])  # fmt: skip
def test_fit_through_the_command_line(tmp_path, config, form):
    write = archive.write_chunk_files if form == 'chunks' else archive.write_shards
    write(tmp_path / 'data', archive.make_truth())
    write(tmp_path / 'data', archive.make_truth(1, seed=1), 'val')
    modalities = '[s2_l2a,s1]' if form == 'chunks' else '[s2_l2a,s1,dem]'
    words = [
        f'--data.root={tmp_path / "data"}', '--data.chip_size=32', '--data.batch_size=4',
        '--data.num_workers=0', f'--data.modalities={modalities}', '--trainer.max_steps=2',
        '--trainer.accelerator=cpu', '--trainer.enable_progress_bar=false',
        '--trainer.limit_val_batches=1.0', '--trainer.log_every_n_steps=1',
        '--trainer.val_check_interval=1',
    ]  # fmt: skip
    assert main(['fit', '--config', str(CONFIGS / f'{config}_ssl4eo.yaml'), *words]) == 0
    run = next(tmp_path.glob(f'runs/{config}_ssl4eo/**/last.ckpt')).parent.parent
    losses = pd.read_csv(run / 'metrics.csv')
    assert losses['train_loss'].notna().sum() == 2 and losses['val_loss'].notna().sum() == 2
    assert list(torch.load(run / 'checkpoints/last.ckpt', weights_only=True)['state_dict'])


def test_fit_refuses_a_broken_archive_in_one_sentence(copied, capfd):
    path = copied / 'shards/train/S1GRD' / FIRST_TAR
    path.write_bytes(path.read_bytes()[:-2000])
    words = [f'--data.root={copied / "shards"}', '--data.chip_size=32', '--data.batch_size=4']
    assert main(['fit', '--config', str(CONFIGS / 'lejepa_ssl4eo.yaml'), *words]) == 2
    error = capfd.readouterr().err
    assert 'Traceback' not in error and str(path) in error.strip().splitlines()[-1]


@pytest.mark.parametrize('config', ['lejepa', 'ijepa'])
def test_configs_are_whole(config):
    content = yaml.safe_load((CONFIGS / f'{config}_ssl4eo.yaml').read_text())
    assert content['data']['class_path'] == 'gfm_jepa.data.SSL4EOS12DataModule'
    assert content['trainer']['max_steps'] > 0 and 'root' not in content['data']['init_args']
