"""Our names in timm, torchgeo and smp: the same embedding, with no code of ours in between."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from lightning.pytorch.cli import LightningCLI
from PIL import Image
from small_weights import bundle, chips, make_bundle  # noqa: F401
from torch import nn
from torchgeo.datamodules import UCMercedDataModule
from torchgeo.main import main as torchgeo_main
from torchgeo.tasks import Classification, SemanticSegmentation

import gfm_jepa
from gfm_jepa import InputError, from_pretrained
from gfm_jepa.modalities import NDVI, RGB, S2_L2A
from gfm_jepa.models.torchvision_weights import weights_of
from gfm_jepa.torchgeo import RawUnits


@pytest.mark.parametrize('order', ['import gfm_jepa, timm', 'import timm, gfm_jepa'])
def test_names_are_registered_in_either_order_and_nothing_is_imported_early(order):
    code = (
        'import gfm_jepa, sys, importlib.util\n'
        'assert importlib.util.find_spec("timm") and importlib.util.find_spec("timm")\n'
        'assert "torch" not in sys.modules\n'
        if order.startswith('import gfm')
        else ''
    )
    code += f'{order}\nprint(timm.list_models("gfm_jepa_*"))\nprint(len(sys.meta_path))'
    done = subprocess.run(
        [sys.executable, '-c', f'import sys\n{code}'], capture_output=True, text=True, check=True
    )
    assert "'gfm_jepa_nano'" in done.stdout and "'gfm_jepa_large'" in done.stdout
    assert 'gfm_jepa.models' not in done.stderr


@pytest.mark.parametrize('stem', ['linear', 'conv'])
@pytest.mark.parametrize('size', [32, 64, (24, 40)])
def test_embedding_equals_the_encoders(tmp_path, monkeypatch, stem, size):
    make_bundle(tmp_path, monkeypatch, stem)
    height, width = (size, size) if isinstance(size, int) else size
    images = chips(RGB, 64)[..., :height, :width]
    model = timm.create_model('gfm_jepa_nano', pretrained=True, in_chans=3).eval()
    expected = from_pretrained('gfm-jepa-nano')({'rgb': images})
    assert torch.allclose(model(images), expected, atol=1e-4)


def test_every_option_of_timm(bundle):  # noqa: F811
    images, encoder = chips(S2_L2A, 64), from_pretrained('gfm-jepa-nano')
    model = timm.create_model(
        'gfm_jepa_nano', pretrained=True, in_chans=12, num_classes=7, img_size=64,
        dynamic_img_size=True, drop_path_rate=0.1, drop_rate=0.1,
    ).eval()  # fmt: skip
    assert model(images).shape == (2, 7) and model.get_classifier().out_features == 7
    expected = encoder({'s2_l2a': images})
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(pooled, expected, atol=1e-4)
    model.reset_classifier(0)
    assert torch.allclose(model(images), expected, atol=1e-4)
    model.set_input_size(img_size=(32, 48))
    assert model.patch_embed.grid_size == (4, 6)
    with pytest.raises(InputError, match='keep them'):
        model.set_input_size(patch_size=16)
    assert torch.allclose(model(images), expected, atol=1e-4)
    extractor = timm.create_model(
        'gfm_jepa_nano', pretrained=True, in_chans=12, features_only=True, out_indices=(1, 3)
    ).eval()
    assert extractor.feature_info.channels() == [128, 128]
    assert [tuple(f.shape) for f in extractor(images)] == [(2, 128, 8, 8)] * 2
    feature_map = encoder.forward_feature_map({'s2_l2a': images})
    last = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
    assert torch.allclose(last, feature_map, atol=1e-4)


def test_the_modality_follows_from_the_bands_or_is_named(bundle):  # noqa: F811
    def modality_of(**options):
        model = timm.create_model('gfm_jepa_nano', **options)
        return model.patch_embed.embed.modality

    assert modality_of(pretrained=True).name == 'rgb'
    assert modality_of(pretrained=True, in_chans=2).name == 's1'
    assert modality_of(in_chans=13).name == 's2_l1c'
    assert modality_of(pretrained=True, modality='s1').name == 's1'
    picked = {'name': 's2_l2a', 'bands': ['B04', 'B03', 'B02']}
    assert modality_of(pretrained=True, in_chans=3, modality=picked).mean[0] == 1340.9
    assert modality_of(modality=picked).mean[0] == 1340.9
    with pytest.raises(InputError, match='4 bands say nothing to gfm-jepa-nano'):
        timm.create_model('gfm_jepa_nano', pretrained=True, in_chans=4)
    with pytest.raises(InputError, match='5 bands say nothing'):
        timm.create_model('gfm_jepa_nano', in_chans=5)
    with pytest.raises(InputError, match='in_chans is 3, but s1 has 2 bands'):
        timm.create_model('gfm_jepa_nano', pretrained=True, in_chans=3, modality='s1')
    with pytest.raises(InputError, match=r'gfm-jepa-tiny.*bundled are gfm-jepa-nano'):
        timm.create_model('gfm_jepa_tiny', pretrained=True)
    with pytest.raises(InputError, match='take the name of its size'):
        timm.create_model('gfm_jepa_tiny', pretrained=True, weights=str(bundle))


@pytest.mark.parametrize('readout', [None, 24])
def test_missing_values_never_spread(tmp_path, monkeypatch, readout):
    make_bundle(tmp_path, monkeypatch, 'conv', readout=readout, random_filters=8)
    images = chips(RGB, count=3)
    complete = images.clone()
    images[0], images[1, :, :8] = float('nan'), float('nan')
    model = timm.create_model('gfm_jepa_nano', pretrained=True, num_classes=2).eval()
    answers = model(images)
    assert answers.isfinite().all() and torch.allclose(answers[2], model(complete)[2], atol=1e-6)
    answers.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_frozen_encoder_learns_nothing_behind_a_readout_either(tmp_path, monkeypatch):
    make_bundle(tmp_path, monkeypatch, 'conv', readout=24, random_filters=8)
    task = Classification(
        model='gfm_jepa_nano', weights=True, in_channels=3, num_classes=3, freeze_backbone=True
    )
    images, before = chips(RGB), {k: v.clone() for k, v in task.model.state_dict().items()}
    task.train()
    trained = task(images)
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())
    assert torch.equal(trained, task.eval()(images))
    # torchgeo takes the last child for the output layer, when it loads other numbers of classes.
    assert [name for name, _ in task.model.named_children()][-1] == 'head'
    with pytest.raises(InputError, match='A readout takes all tokens'):
        task.model.forward_features(images, attn_mask=torch.ones(1))


def test_gradient_checkpointing_changes_no_gradient(tmp_path, monkeypatch):
    make_bundle(tmp_path, monkeypatch, 'linear', readout=24)
    gradients = []
    for enabled in (False, True):
        model = timm.create_model('gfm_jepa_nano', pretrained=True)
        model.set_grad_checkpointing(enabled)
        model(chips(RGB).fill_(90.0)).square().sum().backward()
        gradients.append(model.blocks[0].mlp.fc1.weight.grad)
    assert gradients[0].abs().sum() > 0 and torch.allclose(*gradients)


def test_weights_that_timm_is_told_of_are_not_the_bundled_ones(bundle, tmp_path):  # noqa: F811
    model = timm.create_model('gfm_jepa_nano', pretrained=True).eval()
    with torch.no_grad():
        model.norm.weight.mul_(2)
    timm.models.save_for_hf(model, tmp_path / 'mine', safe_serialization=True)
    file = tmp_path / 'mine/model.safetensors'
    images = chips(RGB)
    for name, options in (
        ('gfm_jepa_nano', {'pretrained_cfg_overlay': {'file': str(file)}}),
        (f'local-dir:{tmp_path / "mine"}', {}),
    ):
        other = timm.create_model(name, pretrained=True, num_classes=0, **options).eval()
        assert torch.equal(other(images), model(images))
    named = timm.create_model('gfm_jepa_nano', weights=str(bundle)).eval()
    assert torch.equal(
        named(images), timm.create_model('gfm_jepa_nano', pretrained=True).eval()(images)
    )


def test_states_of_before_and_configs_without_a_source(bundle):  # noqa: F811
    model = timm.create_model('gfm_jepa_nano', pretrained=True, pretrained_cfg={'num_classes': 3})
    state = model.state_dict()
    del state['patch_embed.gsd']
    assert model.load_state_dict(state) and model.patch_embed.gsd == 10
    own = {'name': 'rgb', 'mean': [1.0, 2, 3], 'std': [1.0, 1, 1]}
    untrained = timm.create_model('gfm_jepa_nano', modality=own)
    assert untrained.patch_embed.embed.modality.mean == (1.0, 2.0, 3.0)


def test_timms_own_transform_gives_raw_values_back():
    model = timm.create_model('gfm_jepa_nano')
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = Image.fromarray(np.full((64, 64, 3), 90, np.uint8))
    assert torch.allclose(transform(image), torch.tensor(90.0))


def test_torchgeo_classification(bundle):  # noqa: F811
    images = chips(RGB, 64)
    task = Classification(
        model='gfm_jepa_nano', weights=True, in_channels=3, num_classes=10, freeze_backbone=True
    ).eval()
    assert task(images).shape == (2, 10)
    model = task.model
    embedding = model.forward_head(model.forward_features(images), pre_logits=True)
    expected = from_pretrained('gfm-jepa-nano')({'rgb': images})
    assert torch.allclose(embedding, expected, atol=1e-4)
    task(images).sum().backward()
    with_gradient = {n for n, p in task.model.named_parameters() if p.grad is not None}
    assert with_gradient == {'head.weight', 'head.bias'}


@pytest.mark.parametrize('stem', ['linear', 'conv'])
def test_torchgeo_takes_the_weights_enum(tmp_path, monkeypatch, stem):
    make_bundle(tmp_path, monkeypatch, stem)
    weights = weights_of('nano').S2_L2A
    assert weights.meta['modality'] == 's2_l2a' and weights.meta['license'] == 'cc-by-4.0'
    assert weights.meta['bands'] == list(S2_L2A.bands) and isinstance(
        weights.transforms(), nn.Module
    )
    assert {w.name for w in weights_of('nano')} == {'RGB', 'S2_L2A', 'S1'}
    task = Classification(
        model='gfm_jepa_nano', weights=weights, in_channels=12, num_classes=10
    ).eval()
    images = chips(S2_L2A)
    model = task.model
    embedding = model.forward_head(model.forward_features(images), pre_logits=True)
    expected = from_pretrained('gfm-jepa-nano')({'s2_l2a': images})
    assert torch.allclose(embedding, expected, atol=1e-4)


def test_the_enum_brings_its_gsd(tmp_path, monkeypatch):
    """One band is taken for elevation where nothing is named, at 30 m."""
    make_bundle(tmp_path, monkeypatch, 'conv', ('ndvi', 'dem'))
    weights = weights_of('nano').NDVI
    task = Classification(model='gfm_jepa_nano', weights=weights, in_channels=1, num_classes=2)
    model, images = task.eval().model, chips(NDVI)
    embedding = model.forward_head(model.forward_features(images), pre_logits=True)
    expected = from_pretrained('gfm-jepa-nano')({'ndvi': images})
    assert torch.allclose(embedding, expected, atol=1e-5)


def test_the_enum_is_there_without_weights():
    assert issubclass(gfm_jepa.GFMJEPA_Nano_Weights, weights_of('nano').__mro__[1])


@pytest.mark.filterwarnings('ignore:Encoder does not have prefix tokens:UserWarning')
def test_torchgeo_segmentation(bundle):  # noqa: F811
    images = chips(RGB, 64)
    task = SemanticSegmentation(
        model='dpt', backbone='tu-gfm_jepa_nano', weights=True, in_channels=3, num_classes=4
    ).eval()
    masks = task(images)
    assert masks.shape == (2, 4, 64, 64)
    features, _ = task.model.encoder(images)
    assert [tuple(f.shape) for f in features] == [(2, 128, 8, 8)] * 4
    last = task.model.encoder.model.norm(features[-1].flatten(2).mT).mean(dim=1)
    expected = from_pretrained('gfm-jepa-nano')({'rgb': images})
    assert torch.allclose(last, expected, atol=1e-4)


TORCHGEO_CONFIG = """
model:
  # In full: where other tests have imported ours, there are two of that name.
  class_path: torchgeo.tasks.Classification
  init_args: {model: gfm_jepa_nano, weights: true, in_channels: 3, num_classes: 10}
