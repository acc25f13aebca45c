"""Benchmarks through torchgeo's dataset classes, raw, and refused where they lack something."""

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..modalities import MODALITIES
from .eurosat import SPLITS, Sample, with_progress
from .labelled import Benchmark


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


class TorchgeoLabels(Dataset[Sample]):
    """Any dataset of torchgeo with ``image`` and ``label``, whose labels are read one by one.

    Args:
        dataset: Without transforms.
        modality: Name of the modality.
        read_label: Reads the label of a sample, and only that.
        files: A name for each sample.
        bands: Which of the modality's bands the images hold, in their order; the rest is NaN.
        factor: From the values of the files to the modality's unit.
    """

    def __init__(
        self,
        dataset: Any,
        modality: str,
        read_label: Callable[[int], Tensor],
        files: Sequence[str],
        bands: Sequence[str] = (),
        factor: float = 1.0,
    ) -> None:
        self.dataset, self.modality, self.files = dataset, modality, list(files)
        self.read_label, self.factor = read_label, factor
        known = MODALITIES[modality].bands
        self.count, self.at = len(known), [known.index(b) for b in bands or known]

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.dataset)

    @cached_property
    def labels(self) -> Tensor:
        """Labels of all samples, (N,) or (N, K)."""
        ids = with_progress(range(len(self)), 'Reading labels')
        return torch.stack([self.read_label(i) for i in ids]).long()

    def __getitem__(self, index: int) -> Sample:
        """Return the raw chip (C, H, W), float32, and its label."""
        try:
            sample = self.dataset[index]
        except (OSError, IndexError, KeyError, ValueError) as error:
            raise InputError(
                f'{self.files[index]} cannot be read ({error}); fetch it again, or unlist it.'
            ) from error
        image = sample['image'].float() * self.factor
        if len(image) != len(self.at):
            raise InputError(
                f'{self.files[index]} has {len(image)} bands, expected {len(self.at)}; fetch it '
                f'again.'
            )
        full = image.new_full((self.count, *image.shape[1:]), torch.nan)
        full[self.at] = image
        return {self.modality: full, 'label': sample['label'].long()}


def eurosat(class_name: str, split: str, name: str, root: Path) -> Benchmark:
    """EuroSAT with 13 bands; torchgeo picks the bands by name, so B8A comes where ours is.

    A folder with some of the chips will do; `Benchmark.split` says how many there are.
    """
    from torchgeo import datasets

    cls = getattr(datasets, class_name)
    needed = [cls.base_dir, *cls.split_filenames.values()]
    require_there(name, root, needed, f'{cls.url}{cls.filename} and the lists beside it')
    there, listed = _count_listed(root / cls.base_dir, root, cls.split_filenames.values())
    if there < listed:  # torchgeo takes the part that is there; so do we, and say so in each row
        split = f'{split}, {there} of {listed} chips'
    bands = MODALITIES['s2_l1c'].bands
    return _wrap(name, split, 's2_l1c', 10.0, partial(cls, root, bands=bands, checksum=False))


def ucmerced(name: str, root: Path) -> Benchmark:
    """UC Merced, 256 x 256 pixels (torchgeo resizes the few others) of one foot."""
    from torchgeo.datasets import UCMerced
    from torchgeo.datasets.utils import check_integrity

    lists = UCMerced.split_filenames
    where = f'{UCMerced.url}{UCMerced.filename} and the lists beside it'
    require_there(name, root, [UCMerced.base_dir, *lists.values()], where)
    _check_lists(name, root / UCMerced.base_dir, [root / f for f in lists.values()])
    sums = UCMerced.split_sha256s
    official = all(check_integrity(root / lists[s], sha256=sums[s]) for s in SPLITS)
    split = 'official' if official else 'unofficial'
    return _wrap(name, split, 'rgb', 0.3048, partial(UCMerced, root, checksum=False))


def resisc45(name: str, root: Path) -> Benchmark:
    """RESISC45: 256 x 256 pixels of 0.2 to 30 m, which the files do not tell."""
    from torchgeo.datasets import RESISC45

    lists = {part: f'resisc45-{part}.txt' for part in SPLITS}
    where = f'{RESISC45.url} and the lists beside it'
    require_there(name, root, [RESISC45.directory, *lists.values()], where)
    _check_lists(name, root / RESISC45.directory, [root / f for f in lists.values()])
    return _wrap(name, 'official', 'rgb', None, partial(RESISC45, root, checksum=False))


