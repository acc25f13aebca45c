"""Chips per second of our reader and cache, beside torchgeo's and beside plain rasterio.

    python benchmarks/reader.py [--tiles 200] [--size 1024] [--chip 128] [--workers 0]

Makes an archive of tiled GeoTIFFs (12 bands, uint16, deflate, two UTM zones) in a temporary folder,
and reads the same number of chips of the same size and bands with the same number of workers:
torchgeo's `RasterDataset` with `RandomPatchSampler`, our `Rasters` and our cache. The last line is
one JSON object.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch.utils.data import DataLoader

from gfm_jepa.data.caches import CachedChips, write_cache
from gfm_jepa.data.rasters import Rasters, collate
from gfm_jepa.data.samplers import GroupBatchSampler, ResumableLoader
from gfm_jepa.errors import InputError, told_in_one_sentence
from gfm_jepa.modalities import S2_L2A

BATCH = 32


def make_archive(folder: Path, tiles: int, size: int) -> None:
    """Write tiles with relief-like texture and noise, which deflate as real ones do."""
    rng = np.random.default_rng(0)
    warnings.simplefilter('ignore', NotGeoreferencedWarning)  # until the copies get their place
    folder.mkdir(parents=True)
    patterns = []
    for i in range(min(8, tiles)):
        smooth = np.cumsum(np.cumsum(rng.normal(0, 1, (size, size)), 0), 1)
        smooth = (smooth - smooth.mean()) / smooth.std()
        bands = [1500 + 150 * b + 400 * smooth + rng.normal(0, 60, (size, size)) for b in range(12)]
        patterns.append(folder / f'pattern{i}.tif')
        with rasterio.open(
            patterns[-1], 'w', driver='GTiff', width=size, height=size, count=12, dtype='uint16',
            nodata=0, tiled=True, blockxsize=256, blockysize=256, compress='deflate',
            crs='EPSG:32632',
        ) as target:  # fmt: skip
            target.write(np.stack(bands).clip(1, 10000).astype('uint16'))
            target.descriptions = S2_L2A.bands
    for i in range(tiles):
        path = folder / f'S2L2A_{i:04d}.tif'
        shutil.copy(patterns[i % len(patterns)], path)
        with rasterio.open(path, 'r+') as target:
            target.crs = 'EPSG:32632' if i % 2 else 'EPSG:32633'
            target.transform = from_origin(
                300000 + i // 2 % 10 * size * 10, 5000000 - i // 20 * size * 10, 10, 10
            )
    for pattern in patterns:
        pattern.unlink()


def rate(batches: Iterable[Any], count: int) -> float:
    """Chips per second over `count` chips, after a first batch that opens what has to be opened."""
    iterator: Iterator[Any] = iter(batches)
    next(iterator)
    start, done = time.perf_counter(), 0
    while done < count:
        done += len(next(iterator))
    return done / (time.perf_counter() - start)


def torchgeo_batches(folder: Path, chip: int, count: int, workers: int) -> Iterable[Any]:
    """Torchgeo as its tutorials use it."""
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import RandomPatchSampler

    class Archive(RasterDataset):  # type: ignore[misc]  # torchgeo carries no types
        filename_glob = 'S2L2A_*.tif'

    dataset = Archive(folder)
    sampler = RandomPatchSampler(dataset, size=chip, length=count + 2 * BATCH, generator=0)
    loader: DataLoader[Any] = DataLoader(
        dataset, BATCH, sampler=sampler, num_workers=workers, collate_fn=stack_samples
    )
    return (batch['image'] for batch in loader)


def our_batches(chips: Rasters | CachedChips, workers: int) -> Iterable[Any]:
    """Ours, in the order that training takes."""
    loader = ResumableLoader(chips, GroupBatchSampler(chips.groups(), BATCH), workers, collate)
    while True:
        for batch in loader:
            yield batch['s2_l2a']


def raw_share(rasters: Rasters, count: int) -> float:
    """Our rate over that of bare rasterio reads of the same windows in the same order.

    In turns of some chips each, so that a machine that slows down slows both; the blocks that one
    of them has decoded are pushed out of GDAL's cache before the other comes to them.
    """
    order = [i for batch in GroupBatchSampler(rasters.groups(), BATCH, seed=1) for i in batch]
    handles: dict[str, Any] = {}

    def bare(index: int) -> None:
        place, at = rasters.locate(index)
        row, col = place.corners[at].tolist()
        path = place.layers[0].files[0].path
        if path not in handles:
            handles[path] = rasterio.open(path)
        handles[path].read(window=Window(col, row, rasters.chip_size, rasters.chip_size))

    times = {'ours': 0.0, 'bare': 0.0}
    reads: dict[str, Callable[[int], Any]] = {'ours': rasters.__getitem__, 'bare': bare}
    half = len(order) // 2
    parts = {'ours': order[:half], 'bare': order[half:]}
    for start in range(0, min(count, half - 16), 16):
        for name, read in reads.items():
            begun = time.perf_counter()
            for index in parts[name][start : start + 16]:
                read(index)
            times[name] += time.perf_counter() - begun
    return times['bare'] / times['ours']


def peak_mb(folder: Path, chip: int) -> float:
    """Peak memory of a fresh process that indexes a folder and reads 40 batches of it, MB."""
    command = [sys.executable, __file__, '--memory-of', str(folder), '--chip', str(chip)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def nano_step_rate(chip: int) -> float:
    """Chips per second of an I-JEPA step of the nano encoder on these chips."""
    from gfm_jepa.tasks import IJEPA, EncoderConfig

    task = IJEPA(['s2_l2a'], EncoderConfig('nano', patch_size=8))
    optimizer = torch.optim.AdamW(task.parameters())
    batch = {'s2_l2a': 1500 + 500 * torch.randn(BATCH, 12, chip, chip), 'gsd': {'s2_l2a': 10.0}}
    times = []
    for step in range(4):
        begun = time.perf_counter()
        optimizer.zero_grad()
        task.compute_loss(batch, step).backward()
        optimizer.step()
        times.append(time.perf_counter() - begun)
    return BATCH / min(times)


def many_links(source: Path, folder: Path, tiles: int) -> Path:
    """A folder of so many tiles, by hard links."""
    folder.mkdir()
    files = sorted(source.glob('*.tif'))
    for i in range(tiles):
        (folder / f'S2L2A_{i:05d}.tif').hardlink_to(files[i % len(files)])
    return folder


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--tiles', type=int, default=200)
    parser.add_argument('--size', type=int, default=1024, help='of a tile, pixels')
    parser.add_argument('--chip', type=int, default=128, help='pixels')
    parser.add_argument('--chips', type=int, default=1024, help='chips to time')
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--memory-tiles', type=int, nargs=2, default=(20, 2000))
    parser.add_argument('--memory-of', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        rasters = Rasters([args.memory_of], [S2_L2A], args.chip)
        # From all over the epoch, so that as many files are touched as the epoch touches.
        batches = list(GroupBatchSampler(rasters.groups(), BATCH))
        for batch in batches[:: max(len(batches) // 40, 1)]:
            for index in batch:
                rasters[index]
        # Not ru_maxrss: a process inherits that of the one which started it.
        status = Path('/proc/self/status').read_text()
        print(int(status.split('VmHWM:')[1].split()[0]) / 1024)
        return
    with tempfile.TemporaryDirectory() as temporary:
        archive = Path(temporary) / 'archive'
        make_archive(archive, args.tiles, args.size)
        begun = time.perf_counter()
        rasters = Rasters([archive], [S2_L2A], args.chip)
        seconds = time.perf_counter() - begun
        print(f'scanned {args.tiles} tiles in {seconds:.1f} s: {len(rasters)} chips')
        if len(rasters) < 4 * BATCH:  # two batches of each CRS
            raise InputError(
                f'{args.tiles} tiles of {args.size} pixels have {len(rasters)} chips of '
                f'{args.chip}, and {4 * BATCH} are needed to time; give more --tiles, or larger.'
            )
        cache = Path(temporary) / 'chips.zarr'
        few = Rasters([sorted(archive.glob('*.tif'))[i] for i in range(min(40, args.tiles))],
                      [S2_L2A], args.chip)  # fmt: skip
        print(write_cache(few, cache))
        theirs = rate(torchgeo_batches(archive, args.chip, args.chips, args.workers), args.chips)
        ours = rate(our_batches(rasters, args.workers), args.chips)
        cached = rate(our_batches(CachedChips(cache, [S2_L2A]), args.workers), args.chips)
        share = raw_share(rasters, args.chips)
        step = nano_step_rate(args.chip)
        memory = [
            peak_mb(many_links(archive, Path(temporary) / f'links{n}', n), args.chip)
            for n in args.memory_tiles
        ]
    rates = f'torchgeo {theirs:.0f}, ours {ours:.0f}, cached {cached:.0f}; nano eats {step:.0f}'
    print(f'chips/s: {rates}')
    print(f'peak MB at {args.memory_tiles} tiles: {memory[0]:.0f}, {memory[1]:.0f}')
    result = {
        'uncached_ratio': ours / theirs, 'cached_ratio': cached / theirs, 'raw_share': share,
        'peak_mb': max(memory), 'peak_growth': memory[1] / memory[0],
        'uncached_over_step': ours / step, 'cached_over_step': cached / step,
    }  # fmt: skip
    print(json.dumps({k: round(v, 3) for k, v in result.items()}))


if __name__ == '__main__':
    with told_in_one_sentence('reader.py'):
        main()
