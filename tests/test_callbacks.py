"""The callbacks that watch a run, and the demo that uses everything."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import sensor
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from gfm_jepa import InputError, from_pretrained
from gfm_jepa.cli import main
from gfm_jepa.data import EuroSATRGBDataModule, RastersDataModule
from gfm_jepa.data.chips import ChipFilter
from gfm_jepa.data.labels import MajorityLabels
from gfm_jepa.data.rasters import Rasters
from gfm_jepa.modalities import LULC, Modality
from gfm_jepa.tasks import (
    IJEPA,
    CollapseGuard,
    EncoderConfig,
    LeJEPA,
    NaNGuard,
    OnlineKNN,
    OptimizerConfig,
    SemanticSegmentation,
    SimSiam,
    VICReg,
    WriteEmbeddings,
)
from gfm_jepa.views import Views


@pytest.fixture
def eurosat(tmp_path):
    """Two classes that differ in colour, in the layout of EuroSAT RGB."""
    rng = np.random.default_rng(0)
    names = []
    for label, base in enumerate((60, 160)):
        name = ('Forest', 'River')[label]
        (tmp_path / 'EuroSAT_RGB' / name).mkdir(parents=True)
        for i in range(1, 25):
            pixels = rng.normal(base, 20, (64, 64, 3)).clip(0, 255).astype('uint8')
            Image.fromarray(pixels).save(tmp_path / 'EuroSAT_RGB' / name / f'{name}_{i}.jpg')
            names.append(f'{name}_{i}.jpg')
    for split, part in (('train', names[::2]), ('val', names[1::4]), ('test', names[3::4])):
        (tmp_path / f'eurosat-spatial-{split}.txt').write_text('\n'.join(part) + '\n')
    return tmp_path


def trainer(*callbacks, **words):
    return Trainer(
        max_epochs=-1, accelerator='cpu', logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        limit_val_batches=0, callbacks=list(callbacks), **words,
    )  # fmt: skip


def test_online_knn_measures_what_the_encoder_separates(eurosat):
    data = EuroSATRGBDataModule(str(eurosat), batch_size=8)
    task = LeJEPA(['rgb'])
    run = trainer(OnlineKNN(every_n_steps=2), max_steps=3)
    run.fit(task, data)
    assert run.callback_metrics['val_knn5'] == 1.0
    assert task.training  # measuring has not left the task in another mode
    with pytest.raises(InputError, match='holds the modality rgb'):
        EuroSATRGBDataModule(str(eurosat), modalities=['dem'])


class Smooth(Dataset):
    """Chips of smooth colours, no two alike."""

    def __init__(self, count):
        coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.chips = 255 * torch.nn.functional.interpolate(coarse, size=16, mode='bilinear')

    def __len__(self):
        return len(self.chips)

    def __getitem__(self, index):
        return {'rgb': self.chips[index]}


class StopAt(Callback):
    """Ends a run early."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step >= self.step


@pytest.mark.filterwarnings('ignore:You defined a `validation_step`')
@pytest.mark.parametrize(
    ('kind', 'without', 'measure'),
    [
        (LeJEPA, {'sigreg_weight': 0.0}, 'projection_std'),
        (VICReg, {'weights': (25.0, 0.0, 0.0)}, 'projection_std'),
        (SimSiam, {'stop_gradient': False}, 'projection_rank'),
    ],
)
def test_collapse_is_told_within_one_epoch(kind, without, measure):
    chips, views = Smooth(128 * 32), Views(num_global=2, global_fraction=1.0)

    def run(steps, **words):
        torch.manual_seed(0)
        task = kind(['rgb'], EncoderConfig(stem='conv'), OptimizerConfig(lr=8e-3), views, **words)
        # The schedule is that of a long run.
        guards = CollapseGuard(), StopAt(steps)
        guarded = trainer(*guards, max_steps=3000, gradient_clip_val=1.0)
        guarded.fit(task, DataLoader(chips, 32, shuffle=True, drop_last=True))
        return guarded.global_step

    with pytest.raises(InputError, match=rf'collapsed at step \d+: {measure}') as error:
        run(128, **without)
    stopped = int(re.search(r'step (\d+)', str(error.value))[1])
    assert stopped <= 128
    # The whole loss does not collapse in as many steps.
    assert run(stopped) == stopped


def test_guard_judges_the_mean_of_its_checks_and_goes_on_after_a_break():
    class Told:
        """As much of a trainer as the guard asks."""

        log_every_n_steps, should_stop = 1, False
        strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)

    def check(guard, step, std):
        told = Told()
        told.global_step, told.callback_metrics = step, {'embedding_std': torch.tensor(std)}
        guard.on_train_batch_end(told, None, None, None, 0)

    guard = CollapseGuard(checks=3, warmup_steps=2)
    check(guard, 1, 0.0)  # too early to count
    for step, std in enumerate((0.0, 0.0, 0.1, 0.0), start=2):
        check(guard, step, std)
    check(guard, 5, 0.0)  # the second batch of a step that was checked
    again = CollapseGuard(checks=3, warmup_steps=2)
    again.load_state_dict(guard.state_dict())
    check(again, 6, 0.0)
    with pytest.raises(InputError, match=r'collapsed at step 7: embedding_std 0\.0000 \(lowest'):
        check(again, 7, 0.0)


