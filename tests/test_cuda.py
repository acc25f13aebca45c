"""On a CUDA GPU: the same losses, gradients, runs and maps as on the CPU; skipped without one."""

import numpy as np
import pytest
import torch
from conftest import sensor
from lightning.pytorch import Trainer
from mapping import read, save_encoder, smooth
from torch.utils.data import DataLoader

from gfm_jepa import from_pretrained, tasks
from gfm_jepa.cli import main
from gfm_jepa.evaluation.features import Features
from gfm_jepa.evaluation.probes import knn_probe, linear_probe
from gfm_jepa.evaluation.readouts import add_random_filters, add_readout
from gfm_jepa.models import Encoder
from gfm_jepa.tasks import EncoderConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')

METHODS = ('IJEPA', 'LeJEPA', 'VICReg', 'SimSiam', 'LatentMIM')
SENSORS = (sensor('optical', 3), sensor('relief', 1))


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def task_of(method):
    stem = 'linear' if method in ('IJEPA', 'LatentMIM') else 'conv'
    specs = [m.to_dict() for m in SENSORS]
    return getattr(tasks, method)(specs, EncoderConfig('nano', patch_size=8, stem=stem))


def samples(count):
    """Chips of two modalities, of which one has a gap in every other sample."""
    optical = 100 + 50 * torch.randn(count, 3, 48, 48)
    optical[::2, :, :16, :24] = torch.nan
    relief = 100 + 50 * torch.randn(count, 1, 48, 48)
    return [{'optical': a, 'relief': b} for a, b in zip(optical, relief, strict=True)]


@pytest.mark.parametrize('method', METHODS)
def test_loss_and_gradients_are_those_of_the_cpu(method):
    task = task_of(method)
    task._seed, task.log_dict = 0, lambda values: None
    batch = torch.utils.data.default_collate(samples(8))
    found = {}
    for device in ('cpu', 'cuda'):
        task.to(device).double()  # in float32 a ReLU at its kink has another gradient
        task.zero_grad()
        loss = task.compute_loss({k: v.to(device).double() for k, v in batch.items()}, 0)
        loss.backward()
        grads = [p.grad.flatten().cpu() for p in task.parameters() if p.grad is not None]
        found[device] = loss.item(), torch.cat(grads)
    assert found['cuda'][0] == pytest.approx(found['cpu'][0], rel=1e-6, abs=1e-6)
    scale = found['cpu'][1].abs().max()
    assert torch.allclose(found['cuda'][1], found['cpu'][1], atol=1e-6 * float(scale))


@pytest.mark.filterwarnings('ignore:.*no `val_dataloader`')
# float16 leaves out its first steps, until its scale fits.
@pytest.mark.filterwarnings('ignore:Detected call of `lr_scheduler.step')
@pytest.mark.parametrize('precision', ['32-true', 'bf16-mixed', '16-mixed'])
@pytest.mark.parametrize('method', METHODS)
def test_every_method_trains(method, precision):
    task = task_of(method)
    before = [p.detach().clone() for p in task.encoder.parameters()]
    trainer = Trainer(
        max_steps=8, max_epochs=-1, accelerator='gpu', devices=1, precision=precision,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(task, DataLoader(samples(32), 8))
    assert trainer.global_step == 8
    after = [p.detach().cpu() for p in task.encoder.parameters()]
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_shipped_weights_embed_alike():
    encoder = from_pretrained('gfm-jepa-nano', modalities=['rgb'])
    image = {'rgb': torch.rand(4, 3, 64, 64) * 255}
    here = encoder(image).detach()
    there = encoder.cuda()({'rgb': image['rgb'].cuda()}).detach().cpu()
    assert torch.allclose(here, there, atol=1e-4 * float(here.abs().max()))


def test_probes_are_those_of_the_cpu():
    labels = torch.randint(3, (300,))
    embeddings = torch.randn(300, 8) + labels[:, None]
    accuracies = []
    for device in ('cpu', 'cuda'):
        parts = [Features(embeddings[i::3].to(device), labels[i::3].to(device)) for i in range(3)]
        accuracies.append((knn_probe(*parts[::2]).accuracy, linear_probe(*parts).accuracy))
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.011)  # one of 100
    assert accuracies[0][1] > 0.5


def test_filters_and_readouts_are_made_there():
    encoder = Encoder([SENSORS[0]], 8, 32, 1, 2).cuda()
    batches = [{'optical': 100 + 50 * torch.randn(40, 3, 32, 32, device='cuda')}]
    read = add_readout(add_random_filters(encoder, batches, count=8), batches, width=16)
    assert read(batches[0]).device.type == 'cuda' and read(batches[0]).isfinite().all()


def test_a_map_is_that_of_the_cpu(tmp_path, write_raster):
    save_encoder(tmp_path / 'weights')
    values = smooth(3, 100, 180)
    values[:, 40:60, 90:120] = np.nan
    write_raster(tmp_path / 'in/optical.tif', values=values, dtype='float32', nodata=np.nan)
    words = ['embed', str(tmp_path / 'weights'), str(tmp_path / 'in'), '--window', '64']
    maps = []
    for device in ('cpu', 'cuda'):
        out = tmp_path / f'{device}.tif'
        assert main([*words, '-o', str(out), '--device', device]) == 0
        maps.append(read(out)[0])
    assert np.isfinite(maps[0]).any()
    assert np.allclose(*maps, atol=1e-3, equal_nan=True)
