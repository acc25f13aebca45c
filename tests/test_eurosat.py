"""EuroSAT in its forms, and the benchmarks built on it, on made-up images."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gfm_jepa.data.benchmarks import load_benchmark
from gfm_jepa.data.eurosat import EuroSATRGB, decode_rgb
from gfm_jepa.errors import InputError
from gfm_jepa.modalities import MODALITIES

CLASSES = ['Forest', 'PermanentCrop', 'SeaLake']
PARTS = {'train': (1, 2, 3, 4, 5, 6), 'val': (7, 8), 'test': (9, 10)}


def write_jpeg(path, level, size=64, mode='RGB'):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (level, 255 - level, 7) if mode == 'RGB' else level
    Image.new(mode, (size, size), colour).save(path, quality=95)


def make_jpegs(root, folder='.'):
    """Write ten images a class, whose red is 20 x number + class, and the spatial lists."""
    for label, name in enumerate(CLASSES):
        for number in range(1, 11):
            write_jpeg(root / folder / name / f'{name}_{number}.jpg', 20 * number + label)
    for part, numbers in PARTS.items():
        # Not in the order of the classes: a reader that sorts would be found out.
        lines = [f'{name}_{n}.jpg' for n in numbers for name in reversed(CLASSES)]
        (root / f'eurosat-spatial-{part}.txt').write_text('\n'.join(lines) + '\n')
    return root


@pytest.fixture(scope='module')
def jpegs(tmp_path_factory):
    return make_jpegs(tmp_path_factory.mktemp('eurosat'), 'EuroSAT_RGB')


@pytest.fixture
def copy(jpegs, tmp_path):
    return shutil.copytree(jpegs, tmp_path / 'copy')


@pytest.mark.parametrize('folder', ['.', 'EuroSAT_RGB', '2750'])
def test_finds_each_layout_and_keeps_raw_values(tmp_path, folder):
    dataset = EuroSATRGB(make_jpegs(tmp_path, folder), 'val')
    assert dataset.classes == CLASSES
    assert len(dataset) == 6
    sample = dataset[1]  # PermanentCrop_7
    assert sample['rgb'].shape == (3, 64, 64)
    assert sample['rgb'].dtype == torch.float32
    assert sample['label'].dtype == torch.int64 and sample['label'].shape == ()
    assert sample['label'] == 1
    expected = torch.tensor([141.0, 114.0, 7.0]).view(3, 1, 1)
    assert (sample['rgb'] - expected).abs().max() <= 3  # JPEG


def test_list_order_and_class_from_name(jpegs):
    dataset = EuroSATRGB(jpegs, 'train')
    assert dataset.labels.tolist() == [2, 1, 0] * 6
    assert dataset.files[1].name == 'PermanentCrop_1.jpg'


def test_lazy_and_in_memory_and_batches_agree(jpegs):
    eager = EuroSATRGB(jpegs, 'train')
    lazy = EuroSATRGB(jpegs, 'train', in_memory=False)
    batch = next(iter(DataLoader(lazy, batch_size=18)))
    assert torch.equal(batch['rgb'], torch.stack([eager[i]['rgb'] for i in range(18)]))
    assert torch.equal(batch['label'], eager.labels)
    assert torch.equal(next(iter(DataLoader(eager, batch_size=18)))['rgb'], batch['rgb'])


@pytest.mark.parametrize('where', ['prefix', 'folder', 'plain'])
def test_lists_elsewhere(jpegs, tmp_path, where):
    name = 'train.txt' if where == 'plain' else 'mine-train.txt'
    (tmp_path / name).write_text('Forest_3.tif\nSeaLake/SeaLake_2.jpg\n\n')
    dataset = EuroSATRGB(jpegs, 'train', tmp_path / 'mine' if where == 'prefix' else tmp_path)
    assert [f.name for f in dataset.files] == ['Forest_3.jpg', 'SeaLake_2.jpg']


def write_csvs(root, label_map=None):
    for part, name in (('train', 'train'), ('val', 'validation'), ('test', 'test')):
        rows = [f'{c}/{c}_{n}.jpg,{c}' for n in PARTS[part] for c in CLASSES]
        (root / f'{name}.csv').write_text('\n'.join(['Filename,ClassName', *rows]) + '\n')
    if label_map is not None:
        (root / 'label_map.json').write_text(json.dumps(label_map))


def test_csv_form(copy):
    write_csvs(copy, {'SeaLake': 0, 'Forest': 1, 'PermanentCrop': 2})
    dataset = EuroSATRGB(copy, 'val', 'csv')
    assert dataset.classes == ['SeaLake', 'Forest', 'PermanentCrop']
    assert dataset.labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert dataset.files[0].name == 'Forest_7.jpg'
    (copy / 'label_map.json').unlink()
    assert load_benchmark('eurosat-rgb-csv', copy).classes == tuple(CLASSES)


def refused(pattern, *arguments):
    with pytest.raises(InputError, match=pattern) as caught:
        EuroSATRGB(*arguments)
    assert '\n' not in str(caught.value)


def test_refuses_what_is_not_there(copy, tmp_path):
    refused('No EuroSAT images', tmp_path / 'nothing')
    refused(r'eurosat-random0-train\.txt', copy, 'train', 'random0')
    refused(r'mine-train\.txt', copy, 'train', tmp_path / 'mine')
    refused('Unknown split', copy, 'training')
    refused(r'train\.csv', copy, 'train', 'csv')
    (copy / 'train.csv').write_text('a,b\n1,2\n')
    refused('Filename and ClassName', copy, 'train', 'csv')
    (copy / 'EuroSAT_RGB/Forest/Forest_7.jpg').unlink()
    (copy / 'EuroSAT_RGB/SeaLake/SeaLake_8.jpg').unlink()
    refused(r'2 of 6 listed images.*Forest/Forest_7\.jpg', copy, 'val')
    (copy / 'eurosat-spatial-test.txt').write_text('\n')
    refused('is empty', copy, 'test')
    (copy / 'a-train.txt').write_text('Forest_1.jpg')
    refused('several train lists', copy, 'train', copy)


def test_csv_files_that_are_damaged(copy):
    write_csvs(copy)
    good = (copy / 'train.csv').read_bytes()
    (copy / 'train.csv').write_bytes(b'\xef\xbb\xbf' + good)  # as Excel begins a file
    assert len(EuroSATRGB(copy, 'train', 'csv')) == 18
    (copy / 'train.csv').write_bytes(good.replace(b'Forest', b'For\xeat'))
    refused(r'train\.csv is no CSV in UTF-8', copy, 'train', 'csv')
    (copy / 'train.csv').write_bytes(good[:-10])
    refused('each with Filename and ClassName', copy, 'train', 'csv')
    for label_map in ([1, 2], {'Forest': 'a'}, {'Forest': None}):
        write_csvs(copy, label_map)
        refused(r'label_map\.json should map class names to numbers', copy, 'train', 'csv')


@pytest.mark.parametrize('in_memory', [True, False])
def test_names_a_broken_image(copy, in_memory):
    path = copy / 'EuroSAT_RGB/SeaLake/SeaLake_1.jpg'
    # Text, too, that begins as an image of Pillow's does.
    for content in (path.read_bytes()[:200], b'P3 plots, three seeds'):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r'SeaLake_1\.jpg is a broken image'):
            EuroSATRGB(copy, 'train', in_memory=in_memory)[0]
    write_jpeg(path, 40, size=32)
    with pytest.raises(InputError, match=r'SeaLake_1\.jpg has 32 x 32 pixels'):
        EuroSATRGB(copy, 'train', in_memory=in_memory)[0]


# Value that the made-up chips hold in each band, so that a band in the wrong place shows.
CODES = {band: 100 * (i + 1) for i, band in enumerate(MODALITIES['s2_l1c'].bands)}


@pytest.fixture
def tiffs(tmp_path):
    """Write EuroSAT's TIFF layout, B8A last as in the published files."""
    import rasterio
    from torchgeo.datasets import EuroSATSpatial

    transform = rasterio.transform.from_origin(500000, 5000000, 10, 10)
    for label, name in enumerate(CLASSES):
        for number in range(1, 11):
            path = tmp_path / EuroSATSpatial.base_dir / name / f'{name}_{number}.tif'
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = [np.full((64, 64), CODES[b] + label) for b in EuroSATSpatial.all_band_names]
            with rasterio.open(
                path, 'w', driver='GTiff', width=64, height=64, count=13, dtype='uint16',
                crs='EPSG:32633', transform=transform,
            ) as file:  # fmt: skip
                file.write(np.stack(pixels).astype('uint16'))
    for lists in ('spatial', '100'):
        for part, numbers in PARTS.items():
            lines = [f'{c}_{n}.jpg' for c in CLASSES for n in numbers]
            (tmp_path / f'eurosat-{lists}-{part}.txt').write_text('\n'.join(lines) + '\n')
    return tmp_path


