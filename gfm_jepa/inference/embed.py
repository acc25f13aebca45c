"""Embed whole scenes: windows by strips, in memory that does not grow with the scene."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import gfm_jepa

from ..data.raster_files import Float, gdal, require_half_of_bands
from ..errors import InputError
from ..models import BaseEncoder
from ..models.weight_files import weights_hash
from ..output_paths import require_apart
from .chip_tables import EmbeddedChips, write_chips
from .ground_features import cell_size, embed_windows
from .outputs import SIDE, EmbeddedMap, require_output, write_cog, write_zarr
from .processes import one_thread_each, ranks
from .projections import Likeliest, Projection, fit_projection
from .scenes import Scene, find_scenes
from .strips import Job, embed_strips
from .tiling import Strip, Tiling, chip_strips
from .workspaces import Workspace


@dataclass(frozen=True)
class EmbedSettings:
    """How scenes are embedded.

    Args:
        window: Side of a window, pixels of the mapped raster; 128 by default, an index has its own.
        overlap: Pixels that neighbouring windows share; a quarter of a window by default, none
            between chips.
        batch_size: Windows that the encoder takes at once; by default as many as have 65,536
            pixels, which suits the caches of a CPU, and 16 times as many on another device.
        ground: Name of the modality whose rasters are mapped, and no others; by default each raster
            of the encoder's first modality, and what none of these shows.
        pca: Principal components to write; all features by default.
        int8: Whether 8 bits are written of each value, with scale and offset.
        overwrite: Whether an output that is there may be replaced; in a folder, maps of the same
            names are.
        likeliest: Names of the classes whose probabilities the features are, of which the
            likeliest is written; empty for a class without a name.
        features: Of chips: ``embedding``, or ``depths``, several depths pooled and wider.

    Raises:
        InputError: If a number cannot be.
    """

    window: int | None = None
    overlap: int | None = None
    batch_size: int | None = None
    ground: str | None = None
    pca: int | None = None
    int8: bool = False
    overwrite: bool = False
    likeliest: tuple[str, ...] = ()
    features: str = 'embedding'

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if (self.batch_size is not None and self.batch_size < 1) or (self.overlap or 0) < 0:
            raise InputError(
                f'batch_size is {self.batch_size} and overlap {self.overlap}; '
                f'give at least 1 and 0.'
            )
        if self.pca is not None and self.pca < 1:
            raise InputError(f'{self.pca} components are asked for; give at least 1.')


def embed(
    encoder: BaseEncoder, paths: Sequence[str], output: Path,
    settings: EmbedSettings = EmbedSettings(), say: Callable[[str], None] = print,
    names: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Embed scenes into a map or a table of chips.

    Memory does not grow with the scenes. What is finished lies in ``<output>.work`` until all is;
    a call that was killed goes on there when it is repeated, and gives the same bytes as one that
    was not. Under torchrun each process computes a part of the strips, in a folder that all see.
    Each batch is computed by one thread, so that the bytes depend on neither threads nor processes.

    Args:
        encoder: In evaluation mode, on the device that should compute.
        paths: Files, folders, URLs, or one index; see `find_scenes`.
        output: What to write: ``.tif``, ``.zarr``, ``.parquet``, or a folder of ``.tif``.
        settings: How.
        say: Told what feeds what, and what is finished.
        names: Of the features; d0, d1 and so on by default.

    Raises:
        InputError: If a path or setting cannot be used, the output is there, is an input or has one
            within it, or the disk is full.
    """
    require_apart([output], paths)
    rank, world, wait = ranks()
    with one_thread_each() as threads, gdal():
        scenes, left_out = find_scenes(
            paths, encoder.modalities, encoder.patch_sizes, settings.window, settings.ground
        )
        if encoder.needs_half:
            require_half_of_bands(f for s in scenes for layer in s.layers for f in layer.files)
        # A head for pixels answers on those of one modality.
        if first := getattr(encoder, 'answers_on', settings.ground):
            left_out += [(s.file.path, f'shows no {first}, whose ground is mapped')
                         for s in scenes if s.layers[0].name != first]  # fmt: skip
            scenes = [s for s in scenes if s.layers[0].name == first]
            if not scenes:
                raise InputError(
                    f'None of the rasters shows {first}, whose ground should be mapped; add one.'
                )
        kind = require_output(output, scenes)
        if settings.features != 'embedding' and kind != 'parquet':
            raise InputError(
                f'{output} would be a map, but {settings.features} are features of chips; name a '
                f'.parquet.'
            )
        jobs = [_job(encoder, i, s, settings, kind == 'parquet') for i, s in enumerate(scenes)]
        if settings.pca is not None and settings.pca > (width := _width(encoder, jobs[0])):
            raise InputError(
                f'There are {width} features, of which {settings.pca} components are asked for.'
            )
        form = {'pca': settings.pca, 'int8': settings.int8, 'likeliest': settings.likeliest,
                'names': names and list(names)}  # fmt: skip
        with Workspace(output, _fingerprint(encoder, scenes, settings, kind), form) as work:
            if rank == 0:
                lines = [s.describe() for s in scenes[:20]]
                lines += [f'left out: {path} {why}' for path, why in left_out]
                say('\n'.join(lines))
                if work.prepare(settings.overwrite):
                    say(f'{output} was finished by an earlier call.')
            wait()
            if not work.folder.exists():  # all was finished
                return
            on_cpu = next(encoder.parameters()).device.type == 'cpu'
            pixels = 65536 if on_cpu else 16 * 65536
            batch_size = settings.batch_size or max(pixels // scenes[0].window ** 2, 1)
            embed_strips(encoder, jobs, work, batch_size, (rank, world), threads if on_cpu else 1)
            wait()
            if rank == 0:
                say(_write(encoder, jobs, work, settings, kind, names))
            wait()


def _job(
    encoder: BaseEncoder, number: int, scene: Scene, settings: EmbedSettings, chips: bool
) -> Job:
    """Cut a scene."""
    name, window = scene.layers[0].name, scene.window
    cell = cell_size(encoder, name, window)
    unit = scene.unit if chips else math.lcm(scene.unit, cell)
    overlap = settings.overlap
    if overlap is None:
        overlap = 0 if chips else window // 4
    if overlap >= window:
        raise InputError(f'Windows of {window} pixels cannot share {overlap}; take less.')
    stride = max((window - overlap) // unit, 1) * unit
    height, width = scene.grid.height, scene.grid.width
    tiling = Tiling(height, width, window, stride, unit, cell)
    if not chips:
        return Job(number, scene, tiling.strips, tiling)
    if scene.corners is not None:
        corners = np.unique(scene.corners // unit * unit, axis=0)
    else:
        rows, cols = tiling.starts(height), tiling.starts(width)
        corners = np.stack(np.meshgrid(rows, cols, indexing='ij'), axis=2).reshape(-1, 2)
    return Job(number, scene, chip_strips(corners), None, settings.features)


def _width(encoder: BaseEncoder, job: Job) -> int:
    """How many features there are, as a window of nothing but means has them."""
    layer = job.scene.layers[0]
    mean = torch.tensor(encoder.modalities[layer.name].mean)
    window = mean.view(1, -1, 1, 1).expand(1, -1, layer.size, layer.size)
    windows = {layer.name: window, 'gsd': {layer.name: layer.gsd}}
    ground = None if job.tiling is None else layer.name
    return int(embed_windows(encoder, windows, 1, ground, job.features).shape[1])


def _write(
    encoder: BaseEncoder, jobs: Sequence[Job], work: Workspace, settings: EmbedSettings, kind: str,
    names: Sequence[str] | None,
) -> str:  # fmt: skip
    """Put the parts together."""
    if lacking := sum(not work.has(job.part(s)) for job in jobs for s in job.strips):
        raise InputError(
            f'{lacking} parts are not in {work.folder}; let all hosts write to one shared folder.'
        )
    tags = {
        'software': f'gfm-jepa {gfm_jepa.__version__}', 'modalities': _fed(encoder, jobs),
        'window': str(jobs[0].scene.window), 'revision': encoder.revision or '',
        'weights': weights_hash(encoder),
    }  # fmt: skip
    load = [partial(_load, work, job) for job in jobs]
    dims = work.load(jobs[0].part(jobs[0].strips[0])).shape[0] - 1
    maps = [EmbeddedMap(j.scene, j.tiling, dims, f) for j, f in zip(jobs, load, strict=True)
            if j.tiling is not None]  # fmt: skip
    chips = [EmbeddedChips(j.scene, j.strips, f) for j, f in zip(jobs, load, strict=True)]

    def pieces() -> Iterator[Float]:
        for embedded in maps:
            yield from (values for _, values in embedded.pieces())
        for table in () if maps else chips:
            yield from (np.ascontiguousarray(values[:-1]) for _, values in table.pieces())

    if settings.likeliest:
        projection: Projection = Likeliest(tuple(names or ['class']), classes=settings.likeliest)
    else:
        projection = fit_projection(
            pieces, names or [f'd{i}' for i in range(dims)], settings.pca, settings.int8
        )
    tags |= projection.tags
    with work.result() as path:
        if kind == 'parquet':
            count = write_chips(path, chips, projection, tags)
            return f'{work.output}: {count} chips of {len(projection.names)} features'
        with_data: set[str] = set()
        stored = [_projected(m, projection, with_data) for m in maps]
        if kind == 'zarr':
            named = [(m.scene.name, m.grid, b) for m, b in zip(maps, stored, strict=True)]
            write_zarr(path, named, projection, tags)
        else:
            for embedded, blocks in zip(maps, stored, strict=True):
                file = embedded.scene.file
                # Maps are published: folders of this machine are no one else's business.
                source = file.path if '://' in file.path else Path(file.path).name
                own = {**tags, 'file': source, 'time': file.time}
                if kind == 'folder':
                    path.mkdir(exist_ok=True)
                target = path / f'{embedded.scene.name}.tif' if kind == 'folder' else path
                write_cog(target, embedded.grid, blocks, projection, own)
    size = ' + '.join(f'{m.tiling.shape[0]} x {m.tiling.shape[1]}' for m in maps[:3])
    size += f' + {len(maps) - 3} more' if len(maps) > 3 else ''
    cells = 'pixels' if all(m.tiling.cell == 1 for m in maps) else 'cells'
    of = f'{len(projection.names)} features' if names is None else ', '.join(projection.names)
    of = f'{len(settings.likeliest)} classes' if settings.likeliest else of
    said = f'{work.output}: {size} {cells} of {of}'
    if empty := sorted({m.scene.name for m in maps} - with_data):
        said += f'; only nodata, since there is nothing valid to embed: {", ".join(empty)}'
    return said


def _load(work: Workspace, job: Job, strip: Strip) -> Float:
    return work.load(job.part(strip))


def _fed(encoder: BaseEncoder, jobs: Sequence[Job]) -> str:
    """Which of the encoder's modalities the scenes show."""
    shown = {layer.name for job in jobs for layer in job.scene.layers}
    return ', '.join(name for name in encoder.modalities if name in shown)


def _projected(embedded: EmbeddedMap, projection: Projection, with_data: set[str]) -> Iterator[Any]:
    """What is stored of a map, block by block; adds its name to those of maps that hold data."""
    total = sum(1 for _ in embedded.tiling.blocks(SIDE))
    for cells, values in tqdm(embedded.pieces(), 'Writing', total, unit='block', delay=2):
        if embedded.scene.name not in with_data and np.isfinite(values).any():
            with_data.add(embedded.scene.name)
        yield cells, projection(values)


def _fingerprint(
    encoder: BaseEncoder, scenes: Sequence[Scene], settings: EmbedSettings, kind: str
) -> dict[str, Any]:
    """What the bytes of parts depend on."""
    inputs = [f.state() for scene in scenes for layer in scene.layers for f in layer.files]
    return {
        'version': gfm_jepa.__version__, 'weights': weights_hash(encoder),
        'inputs': inputs, 'kind': kind,
        'device': next(encoder.parameters()).device.type, 'torch': torch.__version__,
        **{k: v for k, v in asdict(settings).items()
           if k not in ('overwrite', 'pca', 'int8', 'likeliest')},
        # An index has its own.
        'window': scenes[0].window,
        'chips': [_digest(scene) for scene in scenes] if kind == 'parquet' else [],
    }  # fmt: skip


def _digest(scene: Scene) -> str:
    """Which chips an index lists; '' without one."""
    if scene.corners is None:
        return ''
    return hashlib.sha256(np.ascontiguousarray(scene.corners).tobytes()).hexdigest()[:16]
