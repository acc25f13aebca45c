"""`gfm-jepa benchmark` on data with a class for every pixel, on made-up folders."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchgeo.datasets import OSCD

from gfm_jepa import save_pretrained
from gfm_jepa.cli import main
from gfm_jepa.data.benchmarks import load_benchmark
from gfm_jepa.data.identity import split_hash
from gfm_jepa.data.labelled import Benchmark
from gfm_jepa.errors import InputError
from gfm_jepa.evaluation import pixel_benchmark, pixel_features
from gfm_jepa.evaluation.methods import Method
from gfm_jepa.evaluation.pixel_features import difference, sample_pixels
from gfm_jepa.evaluation.pixel_scores import BINS, area, change_scores, class_scores, otsu_bin
from gfm_jepa.models import Encoder

PARTS = ('train', 'val', 'test')


def image(path, values):
    """Write (H, W) or (H, W, 3) of 8 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def scene(seed, side=64):
    """Colours (H, W, 3) and classes (H, W): a bright rectangle is 1."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((side, side), int)
    top, left = rng.integers(0, side // 2, 2)
    mask[top : top + side // 2, left : left + side // 2] = 1
    return rng.normal(60 + 120 * mask[..., None], 6, (side, side, 3)).clip(0, 255), mask


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(7)
    encoder = Encoder(['s2_l1c', 'rgb', 's1'], patch_size=8, embed_dim=16, depth=2, num_heads=2,
                      stem='conv')  # fmt: skip
    return str(save_pretrained(encoder, tmp_path_factory.mktemp('weights')))


def make_levircd(root):
    for at, part in enumerate(PARTS):
        for number in range(2):
            before, _ = scene(10 * at + number)
            after = before + 20
            mask = np.zeros((64, 64))
            mask[8:24, 16 * number : 16 * number + 16] = 255
            after[mask > 0] = [220, 30, 30]
            name = f'{part}_{number}.png'
            for folder, values in (('A', before), ('B', after.clip(0, 255)), ('label', mask)):
                image(root / folder / name, values)
    return root


def make_landcoverai(root):
    for at, part in enumerate(PARTS):
        names = [f'M-{at}_{i}' for i in range(2)]
        for number, name in enumerate(names):
            colours, mask = scene(10 * at + number)
            image(root / f'output/{name}.jpg', colours)
            image(root / f'output/{name}_m.png', mask)
        (root / f'{part}.txt').write_text('\n'.join(names))
    return root


def make_oscd(root, write_raster):
    base = 'Onera Satellite Change Detection dataset - '
    for part, cities in (('Train', 'abcdef'), ('Test', 'xy')):
        for city in cities:
            folder = root / f'{base}Images/{city}'
            for date in (1, 2):
                for number, band in enumerate(OSCD.all_bands):
                    values = np.full((1, 40, 48), 1000 + 100 * number + date)
                    write_raster(folder / f'imgs_{date}_rect/{band}.tif', values=values)
            (folder / 'dates.txt').write_text('date_1: 20150101\ndate_2: 20180101\n')
            image(root / f'{base}{part} Labels/{city}/cm/cm.png', 255 * np.eye(40, 48))
    return root


def make_sen12ms(root, write_raster):
    for season in ('ROIs1158_spring', 'ROIs1868_summer', 'ROIs1970_fall', 'ROIs2017_winter'):
        (root / season).mkdir(parents=True)
    names = {p: [f'ROIs1158_spring_s2_{scene}_p{i}.tif' for scene in scenes for i in (1, 2)]
             for p, scenes in (('train', range(1, 6)), ('test', (9,)))}  # fmt: skip
    for part, listed in names.items():
        (root / f'{part}_list.txt').write_text('\n'.join(listed))
        for name in listed:
            _, _, _, number, patch = name.split('_')
            classes = np.full((4, 256, 256), 17)
            classes[:, :128] = 13
            for kind, bands, level in (('s1', 2, -12), ('s2', 13, 900), ('lc', 4, None)):
                values = classes if level is None else level + 5.0 * (classes[:1] == 17).repeat(
                    bands, 0)  # fmt: skip
                path = root / f'ROIs1158_spring/{kind}_{number}/ROIs1158_spring_{kind}_{number}_'
                write_raster(path.with_name(path.name + patch), values=values, dtype='int16')
    return root


def run(weights, name, root, *words, status=0):
    """Run the verb; returns the rows."""
    assert main(['benchmark', weights, '--dataset', name, '--root', str(root), '-o', 'rows.csv',
                 *words]) == status  # fmt: skip
    with Path('rows.csv').open(newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_segmentation_rows(weights, tmp_path, capfd, monkeypatch):
    root = make_landcoverai(tmp_path / 'data')
    words = ('--features', 'embedding', 'depths', '--report', 'report')
    rows = run(weights, 'landcoverai', root, *words)
    who = [(r['method'], r['features']) for r in rows]
    own = Path(weights).name
    assert who == [(own, 'embedding'), (own, 'depths'), ('pixel bands', 'bands'),
                   ('random init', 'embedding'), ('random init', 'depths')]  # fmt: skip
    for row in rows:
        assert (row['protocol'], row['metric'], row['n_test']) == ('linear', 'mean_iou', '2')
        assert 0 <= float(row['low']) <= float(row['value']) <= float(row['high']) <= 1
        assert (row['image_size'], row['modality']) == ('64x64', 'rgb') and row['C']
    # Brightness tells the classes; depths hold it, and tokens alone are as coarse as a patch.
    assert float(rows[1]['value']) > 0.95 and float(rows[2]['value']) > 0.95
    assert float(rows[0]['value']) < float(rows[1]['value']) and float(rows[2]['f1']) > 0.97
    assert 'mean IoU' in Path('report/index.html').read_text()

    def fail(*_):
        raise AssertionError('computed again')

    monkeypatch.setattr('gfm_jepa.evaluation.benchmark.PixelMeasure.__call__', fail)
    assert run(weights, 'landcoverai', root, *words, '--resume') == rows
    more = ('--no-baselines', '--resume')
    run(weights, 'landcoverai', root, '--protocols', 'knn', *more, '--seed', '1', status=2)
    assert 'use --protocols linear' in capfd.readouterr().err
    run(weights, 'landcoverai', root, '--image-size', '32', *more, status=2)
    assert 'leave --image-size out' in capfd.readouterr().err
    run(weights, 'landcoverai', root, '--save-head', 'h.ckpt', *more, status=2)
    assert 'leave --save-head out' in capfd.readouterr().err


def test_change_rows(weights, tmp_path):
    rows = run(weights, 'levircd', make_levircd(tmp_path / 'data'), '--features', 'depths')
    assert [(r['method'], r['protocol']) for r in rows] == [
        (m, p) for m in (Path(weights).name, 'pixel bands', 'random init')
        for p in ('difference', 'linear')
    ]  # fmt: skip
    for row in rows:
        assert row['metric'] == 'f1' and row['gsd'] == '0.5'
        assert float(row['auc']) > 0.9, row['method']
        assert float(row['low']) <= float(row['f1']) <= float(row['high'])
    assert float(rows[3]['f1']) > 0.95  # bands, linear: no more than the new colour is needed
    assert rows[0]['n_train'] == '' and int(rows[1]['n_train']) > 1000


def test_oscd_is_read_city_by_city(tmp_path, write_raster):
    found = load_benchmark('oscd', make_oscd(tmp_path, write_raster))
    assert (found.target, found.modality, found.classes[1]) == ('change', 's2_l1c', 'changed')
    assert (found.train.files, found.val.files) == (['a', 'b', 'c', 'd', 'f'], ['e'])
    sample = found.test[0]
    assert sample['s2_l1c'].shape == (2, 13, 64, 64)  # 40 x 48, and nothing beyond
    assert sample['s2_l1c'][1, :, 0, 0].tolist() == [1002 + 100 * i for i in range(13)]
    assert sample['s2_l1c'][:, :, 40:].isnan().all() and (sample['mask'][:, 48:] == -1).all()
    assert int((sample['mask'] == 1).sum()) == 40 and sample['gsd'] == {'s2_l1c': 10.0}
    lost = tmp_path / 'Onera Satellite Change Detection dataset - Images/c/imgs_2_rect/B05.tif'
    lost.unlink()
    with pytest.raises(InputError, match=r'lacks images .* fetch .*Images.zip again'):
        load_benchmark('oscd', tmp_path)


def test_sen12ms_has_two_modalities(weights, tmp_path, write_raster):
    root = make_sen12ms(tmp_path / 'data', write_raster)
    found = load_benchmark('sen12ms', root)
    assert (found.modality, found.others, len(found.classes)) == ('s2_l1c', ('s1',), 10)
    assert (len(found.train), len(found.val), len(found.test)) == (8, 2, 2)
    sample = found.test[0]
    assert sample['s2_l1c'].shape == (13, 256, 256) and sample['s1'].shape == (2, 256, 256)
    assert sample['mask'][0, 0] == 6 and sample['mask'][-1, 0] == 9  # urban, water
    with (root / 'test_list.txt').open('a') as file:
        file.write('\nROIs1158_spring_s2_9_p3.tif')
    with pytest.raises(InputError, match=r'3 of 9 files that .*test_list.txt names .*s1_9_p3'):
        load_benchmark('sen12ms', root)


def make_places(root, write_raster):
    for at, part in enumerate(PARTS):
        rng = np.random.default_rng(at)
        classes = np.zeros((1, 64, 64))
        classes[:, 20 + 10 * at :] = 1
        level = 800 + 900 * classes.repeat(12, 0)
        origin = (500000.0 + 5000 * at, 5e6)
        for name, values in (('S2L2A', level + rng.normal(0, 20, level.shape)), ('LULC', classes)):
            write_raster(root / part / f'place/{name}.tif', values=values, origin=origin)
    return root


def test_classes_may_reach_beyond_the_images(tmp_path, write_raster):
    root = make_places(tmp_path / 'data', write_raster)
    before = [len(getattr(load_benchmark('rasterfolder', root), part)) for part in PARTS]
    for at, part in enumerate(PARTS):
        classes = np.ones((1, 192, 192))
        classes[:, 84:104] = 0
        write_raster(root / part / 'place/LULC.tif', values=classes,
                     origin=(500000.0 + 5000 * at - 640, 5e6 + 640))  # fmt: skip
    found = load_benchmark('rasterfolder', root)
    assert [len(getattr(found, part)) for part in PARTS] == before
    assert set(found.train[0]) >= {'s2_l2a', 'mask'}


def test_any_rasters_with_labels(tmp_path, write_raster, capfd):
    torch.manual_seed(7)
    encoder = Encoder(['s2_l2a'], patch_size=8, embed_dim=16, depth=1, num_heads=2)
    own = str(save_pretrained(encoder, tmp_path / 'weights'))
    rows = run(own, 'rasterfolder', make_places(tmp_path / 'data', write_raster))
    bands = next(r for r in rows if r['method'] == 'pixel bands')
    assert float(bands['value']) > 0.99 and bands['gsd'] == '10.0'
    classes = np.full((1, 64, 64), 2)
    write_raster(tmp_path / 'data/test/place/LULC.tif', values=classes, origin=(510000.0, 5e6))
    words = ['benchmark', own, '--dataset', 'rasterfolder', '--root', str(tmp_path / 'data')]
    assert main([*words, '-o', 'again.csv']) == 2
    assert "Class 'class 2' of rasterfolder has no pixel" in capfd.readouterr().err


def test_the_split_of_rasters_knows_the_places(tmp_path, write_raster):
    roots = [make_places(tmp_path / name, write_raster) for name in 'ab']
    known = split_hash(load_benchmark('rasterfolder', roots[0]))
    assert split_hash(load_benchmark('rasterfolder', roots[1])) == known
    (roots[1] / 'test/place').rename(roots[1] / 'test/other')
    assert split_hash(load_benchmark('rasterfolder', roots[1])) != known


def test_a_class_in_chips_that_were_not_drawn_counts_as_wrong(monkeypatch, caplog):
    for module in (pixel_benchmark, pixel_features):
        monkeypatch.setattr(module, 'MOST_CHIPS', 2)

    def chips(*levels):
        return [{'rgb': torch.full((3, 8, 8), 50.0 * v).index_fill(2, torch.arange(4), 0),
                 'mask': torch.full((8, 8), v).index_fill(1, torch.arange(4), 0)}
                for v in levels]  # fmt: skip

    known = Benchmark('cover', 'made up', 'rgb', None, chips(1, 2, 1), chips(1, 2), chips(1, 2),
                      ('none', 'grass', 'water'), target='pixels')  # fmt: skip
    method = Method('bands', 'bands', lambda: lambda batch: batch['rgb'])
    with caplog.at_level('INFO'):
        row = pixel_benchmark.PixelMeasure(known, method)({'protocol': 'linear'})[0]
    assert row['n_test'] == 2 and float(row['value']) == pytest.approx((1 + 0.5 + 0) / 3, abs=1e-4)
    assert 'none of which shows water; such test pixels count as wrong' in caplog.text


def test_a_class_that_train_lacks(weights, tmp_path, capfd):
    root = make_landcoverai(tmp_path / 'data')
    image(root / 'output/M-2_1_m.png', np.full((64, 64), 3))
    main(['benchmark', weights, '--dataset', 'landcoverai', '--root', str(root), '-o', 'r.csv'])
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == ("gfm-jepa: error: Class 'Water' of landcoverai has no pixel in the train part; "
                    'add some, or leave the class out.')  # fmt: skip


def test_bad_folders_are_one_sentence(tmp_path):
    for name in ('oscd', 'levircd', 'landcoverai', 'sen12ms'):
        with pytest.raises(InputError, match=rf'{name} lacks .* get it from https://'):
            load_benchmark(name, tmp_path)
    with pytest.raises(InputError, match='needs train, val and test'):
        load_benchmark('rasterfolder', tmp_path)
    root = make_landcoverai(tmp_path / 'cover')
    image(root / 'output/M-0_0.jpg', np.zeros((64, 64)))
    with pytest.raises(InputError, match='M-0_0'):
        load_benchmark('landcoverai', root).train[0]
    (root / 'output/M-1_1.jpg').unlink()
    with pytest.raises(InputError, match=r'1 of 4 files that .*val.txt names .*M-1_1.jpg'):
        load_benchmark('landcoverai', root)
    root = make_levircd(tmp_path / 'levir')
    (root / 'B/val_1.png').unlink()
    with pytest.raises(InputError, match=r'val_1.png of levircd is not in all'):
        load_benchmark('levircd', root)


def test_large_images_are_cut_into_windows(tmp_path):
    root = make_landcoverai(tmp_path)
    colours, mask = scene(5, 300)
    image(root / 'output/M-0_0.jpg', colours)
    image(root / 'output/M-0_0_m.png', mask)
    part = load_benchmark('landcoverai', root).train
    assert len(part) == 4 + 1 and part[0]['rgb'].shape == (3, 256, 256)
    whole = sum(int((part[i]['mask'] == 1).sum()) for i in range(4))
    assert whole == mask.sum() and part[3]['rgb'][:, 44:].isnan().all()


def test_pixels_are_drawn_evenly_and_rare_classes_are_kept():
    mask = torch.full((16, 16), -1)
    mask[:8], mask[0, 0] = 0, 4
    chips = [{'x': torch.arange(256.0).view(1, 16, 16) + 1000 * i, 'mask': mask} for i in range(3)]
    found = sample_pixels(lambda b: b['x'], chips, 30, 2, 0)
    assert torch.bincount(found.labels)[4] == 3 and 30 <= len(found) <= 36
    at = found.embeddings[:, 0].long()
    assert (at % 1000 < 128).all() and ((at % 1000 == 0) == (found.labels == 4)).all()


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 900)
    taken = np.where(rng.random(900) < 0.7, truth, rng.integers(0, 3, 900))
    counts = np.zeros((9, 3, 3))
    np.add.at(counts, (np.arange(900) // 100, truth, taken), 1)
    found = class_scores(counts)
    assert float(found['value']) == pytest.approx(
        jaccard_score(truth, taken, average='macro'), abs=1e-5
    )
    assert float(found['f1']) == pytest.approx(f1_score(truth, taken, average='macro'), abs=1e-5)
    assert float(found['low']) < float(found['value']) < float(found['high'])
    changed = truth == 2
    scores = np.clip(rng.normal(0.3 + 0.4 * changed, 0.1), 0, 0.999)
    bins = (scores * BINS).astype(int)
    counts = np.zeros((9, 2, BINS))
    np.add.at(counts, (np.arange(900) // 100, changed.astype(int), bins), 1)
    assert area(counts.sum(0)) == pytest.approx(roc_auc_score(changed, bins), abs=1e-9)
    assert 0.4 < otsu_bin(counts.sum((0, 1))) / BINS < 0.6
    expected = f1_score(changed, bins >= 500)
    assert float(change_scores(counts, 0.5)['f1']) == pytest.approx(expected, abs=1e-5)


def test_a_difference_takes_light_and_season_out():
    before = torch.randn(1, 4, 12, 12)
    after = 3 * before + 7
    there = torch.ones(1, 12, 12, dtype=torch.bool)
    assert difference(before, after, there).max() < 1e-5
    after[:, :, 2, 3] += torch.tensor([30.0, -30, 30, -30])
    found = difference(before, after, there)
    assert found.flatten().argmax() == 2 * 12 + 3 and found.max() < 1
