"""Feature maps of five scales, and torchgeo's segmentation models on them, unmodified."""

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from small_weights import chips, make_bundle
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchgeo.tasks import Classification, SemanticSegmentation

from gfm_jepa import InputError, from_pretrained
from gfm_jepa.modalities import RGB, S2_L2A
from gfm_jepa.models.pyramid import STRIDES

# smp warns that `True` becomes 'imagenet' on torchgeo's way; the weights are ours all the same.
pytestmark = pytest.mark.filterwarnings("ignore:For 'tu-'.*:UserWarning")
NAME = 'gfm_jepa_nano_pyramid'


@pytest.fixture(params=['conv', 'linear'])
def stem(request, tmp_path, monkeypatch):
    make_bundle(tmp_path, monkeypatch, request.param)
    return request.param


def test_maps_are_the_encoders(stem):
    model = timm.create_model(NAME, pretrained=True, in_chans=12, features_only=True).eval()
    images = chips(S2_L2A, 64)
    maps = model(images)
    info = model.feature_info
    assert info.reduction() == list(STRIDES)
    assert [m.shape[1] for m in maps] == info.channels()
    assert [m.shape[2] for m in maps] == [64 // s for s in STRIDES]
    encoder = from_pretrained('gfm-jepa-nano')
    tokens = encoder.forward_feature_map({'s2_l2a': images})
    assert torch.allclose(maps[2], tokens, atol=1e-4)
    assert torch.allclose(maps[4], F.avg_pool2d(tokens, 4), atol=1e-4)
    embed = encoder.embedder('s2_l2a')
    normalised = (images - embed.mean) / embed.std
    if stem == 'conv':
        assert torch.allclose(maps[1], embed.stem.levels(normalised)[1], atol=1e-5)
    else:
        assert torch.allclose(F.pixel_shuffle(maps[1], 4), normalised, atol=1e-5)
    images[0, :, :8, :8] = torch.nan
    assert all(m.isfinite().all() for m in model(images))


def test_scales_can_be_chosen(stem):
    model = timm.create_model(NAME, features_only=True, out_indices=(1, 4), output_stride=16)
    assert [tuple(m.shape[2:]) for m in model(chips(RGB, 64))] == [(16, 16), (4, 4)]
    with pytest.raises(InputError, match='none with the index 5'):
        timm.create_model(NAME, features_only=True, out_indices=(5,))
    with pytest.raises(InputError, match='output_stride is 4'):
        timm.create_model(NAME, output_stride=4)
    with pytest.raises(InputError, match='40 x 44 pixels'):
        model(torch.rand(1, 3, 40, 44))


def segmenter(decoder, **options):
    return SemanticSegmentation(
        model=decoder, backbone=f'tu-{NAME}', weights=True, in_channels=3, num_classes=2,
        task='multiclass', **options,
    )  # fmt: skip


@pytest.mark.parametrize('decoder', ['unet', 'upernet', 'segformer', 'deeplabv3+'])
def test_torchgeos_decoders_take_it_with_its_weights(stem, decoder):
    task = segmenter(decoder).eval()
    images = chips(RGB, 64)
    assert task(images).shape == (2, 2, 64, 64)
    tokens = from_pretrained('gfm-jepa-nano').forward_feature_map({'rgb': images})
    assert torch.allclose(task.model.encoder(images)[3], tokens, atol=1e-4)
    task(images).sum().backward()
    assert all(p.grad is not None for n, p in task.model.encoder.named_parameters())


class Halves(torch.utils.data.Dataset):
    """Chips of which one half is bright, and its mask."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        mask = torch.zeros(64, 64, dtype=torch.long)
        mask[:, 32:] = 1
        mask = torch.rot90(mask, index)
        return {'image': 40.0 + 150.0 * mask.expand(3, -1, -1), 'mask': mask}


def train(task, data, epochs):
    trainer = Trainer(
        max_epochs=epochs, accelerator='cpu', logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        num_sanity_val_steps=0, check_val_every_n_epoch=1,
    )  # fmt: skip
    trainer.fit(task, DataLoader(data, 4), DataLoader(data, 4))
    return trainer


def test_a_frozen_backbone_learns_nothing_and_its_decoder_does(tmp_path, monkeypatch):
    make_bundle(tmp_path, monkeypatch, 'conv')
    task = segmenter('unet', freeze_backbone=True, lr=3e-3)
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    trainer = train(task, Halves(), 6)
    after = task.model.state_dict()
    changed = {k.partition('.')[0] for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed == {'decoder', 'segmentation_head'}
    assert all(p.grad is None for p in task.model.encoder.parameters())
    assert trainer.callback_metrics['val_OverallAccuracy'] > 0.75  # half of the pixels is chance


def test_a_frozen_classifier_changes_its_head_alone(tmp_path, monkeypatch):
    make_bundle(tmp_path, monkeypatch, 'conv')
    task = Classification(
        model='gfm_jepa_nano', weights=True, in_channels=3, num_classes=2, freeze_backbone=True
    )
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    data = [{'image': torch.full((3, 32, 32), 50.0 + 150 * (i % 2)), 'label': torch.tensor(i % 2)}
            for i in range(8)]  # fmt: skip
    train(task, data, 1)
    after = task.model.state_dict()
    assert {k for k, v in after.items() if not torch.equal(v, before[k])} == {
        'head.weight', 'head.bias'
    }  # fmt: skip
