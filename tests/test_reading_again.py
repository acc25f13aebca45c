"""What is read is what was meant: units, bands by name, ground, modalities and rows."""

import json

import numpy as np
import pytest
import rasterio
import torch
from conftest import sensor
from rasterio.enums import ColorInterp, Resampling
from test_classify import write_head
from test_eurosat import write_jpeg
from test_hub import encoder_of, row
from test_probes import benchmark, encoder  # noqa: F401  # fixtures

from gfm_jepa.cli import main
from gfm_jepa.errors import InputError
from gfm_jepa.evaluation.clusters import read_on
from gfm_jepa.evaluation.embeddings import open_map
from gfm_jepa.evaluation.probes import probe
from gfm_jepa.modalities import MODALITIES
from gfm_jepa.models import Encoder
from gfm_jepa.models.hub import save_pretrained
from gfm_jepa.models.patch_embed import unit_problem
from gfm_jepa.models.weight_files import weights_hash

L1C = MODALITIES['s2_l1c']


@pytest.fixture
def told(capfd):
    """Run the verb on images; the first class's probability each, or the last line of an error."""

    def run(head, *words, status=0):
        capfd.readouterr()
        assert main(['classify', head, *words, *([] if status else ['--json'])]) == status
        out, err = capfd.readouterr()
        if status:
            return err.strip().splitlines()[-1]
        return [shares['low'] for shares in json.loads(out).values()]

    return run


def restate(path, scale, offset):
    """Say how stored values become physical ones."""
    with rasterio.open(path, 'r+') as file:
        file.scales, file.offsets = [scale] * file.count, [offset] * file.count


def test_a_class_does_not_depend_on_how_a_scene_is_stored(tmp_path, told, write_raster):
    head = write_head(tmp_path / 'h.ckpt', ['s2_l1c'], {'s2_l1c': [32, 32]})
    values = np.random.default_rng(0).integers(300, 2500, (13, 32, 32))
    values[L1C.bands.index('B10')] = 20  # nothing comes back in the cirrus band
    short = [b.replace('B0', 'B') for b in L1C.bands]
    write_raster(tmp_path / 'plain.tif', values=values, names=L1C.bands)
    write_raster(tmp_path / 'short.tif', values=values, names=short)
    write_raster(tmp_path / 'added.tif', values=values + 1000, names=L1C.bands)
    write_raster(tmp_path / 'stated.tif', values=values + 1000, names=L1C.bands)
    restate(tmp_path / 'stated.tif', 1e-4, -0.1)
    write_raster(tmp_path / 'placeless.tif', values=values + 1000, names=L1C.bands, epsg=None)
    write_raster(tmp_path / 'mute.tif', values=values + 1000)
    write_raster(tmp_path / 'side.tif', values=values, dtype='uint16')
    (tmp_path / 'side.yaml').write_text(f'bands: [{", ".join(L1C.bands)}]\n')
    names = ('plain', 'short', 'added', 'stated', 'placeless', 'side')
    plain, *others = told(head, *(f'{name}.tif' for name in names))
    assert others == pytest.approx([plain] * 5, abs=1e-4)
    assert told(head, 'mute.tif', '--bands', *short)[0] == pytest.approx(plain, abs=1e-4)
    write_raster(tmp_path / 'bright.tif', values=values + 400, names=L1C.bands)
    assert abs(told(head, 'bright.tif')[0] - plain) > 1e-3  # the class does depend on values
    message = told(head, 'mute.tif', status=2)
    assert 'no names' in message and 'none is called B01' in message
    write_raster(tmp_path / 'part.tif', values=values[:12], names=L1C.bands[:12])
    assert 'none is called B12' in told(head, 'part.tif', status=2)


def test_three_bytes_that_state_a_scale_are_no_picture(tmp_path, told, write_raster):
    head = write_head(tmp_path / 'h.ckpt', ['rgb'], {'rgb': [32, 32]})
    values = np.random.default_rng(0).integers(20, 120, (3, 32, 32))
    write_raster(tmp_path / 'plain.tif', values=2 * values, dtype='uint8')
    write_raster(tmp_path / 'half.tif', values=values, dtype='uint8')
    restate(tmp_path / 'half.tif', 2.0, 0.0)
    plain, half = told(head, 'plain.tif', 'half.tif')
    assert half == pytest.approx(plain, abs=1e-4)


