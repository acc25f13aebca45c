"""The index: a GeoParquet of chips, written in parts that survive being killed."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..errors import InputError
from ..modalities import CLOUD_MASK, LABELS, MODALITIES, Modality, resolve
from .chips import ChipFilter, FileChips, LeftOut, cloud_masks, polygons, read_area, scan
from .finding import Found, find_rasters
from .raster_files import state_of
from .recognition import UNRECOGNISED
from .sidecars import Facts, sidecars
from .splits import SplitRule, assign_splits

if TYPE_CHECKING:
    import geopandas

FILES_PER_PART = 128
_FORMAT = 1  # of the rows; parts of another one are not taken
_KEY = b'gfm_jepa'


@dataclass(frozen=True)
class IndexSettings:
    """How an index is made.

    Args:
        modalities: Candidates.
        chip_size: Side of a chip, pixels of each file's own grid.
        stride: Pixels from one chip to the next; chip_size by default.
        said: What the command line says of all rasters.
        keep: Which chips to keep.
        split: How chips are divided into splits; not at all by default.
    """

    modalities: tuple[Modality, ...]
    chip_size: int = 96
    stride: int | None = None
    said: Facts = Facts()
    keep: ChipFilter = ChipFilter(min_valid=0.0)
    split: SplitRule | None = None


def write_index(paths: Sequence[str], output: Path, settings: IndexSettings) -> str:
    """Index rasters into a GeoParquet of chips; go on where an earlier call was broken off.

    Finished parts lie in ``<output>.parts`` until the whole is written in one move. What they were
    made of (files, sizes, times, settings) is compared, so that nothing stale is taken.

    Args:
        paths: Files, folders and URLs; see `find_rasters`.
        output: GeoParquet to write.
        settings: How.

    Returns:
        A report, a line for each file that was left out.

    Raises:
        InputError: If there is no raster, or nothing is left after the filters.
    """
    if settings.chip_size < 1 or (settings.stride is not None and settings.stride < 1):
        raise InputError(
            f'chip_size is {settings.chip_size} and stride {settings.stride}; give 1 or more.'
        )
    if output.suffix != '.parquet' or output.is_dir():
        raise InputError(f'{output} should be a file that ends in .parquet.')
    found = find_rasters(paths, settings.modalities)
    parts = output.with_name(output.name + '.parts')
    fingerprint = _fingerprint(found, settings)
    if parts.is_dir() and _read(parts / 'fingerprint') != fingerprint:
        shutil.rmtree(parts)
    make_folder(parts)
    write_whole(parts / 'fingerprint', fingerprint.encode())
    _write_parts(found, parts, settings)
    table, left_out = _join_parts(parts, len(found))
    report = _report(table, left_out)
    if not len(table):
        shutil.rmtree(parts)
        raise InputError(f'No chip to index. {report}')
    if settings.split is not None:
        table['split'] = assign_splits(table, settings.split)
    _write_parquet(table, output, settings, left_out)
    shutil.rmtree(parts)
    return report + _split_report(table)


def read_index(path: Path, modalities: Sequence[Modality]) -> tuple[list[FileChips], int, int]:
    """Chips of an index that feed the modalities, by file, its chip size and its stride.

    Raises:
        InputError: If it is no index, or none of its chips feeds a modality.
    """
    import pyarrow
    import pyarrow.parquet

    from .raster_files import RasterFile

    try:
        # The same few descriptions of files, again in each row: once, and numbers.
        table = pyarrow.parquet.read_table(path, read_dictionary=['source'])
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise _no_index(path, error) from error
    meta = json.loads((table.schema.metadata or {}).get(_KEY, b'null'))
    if meta is None:
        raise InputError(f'{path} is not an index; write one with `gfm-jepa index`.')
    known = {m.name: m for m in modalities}
    from shapely import from_wkb, get_coordinates

    ring = get_coordinates(from_wkb(np.asarray(table['geometry']))).reshape(-1, 5, 2)[:, :4]
    columns = {k: table[k].to_numpy(zero_copy_only=False) for k in
               ('modality', 'window_row', 'window_col', 'valid_share', 'cloud_share',
                'split', 'file_valid_share')}  # fmt: skip
    sources = table['source'].unify_dictionaries().combine_chunks()
    _, first, which = np.unique(sources.indices.to_numpy(), return_index=True, return_inverse=True)
    chips = []
    for number in np.argsort(first):  # in the order of the table
        rows = np.flatnonzero(which == number)
        name = columns['modality'][rows[0]]
        if name not in known:
            continue
        file = RasterFile.from_dict(json.loads(sources[int(rows[0])].as_py()), known[name])
        corners = np.stack([columns['window_row'][rows], columns['window_col'][rows]], axis=1)
        chips.append(
            FileChips(
                file, meta['chip_size'], corners.astype(np.int32), columns['valid_share'][rows],
                columns['cloud_share'][rows], ring[rows, :, 0], ring[rows, :, 1],
                columns['split'][rows].astype(str), float(columns['file_valid_share'][rows[0]]),
            )
        )  # fmt: skip
    if not chips:
        raise InputError(
            f'{path} holds the modalities {", ".join(sorted(set(columns["modality"])))}, and none '
            f'of {", ".join(known)}.'
        )
    return chips, meta['chip_size'], meta['stride']


def splits_of(path: Path) -> set[str]:
    """Names of the splits of an index; empty if it has none.

    Raises:
        InputError: If it is no index.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_table(path, columns=['split'])['split']
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise _no_index(path, error) from error
    return set(names.to_pylist()) - {''}


