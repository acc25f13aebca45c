"""Classify one image with an encoder and its head: read it as the head expects it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from torch import Tensor

from ..data.finding import Found
from ..data.images import read_rgb
from ..data.raster_files import RasterFile
from ..data.recognition import Header, headers_of, recognise_header
from ..data.resized import resample
from ..data.sidecars import Facts, facts_of
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
        InputError: If a file is missing, broken, or not what the head expects, or has no data; or
            a modality is named that the head did not learn from.
    """
    encoders, known = model.encoder.modalities, model.modalities
    named = {k: v for k, equals, v in (p.partition('=') for p in paths) if equals and k in encoders}
    if unknown := [k for k in named if k not in known]:
        raise InputError(
            f'The encoder knows {unknown[0]}, but the head learned from {", ".join(known)} alone; '
            f'give it an image of that.'
        )
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
    facts, known = model.facts, model.modalities
    batch = {}
    for key, path in sample.items():
        size, before = facts.image_sizes.get(key), facts.resized_from.get(key)
        batch[key] = read_image(Path(path), known[key], size, bands, before).unsqueeze(0)
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
    resized_from: Sequence[int] | None = None,
) -> Tensor:
    """Read an image as raw values of a modality, NaN where there is no data.

    Args:
        path: A picture (8 bits, red green blue), of which the middle is resized; or a raster of any
            bands, read as `gfm-jepa embed` reads it (scale, offset, Sentinel-2's added 1000,
            sidecars), of which the middle is cut out, or which is padded with NaN: its pixels keep
            their size.
        modality: What it should hold; bands go by their names.
        size: Height and width that the head learned from, pixels; as it is by default.
        bands: Names of the raster's bands in their order, where it names none.
        resized_from: Height and width of the chips before they were resampled to `size`, if they
            were: a picture as a whole, or so much of a raster, then is as well.

    Returns:
        (C, H, W).

    Raises:
        InputError: If there is no such file, it is broken, or lacks a band or names none.
    """
    if not path.is_file():
        raise InputError(f'There is no file {path}.')
    if modality.name == 'rgb' and bands is None and _is_picture(path):
        if size is not None and resized_from is not None:
            return resample(read_rgb(path).float(), size)
        return read_rgb(path, None if size is None else (size[0], size[1])).float()
    file = _raster(path, modality, bands)
    source = file.open()
    try:
        values = file.read(source)
    finally:
        source.close()
    x = torch.from_numpy(values)
    if size is not None and resized_from is not None:
        return resample(fit_middle(x, resized_from), size)
    return fit_middle(x, size)


def _raster(path: Path, modality: Modality, bands: Sequence[str] | None) -> RasterFile:
    """How a raster is read: as `gfm-jepa embed` reads it, whether it has a place or not."""
    facts = Facts(bands=tuple(bands) if bands else None).over(facts_of(path))
    found = Found(str(path), modality.name)
    headers = headers_of(found, len(facts.bands or ()), len(modality.bands))
    if isinstance(headers, str):
        raise InputError(f'{path} is a broken raster ({headers}); replace it.')
    if len(headers) > 1:
        raise InputError(f'{path} holds {len(headers)} rasters; give a file of one.')
    file = recognise_header(found, _placed(headers[0]), [modality], facts)
    if isinstance(file, str):
        raise InputError(f'{path} is a broken raster ({file}); replace it.')
    lacking = [b for b in modality.bands if b not in file.bands]
    # In what order bands without a name are, nobody can tell; a class would be made up of them.
    if lacking or 'bands by position' in file.notes:
        names = facts.bands or headers[0].bands
        told = ' '.join(filter(None, names)) or 'no names'
        raise InputError(
            f'{path} has {len(names)} bands ({told}), and none is called '
            f'{(lacking or modality.bands)[0]}; the head needs {modality.name}: '
            f'{" ".join(modality.bands)}. Name the bands of the file with --bands, in their order.'
        )
    return file


def _placed(header: Header) -> Header:
    """A header with a place on the ground: a made-up one where it has none, which chips may lack.

    A class needs no place; what reads rasters asks for one to warp what is not upright in metres.
    """
    if header.crs and header.transform and not header.transform.is_identity:
        return header
    return replace(
        header, crs=CRS.from_epsg(32631), transform=Affine(10, 0, 500_000, 0, -10, 5_000_000)
    )


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
    """Whether an image library reads it: pictures, and TIFFs of three plain 8-bit bands."""
    if path.suffix.lower() in PICTURES:
        return True
    try:
        with rasterio.open(path) as file:
            plain = set(file.scales) == {1} and not any(file.offsets) and not any(file.descriptions)
            return file.count == 3 and set(file.dtypes) == {'uint8'} and plain
    except RasterioError as error:
        raise InputError(f'{path} is a broken raster ({error}); replace it.') from error