data: {class_path: EuroSAT100DataModule}
trainer: {logger: false, accelerator: cpu, callbacks: [{class_path: gfm_jepa.torchgeo.RawUnits}]}
"""


@pytest.mark.filterwarnings('ignore')  # of Lightning and its parser among themselves
def test_torchgeos_command_line_knows_our_models(monkeypatch, bundle):  # noqa: F811
    """Parse, build the model with its weights, and stop before there is data."""
    built = []
    monkeypatch.setattr(os, 'environ', dict(os.environ))  # torchgeo sets what GDAL reads
    monkeypatch.setattr(LightningCLI, '_run_subcommand', lambda cli, verb: built.append(cli.model))
    # On the command line torchgeo takes `true` for the name of an enum; in YAML it is a boolean.
    config = bundle.parent / 'config.yaml'
    config.write_text(TORCHGEO_CONFIG)
    torchgeo_main(['fit', '--config', str(config)])
    images = chips(RGB)
    model = built[0].model.eval()
    embedding = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(embedding, from_pretrained('gfm-jepa-nano')({'rgb': images}), atol=1e-4)


def test_raw_units_reach_the_model_and_other_augmentations_stay():
    module = UCMercedDataModule()
    images = torch.full((2, 3, 32, 32), 100.0)
    assert module.aug({'image': images})['image'].max() < 1  # torchgeo divides by 255
    RawUnits().setup(SimpleNamespace(datamodule=module), torch.nn.Linear(1, 1), 'fit')
    changed = module.aug({'image': images})['image']
    assert changed.shape == (2, 3, 256, 256)
    assert torch.allclose(changed, torch.tensor(100.0))
    RawUnits().setup(SimpleNamespace(datamodule=None), torch.nn.Linear(1, 1), 'fit')  # bare loaders
