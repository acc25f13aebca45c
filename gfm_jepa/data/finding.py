"""Which rasters lie in folders, and which one-band files belong together."""

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..modalities import Modality
from .raster_files import REMOTE
from .zarr_cubes import is_store

SUFFIXES = frozenset(
    {'.tif', '.tiff', '.vrt', '.jp2', '.img', '.nc', '.nc4', '.grd', '.zarr', '.zip'}
)
_RESOLUTION = re.compile(r'[_-](\d+)m$', re.IGNORECASE)
# What products hold beside bands: pictures, masks, classes, quality, temperature.
_BESIDE_SENTINEL2 = re.compile(r'(^MSK_.*|_(TCI|PVI|AOT|WVP|SCL))(_\d+m)?$', re.IGNORECASE)
_LANDSAT = re.compile(r'^L[COTEM]\d\d_', re.IGNORECASE)
_BESIDE_LANDSAT = re.compile(r'_(QA|SR_QA|ST)_\w+$', re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A raster, or one-band files that make up one.

    Attributes:
        path: As a reader would say it; for one-band files, the folder and what their names share.
        stated: Name of the modality that the user says it is; empty if not.
        parts: Band name and path of each one-band file; empty for a single file.
    """

    path: str
    stated: str = ''
    parts: tuple[tuple[str, str], ...] = ()


def find_rasters(paths: Sequence[str | Path], modalities: Sequence[Modality]) -> list[Found]:
    """List rasters below each path, sorted, one-band files of one product as one.

    Args:
        paths: Files, folders, zips of rasters, URLs (``http(s)://``, ``s3://``, ``/vsi...``);
            ``name=path`` says which modality lies there.
        modalities: Their band names are what one-band files are recognised by.

    Raises:
        InputError: If a path does not exist, or there is no raster at all.
    """
    found: list[Found] = []
    for entry in paths:
        place, stated = _split(str(entry), modalities)
        if place.startswith((*REMOTE, '/vsi')):
            found.append(Found(place, stated))
            continue
        folder = Path(place).expanduser()
        if not folder.exists():
            raise InputError(f'There is no file or folder {folder}; check the path.')
        inside = [f for path in sorted(_walk(folder)) for f in _inside(path)]
        wanted = [m for m in modalities if stated in ('', m.name)]
        files = [path for path in inside if path == folder or not _is_beside_bands(path, wanted)]
        groups, grouped = _bands_of_products(files, modalities)
        found += [Found(_name(path), stated) for path in files if path not in grouped]
        found += [Found(name, stated, tuple(parts)) for name, parts in sorted(groups.items())]
    if not found:
        raise InputError(
            f'No raster found in {", ".join(map(str, paths))}; expected files ending in '
            f'{" ".join(sorted(SUFFIXES))}.'
        )
    return found


def _split(entry: str, modalities: Sequence[Modality]) -> tuple[str, str]:
    """Path and stated modality of ``name=path``; a path may hold a ``=`` of its own."""
    name, sign, rest = entry.partition('=')
    if not sign or Path(entry).exists() or '/' in name:
        return entry, ''
    if name not in [m.name for m in modalities]:
        raise InputError(
            f'{rest} is said to be {name!r}, which is not among the modalities '
            f'{", ".join(m.name for m in modalities)}.'
        )
    return rest, name


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Rasters below a folder; a zarr store is one, not the files in it."""
    if folder.is_file() or is_store(folder) or folder.suffix == '.zarr':
        yield folder
        return
    own = folder.resolve()
    if own in above:  # a link to a folder that it lies in
        return
    for path in folder.iterdir():
        if path.name.startswith('.') or path.name.endswith('.work'):  # half-made by `gfm-jepa`
            continue
        if path.is_dir():
            yield from _walk(path, above | {own})
        elif path.suffix.lower() in SUFFIXES:
            yield path


def band_key(name: str) -> str:
    """What band names are compared by: ``B1``, ``B01`` and ``b01`` are one."""
    return re.sub(r'^([a-z]+)0+(?=[1-9])', r'\1', name.strip().lower())


def _is_beside_bands(path: Path, wanted: Sequence[Modality]) -> bool:
    """Whether a file of a product is none of its bands, would be taken for one, and is not wanted.

    It is wanted if a modality is called as it is, such as ``scl``, or all that is looked for has
    one band.
    """
    found = None
    if any(p.suffix == '.SAFE' for p in path.parents):
        found = _BESIDE_SENTINEL2.search('MSK_' if 'QI_DATA' in path.parts else path.stem)
    elif _LANDSAT.match(path.stem):
        found = _BESIDE_LANDSAT.search(path.stem)
    if not found or all(len(m.bands) == 1 for m in wanted):
        return False
    called = {name.lower() for m in wanted for name in (m.name, *m.aliases)}
    return not called & set(re.split(r'[^a-z0-9]+', found[0].lower()))


def _inside(path: Path) -> list[Path]:
    """The rasters in a zip, below GDAL's prefix for it; else the path itself."""
    if path.suffix.lower() != '.zip' or path.name.endswith('.zarr.zip'):
        return [path]
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return [path]  # opening it will tell what is wrong
    inside = SUFFIXES - {'.zip', '.zarr'}
    prefix = Path(f'/vsizip{path.resolve()}')
    return [prefix / name for name in names if Path(name).suffix.lower() in inside]


def _name(path: Path) -> str:
    """A path as text; GDAL wants a second slash where an absolute path follows its prefix."""
    return str(path).replace('/vsizip/', '/vsizip//', 1)


def _bands_of_products(
    files: Sequence[Path], modalities: Sequence[Modality]
) -> tuple[dict[str, list[tuple[str, str]]], set[Path]]:
    """One-band files that differ in nothing but the band in their name: ``T33_B02.tif`` and so on.

    A Sentinel-2 SAFE folder counts as one place; of a band at several resolutions, the finest is
    taken.

    Returns:
        Name and file of each band, by product, and all files that were looked at for them.
    """
    bands = [band for m in modalities if len(m.bands) > 1 for band in (*m.common_names, *m.bands)]
    spelled = {band.lower(): band for band in bands if band}
    tokens = {band_key(band): band for band in bands if band}
    groups: dict[str, dict[str, tuple[int, Path, str]]] = {}
    members: dict[str, set[Path]] = {}
    for path in files:
        stem = path.stem
        resolution = _RESOLUTION.search(stem)
        stem = _RESOLUTION.sub('', stem)
        prefix, _, last = re.sub(r'[-. ]', '_', stem).rpartition('_')
        # Landsat's own names leave the zero out; elsewhere B1 may be an area.
        band = band_key(last)
        if last.lower() not in spelled and not (_LANDSAT.match(path.stem) and band in tokens):
            continue
        safe = next((p for p in path.parents if p.suffix == '.SAFE'), path.parent)
        key = f'{safe}/{prefix}{"_" if prefix else ""}*{path.suffix}'
        size = int(resolution[1]) if resolution else 0
        known = groups.setdefault(key, {})
        members.setdefault(key, set()).add(path)
        if band not in known or size < known[band][0]:
            known[band] = (size, path, spelled.get(last.lower(), tokens[band]))
    products = {
        _name(Path(key)): [(band, _name(path)) for _, (_, path, band) in sorted(parts.items())]
        for key, parts in groups.items()
        if len(parts) > 1
    }
    grouped = {path for key, parts in groups.items() if len(parts) > 1 for path in members[key]}
    return products, grouped
