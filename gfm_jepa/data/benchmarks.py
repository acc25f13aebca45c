"""Labelled benchmarks by name: raw chips, split as their authors split them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..errors import InputError
from .eurosat import BROKEN_IMAGE, SPLITS, EuroSATRGB, with_progress
from .images import (
    ImageFiles,
    class_images,
    class_names,
    labels_of,
    part_folder,
    read_cifar10,
    split_by_class,
)
from .labelled import Benchmark as Benchmark  # read from here by the rest
from .pixel_benchmarks import landcoverai, levircd, oscd, rasterfolder, sen12ms
from .torchgeo_benchmarks import bigearthnet, eurosat, resisc45, so2sat, ucmerced


def load_benchmark(name: str, root: str | Path) -> Benchmark:
    """Open a benchmark that lies on this machine; nothing is downloaded.

    Args:
        name: ``eurosat-rgb-spatial``, ``eurosat-rgb-random0``, ``eurosat-rgb-csv`` (JPEG),
            ``eurosat``, ``eurosat-spatial``, ``eurosat-100`` (13 bands), ``ucmerced``,
            ``resisc45``, ``bigearthnet`` (Sentinel-2, 19 classes, several a sample), ``so2sat``
            (Sentinel-2), all these in torchgeo's layout;
            ``imagefolder``: ``train/ val/ test/`` with a folder a class in each, or one folder a
            class, which is then split 60/20/20 a class with seed 0; or ``cifar10``. With a class
            for every pixel: ``landcoverai``, ``sen12ms`` (Sentinel-2 and 1), ``rasterfolder``
            (``train/ val/ test/`` of places with any rasters and LULC), and the change of
            ``oscd`` and ``levircd``.
        root: Folder of the data.

    Raises:
        InputError: If the name is unknown, or data are missing or broken.
    """
    if name not in BENCHMARKS:
        raise InputError(f'Unknown dataset {name!r}: expected one of {", ".join(BENCHMARKS)}.')
    if not Path(root).is_dir():
        raise InputError(f'There is no folder {root}; give the one that holds the data of {name}.')
    return BENCHMARKS[name](name, Path(root))


def _eurosat_rgb(split_lists: str, name: str, root: Path) -> Benchmark:
    train, val, test = (EuroSATRGB(root, split, split_lists) for split in SPLITS)
    return Benchmark(name, split_lists, 'rgb', 10.0, train, val, test, tuple(train.classes))


def _imagefolder(name: str, root: Path) -> Benchmark:
    """Folders of one class each, in the three parts or to be split."""
    if (root / 'train').is_dir():
        folders = [_part_folder(root, part) for part in SPLITS]
        classes = class_names(folders[0])
        parts = [class_images(d, classes) for d in folders]
        split = 'folders'
    else:
        classes = class_names(root)
        parts = split_by_class(class_images(root, classes), classes)
        split = '60/20/20'
    _require_one_size([file for part in parts for file in part])
    train, val, test = (ImageFiles(p, labels_of(p, classes)) for p in parts)
    return Benchmark(name, split, 'rgb', None, train, val, test, tuple(classes))


def _cifar10(name: str, root: Path) -> Benchmark:
    """CIFAR-10: the last 5,000 training images validate."""
    (train, val, test), classes = read_cifar10(root)
    return Benchmark(name, 'official', 'rgb', None, train, val, test, tuple(classes))


def _part_folder(root: Path, part: str) -> Path:
    folder = part_folder(root, part)
    if folder is None:
        raise InputError(
            f'{root} has the folder train, but no {part}; add it, or leave out all three.'
        )
    return folder


def _require_one_size(files: Sequence[Path]) -> None:
    """Refuse images of different sizes; only headers are read."""
    from PIL import Image

    first: tuple[int, int] | None = None
    for path in with_progress(files, 'Checking sizes'):
        try:
            with Image.open(path) as image:
                size = image.size
        except (*BROKEN_IMAGE, Image.DecompressionBombError) as error:
            raise InputError(f'{path} is a broken image ({error}); replace it.') from error
        first = first or size
        if size != first:
            raise InputError(
                f'{path} has {size[0]} x {size[1]} pixels, but {files[0]} {first[0]} x {first[1]}; '
                f'bring all images to one size.'
            )


BENCHMARKS: dict[str, Callable[[str, Path], Benchmark]] = {
    'eurosat-rgb-spatial': partial(_eurosat_rgb, 'spatial'),
    'eurosat-rgb-random0': partial(_eurosat_rgb, 'random0'),
    'eurosat-rgb-csv': partial(_eurosat_rgb, 'csv'),
    'eurosat': partial(eurosat, 'EuroSAT', 'official'),
    'eurosat-spatial': partial(eurosat, 'EuroSATSpatial', 'spatial'),
    'eurosat-100': partial(eurosat, 'EuroSAT100', '100'),
    'ucmerced': ucmerced,
    'resisc45': resisc45,
    'bigearthnet': bigearthnet,
    'so2sat': so2sat,
    'imagefolder': _imagefolder,
    'cifar10': _cifar10,
    'landcoverai': landcoverai,
    'sen12ms': sen12ms,
    'rasterfolder': rasterfolder,
    'oscd': oscd,
    'levircd': levircd,
}
