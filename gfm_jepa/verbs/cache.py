"""`gfm-jepa cache`: chips, read once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .raster_arguments import add_raster_arguments, chip_size_of, filter_of


def main(words: Sequence[str]) -> None:
    """Chips, read once."""
    parser = argparse.ArgumentParser(
        'gfm-jepa cache', description='Write chips once into sharded zarr 3, float32, so that '
        'training reads them fast: give the folder as data.paths. A call that was broken off goes '
        'on where it was.',
    )  # fmt: skip
    add_raster_arguments(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, help='zarr folder to write')
    parser.add_argument('--patch-size', type=int, default=8, help='of the encoder, pixels')
    parser.add_argument('--num-dates', type=int, default=1, help='dates of a sample; 0 is all')
    parser.add_argument('--split', help='name of the split to take from an index')
    parser.add_argument('--num-workers', type=int, default=0, help='processes that read')
    args = parser.parse_args(words)
    keep = filter_of(args)
    if args.num_workers < 0:
        raise InputError(f'--num-workers is {args.num_workers}; give 0 or more.')
    if [Path(p).suffix for p in args.paths] == ['.parquet'] and (
        args.chip_size is not None or args.stride is not None
    ):
        raise InputError(
            f'{args.paths[0]} is an index, which has a chip size and stride of its own; leave '
            f'--chip-size and --stride out.'
        )
    from dataclasses import replace

    from ..data.caches import require_new, write_cache
    from ..data.index import modalities_of
    from ..data.rasters import Rasters

    require_new(args.output)
    rasters = Rasters(
        args.paths, modalities_of(args.modalities), chip_size_of(args), args.stride,
        args.patch_size, args.num_dates, replace(keep, split=args.split),
    )  # fmt: skip
    print(rasters.report())
    print(write_cache(rasters, args.output, args.num_workers))
