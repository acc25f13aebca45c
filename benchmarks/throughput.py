"""Training steps of every method side by side, and how they scale with processes and tokens.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --accelerator gpu --precision bf16-mixed

Each measurement is a process of its own on random chips in memory, all of them in turns over
`--rounds` rounds, of which the fastest counts. Our methods run as their EuroSAT RGB configs say,
torchgeo's MAE and SimCLR on a backbone of the same widths; chips of 64 x 64 px. Needs a quiet
machine. Memory is the peak of the process less what stood there before training; on a GPU, of
torch's tensors there. A GPU is timed with larger encoders too, where two processes or more tokens
would tell nothing. The last line is one JSON object.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gfm_jepa import tasks
from gfm_jepa.errors import InputError, told_in_one_sentence
from gfm_jepa.models.presets import PRESETS

CONFIGS = Path(__file__).parent.parent / 'configs'
STEPS, WARM = {'cpu': 20, 'gpu': 100}, 5
OURS = ('lejepa', 'vicreg', 'simsiam', 'ijepa', 'latentmim')
THEIRS = ('torchgeo-mae', 'torchgeo-simclr')
# side of the chips, pixels, by tokens: patches of 8 px
SIDES = {'1x': (64, 64), '2x': (64, 128), '4x': (128, 128)}


def peak_mb() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Images(Dataset[dict[str, Tensor]]):
    """Random images, drawn once, under a key."""

    def __init__(self, count: int, size: tuple[int, int] = (64, 64), key: str = 'rgb') -> None:
        # In place: a copy would raise the peak of memory that training is measured against.
        self.images = torch.rand(count, 3, *size).mul_(255 if key == 'rgb' else 1)
        self.key = key

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {self.key: self.images[index]}


class Clock(Callback):
    """Notes wall and processor time at the end of each step, and what memory came before all."""

    def __init__(self) -> None:
        self.memory = peak_mb()
        self.wall: list[float] = []
        self.processor: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note both."""
        if len(self.wall) in (WARM, trainer.max_steps - 1) and torch.cuda.is_available():
            torch.cuda.synchronize()  # only where time is taken: a GPU works behind its process
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())

    @staticmethod
    def step(ends: list[float]) -> float:
        """Mean seconds of a step after those that warm up; the mean holds rare work, too."""
        return (ends[-1] - ends[WARM]) / (len(ends) - 1 - WARM)