@pytest.mark.parametrize('name', ['eurosat-spatial', 'eurosat-100'])
def test_thirteen_bands_come_in_our_order_and_raw(tiffs, name):
    benchmark = load_benchmark(name, tiffs)
    assert (len(benchmark.train), len(benchmark.val), len(benchmark.test)) == (18, 6, 6)
    assert benchmark.modality == 's2_l1c' and benchmark.gsd == 10.0
    assert benchmark.classes == tuple(CLASSES)
    for index in (0, 17):
        sample = benchmark.train[index]
        bands = sample['s2_l1c'].mean(dim=(1, 2)) - sample['label']
        assert dict(zip(MODALITIES['s2_l1c'].bands, bands.tolist(), strict=True)) == CODES
        assert sample['s2_l1c'].dtype == torch.float32


def test_broken_or_missing_tiffs_are_named(tiffs):
    folder = tiffs / 'ds/images/remote_sensing/otherDatasets/sentinel_2/tif'
    (folder / 'Forest/Forest_1.tif').write_bytes(b'II*\0 no more')
    with pytest.raises(InputError, match=r'Forest_1\.tif is a broken image'):
        load_benchmark('eurosat-spatial', tiffs).train[0]
    for number in PARTS['val']:
        (folder / f'SeaLake/SeaLake_{number}.tif').unlink()
    with pytest.raises(InputError, match=r'do not match its split lists.*SeaLake'):
        load_benchmark('eurosat-spatial', tiffs)
    (tiffs / 'eurosat-100-val.txt').unlink()
    with pytest.raises(InputError, match=r'eurosat-100 lacks eurosat-100-val\.txt'):
        load_benchmark('eurosat-100', tiffs)


