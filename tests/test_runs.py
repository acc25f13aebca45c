"""Runs that are broken off, resumed, and spread over processes, through the real command line."""

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from forked import Forked

from gfm_jepa import from_pretrained
from gfm_jepa.cli import main
from gfm_jepa.tasks import AtomicCheckpointIO
from gfm_jepa.tasks.runs import ContinuedCSVLogger

TESTS = Path(__file__).parent
SENSOR = {'name': 'optical', 'bands': ['B1', 'B2', 'B3'], 'gsd': 10.0, 'unit': 'DN',
          'mean': [1750.0] * 3, 'std': [720.0] * 3}  # fmt: skip
STOPPED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGUSR1: 138}


@pytest.fixture
def config(tmp_path, write_raster):
    """Write rasters; returns a function that writes a config for a name and a method."""
    for i in range(2):
        write_raster(tmp_path / f'data/p{i}/optical.tif', 3, (96, 96), origin=(5e5 + 5e3 * i, 5e6))

    def write(name: str, method: str, **trainer) -> list[str]:
        stem = 'conv' if 'LeJEPA' in method else 'linear'
        content = {
            'seed_everything': 1,
            'model': {
                'class_path': method,
                'init_args': {'encoder': {'preset': 'nano', 'patch_size': 8, 'stem': stem}},
            },
            'data': {
                'class_path': 'gfm_jepa.data.RastersDataModule',
                'init_args': {
                    'paths': [str(tmp_path / 'data')], 'modalities': [SENSOR], 'chip_size': 48,
                    'batch_size': 4, 'stride': 24,
                },
            },
            'trainer': {
                'max_steps': 10, 'max_epochs': -1, 'log_every_n_steps': 1,
                'enable_progress_bar': False, 'enable_model_summary': False,
                'num_sanity_val_steps': 0, 'accelerator': 'cpu', 'limit_val_batches': 0,
                'callbacks': [
                    {
                        'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint',
                        'init_args': {'every_n_train_steps': 2, 'save_last': True},
                    }
                ],
                **trainer,
            },
        }  # fmt: skip
        (tmp_path / f'{name}.yaml').write_text(yaml.safe_dump(content))
        return ['fit', '--config', f'{name}.yaml']

    return write


