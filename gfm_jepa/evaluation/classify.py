"""Classify one image with an encoder and its head: read it as the head expects it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.errors import RasterioError
from torch import Tensor

from ..data.images import ImageFiles
from ..errors import InputError
from ..modalities import Modality
from ..models.heads import Classifier

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


@dataclass(frozen=True)
class Verdict:
    """What an image is taken for.

    Attributes:
        image: What was classified.
        probabilities: By class, the likeliest first.
    """

    image: str
    probabilities: dict[str, float]

    def lines(self, top: int) -> str:
        """The likeliest classes as text."""
        shown = list(self.probabilities.items())[:top]
        width = max(len(name) for name, _ in shown)
        rows = [f'  {name:<{width}}  {100 * p:6.2f} %' for name, p in shown]
        return '\n'.join([self.image, *rows])


def classify(
    model: Classifier, paths: Sequence[str], bands: Sequence[str] | None = None
) -> list[Verdict]:
    """Classify images.

    Args:
        model: Encoder and head.
        paths: An image each; or ``NAME=PATH`` of several modalities, which then are one sample.
        bands: Names of the files' bands in their order, where the files name none.

    Returns:
        A verdict for each image, or for the one sample.

    Raises:
        InputError: If a file is missing, broken, or not what the head expects, or has no data.
    """
    known = model.encoder.modalities
    named = {k: v for k, equals, v in (p.partition('=') for p in paths) if equals and k in known}
    if named:
        if len(named) < len(paths):
            raise InputError('Give every modality of a sample once, as NAME=PATH, or plain paths.')
        samples = {', '.join(paths): named}
    else:
        samples = {path: {_only(known): path} for path in paths}
    return [_classify(model, name, sample, bands) for name, sample in samples.items()]


def _only(known: Mapping[str, Modality]) -> str:
    """The modality of a plain path."""
    if len(known) > 1:
        raise InputError(
            f'The head knows {", ".join(known)}; say what a file is: {next(iter(known))}=PATH.'
        )
    return next(iter(known))


def _classify(
    model: Classifier, name: str, sample: Mapping[str, str], bands: Sequence[str] | None
) -> Verdict:
    facts, known = model.facts, model.encoder.modalities
    batch = {}
    for key, path in sample.items():
        size = facts.image_sizes.get(key)
        batch[key] = read_image(Path(path), known[key], size, bands).unsqueeze(0)
    scores = model(batch)[0]
    if not bool(scores.isfinite().all()):
        raise InputError(f'{name} holds no valid pixel; nothing can be said of it.')
    order = scores.argsort(descending=True).tolist()
    return Verdict(name, {facts.classes[i]: float(scores[i]) for i in order})


def read_image(
    path: Path,
    modality: Modality,
    size: Sequence[int] | None,
    bands: Sequence[str] | None = None,
) -> Tensor:
    """Read an image as raw values of a modality, NaN where there is no data.

    Args:
        path: A picture (8 bits, red green blue), which is resized; or a raster of any bands, of
            which the middle is cut out, or which is padded with NaN: its pixels keep their size.
        modality: What it should hold; bands go by their names.
        size: Height and width that the head learned from, pixels; as it is by default.
        bands: Names of the raster's bands in their order, where it names none.

    Returns:
        (C, H, W).

    Raises:
        InputError: If there is no such file, it is broken, or lacks a band or names none.
    """
    if not path.is_file():
        raise InputError(f'There is no file {path}.')
    if modality.name == 'rgb' and bands is None and _is_picture(path):
        return ImageFiles([path], size=None if size is None else int(size[0])).read(0).float()
    try:
        with rasterio.open(path) as file:
            names = list(bands or [d or '' for d in file.descriptions])
            ids = _band_ids(path, names, file.count, modality)
            values = file.read(ids).astype(np.float32)
            nodata = modality.nodata if file.nodata is None else file.nodata
    except RasterioError as error:
        raise InputError(f'{path} is a broken raster ({error}); replace it.') from error
    if nodata is not None:
        values[values == np.float32(nodata)] = np.nan
    return fit_middle(torch.from_numpy(values), size)


def fit_middle(x: Tensor, size: Sequence[int] | None) -> Tensor:
    """Cut the middle out of a raster (C, H, W), and pad what is smaller with NaN."""
    if size is None:
        return x
    out = x.new_full((len(x), *map(int, size)), torch.nan)
    take, put = [], []
    for have, want in zip(x.shape[-2:], out.shape[-2:], strict=True):
        count = min(have, want)
        take.append(slice((have - count) // 2, (have - count) // 2 + count))
        put.append(slice((want - count) // 2, (want - count) // 2 + count))
    out[:, put[0], put[1]] = x[:, take[0], take[1]]
    return out


def _is_picture(path: Path) -> bool:
    """Whether an image library reads it: pictures, and TIFFs of three 8-bit bands."""
    if path.suffix.lower() in PICTURES:
        return True
    try:
        with rasterio.open(path) as file:
            return file.count == 3 and set(file.dtypes) == {'uint8'} and not any(file.descriptions)
    except RasterioError as error:
        raise InputError(f'{path} is a broken raster ({error}); replace it.') from error


def _band_ids(path: Path, names: Sequence[str], count: int, modality: Modality) -> list[int]:
    """1-based number in the file of each band of the modality, by name."""
    if len(names) != count:
        raise InputError(
            f'{path} has {count} bands, but {len(names)} were named: {" ".join(names)}.'
        )
    lower = [name.lower() for name in names]
    common = modality.common_names or ('',) * len(modality.bands)
    ids = []
    for band, other in zip(modality.bands, common, strict=True):
        found = next((n for n in (band.lower(), other) if n and n in lower), None)
        if found is None:
            told = ' '.join(filter(None, names)) or 'no names'
            raise InputError(
                f'{path} has {count} bands ({told}), and none is called {band}; the head needs '
                f'{modality.name}: {" ".join(modality.bands)}. Name the bands of the file with '
                f'--bands, in their order.'
            )
        ids.append(lower.index(found) + 1)
    return ids
