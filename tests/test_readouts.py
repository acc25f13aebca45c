"""The readout: components of several depths as the embedding, in a timm model as well."""

import pytest
import timm
import torch
from conftest import sensor

from gfm_jepa import InputError, bundled, from_pretrained, save_pretrained
from gfm_jepa.evaluation.baselines import RandomConvolutions, random_init
from gfm_jepa.evaluation.readouts import add_random_filters, add_readout, components
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


def test_gaps_leave_finite_gradients(read):
    batch = batch_of(4)
    batch['optical'][1] = torch.nan
    for raster in batch.values():
        raster[2] = torch.nan
    read.train()
    found = read(batch)
    assert found.isfinite().all(dim=1).tolist() == [True, True, False, True]
    found[[0, 1, 3]].square().sum().backward()
    grads = [p.grad for p in read.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads) and any(g.any() for g in grads)


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
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(pooled, read({'rgb': images}), atol=1e-4)
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


@pytest.fixture
def filtered(encoder):
    return add_random_filters(encoder, [batch_of(30) for _ in range(3)], count=12)


def test_random_filters_answer_as_the_baseline_does():
    encoder = Encoder([OPTICAL], 8, 32, 2, 2).eval()
    images = batch_of(40, ['optical'])
    embed = add_random_filters(encoder, [images], count=6).embedder('optical')
    baseline = RandomConvolutions([{'optical': x} for x in images['optical']], 'optical', 12)
    x = embed.normalise(images['optical'])
    own = torch.nn.functional.conv2d(x, embed.filters.weight, embed.filters.bias)
    halves = torch.cat([own.relu().mean(dim=(2, 3)), (-own).relu().mean(dim=(2, 3))], dim=1)
    assert torch.allclose(halves, baseline(images), rtol=1e-3, atol=1e-4)
    # At every second place, each weighted by how much of it lies within the raster.
    windows = torch.nn.functional.unfold(x, 5, padding=2, stride=2)
    inside = torch.nn.functional.unfold(torch.ones_like(x), 5, padding=2, stride=2).mean(dim=1)
    answers = embed.filters.weight.flatten(1) @ windows + embed.filters.bias.view(-1, 1)
    total = [(answers * sign).relu() * inside.unsqueeze(1) for sign in (1, -1)]
    means = torch.cat(total, dim=1).sum(dim=2) / inside.sum(dim=1, keepdim=True)
    assert torch.allclose(embed.describe(images['optical'])[2], means, rtol=1e-3, atol=1e-4)


def test_random_filters_join_the_depths_and_come_back(encoder, filtered, tmp_path):
    batch, width = batch_of(4), encoder.depths_dim
    found = filtered.forward_depths(batch)
    assert found.shape == (4, width + 24) == (4, filtered.depths_dim)
    assert torch.equal(found[:, :width], encoder.forward_depths(batch))
    assert torch.equal(filtered(batch), encoder(batch))  # the mean over tokens knows nothing of it
    read = add_readout(filtered, [batch_of(30) for _ in range(3)], width=16)
    again = from_pretrained(save_pretrained(read, tmp_path / 'read'))
    assert torch.equal(again(batch), read(batch))
    anew = add_random_filters(read, [batch], count=5)
    assert anew.readout is None and anew.depths_dim == width + 10
    assert random_init(read).depths_dim == width


@torch.inference_mode()
def test_random_filters_see_nothing_of_what_is_not_there(filtered):
    embed = filtered.embedder('optical')
    x = batch_of(2, ['optical'])['optical']
    x[:, :, :, 16:] = torch.nan
    other = x.clone()
    other[:, 1, :, :16] = torch.nan
    found, less = (embed.describe(raster)[2][:, -24:] for raster in (x, other))
    assert found.isfinite().all() and not torch.allclose(found, less)
    # An empty half weighs nothing: the mean is that of the half that is there.
    half = embed.describe(x[..., :16].contiguous())[2][:, -24:]
    assert torch.allclose(found, half, rtol=0.1, atol=0.1 * float(half.std()))
    assert embed.describe(torch.full_like(x, torch.nan))[2][:, -24:].isnan().all()


def test_random_filters_follow_the_names_of_bands(filtered, tmp_path):
    folder = save_pretrained(filtered, tmp_path / 'filtered')
    names = list(OPTICAL.bands)[::-1]
    turned = from_pretrained(folder, bands={'optical': names})
    batch = batch_of(2)
    other = {**batch, 'optical': batch['optical'].flip(1)}
    assert torch.allclose(turned.forward_depths(other), filtered.forward_depths(batch), atol=1e-4)
    fewer = from_pretrained(folder, bands={'optical': names[:1]})
    assert fewer.embedder('optical').filters.weight.shape[1] == 1


def test_a_timm_model_has_the_random_filters():
    images = torch.rand(40, 3, 32, 32) * 255
    encoder = add_random_filters(Encoder(['rgb'], 8, 32, 2, 2, stem='conv'), [{'rgb': images}], 8)
    read = add_readout(encoder, [{'rgb': images}], width=16)
    model = to_timm(read, 'rgb', img_size=32).eval()
    assert torch.allclose(model(images), read({'rgb': images}), atol=1e-4)


def test_a_band_that_no_image_holds_leaves_the_filters_finite(encoder):
    images = batch_of(30)
    images['optical'][:, 1] = torch.nan
    found = add_random_filters(encoder, [images], count=6)
    assert found.embedder('optical').filters.weight.isfinite().all()
    assert add_readout(found, [images], width=8)(images).isfinite().all()
