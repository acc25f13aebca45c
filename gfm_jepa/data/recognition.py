"""What a raster is: modality, bands, grid, nodata, scale, offset, time; or why it is none."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from ..errors import InputError
from ..modalities import MODALITIES, Modality
from .finding import Found, band_key
from .grids import grid_of
from .raster_files import RasterFile, absolute, gdal, gdal_name, reason, stack_bands
from .sidecars import Facts, baseline_of, facts_of, joined, time_of
from .zarr_cubes import BROKEN, find_cubes, is_store

UNRECOGNISED = 'feeds no configured modality: neither its name, its folder nor its bands say so'
# Descriptions of a fourth band that leave it to be alpha.
_SAYS_NOTHING = re.compile(
    r'(a|alpha.*|.*mask.*|opacity|(band|channel|layer)?[ _-]?\d+)?', re.IGNORECASE
)
_MOST_REFLECTANCE = 2.0  # clouds and glint reach 1.6; stored numbers of a whole sample never do
_REFLECTANCE = 'looks like reflectance, 0..1: say `scale: 1` in a bands.yaml beside it'
_INITIALS = {'r': 'red', 'g': 'green', 'b': 'blue', 'n': 'nir'}
_NO_PRODUCT = 'has bands'  # how the reasons begin why files are not the bands of one product
_TIME_TAGS = ('datetime', 'ACQUISITION_DATE', 'DATE_ACQUIRED', 'SENSING_TIME', 'PRODUCT_START_TIME')


@dataclass(frozen=True)
class Header:
    """What a raster says of itself, whatever its format; fields as in `RasterFile`."""

    uri: str
    bands: tuple[str, ...]  # names, or '' for each that has none
    crs: CRS | None
    transform: Affine | None
    width: int
    height: int
    nodata: float | None = None
    masked: bool = False
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    time: str = ''
    number: tuple[int, ...] = field(default=())  # 1-based, of each band that holds data
    guessed: bool = False  # the names are colours, which nobody wrote down
    whole: bool = False  # it stores whole numbers

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in the raster's own CRS; what `grid_of` asks a dataset for."""
        assert self.transform is not None
        left, top = self.transform @ (0, 0)
        right, bottom = self.transform @ (self.width, self.height)
        return left, bottom, right, top


def recognise(
    found: Found, modalities: Sequence[Modality], said: Facts | None = None
) -> Iterator[RasterFile | str]:
    """Find out what a path holds, and how to read it.

    Args:
        found: From `find_rasters`.
        modalities: Candidates.
        said: What the command line says of all rasters that do not say it themselves.

    Yields:
        For each raster in it, how it is read, or one phrase that says why it is left out.

    Raises:
        InputError: If a file that is called after a modality has another number of bands, or a
            sidecar cannot be right.
    """
    said, facts = said or Facts(), Facts()
    if not found.path.startswith('/vsi') and '://' not in found.path:
        files = [Path(part) for _, part in found.parts] or [Path(found.path)]
        facts = joined([facts_of(file) for file in files])
    stated = found.stated or facts.modality or ''
    fed = _identify(found.path, ('',), modalities, stated)  # by what it is called
    names = facts.bands or said.bands or ()
    headers = headers_of(found, len(names), len(fed.bands) if fed else 0)
    if isinstance(headers, str):
        apart = list(_apart(found, modalities, said)) if headers.startswith(_NO_PRODUCT) else []
        yield from apart or [headers]
        return
    known = {band_key(b) for m in modalities for b in (*m.bands, *m.common_names) if b}
    for header in headers:
        named = not header.guessed and any(band_key(name) in known for name in header.bands)
        completed = _completed(facts, header, said, named)
        yield recognise_header(found, header, modalities, completed)


def _completed(facts: Facts, header: Header, said: Facts, named: bool) -> Facts:
    """What sidecars say, and where neither they nor the raster do, what the command line does."""
    fits = not named and len(said.bands or ()) == len(header.bands)
    none = header.nodata is None or math.isnan(header.nodata)  # NaN is not there anyway
    return replace(
        facts,
        bands=facts.bands or (said.bands if fits else None),
        nodata=said.nodata if facts.nodata is None and none else facts.nodata,
    )


def _apart(found: Found, modalities: Sequence[Modality], said: Facts) -> Iterator[RasterFile | str]:
    """Files that are called like bands, but may be tiles, such as ``B1``: those that say so alone.

    Nothing if none does.
    """
    results: list[RasterFile | str] = []
    for _, part in found.parts:
        try:
            for result in recognise(Found(part, found.stated), modalities, said):
                named = isinstance(result, RasterFile) or part in result
                results.append(result if named else f'{result} ({part})')
        except InputError:  # a band of its own, of a modality of many
            return
    if any(isinstance(result, RasterFile) for result in results):
        yield from results


