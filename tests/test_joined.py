"""Several archives in one run."""

import pytest
import torch
import yaml

from gfm_jepa import InputError, from_pretrained
from gfm_jepa.cli import main
from gfm_jepa.data import BenchmarkDataModule, JoinedDataModule, RastersDataModule
from gfm_jepa.data.benchmarks import Benchmark

OPTICAL = {'name': 'optical', 'bands': ['B1', 'B2'], 'gsd': 10.0, 'unit': 'DN',
           'mean': [1750.0] * 2, 'std': [720.0] * 2}  # fmt: skip
RELIEF = {'name': 'relief', 'bands': ['elevation'], 'gsd': 10.0, 'unit': 'm', 'mean': [1750.0],
          'std': [720.0]}  # fmt: skip


@pytest.fixture
def archives(tmp_path, write_raster):
    """Two folders: a large optical one, and a small one of relief."""
    write_raster(tmp_path / 'a/p/optical.tif', 2, (192, 192))
    write_raster(tmp_path / 'b/p/relief.tif', 1, (96, 96))
    return tmp_path


def part(folder, sensor):
    return RastersDataModule([str(folder)], [sensor], chip_size=48, stride=48, batch_size=1)


def test_batches_come_from_one_part_each_as_often_as_asked(archives):
    joined = JoinedDataModule(
        [part(archives / 'a', OPTICAL), part(archives / 'b', RELIEF)], repeats=[1, 3], batch_size=4
    )
    joined.setup('fit')
    kinds = [tuple(k for k in batch if k != 'gsd') for batch in joined.train_dataloader()]
    assert sorted(kinds) == [('optical',)] * 4 + [('relief',)] * 3
    assert [m.name for m in joined.modalities] == ['optical', 'relief']


def test_fit_on_joined_archives(archives):
    parts = [
        {'class_path': 'gfm_jepa.data.RastersDataModule',
         'init_args': {'paths': [str(archives / name)], 'modalities': [sensor], 'chip_size': 48}}
        for name, sensor in (('a', OPTICAL), ('b', RELIEF))
    ]  # fmt: skip
    config = {
        'model': {
            'class_path': 'gfm_jepa.tasks.VICReg',
            'init_args': {'expander_dims': [16], 'encoder': {'stem': 'conv'}},
        },
        'data': {
            'class_path': 'gfm_jepa.data.JoinedDataModule',
            'init_args': {'parts': parts, 'repeats': [1, 2], 'batch_size': 4},
        },
        'trainer': {
            'max_steps': 3, 'max_epochs': -1, 'logger': False, 'enable_progress_bar': False,
            'enable_model_summary': False, 'limit_val_batches': 0, 'accelerator': 'cpu',
            'log_every_n_steps': 1, 'default_root_dir': str(archives / 'run'),
        },
    }  # fmt: skip
    (archives / 'joined.yaml').write_text(yaml.safe_dump(config))
    assert main(['fit', '--config', str(archives / 'joined.yaml')]) == 0
    (checkpoint,) = (archives / 'run').rglob('*.ckpt')
    encoder = from_pretrained(checkpoint)
    both = {'optical': torch.rand(2, 2, 48, 48), 'relief': torch.rand(2, 1, 48, 48)}
    assert list(encoder.modalities) == ['optical', 'relief']
    assert encoder({k: v * 3000 for k, v in both.items()}).isfinite().all()


def test_what_does_not_fit_together_is_refused(archives):
    with pytest.raises(InputError, match='describe optical differently'):
        JoinedDataModule([part('a', OPTICAL), part('b', {**OPTICAL, 'std': [1.0, 1.0]})])
    with pytest.raises(InputError, match='2 parts and the repeats'):
        JoinedDataModule([part('a', OPTICAL), part('b', RELIEF)], repeats=[1])


def test_samples_keep_what_their_part_knows(archives):
    samples = [{'rgb': torch.rand(3, 48, 48), 'label': torch.tensor(i % 2)} for i in range(4)]
    known = Benchmark('fine', 'made up', 'rgb', 0.3, samples, samples, samples, ('a', 'b'))
    parts = [BenchmarkDataModule(known, batch_size=2), part(archives / 'b', RELIEF)]
    joined = JoinedDataModule(parts, batch_size=2)
    joined.setup('fit')
    data = joined.train_dataset
    assert data[0]['gsd'] == {'rgb': 0.3} and data[4]['gsd'] == {'relief': 10.0}
    assert data.files(3) == ['sample 3'] and data.files(5) == [str(archives / 'b/p/relief.tif')]
    assert all('gsd' in batch for batch in joined.train_dataloader())
    assert all(d[1]['gsd'] == {'rgb': 0.3} for d in joined.probe_datasets())


def test_a_part_draws_no_number_of_its_own(archives):
    some = RastersDataModule([str(archives / 'a')], [OPTICAL], samples_per_epoch=3)
    with pytest.raises(InputError, match='leave it out, and see repeats'):
        JoinedDataModule([some])


def test_a_benchmark_may_come_at_another_size():
    samples = [{'rgb': torch.rand(3, 48, 48), 'label': torch.tensor(i % 2)} for i in range(4)]
    known = Benchmark('fine', 'made up', 'rgb', 0.3, samples, samples, samples, ('a', 'b'))
    data = BenchmarkDataModule(known, batch_size=2, image_size=72)
    batch = next(iter(data.test_dataloader()))
    told = data.on_after_batch_transfer(batch, 0)
    assert batch['rgb'].shape == (4, 3, 72, 72) and abs(told['gsd']['rgb'] - 0.2) < 1e-9