def _no_index(path: Path, error: Exception) -> InputError:
    return InputError(
        f'{path} is not an index ({type(error).__name__}); write one with `gfm-jepa index`.'
    )


def _write_parts(found: Sequence[Found], parts: Path, settings: IndexSettings) -> None:
    """Scan the files of each part that is not there yet."""
    starts = range(0, len(found), FILES_PER_PART)
    missing = [s for s in starts if not (parts / f'{s:09d}.parquet').exists()]
    # A cloud mask is an own row too: a user who looks for it should find it.
    modalities = (*settings.modalities, CLOUD_MASK)
    masks = cloud_masks(found)
    with tqdm(total=len(found), desc='Indexing', unit='file', delay=2) as bar:
        bar.update(len(found) - sum(len(found[s : s + FILES_PER_PART]) for s in missing))
        for start in missing:
            some = found[start : start + FILES_PER_PART]
            rows: list[FileChips] = []
            left_out: list[LeftOut] = []
            for chips, problems in scan(
                some, modalities, settings.chip_size, settings.stride or settings.chip_size,
                settings.said, lenient=True, workers=os.cpu_count() or 1, masks=masks,
            ):  # fmt: skip
                masked = [(c, settings.keep.mask(c, as_partner=True)) for c in chips]
                kept = [c.take(keep) for c, keep in masked if keep.any()]
                gone = {c.file.path for c in chips} - {c.file.path for c in kept}
                rows += kept
                left_out += problems + [(p, 'has no chip that passes the filters') for p in gone]
                bar.update()
            path = parts / f'{start:09d}.parquet'
            _write_parquet(_table(rows), path, settings, left_out)


def _table(chips: Sequence[FileChips]) -> 'geopandas.GeoDataFrame':
    """One row a chip."""
    import geopandas
    import pandas

    frames = []
    for c in chips:
        file, n = c.file, len(c.corners)
        frames.append(pandas.DataFrame({
            'file': file.path, 'modality': file.modality.name, 'bands': ' '.join(file.bands),
            'window_col': c.corners[:, 1], 'window_row': c.corners[:, 0], 'window_size': c.size,
            'gsd': file.grid.gsd, 'crs': file.grid.to_dict()['crs'], 'warped': file.warped,
            'time': pandas.Series([file.time or None] * n, dtype='datetime64[s]'),
            'valid_share': c.valid, 'cloud_share': c.cloud, 'file_valid_share': c.valid_share,
            'folder': file.folder.rpartition('/')[2], 'notes': '; '.join(file.notes),
            'split': c.split.astype(object), 'source': json.dumps(file.to_dict()),
            'geometry': polygons(c),
        }))  # fmt: skip
    if not frames:
        return geopandas.GeoDataFrame({'geometry': []}, crs='OGC:CRS84')
    return geopandas.GeoDataFrame(pandas.concat(frames, ignore_index=True), crs='OGC:CRS84')


