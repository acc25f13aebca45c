"""How long the steps of the EuroSAT RGB configs take here, and so what their runs take.

    python benchmarks/step_rate.py

Trains each config for some steps on random images in memory, through Lightning as `fit` does. The
last line is one JSON object: seconds a step (median), and minutes for the config's max_steps.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gfm_jepa import tasks

CONFIGS = Path(__file__).parent.parent / 'configs'


class Images(Dataset[dict[str, Tensor]]):
    """Random images, drawn once."""

    def __init__(self, count: int) -> None:
        self.images = torch.rand(count, 3, 64, 64) * 255

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'rgb': self.images[index]}


class Clock(Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Median step."""
        pairs = zip(self.ends[5:], self.ends[6:], strict=False)  # the first ones warm up
        return statistics.median(b - a for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--steps', type=int, default=60)
    args = parser.parse_args()
    result: dict[str, Any] = {'threads': torch.get_num_threads()}
    for name in ('lejepa_eurosat_rgb', 'ijepa_eurosat_rgb'):
        config = yaml.safe_load((CONFIGS / f'{name}.yaml').read_text())
        kind = getattr(tasks, config['model']['class_path'].rpartition('.')[2])
        batch_size = config['data']['init_args']['batch_size']
        clock = Clock()
        trainer = Trainer(
            max_steps=args.steps, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_model_summary=False, log_every_n_steps=20, gradient_clip_val=1.0,
            callbacks=[clock],
        )  # fmt: skip
        loader = DataLoader(Images(20 * batch_size), batch_size=batch_size)
        trainer.fit(kind(['rgb'], **config['model']['init_args']), loader)
        steps = config['trainer']['max_steps']
        result[name] = {
            'seconds_a_step': round(clock.seconds, 4),
            'max_steps': steps,
            'minutes': round(clock.seconds * steps / 60, 1),
        }
    print(json.dumps(result))


if __name__ == '__main__':
    main()
