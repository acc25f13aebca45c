"""Benchmarks through torchgeo's classes, on made-up folders of the same layout."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_eurosat import write_jpeg
from torchgeo.datasets import BigEarthNet, So2Sat

from gfm_jepa.data.benchmarks import load_benchmark
from gfm_jepa.data.identity import split_hash
from gfm_jepa.errors import InputError
from gfm_jepa.evaluation.methods import Contest
from gfm_jepa.modalities import MODALITIES

PARTS = ('train', 'val', 'test')


def make_resisc45(root):
    for name in ('airport', 'lake'):
        for number in range(6):
            write_jpeg(root / f'NWPU-RESISC45/{name}/{name}_{number}.jpg', 40 * number, 32)
    for at, part in enumerate(PARTS):
        lines = [f'{n}_{i}.jpg' for n in ('airport', 'lake') for i in (2 * at, 2 * at + 1)]
        (root / f'resisc45-{part}.txt').write_text('\n'.join(lines))
    return root


def test_resisc45(tmp_path):
    found = load_benchmark('resisc45', make_resisc45(tmp_path))
    assert (found.classes, found.gsd, found.modality) == (('airport', 'lake'), None, 'rgb')
    assert found.val.labels.tolist() == [0, 0, 1, 1]
    assert found.test[3]['rgb'].shape == (3, 32, 32)
    with (tmp_path / 'resisc45-val.txt').open('a') as file:
        file.write('\nlake_77.jpg')
    with pytest.raises(InputError, match=r'1 of 5 images in .*val.txt are not in .*lake_77'):
        load_benchmark('resisc45', tmp_path)


def make_bigearthnet(root, write_raster):
    """Two patches a part, in folders of a band a file, at the three resolutions."""
    sides = {'B02': 120, 'B03': 120, 'B04': 120, 'B08': 120, 'B01': 20, 'B09': 20}
    bands = MODALITIES['s2_l2a'].bands
    labels = [['Sea and ocean'], ['Sea and ocean', 'Coniferous forest']]
    for at, (part, facts) in enumerate(BigEarthNet.splits_metadata.items()):
        lines = []
        for i in range(2):
            name = f'S2A_{at}_{i}'
            folder = root / BigEarthNet.metadata['s2']['directory'] / name
            for number, band in enumerate(bands):
                side = sides.get(band, 60)
                values = np.full((1, side, side), 100 * number + at)
                write_raster(folder / f'{name}_{band}.tif', values=values)
            (folder / f'{name}_labels_metadata.json').write_text(json.dumps({'labels': labels[i]}))
            lines.append(f'{name},S1A_{at}_{i}')
        (root / facts['filename']).write_text('\n'.join(lines))
        assert part in PARTS
    return root


def test_bigearthnet(tmp_path, write_raster):
    found = load_benchmark('bigearthnet', make_bigearthnet(tmp_path, write_raster))
    assert found.multilabel and len(found.classes) == 19
    chip = found.val[1]['s2_l2a']
    assert chip.shape == (12, 120, 120)
    assert chip[:, 5, 5].tolist() == [100 * i + 1 for i in range(12)]  # B8A after B08
    names = [found.classes[i] for i in found.val[1]['label'].nonzero().flatten()]
    assert sorted(names) == ['Coniferous forest', 'Marine waters']
    assert torch.equal(found.train.labels[1], found.val[1]['label'])
    before = split_hash(found)
    path = tmp_path / BigEarthNet.splits_metadata['test']['filename']
    path.write_text(path.read_text().splitlines()[0])
    assert split_hash(load_benchmark('bigearthnet', tmp_path)) != before
    shutil.rmtree(tmp_path / BigEarthNet.metadata['s2']['directory'] / 'S2A_1_0')
    with pytest.raises(InputError, match=r'1 of 2 listed patches .*S2A_1_0; complete'):
        load_benchmark('bigearthnet', tmp_path)


class FakeFile(dict):
    """What h5py.File does for a file of arrays."""

    def __init__(self, path, mode='r'):
        with np.load(path) as file:
            super().__init__(file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def make_so2sat(root):
    random = np.random.default_rng(0)
    for name in So2Sat.filenames_by_version['2'].values():
        labels = np.eye(17)[[0, 0, 16, 16] * 2]
        level = labels.argmax(axis=1)[:, None, None, None] / 40 + 0.1
        with (root / name).open('wb') as file:
            np.savez(file, sen1=random.random((8, 32, 32, 8)), label=labels,
                     sen2=level + 0.01 * random.random((8, 32, 32, 10)))  # fmt: skip
    return root


def test_so2sat(tmp_path, monkeypatch):
    make_so2sat(tmp_path)
    monkeypatch.setitem(sys.modules, 'h5py', SimpleNamespace(File=FakeFile, __spec__=object()))
    found = load_benchmark('so2sat', tmp_path)
    assert found.train.labels.tolist() == [0, 0, 16, 16] * 2
    assert found.classes[16] == 'Water' and len(found.bands) == 10
    chip = found.test[0]['s2_l1c']
    lacking = [b for b, x in zip(MODALITIES['s2_l1c'].bands, chip, strict=True) if x.isnan().all()]
    assert lacking == ['B01', 'B09', 'B10']
    assert 1000 <= chip[1].min() <= chip[1].max() <= 1100  # reflectance 0.1 is 1000
    batch = {'s2_l1c': torch.stack([found.test[i]['s2_l1c'] for i in range(4)])}
    widths = {}
    for method in Contest(()).methods(found):
        features = method.build()(batch)
        assert features.isfinite().all(), method.name
        widths[method.name] = features.shape[1]
    assert widths['image statistics'] == 40 and widths['RCF-512'] == 512


@pytest.mark.parametrize('name', ['resisc45', 'bigearthnet', 'so2sat', 'ucmerced', 'eurosat',
                                  'eurosat-spatial', 'eurosat-100'])  # fmt: skip
def test_what_is_missing_is_said_with_where_to_get_it(name, tmp_path):
    with pytest.raises(InputError, match=rf'{name} lacks .* get it from https://'):
        load_benchmark(name, tmp_path)


def test_so2sat_without_h5py(tmp_path, monkeypatch):
    make_so2sat(tmp_path)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(InputError, match='pip install h5py'):
        load_benchmark('so2sat', tmp_path)
