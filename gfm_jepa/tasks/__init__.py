"""Pretraining methods, one a file; tasks with labels; and the callbacks that watch a run."""

from .base import EncoderConfig, OptimizerConfig, PretrainTask
from .callbacks import CollapseGuard, NaNGuard, OnlineKNN
from .classification import Classification, HeadConfig
from .ijepa import IJEPA
from .latent_mim import LatentMIM
from .lejepa import LeJEPA
from .pixelwise import PixelHeadConfig, PixelwiseRegression, SemanticSegmentation
from .predictions import WriteEmbeddings
from .runs import AtomicCheckpointIO, DrawDashboard, Preemption, SaveTheEnd
from .simsiam import SimSiam
from .vicreg import VICReg

__all__ = [
    'IJEPA',
    'AtomicCheckpointIO',
    'Classification',
    'CollapseGuard',
    'DrawDashboard',
    'EncoderConfig',
    'HeadConfig',
    'LatentMIM',
    'LeJEPA',
    'NaNGuard',
    'OnlineKNN',
    'OptimizerConfig',
    'PixelHeadConfig',
    'PixelwiseRegression',
    'Preemption',
    'PretrainTask',
    'SaveTheEnd',
    'SemanticSegmentation',
    'SimSiam',
    'VICReg',
    'WriteEmbeddings',
]
