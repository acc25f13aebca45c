"""Pretraining methods, one a file, and the callbacks that watch a run."""

from .base import EncoderConfig, OptimizerConfig, PretrainTask
from .callbacks import CollapseGuard, OnlineKNN
from .ijepa import IJEPA
from .lejepa import LeJEPA
from .predictions import WriteEmbeddings

__all__ = [
    'IJEPA',
    'CollapseGuard',
    'EncoderConfig',
    'LeJEPA',
    'OnlineKNN',
    'OptimizerConfig',
    'PretrainTask',
    'WriteEmbeddings',
]
