"""A small encoder, saved or bundled, for the tests of weights."""

import pytest
import torch
from conftest import sensor

from gfm_jepa import bundled
from gfm_jepa.models import PRESETS, Encoder
from gfm_jepa.models.model_card import CardFacts, model_card
from gfm_jepa.models.publishing import write_release

OPTICAL, RADAR = sensor('optical', 4), sensor('radar', 2)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundled gfm-jepa-nano of rgb and s2_l2a; returns its folder."""
    return make_bundle(tmp_path, monkeypatch, 'conv')


def make_bundle(tmp_path, monkeypatch, stem, modalities=('rgb', 's2_l2a', 's1'), **options):
    encoder = Encoder(list(modalities), stem=stem, **PRESETS['nano'], **options)
    for name, value in encoder.named_buffers():
        if '.filters.' in name:
            torch.nn.init.uniform_(value, -0.1, 0.1)
    for batch_norm in (m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(batch_norm.running_mean, -0.2, 0.2)
        torch.nn.init.uniform_(batch_norm.weight, 0.5, 1.5)
    folder = tmp_path / 'bundle/gfm-jepa-nano'
    folder.mkdir(parents=True)
    card = model_card(encoder, 'gfm/gfm-jepa-nano', CardFacts('cc-by-4.0'), {})
    write_release(encoder.eval(), folder, card)
    monkeypatch.setattr(bundled, 'BUNDLE', folder.parent)
    return folder


def chips(modality, size=32, count=2):
    """Noise of a modality's statistics (B, C, H, W)."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (modality.mean, modality.std))
    return torch.rand(count, len(modality.bands), size, size) * std + mean
