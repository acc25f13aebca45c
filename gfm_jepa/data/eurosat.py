"""EuroSAT as JPEG: 27,000 RGB images of 64 x 64 pixels at 10 m, in ten classes."""

import csv
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError

Sample = dict[str, Any]

SPLITS = ('train', 'val', 'test')
SIZE = 64  # pixels, both ways
_FOLDERS = ('EuroSAT_RGB', '2750', '.')
_CSV_NAMES = {'train': 'train.csv', 'val': 'validation.csv', 'test': 'test.csv'}
_SOURCE = 'https://zenodo.org/records/7711810 (EuroSAT_RGB.zip)'


class EuroSATRGB(Dataset[Sample]):
    """EuroSAT RGB from the JPEG distribution, raw, with any split lists.

    Takes class folders under `root`, ``root/EuroSAT_RGB`` or ``root/2750``. Sentinel-2 L1C B04,
    B03, B02, stretched to 8 bits by the publishers (DN 0..2750).

    Args:
        root: Folder that holds the images and, unless `split_lists` is a path, the lists.
        split: ``train``, ``val`` or ``test``.
        split_lists: A name such as ``spatial`` for ``eurosat-spatial-{train,val,test}.txt`` in
            `root`; ``csv`` for ``{train,validation,test}.csv`` with columns Filename and ClassName
            and ``label_map.json``; a folder with one ``train.txt`` or ``*-train.txt`` and so on; or
            the path prefix of such lists (``lists/mine`` for ``lists/mine-train.txt``).
        in_memory: Decode all images once, into one uint8 array (12 kB an image), and not at each
            access.

    Attributes:
        classes: Names by label: sorted, or as ``label_map.json`` numbers them.
        labels: (N,) int64.
        files: Paths of the N images.

    Raises:
        InputError: If there are no images or no list, or a list names a file that is not there,
            or an image is broken or not of 64 x 64 pixels.

    Source: Helber et al., "EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and
    Land Cover Classification" (2019); the CSV form is that of Kaggle's copy.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = 'train',
        split_lists: str | Path = 'spatial',
        in_memory: bool = True,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f'Unknown split {split!r}: expected one of {", ".join(SPLITS)}.')
        self.root = Path(root)
        self.split = split
        folder, self.classes = find_image_folder(self.root)
        if str(split_lists) == 'csv':
            names, self.classes = _read_csv(self.root, split, self.classes)
        else:
            names = _read_list(find_list(self.root, split, split_lists))
        self.files = [folder / name for name in names]
        _check_files(folder, self.files)
        index = {name: label for label, name in enumerate(self.classes)}
        self.labels = torch.tensor([index[f.parent.name] for f in self.files])
        self._images = self._decode_all() if in_memory else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Return ``rgb`` (3, 64, 64), float32 in 0..255, and ``label``, an int64 scalar."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return several samples at once, which is how a DataLoader asks for a batch."""
        if self._images is None:
            images = torch.stack([_decode(self.files[i]) for i in indices]).float()
        else:
            images = self._images[list(indices)].float()
        labels = self.labels[list(indices)]
        return [{'rgb': i, 'label': y} for i, y in zip(images, labels, strict=True)]

    def _decode_all(self) -> Tensor:
        """Decode all images into one uint8 array (N, 3, 64, 64)."""
        images = torch.empty(len(self.files), 3, SIZE, SIZE, dtype=torch.uint8)
        # One thread: at this size PIL holds the lock most of the time, and two were slower.
        for row, path in enumerate(with_progress(self.files, f'Decoding {self.split} images')):
            images[row] = _decode(path)
        return images


def find_image_folder(root: Path) -> tuple[Path, list[str]]:
    """Return the folder that holds the class folders, and the sorted class names.

    Raises:
        InputError: If no folder with JPEG images in class folders is found.
    """
    for name in _FOLDERS:
        classes = [d.name for d in _subfolders(root / name) if any(_jpegs(d))]
        if classes:
            return root / name, classes
    raise InputError(
        f'No EuroSAT images in {root}: expected class folders of .jpg files there, or in '
        f'EuroSAT_RGB/ or 2750/ under it; get them from {_SOURCE}.'
    )


