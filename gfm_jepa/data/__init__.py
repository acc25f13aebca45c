"""Rasters and benchmarks in, raw physical units out; NaN is the one sign for "not there"."""

from .benchmark_datamodule import BenchmarkDataModule
from .datamodules import EuroSATRGBDataModule, RastersDataModule
from .eurosat import EuroSATRGB
from .image_datamodules import CIFAR10DataModule, ImageFolderDataModule
from .joined import JoinedDataModule
from .rasters import Rasters
from .ssl4eo import SSL4EOS12
from .ssl4eo_datamodule import SSL4EOS12DataModule

__all__ = [
    'SSL4EOS12',
    'BenchmarkDataModule',
    'CIFAR10DataModule',
    'EuroSATRGB',
    'EuroSATRGBDataModule',
    'ImageFolderDataModule',
    'JoinedDataModule',
    'Rasters',
    'RastersDataModule',
    'SSL4EOS12DataModule',
]
