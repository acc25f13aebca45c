"""Labelled benchmarks by name: raw chips, split as their authors split them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..errors import InputError
from ..modalities import MODALITIES
from .eurosat import SPLITS, EuroSATRGB, Sample, with_progress
from .images import (
    ImageFiles,
    class_images,
    class_names,
    labels_of,
    part_folder,
    read_cifar10,
    split_by_class,
)


@dataclass(frozen=True)
class Benchmark:
    """A labelled dataset in three parts.

    Attributes:
        name: As in `load_benchmark`.
        split: Which split lists: ``spatial``, ``random0``, ``official``, ...
        modality: Key of the rasters in a sample, such as ``rgb``.
        gsd: Ground sampling distance, metres per pixel; None if the files do not tell.
        train: Of samples {modality: (C, H, W) float32 in raw units, 'label': int64 scalar}.
        val: Likewise.
        test: Likewise.
        classes: Names by label.
        multilabel: Whether a sample may have several classes; ``label`` is (K,) of 0 and 1 then.
    """

    name: str
    split: str
    modality: str
    gsd: float | None
    train: Dataset[Sample]
    val: Dataset[Sample]
    test: Dataset[Sample]
    classes: tuple[str, ...]
    multilabel: bool = False


def load_benchmark(name: str, root: str | Path) -> Benchmark:
    """Open a benchmark that lies on this machine; nothing is downloaded.

    Args:
        name: ``eurosat-rgb-spatial``, ``eurosat-rgb-random0``, ``eurosat-rgb-csv`` (JPEG),
            ``eurosat-spatial``, ``eurosat-100`` (13 bands, torchgeo's layout), ``ucmerced``,
            ``imagefolder``: ``train/ val/ test/`` with a folder a class in each, or one folder a
            class, which is then split 60/20/20 a class with seed 0; or ``cifar10``.
        root: Folder of the data.

    Raises:
        InputError: If the name is unknown, or data are missing or broken.
    """
    if name not in BENCHMARKS:
        raise InputError(f'Unknown dataset {name!r}: expected one of {", ".join(BENCHMARKS)}.')
    if not Path(root).is_dir():
        raise InputError(f'There is no folder {root}; give the one that holds the data of {name}.')
    return BENCHMARKS[name](name, Path(root))


class TorchgeoChips(Dataset[Sample]):
    """A classification dataset of torchgeo, its key ``image`` renamed to a modality's name.

    No transforms, hence raw values: torchgeo normalises in its data modules, our encoder within.

    Args:
        dataset: A ``NonGeoClassificationDataset`` without transforms.
        modality: Name of the modality whose bands, in that order, it gives.
    """

    def __init__(self, dataset: Any, modality: str) -> None:
        self.dataset = dataset
        self.modality = modality
        self.labels = torch.tensor(dataset.targets)
        self.files = [path for path, _ in dataset.imgs]

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """Return the raw chip (C, H, W), float32, and its label."""
        try:
            sample = self.dataset[index]
        except OSError as error:
            path = self.dataset.imgs[index][0]
            raise InputError(f'{path} is a broken image ({error}); replace it.') from error
        return {self.modality: sample['image'].float(), 'label': sample['label'].long()}


def _eurosat_rgb(split_lists: str, name: str, root: Path) -> Benchmark:
    train, val, test = (EuroSATRGB(root, split, split_lists) for split in SPLITS)
    return Benchmark(name, split_lists, 'rgb', 10.0, train, val, test, tuple(train.classes))


def _eurosat(class_name: str, split: str, name: str, root: Path) -> Benchmark:
    """EuroSAT with 13 bands; torchgeo picks the bands by name, so B8A comes where ours is."""
    from torchgeo import datasets

    cls = getattr(datasets, class_name)
    needed = [cls.base_dir, *cls.split_filenames.values()]
    _require(name, root, needed, f'{cls.url}{cls.filename} and the lists beside it')
    bands = MODALITIES['s2_l1c'].bands
    return _wrap(name, split, 's2_l1c', 10.0, partial(cls, root, bands=bands, checksum=False))


def _ucmerced(name: str, root: Path) -> Benchmark:
    """UC Merced, 256 x 256 pixels (torchgeo resizes the few others) of one foot."""
    from torchgeo.datasets import UCMerced
    from torchgeo.datasets.utils import check_integrity

    lists = UCMerced.split_filenames
    where = f'{UCMerced.url}{UCMerced.filename} and the lists beside it'
    _require(name, root, [UCMerced.base_dir, *lists.values()], where)
    sums = UCMerced.split_sha256s
    official = all(check_integrity(root / lists[s], sha256=sums[s]) for s in SPLITS)
    split = 'official' if official else 'unofficial'
    return _wrap(name, split, 'rgb', 0.3048, partial(UCMerced, root, checksum=False))


def _wrap(name: str, split: str, modality: str, gsd: float, build: Callable[..., Any]) -> Benchmark:
    """Open the three parts of a torchgeo dataset."""
    try:
        parts = [build(split=part, transforms=None, download=False) for part in SPLITS]
    except FileNotFoundError as error:  # torchvision's, when a class has no image in a part
        raise InputError(f'The images of {name} do not match its split lists: {error}') from error
    train, val, test = (TorchgeoChips(part, modality) for part in parts)
    return Benchmark(name, split, modality, gsd, train, val, test, tuple(parts[0].classes))


def _require(name: str, root: Path, needed: Sequence[str], where: str) -> None:
    missing = [item for item in needed if not (root / item).exists()]
    if missing:
        raise InputError(f'{name} lacks {missing[0]} in {root}; get it from {where}.')


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
        except OSError as error:
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
    'eurosat-spatial': partial(_eurosat, 'EuroSATSpatial', 'spatial'),
    'eurosat-100': partial(_eurosat, 'EuroSAT100', '100'),
    'ucmerced': _ucmerced,
    'imagefolder': _imagefolder,
    'cifar10': _cifar10,
}