def find_list(root: Path, split: str, split_lists: str | Path) -> Path:
    """Return the file that lists the images of a split; see `EuroSATRGB` for `split_lists`.

    Raises:
        InputError: If it is not there.
    """
    path = Path(split_lists)
    named = root / f'eurosat-{split_lists}-{split}.txt'
    if path.name == str(split_lists) and (named.is_file() or not path.is_dir()):
        candidates = [named]
    elif path.is_dir():
        candidates = [path / f'{split}.txt', *sorted(path.glob(f'*-{split}.txt'))]
    else:
        candidates = [path.parent / f'{path.name}-{split}.txt']
    found = [c for c in candidates if c.is_file()]
    if not found:
        raise InputError(
            f'No split list {candidates[0]}: expected a text file with one image name a line, '
            f'such as Forest_12.jpg.'
        )
    if len(found) > 1:
        raise InputError(
            f'{path} holds several {split} lists, {found[0].name} and {found[1].name} among them; '
            f'give the prefix of one, such as {str(found[1]).removesuffix(f"-{split}.txt")}.'
        )
    return found[0]


# Pillow reads text that begins as an image does, such as a P and a digit, until a number is none.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, struct.error)


def decode_rgb(path: Path) -> NDArray[np.uint8]:
    """Read an 8-bit image as (H, W, 3) uint8; grey and palette images become RGB.

    Raises:
        InputError: If it is broken, or not of 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(('I', 'F')):
                raise InputError(
                    f'{path} has pixel type {image.mode}; expected 8 bits a band: convert it to 8 '
                    f'bits, or train on GeoTIFFs of 16 bits with RastersDataModule.'
                )
            return np.array(image.convert('RGB'))
    except Image.DecompressionBombError as error:
        raise InputError(
            f'{path} is too large for an image that is decoded whole ({error}); cut it into tiles.'
        ) from error
    except InputError:
        raise
    except BROKEN_IMAGE as error:
        raise InputError(f'{path} is a broken image ({error}); replace it or unlist it.') from error


def with_progress[T](files: Sequence[T], title: str) -> Iterable[T]:
    """Pass files on, with a bar once it has taken more than two seconds."""
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(files, desc=title, unit='file', delay=2, leave=False)
    return bar


def _decode(path: Path) -> Tensor:
    """Read one EuroSAT image as (3, 64, 64) uint8."""
    image = decode_rgb(path)
    if image.shape != (SIZE, SIZE, 3):
        raise InputError(
            f'{path} has {image.shape[1]} x {image.shape[0]} pixels; EuroSAT images have '
            f'{SIZE} x {SIZE}.'
        )
    return torch.from_numpy(image).permute(2, 0, 1)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(d for d in folder.iterdir() if d.is_dir()) if folder.is_dir() else []


def _jpegs(folder: Path) -> Iterator[str]:
    """Yield the JPEG names in a folder."""
    with os.scandir(folder) as entries:
        yield from (e.name for e in entries if e.name.lower().endswith(('.jpg', '.jpeg')))


def _read_list(path: Path) -> list[str]:
    """Read a list as ``Class/Class_12.jpg``; names of the TIFF distribution serve as well."""
    names = [Path(line.strip()).name for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise InputError(f'The split list {path} is empty.')
    names = [n.removesuffix('.tif') + '.jpg' if n.endswith('.tif') else n for n in names]
    return [f'{name.rpartition("_")[0]}/{name}' for name in names]


def _read_csv(root: Path, split: str, folders: list[str]) -> tuple[list[str], list[str]]:
    """Read file names of a split from its CSV, and class names in the order of their labels."""
    path = root / _CSV_NAMES[split]
    if not path.is_file():
        raise InputError(f'No split list {path}: expected a CSV with Filename and ClassName.')
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f'{path} is no CSV in UTF-8 ({error}); write it so.') from error
    if not rows or not all(r.get('Filename') and r.get('ClassName') for r in rows):
        raise InputError(f'{path} should have rows, each with Filename and ClassName.')
    classes, label_map = folders, root / 'label_map.json'
    if label_map.is_file():
        try:
            numbers = dict(json.loads(label_map.read_text()))
            classes = sorted(numbers, key=lambda name: float(numbers[name]))
        except (ValueError, TypeError) as error:
            raise InputError(f'{label_map} should map class names to numbers.') from error
    if unknown := {r['ClassName'] for r in rows} - set(classes):
        raise InputError(f'{path} has the class {min(unknown)!r}; known are {", ".join(classes)}.')
    return [f'{r["ClassName"]}/{Path(r["Filename"]).name}' for r in rows], classes


def _check_files(folder: Path, files: Sequence[Path]) -> None:
    """Refuse a list that names files which are not there."""
    there = {f'{d.name}/{name}' for d in _subfolders(folder) for name in _jpegs(d)}
    missing = [f for f in files if f'{f.parent.name}/{f.name}' not in there]
    if missing:
        raise InputError(
            f'{len(missing)} of {len(files)} listed images are not in {folder}, the first is '
            f'{missing[0].parent.name}/{missing[0].name}; complete the images or the list.'
        )
