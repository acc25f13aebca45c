"""What leaving a modality out and coarser pixels do to embeddings, where the answer is known."""

import numpy as np
import pytest
import torch
from mapping import OPTICAL, RADAR, MeanEncoder, save_encoder, smooth

from gfm_jepa import InputError
from gfm_jepa.evaluation import robustness_figures as draw


class Means(MeanEncoder):
    """The mean of each band of two modalities, 0 for a modality that is not there."""

    modalities = property(lambda self: {'optical': OPTICAL, 'radar': RADAR})
    patch_sizes = property(lambda self: {'optical': 4, 'radar': 8})

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch):
        self.seen.append(({k: tuple(v.shape) for k, v in self.rasters(batch).items()},
                          batch.get('gsd')))  # fmt: skip
        count = len(next(iter(self.rasters(batch).values())))
        return torch.cat([
            batch[m.name].nanmean(dim=(2, 3)) if m.name in batch else
            torch.zeros(count, len(m.bands)) for m in (OPTICAL, RADAR)
        ], dim=1)  # fmt: skip


def two(count=6):
    """Windows of optical values, which differ, and of radar, which is the same everywhere."""
    optical = torch.from_numpy(np.stack([smooth(3, 48, 48, i) for i in range(count)]))
    return {'optical': optical, 'radar': torch.full((count, 2, 24, 24), 50.0)}


def test_what_a_modality_adds_is_what_it_adds():
    batch = two(3)
    batch['optical'] = 80 * torch.eye(3)[..., None, None] + 0.1 * batch['optical']
    found = draw.without_modalities(Means(), batch)
    optical = batch['optical'].mean(dim=(2, 3))
    length = optical.square().sum(dim=1)
    kept = (length / (length + 2 * 50.0**2)).sqrt()
    assert np.allclose(found['left out']['radar'].cosines, kept, atol=1e-5)
    assert np.allclose(found['alone']['optical'].cosines, kept, atol=1e-5)
    assert np.allclose(found['left out']['optical'].cosines, (1 - kept**2).sqrt(), atol=1e-5)
    assert found['alone']['optical'].found == 1
    assert found['alone']['radar'].found == pytest.approx(1 / 3)  # all alike: one is by chance
    with pytest.raises(InputError, match='optical alone'):
        draw.without_modalities(MeanEncoder(), {'optical': batch['optical']})


def test_coarser_pixels_keep_means_and_their_gsd_is_told():
    encoder, batch = Means(), two()
    found = draw.coarser(encoder, batch, (2.0, 3.0))
    assert list(found) == [2, 3]
    for agreement in found.values():
        assert np.allclose(agreement.cosines, 1, atol=1e-5) and agreement.found == 1
    shapes, gsd = zip(*encoder.seen, strict=True)
    assert shapes[1] == {'optical': (6, 3, 24, 24), 'radar': (6, 2, 16, 16)}  # patches of 8
    assert gsd[0] is None and gsd[1] == {'optical': 20, 'radar': 30}
    encoder.seen.clear()
    draw.coarser(encoder, {**batch, 'gsd': {'optical': 5.0, 'radar': 10.0}}, (2.0,), tell=False)
    assert encoder.seen[1][1] == {'optical': 5.0, 'radar': 7.5}  # of the same, smaller ground
    with pytest.raises(InputError, match='too few pixels'):
        draw.coarser(MeanEncoder(), {'optical': batch['optical'][..., :4, :4]}, (2.0,))


def test_resampling_leaves_out_what_is_not_there():
    raster = torch.arange(16.0).view(1, 1, 4, 4)
    raster[..., 0, 0] = torch.nan
    raster[..., 2:, :2] = torch.nan
    raster[..., 3, 0] = 5.0
    half = draw.resample(raster, (2, 2))[0, 0]
    assert half[0, 0] == pytest.approx((1 + 4 + 5) / 3) and half[0, 1] == pytest.approx(4.5)
    assert half[1, 0].isnan() and half[1, 1] == pytest.approx(12.5)


def test_a_window_with_nothing_left_is_not_found():
    whole = torch.eye(3)
    other = whole.clone()
    other[1] = torch.nan
    other[2] = whole[0]
    found = draw.Agreement.of(whole, other)
    assert found.found == pytest.approx(1 / 3) and found.cosines.tolist() == [1, 0]


def test_both_are_drawn_with_a_real_encoder(tmp_path):
    encoder, batch = save_encoder(tmp_path / 'w'), two()
    labels = [a.get_xticklabels() for a in draw.draw_without_modalities(encoder, batch).axes]
    assert [[t.get_text() for t in some] for some in labels] == [['optical', 'radar']] * 2
    left = draw.draw_coarser(encoder, batch, (2.0, 3.0)).axes[0]
    told, steps = (next(line for line in left.lines if 'told: median' in line.get_label()),
                   [20.0, 30.0])  # fmt: skip
    assert told.get_xdata().tolist() == steps and (told.get_ydata() <= 1 + 1e-6).all()