def test_ucmerced_layout(tmp_path):
    for label, name in enumerate(('beach', 'forest')):
        for number in range(3):
            path = tmp_path / 'UCMerced_LandUse/Images' / name / f'{name}0{number}.tif'
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jpeg(path.with_suffix('.png'), 100 + label, 256)
            path.with_suffix('.png').rename(path)  # the reader goes by content
    for number, part in enumerate(PARTS):
        lines = f'beach0{number}.tif\nforest0{number}.tif\n'
        (tmp_path / f'uc_merced-{part}.txt').write_text(lines)
    benchmark = load_benchmark('ucmerced', tmp_path)
    assert (benchmark.split, benchmark.classes) == ('unofficial', ('beach', 'forest'))
    sample = benchmark.test[1]
    assert sample['rgb'].shape == (3, 256, 256) and sample['label'] == 1
    assert sample['rgb'][:, 9, 9].tolist() == [101, 154, 7]


def test_image_folder_in_three_parts(tmp_path):
    for part, name in (('train', 'a'), ('train', 'b'), ('validation', 'b'), ('validation', 'a'),
                       ('test', 'a'), ('test', 'b')):  # fmt: skip
        write_jpeg(tmp_path / part / name / 'one.png', 50, 24, mode='L' if name == 'b' else 'RGB')
    benchmark = load_benchmark('imagefolder', tmp_path)
    assert (benchmark.classes, benchmark.split) == (('a', 'b'), 'folders')
    assert benchmark.val[1]['rgb'].unique().tolist() == [50]  # grey becomes RGB
    assert [int(benchmark.test[i]['label']) for i in range(2)] == [0, 1]
    write_jpeg(tmp_path / 'test/c/one.png', 50, 24)
    with pytest.raises(InputError, match=r"class 'c', which train lacks"):
        load_benchmark('imagefolder', tmp_path)
    shutil.rmtree(tmp_path / 'validation')
    with pytest.raises(InputError, match='no val'):
        load_benchmark('imagefolder', tmp_path)


def test_image_folder_split_by_class(tmp_path):
    for name, count in (('a', 10), ('b', 5)):
        for number in range(count):
            write_jpeg(tmp_path / name / f'{number}.jpg', 10 * number, 16)
    benchmark, again = (load_benchmark('imagefolder', tmp_path) for _ in range(2))
    parts = [benchmark.train, benchmark.val, benchmark.test]
    assert [p.labels.bincount().tolist() for p in parts] == [[6, 3], [2, 1], [2, 1]]
    files = [f for p in parts for f in p.files]
    assert len(set(files)) == 15
    assert files == [f for p in (again.train, again.val, again.test) for f in p.files]
    write_jpeg(tmp_path / 'b/9.jpg', 1, 20)
    with pytest.raises(InputError, match=r'20 x 20 pixels, but .* 16 x 16'):
        load_benchmark('imagefolder', tmp_path)
    shutil.rmtree(tmp_path / 'b')
    with pytest.raises(InputError, match='1 class folder'):
        load_benchmark('imagefolder', tmp_path)


def test_unknown_names_and_folders(tmp_path):
    with pytest.raises(InputError, match=r'expected one of eurosat-rgb-spatial.*imagefolder'):
        load_benchmark('eurosats', tmp_path)
    with pytest.raises(InputError, match='There is no folder'):
        load_benchmark('ucmerced', tmp_path / 'no')
    with pytest.raises(InputError, match=r'ucmerced lacks UCMerced_LandUse.*https://'):
        load_benchmark('ucmerced', tmp_path)


def test_an_image_too_large_to_decode_is_one_sentence(tmp_path, monkeypatch):
    from PIL import Image

    Image.new('RGB', (64, 64)).save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(InputError, match=r'a\.png is too large'):
        decode_rgb(tmp_path / 'a.png')
