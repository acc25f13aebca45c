"""The shipped configs of images and timm models train through the command line, made small."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_images import cifar, write_image  # noqa: F401  # a fixture

from gfm_jepa import from_pretrained
from gfm_jepa.cli import main
from gfm_jepa.models import TimmEncoder

CONFIGS = Path(__file__).parent.parent / 'configs'
SMALL = (
    '--data.batch_size=4', '--trainer.max_steps=2', '--trainer.logger=false',
    '--trainer.accelerator=cpu', '--trainer.enable_progress_bar=false',
    '--trainer.enable_model_summary=false', '--data.num_workers=0',
)  # fmt: skip
# Of ResNet-50 the projector is the largest part.
HEADS = {
    'simsiam': ('--model.projection_dim=32', '--model.bottleneck_dim=8'),
    'vicreg': ('--model.expander_dims=[32,32]',),
    'lejepa': ('--model.hidden_dim=32',),
}


@pytest.fixture
def eurosat(tmp_path):
    """Two classes of EuroSAT, in its layout."""
    for part, ids in {'train': range(8), 'val': range(8, 10), 'test': range(10, 12)}.items():
        names = [f'{c}_{i}.jpg' for c in ('Forest', 'River') for i in ids]
        for name in names:
            path = tmp_path / f'EuroSAT_RGB/{name.partition("_")[0]}/{name}'
            write_image(path, (64, 64), 60 if 'Forest' in name else 180)
        (tmp_path / f'eurosat-spatial-{part}.txt').write_text('\n'.join(names))
    return tmp_path


@pytest.fixture
def photographs(tmp_path):
    """Two classes of photographs of different sizes."""
    for i in range(8):
        write_image(tmp_path / f'photographs/cat/{i}.jpg', (50 + i, 40), 60)
        write_image(tmp_path / f'photographs/dog/{i}.jpg', (40, 60 + i), 180)
    return tmp_path / 'photographs'


def fit(name, root, *words):
    """Train two steps of a shipped config; returns its checkpoint."""
    heads = HEADS[name.partition('_')[0]]
    words = ('fit', '--config', str(CONFIGS / f'{name}.yaml'), f'--data.root={root}',
             *SMALL, *heads, *words)  # fmt: skip
    assert main(list(words)) == 0
    return max(Path().rglob('*last.ckpt'), key=lambda p: p.stat().st_mtime)


@pytest.mark.parametrize('name', [
    'simsiam_resnet50_eurosat_rgb', 'vicreg_resnet18_eurosat_rgb', 'lejepa_resnet18_eurosat_rgb',
    'lejepa_vit_eurosat_rgb',
])  # fmt: skip
def test_timm_models_train_on_eurosat(name, eurosat, capfd):
    path = fit(name, eurosat, '--model.views.global_fraction=0.5')
    encoder = from_pretrained(path)
    assert isinstance(encoder, TimmEncoder) and encoder.config['small_images']
    assert encoder({'rgb': torch.rand(2, 3, 64, 64) * 255}).isfinite().all()
    if name == 'lejepa_resnet18_eurosat_rgb':
        assert main(['probe', str(path), '--dataset', 'eurosat-rgb-spatial', '--root',
                     str(eurosat), '--output', 'rows.json']) == 0  # fmt: skip
        rows = json.loads(Path('rows.json').read_text())
        assert [r['name'] for r in rows][1:] == ['image statistics', 'RCF-512', 'random init']
        assert rows[0]['embed_dim'] == rows[3]['embed_dim'] == 512
        assert rows[0]['knn5'] == 1.0  # dark and bright
        assert main(['probe', str(path), '--dataset', 'eurosat-rgb-spatial', '--root',
                     str(eurosat), '--features', 'depths', '--no-baselines']) == 0  # fmt: skip


@pytest.mark.parametrize('name', ['simsiam_resnet50_imagefolder', 'lejepa_imagefolder'])
def test_folders_of_images_train(name, photographs, caplog):
    path = fit(name, photographs, '--data.image_size=32')
    rgb = from_pretrained(path).modalities['rgb']
    images = [np.array(Image.open(p)).mean() for p in photographs.rglob('*.jpg')]
    assert rgb.mean[0] == pytest.approx(np.mean(images), abs=5)  # not Sentinel-2's 100.7
    assert rgb.source == f'8 of 8 training images of {photographs.name}'
    saved = torch.load(path, weights_only=True)['hyper_parameters']
    assert saved['views']['jitter'] == [0.4, 0.4, 0.4, 0.1]


def test_cifar10_trains_and_resumes_bit_for_bit(cifar):  # noqa: F811
    words = ('--trainer.max_steps=4',)
    whole = torch.load(fit('vicreg_resnet18_cifar10', cifar, *words), weights_only=True)
    steps = '--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint'
    more = (steps, '--trainer.callbacks.every_n_train_steps=2', '--trainer.callbacks.save_top_k=-1',
            '--trainer.callbacks.dirpath=steps', '--trainer.callbacks.filename={step}')  # fmt: skip
    fit('vicreg_resnet18_cifar10', cifar, *words, *more)
    Path('steps/step=4.ckpt').unlink()
    resumed = fit('vicreg_resnet18_cifar10', cifar, *words, *more,
                  '--ckpt_path=steps/step=2.ckpt')  # fmt: skip
    again = torch.load(resumed, weights_only=True)
    assert again['global_step'] == 4
    for name, value in whole['state_dict'].items():
        assert torch.equal(value, again['state_dict'][name]), name


def test_unlabelled_images_train_without_a_probe(tmp_path):
    for i in range(6):
        write_image(tmp_path / f'galaxies/{i}.png', (40, 40))
    path = fit('lejepa_imagefolder', tmp_path / 'galaxies', '--data.image_size=32')
    assert torch.load(path, weights_only=True)['global_step'] == 2


def test_masked_methods_refuse_timm_models(eurosat, capfd):
    words = ['fit', '--config', str(CONFIGS / 'ijepa_eurosat_rgb.yaml'), *SMALL]
    assert main([*words, f'--data.root={eurosat}', '--model.encoder.backbone=resnet18']) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("gfm-jepa: error: IJEPA hides tokens, and timm's resnet18 has none")


def test_images_too_small_for_the_model_are_refused_before_training(photographs, capfd):
    words = ['fit', '--config', str(CONFIGS / 'simsiam_resnet50_imagefolder.yaml'), *SMALL]
    assert main([*words, f'--data.root={photographs}', '--data.image_size=16']) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert 'came with 16 x 16 pixels, but resnet50 needs 32 x 32 or more' in error
    assert main([*words, '--data.root=nowhere']) == 2
    assert 'There is no folder nowhere' in capfd.readouterr().err