def recognise_header(
    found: Found, header: Header, modalities: Sequence[Modality], facts: Facts
) -> RasterFile | str:
    """One raster."""
    names = facts.bands or header.bands
    modality = _identify(found.path, names, modalities, found.stated or facts.modality or '')
    if modality is None:
        return UNRECOGNISED
    spoken = bool(facts.bands) or not header.guessed
    band_ids, by_name = _match_bands(found.path, names, len(header.bands), modality, spoken)
    if header.crs is None or header.transform is None or header.transform.is_identity:
        return 'has no CRS and transform, so that its place on the ground is unknown'
    try:
        grid, warped = grid_of(header)
    except (RasterioError, CPLE_BaseError, ValueError, OverflowError) as error:
        return f'has no place on the ground that its CRS allows ({reason(error)})'
    if header.number:
        band_ids = tuple(header.number[i - 1] if i else 0 for i in band_ids)
    nodata = facts.nodata if facts.nodata is not None else header.nodata
    texts = [Path(found.path).stem, Path(found.path).parent.name]
    file = RasterFile(
        path=found.path, uri=header.uri, modality=modality, band_ids=band_ids, grid=grid,
        warped=warped, nodata=modality.nodata if nodata is None else nodata, masked=header.masked,
        time=facts.time or header.time or time_of(texts) or '',
        notes=('bands by name',) if by_name else _by_position(names, modality, spoken),
    )  # fmt: skip
    try:
        return _in_unit(file, header, facts)
    except InputError as error:  # the first read
        return str(error).partition(' cannot ')[2] or str(error)


def headers_of(found: Found, stated: int = 0, wanted: int = 0) -> list[Header] | str:
    """Headers of the rasters in a file, or why there is none.

    Args:
        found: From `find_rasters`.
        stated: How many bands it has, by the names that others state for them.
        wanted: How many the modality has that it is called after. A band that GDAL takes for alpha
            is none if `stated` counts it, or `wanted` does and it is no mask.
    """
    path = Path(found.path)
    if not found.path.startswith('/vsi') and is_store(path):
        return _zarr_headers(path)
    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            stack.enter_context(gdal(found.path.startswith(('http', 's3:', 'gs:', '/vsi'))))
            if found.parts:
                bands = []
                for name, part in found.parts:
                    source = stack.enter_context(rasterio.open(part))
                    if broken := _truncation(part, source):
                        return f'{broken} ({part})'
                    bands.append((name, source, 1))
                return _no_product([s for _, s, _ in bands]) or [_stacked(bands)]
            source = stack.enter_context(rasterio.open(gdal_name(found.path)))
            if broken := _truncation(found.path, source):
                return broken
            if source.count:
                return [_header(source, absolute(found.path), stated, wanted)]
            parts = [stack.enter_context(rasterio.open(name)) for name in source.subdatasets]
            singles = [(s.name.rpartition(':')[2], s, 1) for s in parts if s.count == 1]
            headers = [_header(s, s.name) for s in parts if s.count > 1]
            placed = [b for b in singles if b[1].crs or not b[1].transform.is_identity]
            return [*headers, *([_stacked(placed)] if placed else [])] or 'holds no raster'
    except RasterioError as error:
        return f'cannot be opened ({reason(error)})'


def _no_product(sources: Sequence[rasterio.DatasetReader]) -> str | None:
    """Tell whether files are not the bands of one product: of one band each, on one ground."""
    first = sources[0]
    for other in sources:
        pixel = max(abs(first.transform.a), abs(other.transform.a))
        gaps = [abs(a - b) for a, b in zip(first.bounds, other.bounds, strict=True)]
        if first.crs != other.crs or max(gaps) > 1.5 * pixel:
            return f'{_NO_PRODUCT} of different ground ({first.name} and {other.name})'
        if len(other.indexes) - len(_alpha(other)) > 1:
            return f'{_NO_PRODUCT} that are several in one file ({other.name})'
    return None


def _alpha(source: rasterio.DatasetReader) -> list[int]:
    """Which bands are alpha, as GDAL has it."""
    return [i for i in source.indexes if source.colorinterp[i - 1] is ColorInterp.alpha]