def test_a_head_is_asked_about_what_it_learned_alone(tmp_path, told, write_raster):
    modalities = ['s2_l1c', 'rgb', 's1']
    head = write_head(tmp_path / 'one.ckpt', modalities, {'s2_l1c': [32, 32]})
    write_raster(tmp_path / 'a.tif', 13, (32, 32), names=L1C.bands)
    write_jpeg(tmp_path / 'a.jpg', 200, 32)
    assert told(head, 'a.tif') == told(head, 's2_l1c=a.tif')
    message = told(head, 'rgb=a.jpg', status=2)
    assert 'knows rgb, but the head learned from s2_l1c alone' in message
    assert 'learned from s2_l1c' in told(head, 's2_l1c=a.tif', 'rgb=a.jpg', status=2)
    two = write_head(tmp_path / 'two.ckpt', modalities, {k: [32, 32] for k in ('s2_l1c', 'rgb')})
    assert 'knows s2_l1c, rgb; say' in told(two, 'a.tif', status=2)
    unsaid = write_head(tmp_path / 'unsaid.ckpt', modalities, {})
    assert len(told(unsaid, 'rgb=a.jpg')) == 1


@pytest.fixture
def compare(tmp_path, capfd):
    """Compare two scenes pixel by pixel: their scores, or the last line of an error."""
    torch.manual_seed(0)
    bands = [sensor('optical', 3)]
    save_pretrained(Encoder(bands, 8, 16, 1, 2, stem='conv').eval(), tmp_path / 'weights')

    def run(before, after, *words, status=0):
        capfd.readouterr()
        scenes = [str(tmp_path / f'{name}.tif') for name in (before, after)]
        assert main(['change', *scenes, '--weights', str(tmp_path / 'weights'), '-o',
                     str(tmp_path / 'out.tif'), *words]) == status  # fmt: skip
        if status:
            return capfd.readouterr().err.strip().splitlines()[-1]
        with rasterio.open(tmp_path / 'out.tif') as file:
            return file.read(1)

    return run


def test_change_compares_bands_by_name(tmp_path, write_raster, compare):
    values = np.random.default_rng(0).integers(20, 200, (3, 64, 64))
    for name, order, names in (
        ('named', [0, 1, 2], ['B1', 'B2', 'B3']), ('turned', [2, 1, 0], ['B03', 'B02', 'B01']),
        ('more', [1, 0, 0, 2], ['B2', 'SCL', 'B1', 'B3']), ('mute', [0, 1, 2], None),
        ('own', [0, 1, 2], ['x', 'y', 'z']), ('own_turned', [2, 0, 1], ['z', 'x', 'Y']),
        ('other', [0, 1, 2], ['x', 'y', 'w']), ('part', [0, 1, 2], ['B1', 'B2', 'w']),
        ('part_more', [0, 1, 2, 2], ['B1', 'B2', 'v', 'w']), ('mute_more', [0, 1, 2, 2], None),
    ):  # fmt: skip
        write_raster(tmp_path / f'{name}.tif', values=values[order], names=names)
    for before, after in (
        ('named', 'turned'), ('turned', 'named'), ('turned', 'more'), ('named', 'mute'),
        ('turned', 'mute'), ('own', 'own_turned'),
    ):  # fmt: skip
        assert compare(before, after).max() < 1e-3, (before, after)
    # The order counts: said by hand, the bands of these dates are not those that they seem.
    words = ('--modality', 'optical', '--bands', 'B1', 'B2', 'B3')
    assert compare('named', 'turned', *words).max() > 0.1
    # Where there are more than are said, they go by name.
    assert compare('named', 'more', *words).max() < 1e-3
    assert 'part_more.tif names its bands B1 B2 v w, but none B3' in (
        compare('more', 'part_more', *words, status=2))  # fmt: skip
    for said in ((), words):
        assert 'have 3 and 4 bands, but optical has 3' in (
            compare('named', 'mute_more', *said, status=2))  # fmt: skip
    for before, after in (('named', 'own'), ('own', 'other')):
        message = compare(before, after, status=2)
        assert 'names its bands' in message and '--bands' in message
    assert 'but none B3' in compare('named', 'part', status=2)


