"""The adapter for torchgeo-bench; run where that package is installed."""

import sys
from pathlib import Path

import pytest
import torch

from gfm_jepa import InputError, from_pretrained, save_pretrained
from gfm_jepa.models import Encoder

pytest.importorskip('torchgeo_bench')
sys.path.insert(0, str(Path(__file__).parent.parent / 'benchmarks'))
pytestmark = pytest.mark.filterwarnings('ignore')  # of packages that the harness brings along


def test_bands_reach_the_encoder_by_their_names(tmp_path):
    from torchgeo_bench.datasets.eurosat import EuroSAT
    from torchgeo_bench_adapter import GfmJepaBench

    torch.manual_seed(0)
    encoder = Encoder(['rgb', 's2_l1c'], patch_size=8, embed_dim=16, depth=1, num_heads=2).eval()
    weights = str(save_pretrained(encoder, tmp_path / 'weights'))
    model = GfmJepaBench(EuroSAT.bands, weights)
    assert model.modality == 's2_l1c'
    names = [b.source_name for b in EuroSAT.bands]  # B8A comes last here
    raw = torch.rand(2, 13, 60, 64) * 3000
    found = model.forward_patch_features(raw)
    ours = [names.index(b) for b in encoder.modalities['s2_l1c'].bands]
    padded = torch.nn.functional.pad(raw[:, ours], (0, 0, 0, 4), value=torch.nan)
    assert torch.allclose(found, from_pretrained(weights)({'s2_l1c': padded}), atol=1e-5)
    rgb = [b for b in EuroSAT.bands if b.name in ('red', 'green', 'blue')]
    assert GfmJepaBench(rgb, weights).modality == 's2_l1c'  # reflectance, not display values
    only = str(
        save_pretrained(Encoder(['s1'], embed_dim=16, depth=1, num_heads=2), tmp_path / 's1')
    )
    with pytest.raises(InputError, match=r'know s1, of which none has the bands B01'):
        GfmJepaBench(EuroSAT.bands, only)