def _write_parquet(
    table: 'geopandas.GeoDataFrame', path: Path, settings: IndexSettings,
    left_out: Sequence[LeftOut],
) -> None:  # fmt: skip
    """Write a table in one move, with what made it in the file's metadata."""
    import pyarrow
    import pyarrow.parquet

    encoded = BytesIO()
    table.to_parquet(encoded, index=False)
    arrow = pyarrow.parquet.read_table(pyarrow.BufferReader(encoded.getvalue()))
    meta = {
        'chip_size': settings.chip_size,
        'stride': settings.stride or settings.chip_size,
        'left_out': list(left_out),
    }
    arrow = arrow.replace_schema_metadata(
        {**(arrow.schema.metadata or {}), _KEY: json.dumps(meta).encode()}
    )
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(arrow, buffer, compression='zstd')
    write_whole(path, buffer.getvalue().to_pybytes())


def _join_parts(parts: Path, count: int) -> tuple['geopandas.GeoDataFrame', list[LeftOut]]:
    """All rows, and all that was left out, in order."""
    import geopandas
    import pandas
    import pyarrow.parquet

    tables, left_out = [], []
    for start in range(0, count, FILES_PER_PART):
        path = parts / f'{start:09d}.parquet'
        table = geopandas.read_parquet(path)
        meta = json.loads(pyarrow.parquet.read_schema(path).metadata[_KEY])
        left_out += [(p, why) for p, why in meta['left_out']]
        if len(table):
            tables.append(table)
    if not tables:
        return geopandas.GeoDataFrame({'geometry': []}, crs='OGC:CRS84'), left_out
    return pandas.concat(tables, ignore_index=True), left_out


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there as a whole or not at all."""
    partial = path.with_name(f'{path.name}.tmp')
    try:
        with partial.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, with those above it.

    Raises:
        InputError: If that cannot be done.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'Nothing can be written at {path.parent} ({error.strerror}); name another output.'
        ) from error


def _fingerprint(found: Sequence[Found], settings: IndexSettings) -> str:
    """What an index is made of: files with size and time of change, and settings."""
    area = settings.keep.area and read_area(Path(settings.keep.area)).wkt
    made_by = {
        'settings': asdict(settings), 'area': area, 'format': _FORMAT, 'files': FILES_PER_PART,
    }  # fmt: skip
    content = json.dumps(made_by, sort_keys=True, default=str)
    digest = hashlib.sha256(content.encode())
    folders: set[Path] = set()
    for f in found:
        for path in [p for _, p in f.parts] or [f.path]:
            local = Path(path)
            line = f'{path} {f.stated} {state_of(local)}\n'
            digest.update(line.encode('utf-8', 'surrogateescape'))
            folders.add(local.parent)
    for sidecar in sorted(s for folder in folders for s in sidecars(folder)):
        stat = sidecar.stat()
        digest.update(f'{sidecar} {stat.st_size} {stat.st_mtime_ns}\n'.encode())
    return digest.hexdigest()


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ''


def _report(table: 'geopandas.GeoDataFrame', left_out: Sequence[LeftOut]) -> str:
    """Chips per modality, what was decided about them, and what was left out and why."""
    lines = []
    if len(table):
        lines.append(f'{len(table)} chips from {table["file"].nunique()} files')
        for name, rows in table.groupby('modality', sort=False):
            gsd = sorted({f'{g:.3g}' for g in rows['gsd']}, key=float)
            spread = gsd[0] if len(gsd) == 1 else f'{gsd[0]} to {gsd[-1]}'
            lines.append(
                f'  {name}: {len(rows)} chips from {rows["file"].nunique()} files, {spread} m, '
                f'{rows["valid_share"].mean():.0%} valid'
            )
        files = table.drop_duplicates('file')
        for note, count in Counter(files['notes']).items():
            if note not in ('bands by name', 'bands by position'):
                lines.append(f'  {count} files: {note}')
    if left_out:
        lines.append(f'{len(left_out)} files left out:')
        lines += [f'  {path}: {why}' for path, why in left_out]
        if any(why == UNRECOGNISED for _, why in left_out):
            lines.append(
                '  (for a sensor of your own: `gfm-jepa stats FILE --name NAME -o NAME.yaml`, then '
                '`--modalities NAME.yaml` and NAME=FILE)'
            )
    return '\n'.join(lines)


def _split_report(table: 'geopandas.GeoDataFrame') -> str:
    if not (table['split'] != '').any():
        return ''
    counts = Counter(table['split'])
    return '\nsplits: ' + ', '.join(f'{counts[k]} {k or "left out at borders"}' for k in counts)


def modalities_of(specs: Sequence[Any]) -> tuple[Modality, ...]:
    """Resolve what the command line names; all known ones and labels by default."""
    return tuple(map(resolve, specs or [*MODALITIES, *LABELS]))
