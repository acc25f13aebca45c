"""One image, its class and how sure that is."""

import io
import json

import numpy as np
import pytest
import torch
from conftest import sensor
from PIL import Image
from test_eurosat import write_jpeg

from gfm_jepa.cli import main
from gfm_jepa.data.resized import ResizedChips
from gfm_jepa.errors import InputError
from gfm_jepa.evaluation.classify import fit_middle
from gfm_jepa.models import Encoder
from gfm_jepa.models.heads import ClassificationHead, HeadFacts, head_state, load_classifier


def write_head(path, modalities, sizes, gsd=None, before=None):
    """A head whose two classes depend on the features."""
    torch.manual_seed(3)
    encoder = Encoder(modalities, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    head = ClassificationHead(16, 2)
    torch.nn.init.normal_(head.linear.weight)
    facts = HeadFacts(('low', 'high'), image_sizes=sizes, gsd=gsd or {}, resized_from=before or {})
    buffer = io.BytesIO()
    torch.save(head_state(encoder, head, facts), buffer)
    path.write_bytes(buffer.getvalue())
    return str(path)


@pytest.fixture
def rgb_head(tmp_path):
    return write_head(tmp_path / 'rgb.ckpt', ['rgb'], {'rgb': [32, 32]}, {'rgb': 10.0})


@pytest.fixture
def told(capfd):
    """Run the verb; returns all probabilities, or the last line of an error."""

    def run(*words, status=0):
        assert main(['classify', *words, *([] if status else ['--json'])]) == status
        out, err = capfd.readouterr()
        return err.strip().splitlines()[-1] if status else json.loads(out)

    return run


def test_a_picture_of_any_size(rgb_head, tmp_path, told, write_raster):
    write_jpeg(tmp_path / 'a.jpg', 200, 32)
    write_jpeg(tmp_path / 'b.png', 200, 64)
    found = told(rgb_head, 'a.jpg', 'b.png')
    model = load_classifier(rgb_head)
    x = torch.tensor([200.0, 55.0, 7.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert shares['low'] == pytest.approx(float(model({'rgb': x})[0, 0]), abs=0.02)
    values = np.full((3, 32, 32), 0) + np.array([200, 55, 7])[:, None, None]
    write_raster(tmp_path / 'c.tif', values=values, dtype='uint8')
    assert told(rgb_head, 'c.tif')['c.tif']['low'] == pytest.approx(found['a.jpg']['low'], abs=0.02)


def test_bands_go_by_their_names(tmp_path, told, write_raster):
    optical = sensor('optical', 3)
    head = write_head(tmp_path / 'h.ckpt', [optical.to_dict()], {'optical': [16, 16]})
    values = np.random.default_rng(0).integers(20, 200, (3, 16, 16))
    write_raster(tmp_path / 'named.tif', values=values, names=['B1', 'B2', 'B3'])
    write_raster(tmp_path / 'turned.tif', values=values[[2, 0, 1]], names=['B3', 'B1', 'B2'])
    write_raster(tmp_path / 'mute.tif', values=values[[2, 0, 1]])
    named = told(head, 'named.tif')['named.tif']
    assert told(head, 'turned.tif')['turned.tif'] == named
    assert told(head, 'mute.tif', '--bands', 'B3', 'B1', 'B2')['mute.tif'] == named
    message = told(head, 'mute.tif', status=2)
    assert '3 bands (no names), and none is called B1' in message and '--bands' in message
    assert '2 names are given' in told(head, 'mute.tif', '--bands', 'B1', 'B2', status=2)


def test_several_modalities_are_one_sample_and_one_may_be_missing(tmp_path, told, write_raster):
    modalities = [sensor('optical', 2).to_dict(), sensor('radar', 1).to_dict()]
    sizes = {'optical': [16, 16], 'radar': [16, 16]}
    head = write_head(tmp_path / 'h.ckpt', modalities, sizes)
    write_raster(tmp_path / 'o.tif', 2, (16, 16), names=['B1', 'B2'])
    write_raster(tmp_path / 'r.tif', 1, (16, 16), names=['B1'])
    both = told(head, 'optical=o.tif', 'radar=r.tif')
    assert list(both) == ['optical=o.tif, radar=r.tif']
    alone = told(head, 'optical=o.tif')
    assert next(iter(alone.values())) != next(iter(both.values()))
    assert 'say what a file is: optical=PATH' in told(head, 'o.tif', status=2)
    assert 'as NAME=PATH' in told(head, 'optical=o.tif', 'r.tif', status=2)


def test_the_middle_of_a_raster_keeps_its_pixels():
    x = torch.arange(36.0).view(1, 6, 6)
    assert torch.equal(fit_middle(x, (2, 4)), x[:, 2:4, 1:5])
    padded = fit_middle(x, (8, 6))
    assert torch.equal(padded[:, 1:7], x) and padded[:, [0, 7]].isnan().all()
    assert fit_middle(x, None) is x


def test_an_image_is_brought_to_the_size_as_the_chips_were(tmp_path, told, write_raster):
    values = np.random.default_rng(0).integers(20, 200, (3, 32, 48))
    Image.fromarray(values.transpose(1, 2, 0).astype(np.uint8)).save(tmp_path / 'a.png')
    optical = sensor('optical', 3)
    write_raster(tmp_path / 'a.tif', values=values, names=['B1', 'B2', 'B3'])
    for key, modality, path in (('rgb', 'rgb', 'a.png'), ('optical', optical.to_dict(), 'a.tif')):
        chips = [{key: torch.from_numpy(values).float()}]
        small = ResizedChips(chips, key, 16)
        for name, dataset, before in (('whole', chips, {}), ('small', small, {key: [32, 48]})):
            x = dataset[0][key]
            head = write_head(tmp_path / name, [modality], {key: list(x.shape[1:])}, before=before)
            expected = load_classifier(head)({key: x[None]})[0, 0]
            assert told(head, path)[path]['low'] == pytest.approx(float(expected), abs=1e-5)


def test_a_head_of_another_version_or_a_damaged_one_is_refused(rgb_head, tmp_path):
    saved = torch.load(rgb_head, weights_only=True)

    def load(facts, **tensors):
        path = tmp_path / 'other.ckpt'
        torch.save(saved | {'head': facts, 'state_dict': saved['state_dict'] | tensors}, path)
        return load_classifier(path)

    old = {k: v for k, v in saved['head'].items() if k != 'resized_from'}
    assert load(old).facts.resized_from == {}
    for odd in ({**old, 'novel': 1}, ['x'], {**old, 'classes': 5}, {**old, 'image_sizes': 'x'},
                {**old, 'image_sizes': {'rgb': [32]}}, {**old, 'gsd': {'rgb': 'x'}}):  # fmt: skip
        with pytest.raises(InputError, match='says of its head is not understood'):
            load(odd)
    bias = torch.tensor([0.0, torch.nan])
    with pytest.raises(InputError, match=r'linear.bias of the head of .* holds NaN'):
        load(old, **{'head.linear.bias': bias})


def test_bad_input_is_one_sentence(rgb_head, tmp_path, told, write_raster, capfd):
    assert 'There is no file no.png' in told(rgb_head, 'no.png', status=2)
    (tmp_path / 'a.png').write_bytes(b'junk')
    assert 'a.png is a broken image' in told(rgb_head, 'a.png', status=2)
    (tmp_path / 'a.tif').write_bytes(b'junk')
    assert 'a.tif is a broken raster' in told(rgb_head, 'a.tif', status=2)
    names = ['red', 'green', 'blue']
    write_raster(tmp_path / 'e.tif', values=np.zeros((3, 32, 32)), nodata=0, names=names)
    assert 'e.tif holds no valid pixel' in told(rgb_head, 'e.tif', status=2)
    assert 'There is no file no.ckpt' in told('no.ckpt', 'a.png', status=2)
    assert '--top is 0' in told(rgb_head, 'a.png', '--top', '0', status=2)
    write_jpeg(tmp_path / 'b.jpg', 9, 32)
    assert main(['classify', rgb_head, 'b.jpg', '--top', '1']) == 0
    assert capfd.readouterr().out.count(' %') == 1