class Poisoned(EuroSATRGBDataModule):
    """One image holds one pixel of a given value."""

    value = 3e38

    def setup(self, stage):
        super().setup(stage)
        self.train_dataset._images = self.train_dataset._images.float()
        self.train_dataset._images[5, 1, 30, 30] = self.value


class Fragile(LeJEPA):
    """Counts in squares, which a huge value makes infinite."""

    def compute_loss(self, batch, batch_idx):
        nothing = 0 * batch['rgb'].square().mean() * self.encoder.norm.weight.sum()
        return super().compute_loss(batch, batch_idx) + nothing


def finite(task):
    return all(p.isfinite().all() for p in task.parameters())


@pytest.mark.filterwarnings('ignore:.*but is expected in the unit')
@pytest.mark.parametrize('accumulation', [1, 2])
def test_a_huge_value_stops_the_run_before_the_weights(eurosat, accumulation):
    task, data = Fragile(['rgb']), Poisoned(str(eurosat), batch_size=4)
    run = trainer(NaNGuard(), max_steps=6, accumulate_grad_batches=accumulation)
    with pytest.raises(InputError) as error:
        run.fit(task, data)
    message = str(error.value)
    assert f'at step {run.global_step}, epoch 0, batch ' in message
    assert message.count('.jpg') == 1 and str(data.train_dataset.files[5]) in message
    assert finite(task)
    # Without the guard the same run poisons them.
    task = Fragile(['rgb'])
    trainer(max_steps=6).fit(task, Poisoned(str(eurosat), batch_size=4))
    assert not finite(task)


@pytest.mark.filterwarnings('ignore:.*but is expected in the unit')
def test_a_huge_value_that_only_batch_norms_count_stops_the_run(eurosat):
    encoder, data = {'stem': 'conv'}, Poisoned(str(eurosat), batch_size=4)
    data.value = 1e30
    task = LeJEPA(['rgb'], encoder=encoder)
    run = trainer(NaNGuard(), max_steps=6)
    with pytest.raises(InputError, match='variances of batch norms below') as error:
        run.fit(task, data)
    assert str(error.value).count('.jpg') == 1
    assert str(data.train_dataset.files[5]) in str(error.value)
    # Without the guard the run ends well, with batch norms that nothing fits any more.
    task = LeJEPA(['rgb'], encoder=encoder)
    trainer(max_steps=6).fit(task, data)
    assert finite(task)
    variances = [v.max() for k, v in task.named_buffers() if k.endswith('running_var')]
    assert not all(v < 1e12 for v in variances)


@pytest.mark.parametrize('method', [IJEPA, LeJEPA])
def test_an_infinite_pixel_counts_as_not_there(eurosat, method):
    task, data = method(['rgb']), Poisoned(str(eurosat), batch_size=4)
    data.value = float('inf')
    run = trainer(NaNGuard(), max_steps=4)
    run.fit(task, data)
    assert run.global_step == 4 and finite(task)


class Exploding(LeJEPA):
    """Its loss is finite, its gradient is not."""

    def compute_loss(self, batch, batch_idx):
        return super().compute_loss(batch, batch_idx) + (self.encoder.norm.weight * 0).sqrt().sum()


def test_an_infinite_gradient_names_the_batch(eurosat):
    data = EuroSATRGBDataModule(str(eurosat), batch_size=4)
    with pytest.raises(InputError, match=r'gradient norm of nan at step 0.*and 1 more: look') as e:
        trainer(NaNGuard(max_names=3), max_steps=2).fit(Exploding(['rgb']), data)
    assert str(e.value).count('.jpg') == 3


def test_gradient_norm_is_logged_before_clipping(eurosat):
    run = trainer(max_steps=2, gradient_clip_val=1e-3)
    run.fit(LeJEPA(['rgb']), EuroSATRGBDataModule(str(eurosat), batch_size=4))
    assert run.callback_metrics['grad_norm'] > 1e-2
    assert 0 < run.callback_metrics['lr'] <= 1e-3


def test_validate_and_predict(eurosat):
    data = EuroSATRGBDataModule(str(eurosat), batch_size=4)
    run = Trainer(accelerator='cpu', logger=False, enable_progress_bar=False)
    task = LeJEPA(['rgb'])
    assert run.validate(task, data, verbose=False)[0]['val_loss'] > 0
    assert run.test(task, data, verbose=False)[0]['test_loss'] > 0
    assert len(data.test_dataset) == 12
    embeddings = torch.cat(run.predict(task, data))
    assert embeddings.shape == (12, 128) and embeddings.isfinite().all()


