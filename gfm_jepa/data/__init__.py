"""Rasters and benchmarks in, raw physical units out; NaN is the one sign for "not there"."""

from .datamodules import EuroSATRGBDataModule, RastersDataModule
from .eurosat import EuroSATRGB
from .rasters import Rasters

__all__ = ['EuroSATRGB', 'EuroSATRGBDataModule', 'Rasters', 'RastersDataModule']
