"""Figures of what goes on inside show what they say."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
import torch
from mapping import save_encoder, smooth
from test_maps import checkpoint

from gfm_jepa import InputError
from gfm_jepa.cli import main
from gfm_jepa.evaluation import latent_figures as draw
from gfm_jepa.evaluation import plane_figures as plane
from gfm_jepa.evaluation.latents import attention, on_grid, pca_colours, stretch
from gfm_jepa.evaluation.prediction_errors import PredictionErrors


@pytest.fixture
def seen(tmp_path):
    """An encoder and a chip of two modalities, a corner of which is missing."""
    optical = torch.from_numpy(smooth(3, 48, 48))[None]
    optical[:, :, :8, :8] = torch.nan
    radar = torch.from_numpy(smooth(2, 24, 24))[None]
    return save_encoder(tmp_path / 'w'), {'optical': optical, 'radar': radar}


def test_attention_is_what_the_block_adds(seen):
    encoder, batch = seen
    weights, tokens = attention(encoder, batch)
    assert weights.shape == (1, 2, 44, 44)  # 35 optical and 9 of radar
    assert torch.allclose(weights.sum(dim=3), torch.ones(1, 2, 44))
    block = encoder.blocks[-1]
    found = {}
    handle = block.attn.register_forward_hook(lambda m, a, out: found.update(x=a[0], out=out))
    with torch.inference_mode():
        encoder.forward_tokens(batch)
        handle.remove()
        values = block.attn.qkv(found['x']).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)[2]
        mixed = block.attn.proj((weights @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(mixed, found['out'], atol=1e-5)
    image = on_grid(weights[0, 0, 0], tokens, 0, 'optical')
    assert image.shape == (6, 6) and np.isnan(image[0, 0]) and np.isfinite(image).sum() == 35
    with pytest.raises(InputError, match='1 blocks'):
        attention(encoder, batch, 3)


def test_components_as_colours_keep_what_varies_most():
    features = torch.zeros(8, 4, 5)
    features[2] = torch.arange(20.0).view(4, 5)
    features[5, 0] = 0.1
    features[:, 3, 4] = torch.nan
    colours = pca_colours(features)
    assert np.isnan(colours[3, 4]).all()
    red = colours[..., 0].ravel()[:-1]
    assert np.allclose(np.diff(red), 1, atol=0.05)
    shown = stretch(colours)
    assert (shown[3, 4] == 1).all() and shown.min() >= 0 and shown.max() <= 1


def test_masks_are_drawn_where_they_hide(seen):
    encoder, batch = seen
    figure = draw.hidden_by_masks(
        encoder, batch, torch.tensor([[1, 2, 3, 36]]), torch.tensor([[[10, 11], [12, -1]]])
    )
    first = figure.axes[0]
    assert first.get_title() == 'optical: context 8%, targets (blue) 8%'
    image = first.images[0].get_array()
    assert np.allclose(image[16:24, 8:16], 0.35)  # patch 13 is nothing
    blue = image[16:24, 0:8]  # patch 12 is a target
    assert (blue[..., 2] >= 0.65 * 0.7 - 1e-6).all() and (blue[..., 0] <= 0.35 + 1e-6).all()
    assert not np.allclose(image[0:8, 8:16], 0.35)  # patch 1 is seen


def test_each_figure_is_drawn(seen, tmp_path):
    encoder, batch = seen
    figures = {
        'components': draw.patch_components(encoder, batch),
        'attention': draw.attention_maps(encoder, batch, 'radar'),
        'tsne': plane.tsne(torch.randn(30, 8), ['a', 'b', 'c'] * 10),
        'neighbours': draw.neighbours([np.zeros((4, 4, 3))], [[(np.ones((4, 4, 3)), 0.5)] * 3]),
    }
    assert [len(f.axes) for f in figures.values()] == [4, 11, 1, 4]
    with pytest.raises(InputError, match='holds no data'):
        draw.attention_maps(encoder, batch, 'optical', (0.0, 0.0))
    with pytest.raises(InputError, match='at least 5'):
        plane.tsne(torch.randn(4, 8))


def test_predicted_latents_show_the_mean_cosine(seen, tmp_path):
    _, batch = seen
    _, path = checkpoint(tmp_path)
    model = PredictionErrors.from_checkpoint(path)
    figure = draw.predicted_latents(model, batch)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(titles) == 10 and titles[1] == 'optical: actual latents'
    with torch.inference_mode():
        cosine = 1 - model.forward_feature_map(batch, 'optical')[0, 0]
    assert titles[3] == f'optical: cosine, mean {float(cosine.nanmean()):.3f}'


def test_look_writes_all_that_it_can(tmp_path, write_raster, capfd, monkeypatch):
    _, path = checkpoint(tmp_path)
    write_raster(tmp_path / 'in/optical.tif', values=smooth(3, 100, 100), dtype='float32')
    write_raster(tmp_path / 'in/radar.tif', values=smooth(2, 50, 50), gsd=20.0, dtype='float32')
    words = ['look', str(path), str(tmp_path / 'in'), '-o', str(tmp_path / 'figures')]
    monkeypatch.setitem(sys.modules, 'umap', None)  # as if it were not installed
    words += ['--window', '48', '--windows', '12']
    assert main(words) == 0
    assert 'umap is left out: UMAP is drawn by umap-learn' in capfd.readouterr().out
    names = sorted(p.stem for p in (tmp_path / 'figures').iterdir())
    assert names == ['attention', 'components', 'masks', 'modalities', 'predicted', 'resolution',
                     'tsne']  # fmt: skip
    assert main([*words, '--figures', 'umap']) == 2
    untrained, said = capfd.readouterr().err.splitlines()
    assert 'never saw optical, radar in training' in untrained
    assert "pip install 'gfm-jepa[umap]'" in said


def test_look_draws_what_it_is_asked_for(tmp_path, write_raster, capfd):
    save_encoder(tmp_path / 'weights')
    write_raster(tmp_path / 'optical.tif', values=smooth(3, 100, 100), dtype='float32')
    words = ['look', str(tmp_path / 'weights'), f'optical={tmp_path}/optical.tif', '-o',
             str(tmp_path / 'figures'), '--window', '48']  # fmt: skip
    assert main([*words, '--figures', 'predicted']) == 2
    assert not (tmp_path / 'figures').exists()
    assert main([*words, '--figures', 'resolution']) == 0
    assert [p.name for p in (tmp_path / 'figures').iterdir()] == ['resolution.png']
    assert main([*words, '--figures', 'modalities']) == 2
    assert 'There is optical alone' in capfd.readouterr().err


UMAP = """
import torch
from gfm_jepa.evaluation import plane_figures as plane
figure = plane.umap(torch.randn(30, 8), ['a', 'b', 'c'] * 10)
assert [a.get_title().split()[0] for a in figure.axes] == ['t-SNE', 'UMAP']
assert all(len(axes.collections) == 3 for axes in figure.axes)
"""


def test_umap_stands_beside_tsne():
    """In a process of its own: importing umap-learn changes the arithmetic of what runs after."""
    try:
        version('umap-learn')
    except PackageNotFoundError:
        pytest.skip('umap-learn is not installed: pip install gfm-jepa[umap]')
    done = subprocess.run([sys.executable, '-c', UMAP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