def test_every_verb_runs_from_the_command_line(eurosat, capfd):
    words = [
        '--config', str(Path(__file__).parent.parent / 'configs/lejepa_eurosat_rgb.yaml'),
        f'--data.root={eurosat}', '--data.batch_size=4', '--trainer.accelerator=cpu',
        '--trainer.logger=false', '--trainer.callbacks=[]', '--trainer.limit_val_batches=1.0',
        '--trainer.enable_progress_bar=false',
    ]  # fmt: skip
    for verb, printed in (('validate', 'val_loss'), ('test', 'test_loss')):
        assert main([verb, *words]) == 0
        assert printed in capfd.readouterr().out
    assert main(['predict', *words]) == 2
    assert 'Nothing would write what is predicted' in capfd.readouterr().err


def test_validate_and_predict_on_rasters(tmp_path, write_raster):
    for i in range(2):
        write_raster(tmp_path / f'{i}/S2L2A.tif', 12, (96, 144), origin=(5e5 + 9000 * i, 5e6))
    write_raster(tmp_path / '0/DEM.tif', 1, (32, 48), 30.0, (5e5, 5e6), dtype='float32')
    names = ['s2_l2a', 'dem']
    data = RastersDataModule([], names, [str(tmp_path)], chip_size=48, batch_size=4)
    run = Trainer(accelerator='cpu', logger=False, enable_progress_bar=False)
    task = IJEPA(names)
    assert run.validate(task, data, verbose=False)[0]['val_loss'] > 0
    embeddings = torch.cat(run.predict(task, data))
    assert embeddings.shape == (12, 128) and embeddings.isfinite().all()


def test_predictions_are_rasters_that_the_reader_reads(tmp_path, write_raster):
    write_raster(tmp_path / 'in/S2L2A.tif', 12, (96, 240))
    run = Trainer(accelerator='cpu', logger=False, enable_progress_bar=False, max_epochs=1,
                  callbacks=[WriteEmbeddings('out.zarr')])  # fmt: skip
    data = RastersDataModule([], ['s2_l2a'], [str(tmp_path / 'in')], chip_size=48, batch_size=4)
    embeddings = torch.cat(run.predict(IJEPA(['s2_l2a']), data))
    emb = Modality('emb', tuple(f'd{i}' for i in range(128)), 480.0, 'embedding')
    back = Rasters(['emb=out.zarr'], [emb], chip_size=8, keep=ChipFilter(min_valid=0))
    grid = back.places[0].layers[0].files[0].grid
    assert (grid.width, grid.height, grid.gsd) == (5, 2, 480.0)
    assert grid.bounds[0] == 5e5 and grid.bounds[3] == 5e6
    assert torch.equal(back[0]['emb'][:, :2, :5].flatten(1).T, embeddings)
    with pytest.raises(InputError, match='is there already'):
        run.predict(IJEPA(['s2_l2a']), data)


def test_answers_of_a_head_are_no_embeddings(tmp_path, write_raster):
    write_raster(tmp_path / 'in/S2L2A.tif', 12, (96, 96))
    write_raster(tmp_path / 'in/LULC.tif', 1, (96, 96), dtype='uint8')
    names = ['s2_l2a', 'lulc']
    data = RastersDataModule([], names, [str(tmp_path / 'in')], chip_size=48, batch_size=4)
    run = Trainer(accelerator='cpu', logger=False, enable_progress_bar=False,
                  callbacks=[WriteEmbeddings('out.zarr')])  # fmt: skip
    with pytest.raises(InputError, match='give its checkpoint to `gfm-jepa segment`'):
        run.predict(SemanticSegmentation(names, 10), data)
    assert not list(tmp_path.glob('out.zarr*'))


def test_majority_labels(tmp_path, write_raster):
    write_raster(tmp_path / 'p/s2.tif', 3)
    classes = np.zeros((1, 96, 96))
    classes[:, :, :30] = 3
    write_raster(tmp_path / 'p/LULC.tif', values=classes, dtype='uint8')
    chips: Dataset = MajorityLabels(Rasters([tmp_path], [sensor('s2'), LULC], 48))
    batch = next(iter(DataLoader(chips, batch_size=4)))
    assert batch['label'].tolist() == [3, 0, 3, 0] and 'lulc' not in batch


def test_demo_runs_through(tmp_path, capfd):
    assert main(['demo', '--output', 'out', '--steps', '2', '--places', '6']) == 0
    printed = capfd.readouterr().out
    rows = json.loads((tmp_path / 'out/probe.json').read_text())
    assert [r['name'] for r in rows] == ['trained', 'random init', 'image statistics']
    assert all(0 < r['knn5'] <= 1 and r['n_test'] > 50 for r in rows)
    assert 'trained' in printed and 'lejepa.ckpt' in printed
    for name in ('confusion_matrix.png', 'dashboard.png'):
        assert (tmp_path / 'out' / name).stat().st_size > 5000
    assert set(from_pretrained('out/lejepa.ckpt').modalities) == {'s2_l2a', 's1', 'dem'}
