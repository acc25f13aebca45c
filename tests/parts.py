"""What runs in processes of their own, under test, are made of; configs name these classes."""

import sys

import torch
from lightning.pytorch import Callback

from gfm_jepa.tasks import IJEPA, LeJEPA


class Halt(Callback):
    """Say so in the middle of a step, and wait for a line before going on.

    Args:
        step: At which.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == self.step:
            print('halted', flush=True)
            sys.stdin.readline()


class StillLeJEPA(LeJEPA):
    """Makes the same views of a sample on any rank."""

    def embed_views(self, batch, batch_idx):
        name = next(iter(self.encoder.modalities))
        both = torch.cat([batch[name], batch[name].flip(3) * 1.1])
        return self.encoder({name: both}).unflatten(0, (2, -1))


class StillIJEPA(IJEPA):
    """Draws the same masks on any rank."""

    def sample_masks(self, batch, batch_idx):
        count = len(next(iter(batch.values())))
        targets = torch.tensor([[2, 3, 8, 9], [20, 21, 26, 27]]).expand(count, -1, -1)
        return torch.tensor([0, 1, 6, 7, 30, 31]).expand(count, -1), targets