def config_of(method: str, changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The EuroSAT RGB config of a method, with some values changed, named by dotted keys.

    ``lejepa@24`` is LeJEPA with views of 24 px of a chip of 64.
    """
    method, _, side = method.partition('@')
    if side:
        changes = {**changes, 'model.init_args.views.global_fraction': int(side) / 64}
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f'{method}_eurosat_rgb.yaml').read_text())
    for key, value in changes.items():
        *path, last = key.split('.')
        place = config
        for name in path:
            place = place[name]
        place[last] = value
    return config


def our_task(
    method: str, changes: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Any, int, float]:
    """A task as its EuroSAT RGB config says, its batch size and gradient clipping."""
    config = config_of(method, changes)
    kind = getattr(tasks, config['model']['class_path'].rpartition('.')[2])
    task = kind(['rgb'], **config['model']['init_args'])
    return task, config['data']['init_args']['batch_size'], config['trainer']['gradient_clip_val']


def time_ours(
    method: str,
    steps: int = STEPS['cpu'],
    size: tuple[int, int] = (64, 64),
    devices: int = 1,
    changes: Mapping[str, Any] = MappingProxyType({}),
    accelerator: str = 'cpu',
    precision: Any = '32-true',
) -> tuple[Clock, int]:
    """Train some steps of a method of ours; the clock, and the batch size of one process."""
    batch_size = config_of(method, changes)['data']['init_args']['batch_size']
    images = Images(steps * batch_size * devices, size)
    clock = Clock()  # behind the images, whose memory is none of the method's
    task, _, clip = our_task(method, changes)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=[clock],
        log_every_n_steps=20, gradient_clip_val=clip, accelerator=accelerator,
        devices=devices, strategy='ddp' if devices > 1 else 'auto', precision=precision,
    )  # fmt: skip
    trainer.fit(task, DataLoader(images, batch_size))
    return clock, batch_size


def measure(case: dict[str, Any]) -> dict[str, float]:
    """One measurement, in this process."""
    where = {key: case[key] for key in ('accelerator', 'precision')}
    steps = STEPS[case['accelerator']]
    if case['method'] in THEIRS:
        import torchgeo_objectives as theirs

        batch_size = theirs.BATCH_SIZE
        images = Images(steps * batch_size, key='image')
        clock = Clock()
        theirs.train(case['method'], steps, images, [clock], **where)
    else:
        clock, batch_size = time_ours(
            case['method'], steps, SIDES[case['tokens']], case['processes'], case['changes'],
            **where,
        )  # fmt: skip
    peak = peak_mb() - clock.memory
    if case['accelerator'] == 'gpu':
        peak = torch.cuda.max_memory_allocated() / 2**20
    seconds = Clock.step(clock.wall)
    chips = batch_size * case['processes'] / seconds
    return {'s_a_step': seconds, 'chips_per_s': chips, 'peak_mb': peak}


def run(case: dict[str, Any]) -> dict[str, float]:
    """One measurement, in a process of its own, or in several under torchrun."""
    words = [__file__, '--case', json.dumps(case)]
    if case['processes'] > 1:
        words = ['-m', 'torch.distributed.run', '--standalone',
                 f'--nproc-per-node={case["processes"]}', *words]  # fmt: skip
    environment = {**os.environ, 'OMP_NUM_THREADS': str(case['threads'])}
    done = subprocess.run(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{')]
    result: dict[str, float] = json.loads(lines[0])
    return result


def expected_cost(size: tuple[int, int]) -> float:
    """Multiplications of the trunk for one chip: ``depth (12 N D^2 + 2 N^2 D)``, N its tokens."""
    width, depth = PRESETS['nano']['embed_dim'], PRESETS['nano']['depth']
    tokens = (size[0] // 8) * (size[1] // 8)
    return depth * (12.0 * tokens * width**2 + 2.0 * tokens**2 * width)


def cases(accelerator: str, precision: str) -> dict[str, dict[str, Any]]:
    """What is measured, by name."""
    plain = {
        'accelerator': accelerator, 'precision': precision, 'processes': 1, 'threads': 2,
        'tokens': '1x', 'changes': {},
    }  # fmt: skip
    found: dict[str, dict[str, Any]] = {m: {**plain, 'method': m} for m in OURS + THEIRS}
    if accelerator == 'gpu':
        for preset in ('nano', 'tiny', 'small', 'base'):
            changes = {
                'model.init_args.encoder.preset': preset, 'data.init_args.batch_size': 256,
                'model.init_args.views.global_fraction': 1.0,
            }  # fmt: skip
            found[f'lejepa, {preset}, batch 256, views of 64 px'] = {
                **plain, 'method': 'lejepa', 'changes': changes,
            }  # fmt: skip
        return found
    for number in (1, 2):
        found[f'ijepa, {number} process(es) of 1 thread'] = {
            **plain, 'method': 'ijepa', 'processes': number, 'threads': 1,
        }  # fmt: skip
    for tokens in SIDES:
        # I-JEPA, since it embeds all of a chip that is not square, where views are square.
        found[f'ijepa, {tokens} tokens'] = {**plain, 'method': 'ijepa', 'tokens': tokens}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--accelerator', choices=('cpu', 'gpu'), default='cpu')
    parser.add_argument('--precision', default='32-true', help='as Lightning names it')
    parser.add_argument('--case', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(json.loads(args.case))), flush=True)
        return
    if args.accelerator == 'gpu' and not torch.cuda.is_available():
        raise InputError('This machine has no GPU that torch can use; leave out --accelerator gpu.')
    best: dict[str, dict[str, Any]] = {}
    for _ in range(args.rounds):
        for name, case in cases(args.accelerator, args.precision).items():
            found = run(case)
            if name not in best or found['s_a_step'] < best[name]['s_a_step']:
                best[name] = {k: round(v, 4 if k == 's_a_step' else 1) for k, v in found.items()}
            print(name, best[name], flush=True)
    if args.accelerator == 'cpu':
        compare_costs(best)
    print(markdown(best))
    print(json.dumps(best))


def compare_costs(rows: Mapping[str, dict[str, Any]]) -> None:
    """Add what more tokens and a second process cost a chip, and what was expected."""
    first = rows['ijepa, 1x tokens']
    for tokens, size in SIDES.items():
        row = rows[f'ijepa, {tokens} tokens']
        row['cost'] = round(row['s_a_step'] / first['s_a_step'], 2)
        row['expected_cost'] = round(expected_cost(size) / expected_cost(SIDES['1x']), 2)
    one, two = (rows[f'ijepa, {n} process(es) of 1 thread'] for n in (1, 2))
    two['cost'] = round(one['chips_per_s'] / two['chips_per_s'], 2)
    two['expected_cost'] = 0.5


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of README.md; cost is that of a chip over the first of its kind."""
    lines = ['| | s a step | chips/s | memory, MB | cost | expected |', '|---|---|---|---|---|---|']
    for name, row in rows.items():
        costs = [str(row.get(c, '')) for c in ('cost', 'expected_cost')]
        lines.append(
            f'| {name} | {row["s_a_step"]:.3f} | {row["chips_per_s"]:.0f} | {row["peak_mb"]:.0f} | '
            f'{costs[0]} | {costs[1]} |'
        )
    return '\n'.join(lines)


if __name__ == '__main__':
    with told_in_one_sentence('throughput.py'):
        main()
