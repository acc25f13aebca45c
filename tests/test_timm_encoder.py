"""timm models as encoders: one contract for any of them."""

import warnings

import pytest
import torch
from conftest import sensor
from torch import nn

from gfm_jepa import Encoder, InputError, from_pretrained, save_pretrained
from gfm_jepa.evaluation.baselines import random_init
from gfm_jepa.models import BaseEncoder, TimmEncoder
from gfm_jepa.models.projectors import CrossRankBatchNorm, span_ranks
from gfm_jepa.tasks import IJEPA, EncoderConfig, LatentMIM, LeJEPA, SimSiam, VICReg

MODELS = ['resnet18', 'vit_tiny_patch16_224', 'convnext_atto', 'efficientnet_b0',
          'mobilenetv3_small_100', 'swin_tiny_patch4_window7_224']  # fmt: skip
S = sensor('optical', 4)


def raster(count=3, size=64, bands=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 100 + 50 * torch.randn(count, bands, size, size, generator=generator)


@pytest.mark.parametrize('name', MODELS)
def test_every_family_keeps_the_contract(name, tmp_path):
    encoder = TimmEncoder([S], name).eval()
    assert isinstance(encoder, BaseEncoder) and list(encoder.modalities) == ['optical']
    x = raster()
    embedding = encoder({'optical': x})
    assert embedding.shape == (3, encoder.embed_dim)
    assert torch.equal(embedding, encoder({'image': x}))
    assert encoder.forward_depths({'optical': x}).ndim == 2
    assert encoder.forward_feature_map({'optical': x}).ndim == 4
    loaded = from_pretrained(save_pretrained(encoder, tmp_path))
    assert type(loaded) is TimmEncoder and torch.equal(loaded({'optical': x}), embedding)
    # Statistics are inside: other ones on other values give the same.
    other = TimmEncoder([{**S.to_dict(), 'mean': [m + 7 for m in S.mean]}], name).eval()
    other.backbone.load_state_dict(encoder.backbone.state_dict())
    assert torch.allclose(other({'optical': x + 7}), embedding, atol=1e-3)


@pytest.mark.parametrize('name', MODELS[:3])
def test_missing_pixels_are_the_mean_and_missing_samples_poison_nothing(name):
    # A mean of 0 lets a filled pixel be 0 without rounding, which layer norms would enlarge.
    encoder = TimmEncoder([{**S.to_dict(), 'mean': [0.0] * 4}], name).eval()
    x = raster()
    x[0] = torch.nan
    x[1, :, :, :32] = torch.nan
    filled = x.nan_to_num(0.0)
    embedding = encoder({'optical': x})
    assert embedding[0].isnan().all()
    assert torch.allclose(embedding[1:], encoder({'optical': filled})[1:], atol=1e-4)
    feature_map = encoder.forward_feature_map({'optical': x})
    width = feature_map.shape[-1]
    assert feature_map[0].isnan().all() and feature_map[1, :, :, : width // 2].isnan().all()
    assert feature_map[2].isfinite().all() and feature_map[1, :, :, width // 2 :].isfinite().all()
    assert encoder.forward_depths({'optical': x})[0].isnan().all()
    encoder.train()
    embedding = encoder({'optical': x})
    embedding[1:].square().sum().backward()
    grads = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize('method', [LeJEPA, VICReg, SimSiam])
@pytest.mark.parametrize('config', [EncoderConfig(), EncoderConfig(backbone='resnet18')])
def test_a_sample_without_data_leaves_the_others_their_gradients(method, config):
    task = method([S.to_dict()], config)
    task._seed, task.log_dict = 0, lambda values: None
    x = raster(6)
    x[2] = torch.nan
    loss = task.compute_loss({'optical': x}, 0)
    loss.backward()
    grads = [p.grad for p in task.parameters() if p.grad is not None]
    assert loss.isfinite() and grads and all(g.isfinite().all() for g in grads)
    x[1:] = torch.nan
    with pytest.raises(InputError, match='1 of 6 samples'):
        task.compute_loss({'optical': x}, 0)


def test_small_images_keep_their_resolution():
    plain, small = (TimmEncoder([S], 'resnet18', s).eval() for s in (False, True))
    shapes = [e.forward_feature_map({'optical': raster(1, 32)}).shape for e in (plain, small)]
    assert shapes == [(1, 512, 1, 1), (1, 512, 4, 4)]
    assert isinstance(small.backbone.maxpool, nn.Identity)
    assert small({'optical': raster(1, 8)}).shape == (1, 512)
    vit = TimmEncoder([S], 'vit_tiny_patch16_224', True).eval()
    assert vit.patch_sizes == {'optical': 8}
    assert vit.forward_feature_map({'optical': raster(1, 32)}).shape == (1, 192, 4, 4)


def test_wrong_input_is_explained():
    resnet, vit = TimmEncoder([S], 'resnet18'), TimmEncoder([S], 'vit_tiny_patch16_224')
    for encoder, x, words in (
        (resnet, raster(bands=3), 'came with 3 bands, but has 4: B1 B2 B3 B4'),
        (resnet, raster(size=24), 'resnet18 needs 32 x 32 or more'),
        (vit, raster(size=40), '16 x 16, do not divide; pad it with NaN to 48 x 48'),
        (TimmEncoder([S], 'mixer_s16_224'), raster(), 'takes 224 x 224 alone'),
    ):
        for method in (encoder.check, encoder):
            with pytest.raises(InputError, match=words):
                method({'optical': x})
    with pytest.raises(InputError, match='The batch holds s1, but this encoder embeds optical'):
        resnet.check({'s1': raster()})
    with pytest.raises(InputError, match='No s1 here'):
        resnet.forward_feature_map({'optical': raster()}, 's1')
    rgb = TimmEncoder(['rgb'], 'resnet18')
    with pytest.warns(UserWarning, match='expected in the unit "8-bit display value'):
        rgb({'rgb': torch.rand(2, 3, 32, 32)})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rgb({'rgb': torch.rand(2, 3, 32, 32)})  # said once


def test_wrong_choices_are_explained(monkeypatch):
    for words, arguments in (
        ("timm has no model 'resnet5'; it has", ([S], 'resnet5')),
        ('embeds one modality, but got s1, dem', (['s1', 'dem'], 'resnet18')),
        ('does not go with convnext_atto', ([S], 'convnext_atto', True)),
        ('cannot build', ([S], 'vgg11', False, 0.1)),
    ):
        with pytest.raises(InputError, match=words):
            TimmEncoder(*arguments)
    for method in (IJEPA, LatentMIM):
        with pytest.raises(InputError, match=f'{method.__name__} hides tokens, and timm'):
            method([S.to_dict()], EncoderConfig(backbone='resnet18'))
    with pytest.raises(InputError, match=r'encoder\.small_images is for timm models'):
        LeJEPA([S.to_dict()], EncoderConfig(small_images=True))


def test_pretrained_weights_are_only_taken_when_asked_for(monkeypatch):
    import timm

    asked = []

    def create(name, **options):
        asked.append(options.pop('pretrained'))
        if asked[-1]:
            raise OSError('no network\nmore')
        return original(name, **options)

    original = timm.create_model
    monkeypatch.setattr(timm, 'create_model', create)
    encoder = TimmEncoder([S], 'resnet18')
    assert asked == [False] and 'pretrained' not in encoder.config
    with pytest.raises(InputError, match=r'no weights of resnet18 \(OSError: no network\)'):
        TimmEncoder([S], 'resnet18', pretrained=True)
    with pytest.raises(InputError, match='does not go with resnet18 pretrained'):
        monkeypatch.setattr(timm, 'create_model', lambda n, pretrained, **o: original(n, **o))
        TimmEncoder([S], 'resnet18', True, pretrained=True)


def test_random_twin_has_other_weights_of_the_same_shape():
    encoder = TimmEncoder([S], 'resnet18', True)
    twin = random_init(encoder, seed=1)
    ours, theirs = encoder.state_dict(), twin.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert torch.equal(ours['mean'], theirs['mean'])
    assert not torch.equal(ours['backbone.conv1.weight'], theirs['backbone.conv1.weight'])


def test_norms_that_span_ranks_keep_the_activation_of_fused_ones():
    encoder = TimmEncoder([S], 'efficientnet_b0')
    x = {'optical': raster(4)}
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    before = encoder(x)
    encoder.load_state_dict(state)
    span_ranks(encoder)
    assert any(isinstance(m, CrossRankBatchNorm) for m in encoder.modules())
    assert list(encoder.state_dict()) == list(state)
    assert torch.allclose(encoder(x), before, atol=1e-5)


def test_our_encoder_keeps_the_same_contract():
    encoder = Encoder([S], 16, 32, 2, 2)
    assert isinstance(encoder, BaseEncoder) and encoder.patch_sizes == {'optical': 16}
    with pytest.raises(InputError, match='do not divide'):
        encoder.check({'optical': raster(size=40)})