def bigearthnet(name: str, root: Path) -> Benchmark:
    """BigEarthNet 1.0, Sentinel-2 L2A of 120 x 120 pixels, 19 classes, several a sample."""
    from torchgeo.datasets import BigEarthNet

    known, lists = BigEarthNet.metadata['s2'], BigEarthNet.splits_metadata
    needed = [known['directory'], *(facts['filename'] for facts in lists.values())]
    require_there(name, root, needed, f'{known["url"]} and {lists["train"]["url"]}, -val, -test')
    parts = []
    for part in SPLITS:
        dataset = BigEarthNet(root, part, bands='s2', num_classes=19, checksum=False)
        folders = [folder['s2'] for folder in dataset.folders]
        if missing := [f for f in folders if not Path(f).is_dir()]:
            raise InputError(
                f'{len(missing)} of {len(folders)} listed patches of {name} are not there, the '
                f'first is {missing[0]}; complete the patches or the list.'
            )
        parts.append(TorchgeoLabels(dataset, 's2_l2a', dataset._load_target, folders))
    classes = tuple(BigEarthNet.class_sets[19])
    train, val, test = parts
    return Benchmark(name, 'official', 's2_l2a', 10.0, train, val, test, classes, multilabel=True)


def so2sat(name: str, root: Path) -> Benchmark:
    """So2Sat LCZ42, version 2: Sentinel-2, 10 bands of 32 x 32 pixels, in units of reflectance."""
    from torchgeo.datasets import So2Sat

    files = So2Sat.filenames_by_version['2']
    require_there(name, root, list(files.values()), 'https://mediatum.ub.tum.de/1483140')
    if importlib.util.find_spec('h5py') is None:
        raise InputError(f'{name} is HDF5, which needs a package: pip install h5py.')
    h5py = importlib.import_module('h5py')

    bands, parts = [b.removeprefix('S2_') for b in So2Sat.BAND_SETS['s2']], []
    for part, path in files.items():
        dataset = So2Sat(root, '2', part, So2Sat.BAND_SETS['s2'], checksum=False)
        with h5py.File(root / path, 'r') as file:
            labels = torch.from_numpy(file['label'][:].argmax(axis=1))
        names = [f'{path}/{i}' for i in range(len(dataset))]
        parts.append(
            TorchgeoLabels(dataset, 's2_l1c', labels.__getitem__, names, bands, factor=10000.0)
        )
    train, val, test = parts
    return Benchmark(
        name, 'version 2', 's2_l1c', 10.0, train, val, test, So2Sat.classes, bands=tuple(bands)
    )


def _count_listed(folder: Path, root: Path, lists: Iterable[str]) -> tuple[int, int]:
    """How many of the listed images are there, and how many are listed."""
    there = {path.stem for path in folder.glob('*/*')}
    stems = [stem for f in lists for stem in _listed(root / f)]
    return sum(stem in there for stem in stems), len(stems)


def _listed(path: Path) -> list[str]:
    """Names in a split list, without their endings."""
    return [Path(line.strip()).stem for line in path.read_text().splitlines() if line.strip()]


def _check_lists(name: str, folder: Path, lists: Sequence[Path]) -> None:
    """Refuse lists that name images which are not there: torchgeo leaves those out silently."""
    there = {path.stem for path in folder.glob('*/*')}
    for path in lists:
        listed = _listed(path)
        if missing := [stem for stem in listed if stem not in there]:
            raise InputError(
                f'{len(missing)} of {len(listed)} images in {path} are not in {folder}, the first '
                f'is {missing[0]}; complete the images of {name} or the list.'
            )


def _wrap(
    name: str, split: str, modality: str, gsd: float | None, build: Callable[..., Any]
) -> Benchmark:
    """Open the three parts of a torchgeo dataset."""
    try:
        parts = [build(split=part, transforms=None, download=False) for part in SPLITS]
    except FileNotFoundError as error:  # torchvision's, when a class has no image in a part
        raise InputError(f'The images of {name} do not match its split lists: {error}') from error
    train, val, test = (TorchgeoChips(part, modality) for part in parts)
    return Benchmark(name, split, modality, gsd, train, val, test, tuple(parts[0].classes))


def require_there(name: str, root: Path, needed: Sequence[str], where: str) -> None:
    """Refuse a folder that lacks something, and say where to get it.

    Raises:
        InputError: If it does.
    """
    missing = [item for item in needed if not (root / item).exists()]
    if missing:
        raise InputError(f'{name} lacks {missing[0]} in {root}; get it from {where}.')