@pytest.fixture
def embeddings(tmp_path, write_raster):
    """A map of 16 x 16 cells of 80 m."""
    values = np.random.default_rng(0).normal(size=(4, 16, 16))
    names = [f'd{i}' for i in range(4)]
    path = write_raster(tmp_path / 'map.tif', values=values, gsd=80.0, dtype='float32', names=names,
                        nodata=np.nan)  # fmt: skip
    with rasterio.open(path, 'r+') as file:
        file.update_tags(weights='0123456789abcdef')
    return path


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'float32'])
@pytest.mark.parametrize('nodata', [None, 7])
def test_beyond_a_raster_of_labels_there_is_no_label(
    tmp_path, write_raster, embeddings, dtype, nodata
):
    classes = np.tile(np.array([1, 2, 7, 3]), 32).repeat(128).reshape(1, 128, 128)
    east = (500000.0 + 640, 5000000.0)
    path = write_raster(tmp_path / 'beside.tif', values=classes, origin=east, dtype=dtype,
                        nodata=nodata)  # fmt: skip
    known = open_map(embeddings)
    found = known.image(read_on(known, path, Resampling.nearest))
    assert (found[:, :8] == -1).all()
    assert set(np.unique(found[:, 8:])) <= ({1, 2, 3, -1} if nodata else {1, 2, 3, 7})
    assert set(np.unique(found[:, 8:])) & {1, 2, 3}
    for far in ({'epsg': 32640}, {'origin': (600000.0, 5000000.0)}):
        path = write_raster(tmp_path / 'far.tif', values=classes, dtype=dtype, nodata=nodata, **far)
        with pytest.raises(InputError, match=r'far\.tif covers no place of .*map\.tif'):
            read_on(known, path, Resampling.mode)


@pytest.mark.parametrize('epsg', [32618, 32648])
def test_memory_is_no_label_where_a_far_zone_knows_no_such_ground(tmp_path, write_raster, epsg):
    south = (500000.0, 100000.0)
    here = write_raster(tmp_path / 'here.tif', 4, (28, 28), gsd=80.0, origin=south, nodata=0)
    far = write_raster(tmp_path / 'far.tif', size=(224, 224), origin=south, epsg=epsg)
    with pytest.raises(InputError, match='covers no place of'):
        read_on(open_map(here), far, Resampling.mode)


def test_masks_of_labels_count(tmp_path, write_raster, embeddings):
    values = np.full((2, 128, 128), 5)
    values[1] = 255
    values[1, :64] = 0
    path = write_raster(tmp_path / 'alpha.tif', values=values, dtype='uint8')
    with rasterio.open(path, 'r+') as file:
        file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    known = open_map(embeddings)
    found = known.image(read_on(known, path, Resampling.mode))
    assert (found[:8] == -1).all() and (found[8:] == 5).all()


def test_labels_of_another_place_are_refused(tmp_path, write_raster, embeddings, capfd):
    write_raster(tmp_path / 'far.tif', values=np.ones((1, 64, 64)), dtype='uint8', epsg=32640)
    assert main(['cluster', str(embeddings), '-k', '2', '-o', str(tmp_path / 'c.tif'),
                 '--labels', str(tmp_path / 'far.tif')]) == 2  # fmt: skip
    assert 'covers no place of' in capfd.readouterr().err
    assert main(['change', str(embeddings), str(embeddings), '-o', str(tmp_path / 'c.tif'),
                 '--labels', str(tmp_path / 'far.tif')]) == 2  # fmt: skip
    assert 'covers no place of' in capfd.readouterr().err


def test_rows_say_which_weights_they_are_of(benchmark, encoder):  # noqa: F811
    rows = probe(encoder, 'mine', benchmark, batch_size=8, progress=False)
    assert rows[0]['weights_hash'] == weights_hash(encoder)
    assert not any('weights_hash' in r for r in rows[1:])


def test_a_card_takes_rows_of_its_own_weights_alone(tmp_path, capfd):
    own, other = encoder_of(), encoder_of()
    with torch.no_grad():
        next(p for p in other.parameters() if p.ndim == 2).add_(1)
    folder = save_pretrained(own, tmp_path / 'saved')
    rows = tmp_path / 'rows.json'
    words = ['publish', str(folder), 'org/name', '--dry-run', 'out', '--rows', str(rows), '--half']
    rows.write_text(json.dumps([row('a', weights_hash=weights_hash(other)), row('RCF-512')]))
    assert main(words) == 2
    said = capfd.readouterr().err
    assert f'hash {weights_hash(other)} (a)' in said and weights_hash(own) in said
    assert not (tmp_path / 'out').exists()
    for fields in ({'weights_hash': weights_hash(own)}, {}):
        rows.write_text(json.dumps([row('a', **fields), row('RCF-512')]))
        assert main(words) == 0


def test_linear_power_is_no_decibels():
    radar = MODALITIES['s1']
    linear = torch.rand(2, 2, 96, 96) * 0.3
    message = unit_problem(linear, radar)
    assert 's1 came with values from' in message and 'unit "dB" (-80 to 40)' in message
    assert '10 log10' in message
    assert unit_problem(10 * linear.log10(), radar) == ''
    assert unit_problem(torch.full((1, 2, 96, 96), torch.nan), radar) == ''
    with pytest.warns(UserWarning, match='expected in the unit "dB"'):
        Encoder(['s1'], 8, 16, 1, 2).eval()({'s1': linear})
