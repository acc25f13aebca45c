"""Benchmarks with a class for every pixel, of one date or of the change between two."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..errors import InputError
from ..modalities import LULC, MODALITIES
from .eurosat import BROKEN_IMAGE, SPLITS
from .labelled import Benchmark
from .rasters import Rasters
from .torchgeo_benchmarks import require_there

SIDE = 256  # pixels of a window
HELD = 5  # of a train part whose authors name no validation part, each fifth validates
Read = Callable[[int], tuple[Mapping[str, Tensor], Tensor]]

# IGBP's 17 classes of MODIS as the ten of the Data Fusion Contest 2020.
IGBP = (0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 5, 7, 8, 9)
DFC_CLASSES = ('Forest', 'Shrubland', 'Savanna', 'Grassland', 'Wetlands', 'Croplands',
               'Urban/Built-up', 'Snow/Ice', 'Barren', 'Water')  # fmt: skip


class PixelChips(Dataset[dict[str, Any]]):
    """Windows of images that have a class for every pixel.

    What a window shows beyond its image is NaN, and its class -1: not labelled.

    Args:
        files: A name for each image.
        sizes: Height and width of each, pixels.
        read: Reads an image: rasters ([2,] C, H, W) by modality, raw, and classes (H, W).
        gsd: Metres per pixel by modality, where it is known.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        sizes: Sequence[tuple[int, int]],
        read: Read,
        gsd: Mapping[str, float] | None = None,
    ) -> None:
        self.files, self.read, self.gsd = [str(f) for f in files], read, gsd
        if not self.files:
            raise InputError('A part has no images; it needs one at least.')
        longest = max(max(size) for size in sizes)
        self.side = min(SIDE, -(-longest // 32) * 32)  # what the patches of all models divide
        self.windows = [
            (i, top, left)
            for i, (height, width) in enumerate(sizes)
            for top in range(0, height, self.side)
            for left in range(0, width, self.side)
        ]
        self._last: tuple[int, Mapping[str, Tensor], Tensor] | None = None

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Rasters ([2,] C, side, side) float32 by modality, ``mask`` int64, ``gsd`` if known.

        Raises:
            InputError: If the image is broken, has other bands, or classes of another size.
        """
        at, top, left = self.windows[index]
        if self._last is None or self._last[0] != at:  # windows of an image follow each other
            self._last = (at, *self._load(at))
        _, rasters, mask = self._last
        sample: dict[str, Any] = {k: self._cut(x, top, left, torch.nan) for k, x in rasters.items()}
        sample['mask'] = self._cut(mask, top, left, -1)
        return sample if self.gsd is None else {**sample, 'gsd': dict(self.gsd)}

    def _load(self, at: int) -> tuple[Mapping[str, Tensor], Tensor]:
        try:
            rasters, mask = self.read(at)
        except (OSError, IndexError, KeyError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f'{self.files[at]} cannot be read ({error}); fetch it again, or unlist it.'
            ) from error
        for name, x in rasters.items():
            expected = len(MODALITIES[name].bands)
            if x.shape[-3] != expected:
                raise InputError(
                    f'{self.files[at]} has {x.shape[-3]} bands, expected {expected}; fetch it '
                    f'again.'
                )
            if x.shape[-2:] != mask.shape:
                raise InputError(
                    f'{self.files[at]} has {x.shape[-2]} x {x.shape[-1]} pixels, but its classes '
                    f'{mask.shape[0]} x {mask.shape[1]}; fetch it again.'
                )
        return {k: x.float() for k, x in rasters.items()}, mask.long()

    def _cut(self, x: Tensor, top: int, left: int, beyond: float) -> Tensor:
        part = x[..., top : top + self.side, left : left + self.side]
        right, below = self.side - part.shape[-1], self.side - part.shape[-2]
        return F.pad(part, (0, right, 0, below), value=beyond) if right or below else part


class RasterPixels(Dataset[dict[str, Any]]):
    """Chips of any rasters with land cover beside them.

    Args:
        folder: Of places, LULC in each.
    """

    def __init__(self, folder: Path) -> None:
        self.chips = Rasters([folder], (*MODALITIES.values(), LULC), chip_size=64)
        # Where classes reach beyond the images, they are chips of their own, of no image.
        named = ((i, self._names(i)) for i in range(len(self.chips)))
        chosen = [i for i, names in named if len(names) > 1 and names[-1] == LULC.name]
        signatures = {tuple(self._names(i)) for i in chosen}
        if len(signatures) != 1:
            found = ' and '.join(sorted(' '.join(s) for s in signatures)) or 'no lulc'
            raise InputError(
                f'The places of {folder} have {found}; give all of them the same rasters, with '
                f'LULC among them.'
            )
        self.ids, self.modalities = chosen, signatures.pop()[:-1]
        # The folder of a file is its place, by which other data are known: see `split_hash`.
        self.files = [f'{self.chips.files(i)[0]}:{i}' for i in chosen]

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Rasters (C, H, W) float32 by modality, ``mask`` int64, ``gsd``."""
        sample = self.chips[self.ids[index]]
        classes = classes_on(sample.pop(LULC.name)[0], sample[self.modalities[0]])
        sample['gsd'].pop(LULC.name)
        return {**sample, 'mask': torch.nan_to_num(classes, -1.0).long()}

    def _names(self, index: int) -> list[str]:
        return [layer.name for layer in self.chips.locate(index)[0].layers]


def classes_on(classes: Tensor, raster: Tensor) -> Tensor:
    """Classes (H, W) on the pixels of a raster (C, H', W') of the same ground, by the nearest."""
    if classes.shape == raster.shape[-2:]:
        return classes
    return F.interpolate(classes[None, None], raster.shape[-2:], mode='nearest-exact')[0, 0]


def rasterfolder(name: str, root: Path) -> Benchmark:
    """Folders ``train/ val/ test/`` of places, with rasters of any modalities and LULC in each."""
    if missing := [part for part in SPLITS if not (root / part).is_dir()]:
        raise InputError(
            f'{root} has no folder {missing[0]}; {name} needs train, val and test, with places in '
            f'each that have rasters and LULC.'
        )
    train, val, test = (RasterPixels(root / part) for part in SPLITS)
    for part, other in (('val', val), ('test', test)):
        if other.modalities != train.modalities:
            raise InputError(
                f'The part {part} has {" ".join(other.modalities)}, but train '
                f'{" ".join(train.modalities)}; give all the same.'
            )
    count = 1 + max(int(p[i]['mask'].max()) for p in (train, val, test) for i in range(len(p)))
    first, *others = train.modalities
    return Benchmark(
        name, 'folders', first, train[0]['gsd'][first], train, val, test,
        tuple(f'class {i}' for i in range(count)), others=tuple(others), target='pixels',
    )  # fmt: skip


def oscd(name: str, root: Path) -> Benchmark:
    """OSCD: pairs of Sentinel-2 L1C scenes of cities; each fifth training city validates."""
    from torchgeo.datasets import OSCD

    folder = 'Onera Satellite Change Detection dataset - {}'
    needed = [folder.format(p) for p in ('Images', 'Train Labels', 'Test Labels')]
    require_there(name, root, needed, 'https://rcdaudt.github.io/oscd/')
    try:
        sets = [OSCD(root, part, checksum=False) for part in ('train', 'test')]
    except (OSError, IndexError) as error:
        raise InputError(
            f'A city of {name} has labels in {root}, but lacks images ({error}); fetch '
            f'{needed[0]}.zip again.'
        ) from error
    for dataset in sets:
        dataset.files.sort(key=lambda f: f['region'])
    return _change(name, 'official, each fifth training city validates', 's2_l1c', 10.0,
                   _with_val(sets[0]), sets[1], 'region')  # fmt: skip


def levircd(name: str, root: Path) -> Benchmark:
    """LEVIR-CD: new buildings in pairs of aerial images, 0.5 m."""
    from torchgeo.datasets import LEVIRCD

    where = ', '.join(facts['url'] for facts in LEVIRCD.splits.values())
    require_there(name, root, LEVIRCD.directories, where)
    sets = [LEVIRCD(root, part, checksum=False) for part in SPLITS]
    for part in SPLITS:
        there = [{p.name for p in (root / d).glob(f'{part}*.png')} for d in LEVIRCD.directories]
        if lacking := sorted(set.union(*there) - set.intersection(*there)):
            raise InputError(
                f'{lacking[0]} of {name} is not in all of {root}/A, B and label; fetch {part}.zip '
                f'again.'
            )
    train, val, test = sets
    pairs = ((train, range(len(train))), (val, range(len(val))))
    return _change(name, 'official', 'rgb', 0.5, pairs, test, 'mask')


def landcoverai(name: str, root: Path) -> Benchmark:
    """LandCover.ai 1: aerial images of Poland of 512 x 512 pixels, five classes."""
    from torchgeo.datasets import LandCoverAI

    require_there(name, root, ['output', *(f'{p}.txt' for p in SPLITS)], LandCoverAI.url)
    masks = {}
    for part in SPLITS:  # all lists before torchgeo counts images and masks
        listed = (root / f'{part}.txt').read_text().split()
        masks[part] = [root / 'output' / f'{i}_m.png' for i in listed]
        images = [root / 'output' / f'{i}.jpg' for i in listed]
        _require_listed(name, root / f'{part}.txt', [*masks[part], *images])
    read = {'rgb': slice(None)}
    train, val, test = (
        PixelChips(files, _sizes(files), _reader(LandCoverAI(root, part, checksum=False), read))
        for part, files in masks.items()
    )
    return Benchmark(name, 'official', 'rgb', None, train, val, test, tuple(LandCoverAI.classes),
                     target='pixels')  # fmt: skip


def sen12ms(name: str, root: Path) -> Benchmark:
    """SEN12MS: Sentinel-2 L1C and Sentinel-1, MODIS land cover as ten classes.

    Each fifth scene of the train list validates.
    """
    from torchgeo.datasets import SEN12MS

    where = 'https://dataserv.ub.tum.de/s/m1474000 and the lists of github.com/schmitt-muc/SEN12MS'
    require_there(name, root, SEN12MS.light_filenames, where)
    sets = []
    for part in ('train', 'test'):
        dataset = SEN12MS(root, part, checksum=False)
        _require_listed(name, root / f'{part}_list.txt', [
            _sen12ms_file(root, i, kind) for i in dataset.ids for kind in ('s1', 's2', 'lc')
        ])  # fmt: skip
        sets.append(dataset)
    scenes = ['_'.join(np.array(i.split('_'))[[0, 1, 3]]) for i in sets[0].ids]
    numbers = {scene: n for n, scene in enumerate(sorted(set(scenes)))}
    held = [(numbers[s] + 1) % HELD == 0 for s in scenes]
    chosen = [
        (sets[0], [i for i, h in enumerate(held) if not h]),
        (sets[0], [i for i, h in enumerate(held) if h]), (sets[1], range(len(sets[1]))),
    ]  # fmt: skip
    table = torch.full((256,), -1)
    table[1:18] = torch.tensor(IGBP)
    bands = {'s2_l1c': slice(2, None), 's1': slice(0, 2)}
    parts = []
    for dataset, ids in chosen:
        read = _reader(dataset, bands, ids, lambda mask: table[mask.clamp(0, 255)])
        files = [dataset.ids[i] for i in ids]
        parts.append(PixelChips(files, [(256, 256)] * len(files), read, dict.fromkeys(bands, 10.0)))
    split = 'official, each fifth training scene validates'
    train, val, test = parts
    return Benchmark(name, split, 's2_l1c', 10.0, train, val, test, DFC_CLASSES, others=('s1',),
                     target='pixels')  # fmt: skip


def _change(
    name: str,
    split: str,
    modality: str,
    gsd: float,
    known: Sequence[tuple[Any, Sequence[int]]],
    test: Any,
    key: str,
) -> Benchmark:
    """Pairs of torchgeo's change datasets; `key` of its files names a pair."""
    parts = []
    for dataset, ids in (*known, (test, range(len(test)))):
        read = _reader(dataset, {modality: slice(None)}, ids)
        masks = [dataset.files[i]['mask'] for i in ids]
        files = [dataset.files[i][key] for i in ids]
        parts.append(PixelChips(files, _sizes(masks), read, {modality: gsd}))
    train, val, held = parts
    return Benchmark(name, split, modality, gsd, train, val, held, ('unchanged', 'changed'),
                     target='change')  # fmt: skip


def _with_val(dataset: Any) -> list[tuple[Any, list[int]]]:
    """A train part without a validation part, divided: each fifth image validates."""
    ids = range(len(dataset))
    held = [i for i in ids if (i + 1) % HELD == 0] or [ids[-1]]
    return [(dataset, [i for i in ids if i not in held]), (dataset, held)]


def _reader(
    dataset: Any,
    bands: Mapping[str, slice],
    ids: Sequence[int] | None = None,
    classes: Callable[[Tensor], Tensor] = lambda mask: mask,
) -> Read:
    """Read an image of torchgeo's, its channels by modality."""

    def read(index: int) -> tuple[Mapping[str, Tensor], Tensor]:
        sample = dataset[index if ids is None else ids[index]]
        image, mask = sample['image'], sample['mask']
        return {k: image[..., s, :, :] for k, s in bands.items()}, classes(mask.squeeze(0))

    return read


def _sizes(paths: Sequence[str | Path]) -> list[tuple[int, int]]:
    """Height and width of images; only headers are read."""
    sizes = []
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.append((image.height, image.width))
        except BROKEN_IMAGE as error:
            raise InputError(f'{path} is a broken image ({error}); replace it.') from error
    return sizes


def _sen12ms_file(root: Path, name: str, kind: str) -> Path:
    """Where torchgeo looks for a patch."""
    parts = name.split('_')
    parts[2] = kind
    return root / '_'.join(parts[:2]) / '_'.join(parts[2:4]) / '_'.join(parts)


def _require_listed(name: str, path: Path, files: Sequence[Path]) -> None:
    """Refuse a list that names files which are not there."""
    if missing := [f for f in files if not f.is_file()]:
        raise InputError(
            f'{len(missing)} of {len(files)} files that {path} names are not there, the first is '
            f'{missing[0]}; complete {name} or the list.'
        )
