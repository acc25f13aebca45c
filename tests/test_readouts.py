"""The readout: components of several depths as the embedding, in a timm model as well."""

import pytest
import timm
import torch
from conftest import sensor

from gfm_jepa import InputError, bundled, from_pretrained, save_pretrained
from gfm_jepa.evaluation.baselines import random_init
from gfm_jepa.evaluation.readouts import add_readout, components
from gfm_jepa.models import Encoder
from gfm_jepa.models.timm_models import to_timm
from gfm_jepa.tasks import EncoderConfig, VICReg

OPTICAL, RELIEF = sensor('optical', 3), sensor('relief', 1)


def batch_of(count, names=('optical', 'relief')):
    bands = {'optical': 3, 'relief': 1}
    return {n: torch.rand(count, bands[n], 32, 32) * 1000 for n in names}


@pytest.fixture
def encoder():
    stems = {'optical': 'conv', 'relief': 'plain_conv'}
    return Encoder([OPTICAL, RELIEF], 8, 32, 2, 2, stem=stems).eval()


@pytest.fixture
def read(encoder):
    return add_readout(encoder, [batch_of(30) for _ in range(3)], width=16)


def test_components_are_uncorrelated_and_scaled_by_the_power():
    values = torch.randn(500, 8) @ torch.randn(8, 8) + 5
    values = torch.cat([values, torch.full((500, 1), 3.0)], dim=1)  # and one that never changes
    whole, half = (values @ w.T + b for w, b in (components(values, 8, p) for p in (1.0, 0.5)))
    assert torch.allclose(torch.cov(whole.T), torch.eye(8), atol=1e-3)
    assert whole.mean(dim=0).abs().max() < 1e-3
    spread = half.std(dim=0)
    assert torch.allclose(half / spread, whole, atol=1e-3)
    assert (spread.diff() < 0).all() and spread[0] > 1


def test_the_embedding_is_the_readout_and_comes_back(encoder, read, tmp_path):
    batch = batch_of(4)
    assert read.num_features == 16 and read.embed_dim == 32
    assert torch.allclose(read.forward_depths(batch), encoder.forward_depths(batch))
    assert torch.allclose(read(batch), read.readout(encoder.forward_depths(batch)))
    again = from_pretrained(save_pretrained(read, tmp_path / 'read'))
    assert torch.equal(again(batch), read(batch))
    only = from_pretrained(tmp_path / 'read', modalities=['relief'])
    x = batch_of(2, ['relief'])
    assert torch.allclose(only(x), read(x), atol=1e-6)
    gone = {**batch, 'optical': batch['optical'].clone()}
    gone['optical'][1] = torch.nan
    gone['relief'][1] = torch.nan
    assert read(gone)[1].isnan().all() and read(gone)[0].isfinite().all()


def test_no_direction_of_the_readout_stands_out(read):
    spread = read(batch_of(90)).std(dim=0)
    assert spread.max() < 4 * spread.min()  # bare components go down in steps to almost nothing


def test_a_timm_model_reads_out_the_same(read):
    images = batch_of(3, ['optical'])
    model = to_timm(read, 'optical', 32).eval()
    assert torch.allclose(model(images['optical']), read(images), atol=1e-4)
    headed = to_timm(read, 'optical', 32, num_classes=5)
    assert headed(images['optical']).shape == (3, 5) and headed.head.in_features == 16
    headed.reset_classifier(7)
    assert headed(images['optical']).shape == (3, 7)


def test_timm_names_know_a_readout(tmp_path, monkeypatch):
    encoder = Encoder(['rgb'], 8, 128, 4, 4, stem='conv').eval()
    read = add_readout(encoder, [{'rgb': torch.rand(40, 3, 32, 32) * 255}], width=24)
    save_pretrained(read, tmp_path / 'gfm-jepa-nano')
    monkeypatch.setattr(bundled, 'BUNDLE', tmp_path)
    images = torch.rand(2, 3, 64, 64) * 255
    model = timm.create_model('gfm_jepa_nano', pretrained=True).eval()
    assert torch.allclose(model(images), read({'rgb': images}), atol=1e-4)
    assert timm.create_model('gfm_jepa_nano', pretrained=True, num_classes=3)(images).shape == (
        2,
        3,
    )
    maps = timm.create_model('gfm_jepa_nano', pretrained=True, features_only=True)(images)
    assert maps[-1].shape == (2, 128, 8, 8)


def test_a_twin_has_no_readout(read):
    twin = random_init(read)
    assert twin.num_features == 32 and twin(batch_of(2)).shape == (2, 32)


def test_too_few_samples(encoder):
    with pytest.raises(InputError, match='width 64 was asked for, but there are 10 samples'):
        add_readout(encoder, [batch_of(10)], width=64)
    read = add_readout(encoder, [batch_of(20)], width=8)
    with pytest.raises(InputError, match='A readout takes all tokens'):
        read(batch_of(2), torch.zeros(2, 3, dtype=torch.long))


def test_a_readout_goes_where_stems_of_several_kinds_meet(tmp_path):
    """It was fitted to statistics of the stem, which are pooled if all stems have the same."""
    colours = sensor('colours', 3)
    encoder = Encoder([colours], 8, 32, 2, 2, stem='conv').eval()
    batches = [{'colours': torch.randn(64, 3, 32, 32)} for _ in range(4)]
    folder = save_pretrained(add_readout(encoder, batches, width=16), tmp_path / 'read')
    with pytest.warns(UserWarning, match='until a readout is fitted'):
        task = VICReg(
            [colours.to_dict(), sensor('relief', 1).to_dict()],
            EncoderConfig(weights=str(folder), stem='linear'),
        )
    images = batches[0]['colours']
    assert task.encoder.readout is None
    expected = encoder({'colours': images})
    assert torch.allclose(task.encoder.eval()({'colours': images}), expected, atol=1e-5)
