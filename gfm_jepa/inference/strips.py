"""Compute the strips of scenes: one thread reads them in order, others embed and keep them."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.open_files import OpenFiles
from ..data.raster_files import Float
from ..models import BaseEncoder
from .ground_features import embed_windows
from .scenes import Scene
from .tiling import Strip, Tiling
from .workspaces import Workspace


@dataclass(frozen=True)
class Job:
    """A scene, and the strips that it is cut into.

    Attributes:
        number: Of the scene.
        scene: What is embedded.
        strips: In the order in which they are read.
        tiling: Of the windows; None for chips, which stand for themselves.
        features: Of chips: ``embedding`` or ``depths``.
    """

    number: int
    scene: Scene
    strips: Sequence[Strip]
    tiling: Tiling | None
    features: str = 'embedding'

    def part(self, strip: Strip) -> str:
        """Name of the file of a finished strip."""
        return f'{self.number:05d}-{strip.number:06d}.npy'

    def pixels(self, strip: Strip) -> int:
        """Pixels that a strip accounts for; what windows share is counted once."""
        return round(len(strip.corners) * self._per_window)

    @cached_property
    def _per_window(self) -> float:
        if self.tiling is None:
            return float(self.scene.window**2)
        windows = sum(len(s.corners) for s in self.strips)
        return self.scene.grid.height * self.scene.grid.width / windows


def embed_strips(
    encoder: BaseEncoder, jobs: Sequence[Job], work: Workspace, batch_size: int,
    place: tuple[int, int], threads: int,
) -> None:  # fmt: skip
    """Compute this process's share of the strips that are not there yet.

    One thread reads, so that GDAL decodes a block once.

    Args:
        encoder: In evaluation mode.
        jobs: Scenes.
        work: Where finished strips are kept.
        batch_size: Windows that the encoder takes at once.
        place: Rank of this process, and how many there are.
        threads: That compute; each takes a strip.

    Raises:
        InputError: If a file cannot be read, or the disk is full.
    """
    everything = [(job, strip) for job in jobs for strip in job.strips]
    rank, world = place
    mine = everything[rank * len(everything) // world : (rank + 1) * len(everything) // world]
    missing = [(job, strip) for job, strip in mine if not work.has(job.part(strip))]
    files = OpenFiles()
    done: deque[tuple[Future[None], int]] = deque()
    total = sum(job.pixels(strip) for job, strip in mine)
    left = sum(job.pixels(strip) for job, strip in missing)
    with (
        tqdm(total=total, initial=total - left, desc='Embedding', unit='px',
             unit_scale=True, mininterval=1.0, disable=rank > 0) as bar,
        ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as workers,
    ):  # fmt: skip
        try:
            for job, strip in missing:
                windows = reader.submit(_read, job, files, strip)
                one = workers.submit(_embed_strip, encoder, job, strip, windows, work, batch_size)
                done.append((one, job.pixels(strip)))
                if len(done) > threads + 1:  # bounds what waits in memory
                    _finish(done, bar)
            while done:
                _finish(done, bar)
        finally:
            for pool in (reader, workers):
                pool.shutdown(cancel_futures=True)
    files.close()


def _finish(done: deque[tuple[Future[None], int]], bar: Any) -> None:
    """Wait for the oldest strip."""
    future, pixels = done.popleft()
    future.result()
    bar.update(pixels)


def _read(job: Job, files: OpenFiles, strip: Strip) -> dict[str, Any]:
    """The windows of a strip: (n, C, H, W) by modality, and ``gsd``."""
    scene = job.scene
    # Windows of a map overlap along a row; chips may be far apart, and each is read alone.
    rows = strip.corners[:, None] if job.tiling is None else strip.corners[None]
    parts = [scene.read_row(files, int(some[0, 0]), some[:, 1].tolist()) for some in rows]
    return {
        **{name: torch.from_numpy(_joined([p[name] for p in parts])) for name in scene.gsd},
        'gsd': scene.gsd,
    }


def _joined(parts: Sequence[Float]) -> Float:
    """One after the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _embed_strip(
    encoder: BaseEncoder, job: Job, strip: Strip, read: Future[dict[str, Any]], work: Workspace,
    batch_size: int,
) -> None:  # fmt: skip
    """Compute a strip and keep it."""
    windows = read.result()
    name = job.scene.layers[0].name
    if job.tiling is None:
        embeddings = embed_windows(encoder, windows, batch_size, None, job.features)
        valid = windows[name].isfinite().any(dim=1).float().mean(dim=(1, 2)).numpy()
        work.save(job.part(strip), np.concatenate([embeddings, valid[:, None]], axis=1).T.copy())
    else:
        maps = embed_windows(encoder, windows, batch_size, name)
        work.save(job.part(strip), job.tiling.accumulate(strip, maps))