def command(words: list[str]) -> subprocess.Popen:
    env = {**os.environ, 'PYTHONPATH': f'{TESTS}:{TESTS.parent}'}
    return subprocess.Popen(
        [sys.executable, '-m', 'gfm_jepa.cli', *words], env=env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def weights(name: str) -> dict[str, torch.Tensor]:
    path = f'runs/{name}/version_0/checkpoints/last.ckpt'
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.parametrize(
    ('method', 'number'),
    [('IJEPA', signal.SIGKILL), ('LeJEPA', signal.SIGKILL), ('IJEPA', signal.SIGUSR1),
     ('LeJEPA', signal.SIGTERM)],
)  # fmt: skip
def test_a_run_that_a_signal_ended_resumes_bit_for_bit(config, method, number, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    assert main(config('whole', f'gfm_jepa.tasks.{method}')) == 0
    words = [*config('broken', f'gfm_jepa.tasks.{method}'), '--ckpt_path=auto']
    # As a scheduler does it: to the processes that read, too.
    send = os.killpg if number == signal.SIGTERM else os.kill
    words += ['--data.num_workers=1'] if number == signal.SIGTERM else []
    # An epoch has 4 batches, and checkpoints come every 2: step 7 lies between both.
    halt = ['--trainer.callbacks+=parts.Halt', '--trainer.callbacks.init_args.step=7']
    process = Forked(lambda: main([*words, *halt]))
    printed = ''.join(iter(lambda: _line_before_halt(process), ''))
    send(process.pid, number)
    rest, status = process.communicate('\n')
    printed += rest
    assert status == STOPPED[number], printed
    reached = torch.load('runs/broken/version_0/checkpoints/last.ckpt', weights_only=True)
    assert reached['global_step'] == (6 if number == signal.SIGKILL else 8)
    assert number == signal.SIGKILL or '--ckpt_path auto' in printed
    assert main(words) == 0
    expected, got = weights('whole'), weights('broken')
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
    # The resumed run went on in the folder of the broken one, and logged on.
    (folder,) = Path('runs/broken').iterdir()
    logged = pd.read_csv(folder / 'metrics.csv')
    assert set(logged['step'][logged['train_loss'].notna()]) >= {8, 9}
    assert logged['step'].is_unique and logged['step'].is_monotonic_increasing
    assert {'lr', 'grad_norm', 'embedding_std'} <= set(logged)
    assert list(folder.glob('events.out.tfevents.*'))
    assert (folder / 'dashboard.png').stat().st_size > 20_000
    assert {p.name for p in (folder / 'checkpoints').glob('last*')} == {'last.ckpt'}


def _line_before_halt(process: Forked) -> str:
    """The next line that a process prints, nothing once it has halted."""
    line = process.stdout.readline()
    return '' if line == 'halted\n' else line


def test_last_is_the_end_of_the_run(config):
    words = [*config('odd', 'gfm_jepa.tasks.LeJEPA'), '--trainer.max_steps=3']
    assert main(words) == 0
    assert len(list(Path('runs/odd').rglob('*.ckpt'))) == 2  # of step 2, and of the end
    path = 'runs/odd/version_0/checkpoints/last.ckpt'
    saved = torch.load(path, weights_only=True)
    assert (saved['global_step'], saved['epoch']) == (3, 0)
    early = [*config('early', 'gfm_jepa.tasks.LeJEPA'), '--trainer.max_steps=1']
    assert main(early) == 0
    (only,) = Path('runs/early').rglob('*.ckpt')  # before the first that is due
    saved = torch.load(only, weights_only=True)
    assert only.name == 'last.ckpt' and (saved['global_step'], saved['epoch']) == (1, 0)
    # A longer run goes on within the epoch, which has 4 batches.
    assert main([*words, '--trainer.max_steps=5', '--ckpt_path=auto']) == 0
    logged = pd.read_csv('runs/odd/version_0/metrics.csv').dropna(subset='train_loss')
    assert logged['epoch'].tolist() == [0, 0, 0, 0, 1]
    assert main([*words, '--trainer.max_steps=-1', '--trainer.max_epochs=2',
                 '--trainer.limit_train_batches=3', '--ckpt_path=auto']) == 0  # fmt: skip
    assert torch.load(path, weights_only=True)['global_step'] == 7


def test_a_torn_row_of_the_log_is_not_glued_to_the_next():
    def log(step: int, **values: float) -> Path:
        logger = ContinuedCSVLogger('logs', 'run', 0)
        logger.log_metrics(values, step)
        logger.save()
        return Path(logger.log_dir) / 'metrics.csv'

    log(0, loss=1.0)
    path = log(1, loss=2.0)
    path.write_bytes(path.read_bytes()[:-3])
    log(2, loss=3.0, lr=0.1)
    found = pd.read_csv(path)
    assert found['step'].tolist() == [0, 2] and found['loss'].tolist() == [1.0, 3.0]
    assert [p.name for p in path.parent.glob('metrics*')] == ['metrics.csv']
    path.write_bytes(b'lo')  # nothing whole is left
    assert pd.read_csv(log(3, loss=4.0))['step'].tolist() == [3]


def test_rows_behind_the_checkpoint_are_written_once():
    logger = ContinuedCSVLogger('logs', 'run', 0)
    logger.drop_from(2)  # nothing is there yet
    for step in range(4):
        logger.log_metrics({'loss': 0.1 * step}, step)
    logger.save()
    path = Path(logger.log_dir) / 'metrics.csv'
    before = path.read_bytes().splitlines(keepends=True)
    again = ContinuedCSVLogger('logs', 'run', 0)
    again.drop_from(4)
    assert path.read_bytes() == b''.join(before)
    again.drop_from(2)
    assert path.read_bytes() == b''.join(before[:3])  # the header and two rows, to the byte
    again.log_metrics({'loss': 5.0, 'lr': 1.0}, 2)
    again.save()
    assert pd.read_csv(path)['loss'].tolist() == [0.0, 0.1, 5.0]
    assert [p.name for p in path.parent.glob('metrics*')] == ['metrics.csv']


def test_last_needs_a_checkpoint(config, capfd):
    assert main([*config('none', 'gfm_jepa.tasks.IJEPA'), '--ckpt_path=last']) == 2
    assert 'There is no checkpoint in runs/none' in capfd.readouterr().err


class Deadly:
    """Kills the process that pickles it."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('kind', ['atomic', 'plain'])
def test_killed_while_writing_leaves_the_last_checkpoint_whole(kind):
    path = Path('run/last.ckpt')
    path.parent.mkdir()
    save = AtomicCheckpointIO().save_checkpoint if kind == 'atomic' else torch.save
    save({'step': 1, 'weights': torch.ones(1000)}, path)
    killed = Forked(lambda: save({'step': 2, 'weights': torch.ones(1000), 'then': Deadly()}, path))
    assert killed.communicate()[1] == -signal.SIGKILL
    if kind == 'atomic':
        assert torch.load(path, weights_only=True)['step'] == 1
        assert sorted(p.name for p in path.parent.iterdir()) == ['last.ckpt', 'last.ckpt.part']
    else:  # the test can fail
        with pytest.raises((RuntimeError, EOFError)):
            torch.load(path, weights_only=True)


FSDP = ['--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy',
        '--trainer.strategy.data_parallel_size=2', '--trainer.strategy.tensor_parallel_size=1',
        '--trainer.strategy.save_distributed_checkpoint=false']  # fmt: skip


def launch(words: list[str]) -> None:
    """Two processes, as torchrun or a scheduler would start them."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])

    def run(rank: int) -> int:
        os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'LOCAL_RANK': str(rank)}
        return main(words)

    ended = [p.communicate() for p in [Forked(partial(run, rank)) for rank in range(2)]]
    assert [status for _, status in ended] == [0, 0], ended


# What a batch norm takes away again has a gradient of 0, in float32 of noise alone.
SHIFTS = ('encoder.norm.bias', 'projector.0.bias', 'projector.1.running_mean', 'projector.3.bias',
          'projector.4.running_mean')  # fmt: skip


@pytest.mark.parametrize('strategy', ['ddp', 'fsdp'])
@pytest.mark.parametrize('method', ['StillIJEPA', 'StillLeJEPA'])
def test_two_processes_give_the_weights_of_one(config, method, strategy, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    # Adam turns the rounding of a gradient near 0 into a whole step: float64, where FSDP allows it.
    precision, most = ('64-true', 1e-9) if strategy == 'ddp' else ('32-true', 1e-5)
    common = {'max_steps': 4, 'precision': precision, 'gradient_clip_val': 1.0}
    alone = config('alone', f'parts.{method}', **common)
    assert main([*alone, '--data.batch_size=8']) == 0
    together = [*config('together', f'parts.{method}', **common), '--trainer.devices=2']
    together += ['--trainer.strategy=ddp'] if strategy == 'ddp' else FSDP
    if (method, strategy) == ('StillIJEPA', 'ddp'):  # Lightning's own launcher, once: it is slow
        process = command(together)
        printed = process.communicate(timeout=900)[0]
        assert process.returncode == 0, printed
    else:
        launch(together)
    expected, got = weights('alone'), weights('together')
    assert expected.keys() == got.keys()
    free = SHIFTS if method == 'StillLeJEPA' and strategy == 'fsdp' else ()
    away = torch.cat([(v - got[k]).flatten() for k, v in expected.items() if k not in free])
    # An optimizer step moves a weight by about 1e-3.
    assert away.double().square().mean().sqrt() < most
    encoder = from_pretrained('runs/together/version_0/checkpoints/last.ckpt')
    assert encoder({'optical': torch.rand(2, 3, 48, 48) * 3000}).isfinite().all()