def _is_opaque(source: rasterio.DatasetReader, band: int, stated: int, wanted: int) -> bool:
    """Whether what GDAL takes for alpha, as it does any fourth band of 8 bits, holds data."""
    if not _SAYS_NOTHING.fullmatch(source.descriptions[band - 1] or ''):
        return True
    if source.count == stated:
        return True
    side = (min(source.width, 256), min(source.height, 256))
    centre = Window((source.width - side[0]) // 2, (source.height - side[1]) // 2, *side)
    return source.count == wanted and not np.isin(source.read(band, window=centre), (0, 255)).all()


def _header(source: rasterio.DatasetReader, uri: str, stated: int = 0, wanted: int = 0) -> Header:
    """Header of a raster that GDAL opened; an alpha band is a mask, no data."""
    alpha = _alpha(source)
    opaque = bool(alpha) and _is_opaque(source, alpha[-1], stated, wanted)
    data = [i for i in source.indexes if opaque or i not in alpha]
    flags = source.mask_flag_enums[data[0] - 1]
    masked = MaskFlags.per_dataset in flags or MaskFlags.alpha in flags
    if opaque:
        masked = masked and MaskFlags.alpha not in flags
        # Warping takes it for alpha too, but where there are no colours.
        called = [(source.descriptions[i - 1] or '', source, i) for i in data]
        uri = stack_bands(called, source if masked else None)
    colours = [source.colorinterp[i - 1].name for i in data]
    named = any(c in ('red', 'green', 'blue') for c in colours)
    bands = [source.descriptions[i - 1] or '' for i in data]
    guessed = not any(bands)
    if named and guessed and not opaque:
        bands = ['' if c == 'undefined' else c for c in colours]
    scale, offset = ([values[i - 1] for i in data] for values in (source.scales, source.offsets))
    stated = any(s != 1 for s in scale) or any(offset)
    tags = source.tags()
    return Header(
        uri, tuple(bands), source.crs, source.transform, source.width, source.height,
        nodata=source.nodatavals[data[0] - 1],
        masked=masked,
        scale=tuple(scale) if stated else (), offset=tuple(offset) if stated else (),
        time=time_of([tags.get(k, '') for k in _TIME_TAGS]) or '',
        number=() if len(data) == source.count else tuple(data), guessed=guessed,
        whole=source.dtypes[data[0] - 1].startswith(('int', 'uint')),
    )  # fmt: skip


def _stacked(bands: Sequence[tuple[str, rasterio.DatasetReader, int]]) -> Header:
    """Header of one-band files as one raster."""
    finest = max((s for _, s, _ in bands), key=lambda s: s.width)
    stated = any(s.scales[0] != 1 or s.offsets[0] for _, s, _ in bands)
    return replace(
        _header(finest, stack_bands(bands)),
        bands=tuple(name for name, _, _ in bands),
        scale=tuple(s.scales[0] for _, s, _ in bands) if stated else (),
        offset=tuple(s.offsets[0] for _, s, _ in bands) if stated else (),
        number=(), guessed=False,
    )  # fmt: skip  # the names are those of files


def _zarr_headers(path: Path) -> list[Header] | str:
    """Headers of the arrays of a zarr store."""
    try:
        cubes = list(find_cubes(path))
    except (*BROKEN, AttributeError) as error:
        return f'cannot be opened ({reason(error)})'
    return [
        Header(c.uri, c.bands, c.crs, c.transform, c.shape[1], c.shape[0], c.nodata,
               scale=c.scale, offset=c.offset, time=time_of([c.time]) or '')
        for c in cubes
    ] or 'holds no array of two to four axes'  # fmt: skip


def _truncation(path: str, source: rasterio.DatasetReader) -> str | None:
    """Tell whether a TIFF ends before its last block: GDAL opens such files without a word."""
    if source.driver != 'GTiff' or not Path(path).is_file():
        return None
    size = Path(path).stat().st_size
    rows = math.ceil(source.height / source.block_shapes[0][0])
    cols = math.ceil(source.width / source.block_shapes[0][1])
    for band in {1, source.count}:
        # Blocks may lie in any order, but checking more than some thousands would cost seconds.
        step = max(rows * cols // 4096, 1)
        for index in {*range(0, rows * cols, step), rows * cols - 1}:
            place = f'{index % cols}_{index // cols}'
            offset = source.get_tag_item(f'BLOCK_OFFSET_{place}', 'TIFF', bidx=band)
            length = source.get_tag_item(f'BLOCK_SIZE_{place}', 'TIFF', bidx=band)
            if offset and length and int(offset) + int(length) > size:
                return f'is truncated: it ends at byte {size}, before its data does'
    return None


def _identify(
    path: str, names: Sequence[str], modalities: Sequence[Modality], stated: str
) -> Modality | None:
    """Which modality it feeds: as stated, by file name, folder or product, or by band names."""
    if stated:
        return next((m for m in modalities if m.name == stated), None)
    folders = [p.name for p in Path(path).parents]
    texts = [Path(path).stem, *folders[:1], *[f for f in folders if f.endswith('.SAFE')]]
    for text in texts:
        words = [w.lower() for w in re.split(r'[^A-Za-z0-9]+', text) if w]
        runs = {
            ''.join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)
        }
        for modality in modalities:
            called = (modality.name, *modality.aliases)
            if {re.sub(r'[^a-z0-9]', '', a.lower()) for a in called} & runs:
                return modality
    own = {band_key(n) for n in names if n}
    if len(own) < len(names):
        return None
    sets = {m.name: {band_key(b) for b in m.bands} for m in modalities}
    # The same bands, no more and no less, tell a sensor where a part of them would fit several.
    for fits in ([m for m in modalities if sets[m.name] == own],
                 [m for m in modalities if own <= sets[m.name]]):  # fmt: skip
        if len(fits) == 1:
            return fits[0]
    return None


def _match_bands(
    path: str, names: Sequence[str], count: int, modality: Modality, spoken: bool
) -> tuple[tuple[int, ...], bool]:
    """Number in the file of each of the modality's bands, and whether names decided."""
    if len(names) != count:
        raise InputError(f'{path} has {count} bands, but {len(names)} names are given for them.')
    keys = [band_key(n) for n in names]
    called = [[band_key(b) for b in some] for some in (modality.bands, modality.common_names)]
    # The way to call them that fits most; what nothing is called after, such as an angle, is left.
    keys, wanted = max(
        ((_plain(keys, some), some) for some in called), key=lambda k: len(set(k[0]) & set(k[1]))
    )
    known = [n for n in keys if n and n in wanted]
    if known and len(set(known)) == len(known):
        return tuple(keys.index(b) + 1 if b in known else 0 for b in wanted), True
    # By another sensor's names, if they tell of every band: Sentinel-2's B04 is red, too.
    orders = {
        tuple(own.index(b) + 1 for b in wanted)
        for own in _common(keys) for wanted in called if wanted and set(wanted) <= set(own)
    }  # fmt: skip
    if not known and len(orders) == 1:
        return orders.pop(), True
    # One band is often called after what it was made of, and a user's sensor as the user likes.
    ours = len(modality.bands) > 1 and modality.name in MODALITIES
    contradicts = ours and spoken and not known and _are_bands(keys)
    if count == len(modality.bands) and not contradicts:
        return tuple(range(1, count + 1)), False
    said = f'calls its {" ".join(n or "?" for n in names)}' if any(names) else 'names none'
    raise InputError(
        f'{path} has {count} bands, but {modality.name} has {len(modality.bands)} '
        f'({" ".join(modality.bands)}), and the file {said}; name its bands so in a bands.yaml '
        f'beside it, or state its own modality as name=path.'
    )


def _plain(names: list[str], wanted: Sequence[str]) -> list[str]:
    """Names as those of the one band that each contains, ``sigma0_vv``, or all as initials.

    What contains none, such as ``incidence_angle``, keeps its name, and is no band.
    """
    if set(names) & set(wanted):
        return names
    words = [[w for w in re.split(r'[^a-z0-9]+', n) if band_key(w) in wanted] for n in names]
    told = [band_key(some[0]) if len(some) == 1 else '' for some in words]
    known = [key for key in told if key]
    if known and len(set(known)) == len(known) and not any('edge' in n for n in names):
        return [key or name for key, name in zip(told, names, strict=True)]
    initials = [_INITIALS.get(n, '') for n in names]
    fits = set(initials) <= set(wanted) and len(set(initials)) == len(initials)
    return initials if fits else names


def _by_position(names: Sequence[str], modality: Modality, spoken: bool) -> tuple[str, ...]:
    """Notes on a file whose bands are taken in the modality's order; some say otherwise."""
    told = spoken and any(names) and not _are_counted([band_key(n) for n in names])
    if not told or len(modality.bands) == 1:
        return ('bands by position',)
    return (
        'bands by position',
        f'its names say nothing of {modality.name}, so that {", ".join(n or "?" for n in names)} '
        f'are taken for {", ".join(modality.bands)}',
    )


def _common(names: Sequence[str]) -> list[list[str]]:
    """Names that are all those of a known sensor, by their common names."""
    translated: list[list[str]] = []
    if _are_counted(names):
        return translated
    for sensor in MODALITIES.values():
        common = dict(zip(map(band_key, sensor.bands), sensor.common_names, strict=False))
        if set(names) <= set(common):
            translated.append([common[n] for n in names])
    return translated


def _are_bands(names: Sequence[str]) -> bool:
    """Whether one of the names is a known band's."""
    known = {band_key(b) for m in MODALITIES.values() for b in (*m.bands, *m.common_names) if b}
    return not _are_counted(names) and bool(known & set(names))


def _are_counted(names: Sequence[str]) -> bool:
    """Whether names do no more than count from 1 on."""
    numbers = [re.sub(r'^(b|band)[ _-]?', '', n) for n in names]
    return numbers == [str(i) for i in range(1, len(names) + 1)]


def _in_unit(file: RasterFile, header: Header, facts: Facts) -> RasterFile:
    """Add how stored values become the modality's unit: scale, offset, Sentinel-2's +1000."""
    modality, count = file.modality, len(header.bands)
    scale = facts.scale or header.scale
    offset = facts.offset or header.offset
    if scale or offset:
        # Physical values become those that the modality is stored in. A scale of 1 is no scale,
        # but for values that are physical already, as somebody wrote down.
        physical = any(s != 1 for s in scale or ()) or (
            facts.scale and modality.quantification > 1 and _is_reflectance(_sample(file))
        )
        q = modality.quantification if physical else 1.0
        # By position in the header; RasterFile wants one per band of the modality.
        order = [header.number.index(b) if header.number and b else b - 1 for b in file.band_ids]
        scale, offset = (
            (v * count if len(v) == 1 else v) for v in (scale or (1.0,), offset or (0.0,))
        )
        if {len(scale), len(offset)} != {count}:
            raise InputError(
                f'{file.path} has {count} bands, but {len(scale)} scales and {len(offset)} offsets.'
            )
        return replace(
            file,
            scale=tuple(scale[i] * q if i >= 0 else 1.0 for i in order),
            offset=tuple(offset[i] * q if i >= 0 else 0.0 for i in order),
            notes=(*file.notes, f'scale {scale[0]:g} and offset {offset[0]:g} as stated'),
        )
    product = [p.name for p in Path(file.path).parents] + [Path(file.path).name]
    baseline = facts.baseline or baseline_of(product)
    fractions = modality.quantification > 1 and not header.whole
    # Read once for both questions, and only where one of them is open.
    unsure = fractions or (modality.added_offset and not baseline)
    pixels = _sample(file) if unsure else np.empty((0, 0))
    if fractions and _is_reflectance(pixels):
        return replace(file, notes=(*file.notes, _REFLECTANCE))
    if not modality.added_offset:
        return file
    if baseline:
        there, how = baseline >= 4, f'baseline {baseline:05.2f}'
    else:
        there, how = _offset_in_data(file, pixels)
    if not there:
        return replace(file, notes=(*file.notes, f'no added offset ({how})'))
    return replace(
        file,
        offset=(-modality.added_offset,) * len(file.band_ids),
        notes=(*file.notes, f'{modality.added_offset:g} subtracted ({how})'),
    )


def _sample(file: RasterFile) -> np.ndarray:
    """Pixels of its middle with data, or of all of it made small: (bands, pixels)."""
    source = file.open()
    try:
        side = (min(source.height, 256), min(source.width, 256))
        centre = Window((source.width - side[1]) // 2, (source.height - side[0]) // 2, *side[::-1])
        values = file.read(source, centre)
        if not np.isfinite(values).any():
            values = file.read(source, shape=side)
    finally:
        source.close()
    flat = values.reshape(len(values), -1)
    pixels: np.ndarray = flat[:, np.isfinite(flat).any(axis=0)]
    return pixels


def _is_reflectance(pixels: np.ndarray) -> bool:
    """Whether values (bands, pixels) are of 0..1, but for some that are odd."""
    return bool(pixels.size) and 0 < np.nanmedian(np.abs(pixels)) <= _MOST_REFLECTANCE


def _offset_in_data(file: RasterFile, flat: np.ndarray) -> tuple[bool, str]:
    """Whether the data itself shows that an offset was added, and what shows it."""
    modality = file.modality
    if not flat.size:
        return False, 'no data to tell by'
    limit = 0.9 * modality.added_offset
    if modality.dark_band in file.bands:
        dark = flat[modality.bands.index(modality.dark_band)]
        return bool(np.nanpercentile(dark, 10) > limit), f'{modality.dark_band} says so'
    lowest = np.nanpercentile(flat[[b > 0 for b in file.band_ids]], 1, axis=1).min()
    if lowest < limit:
        return False, f'values below {modality.added_offset:g}'
    return False, 'not to be told from the data, so taken as it is; a sidecar may say baseline'
