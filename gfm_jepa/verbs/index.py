"""`gfm-jepa index`: a table of chips."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..output_paths import require_apart, require_ending
from .raster_arguments import add_raster_arguments, chip_size_of, filter_of

# What chips may be divided by: two rules, and the columns of an index.
SPLIT_BY = ('blocks', 'longitude', 'file', 'modality', 'bands', 'window_col', 'window_row',
            'window_size', 'gsd', 'crs', 'warped', 'time', 'valid_share', 'cloud_share',
            'file_valid_share', 'folder', 'notes')  # fmt: skip


def main(words: Sequence[str]) -> None:
    """A table of the chips of any rasters."""
    parser = argparse.ArgumentParser(
        'gfm-jepa index', description='Write a GeoParquet of chips: footprint, file, window, '
        'modality, gsd, CRS, time, valid and cloud share, and perhaps splits that share no ground. '
        'A call that was broken off goes on where it was.',
    )  # fmt: skip
    add_raster_arguments(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, help='GeoParquet to write')
    parser.add_argument('--bands', nargs='+', help='band names of the rasters that name none and '
                        'have as many')  # fmt: skip
    parser.add_argument('--nodata', type=float, help='value of "not there", if there is no tag')
    parser.add_argument('--split', help='blocks, longitude, or a column whose values stay together')
    parser.add_argument('--block-size', type=float, default=10_000.0, help='metres')
    parser.add_argument('--shares', type=float, nargs=3, default=(0.6, 0.2, 0.2),
                        help='of train, val, test')  # fmt: skip
    parser.add_argument('--seed', type=int, default=0, help='of the blocks')
    parser.add_argument('--map', type=Path, help='PNG of the splits; beside the index by default')
    args = parser.parse_args(words)
    require_ending(args.output, ('.parquet',))
    keep = filter_of(args)
    if args.split and args.split not in SPLIT_BY:
        raise InputError(
            f'There is no column {args.split!r} to split by; give one of {", ".join(SPLIT_BY)}.'
        )
    from ..data.index import IndexSettings, make_folder, modalities_of, write_index
    from ..data.sidecars import Facts
    from ..data.splits import SplitRule, draw_splits

    rule = SplitRule(args.split, args.block_size, tuple(args.shares), args.seed) if (
        args.split) else None  # fmt: skip
    settings = IndexSettings(
        modalities_of(args.modalities), chip_size_of(args), args.stride,
        Facts(bands=tuple(args.bands) if args.bands else None, nodata=args.nodata),
        keep, rule,
    )  # fmt: skip
    picture = args.map or args.output.with_suffix('.png')
    if picture.suffix != '.png':
        raise InputError(f'The map {picture} should be a file that ends in .png.')
    read = (*args.paths, *args.modalities, args.area)
    require_apart((args.output, picture if rule else None), read)
    make_folder(picture.parent)
    print(write_index(args.paths, args.output, settings))
    if rule is not None:
        import geopandas

        try:
            draw_splits(geopandas.read_parquet(args.output), picture)
        except OSError as error:
            raise InputError(
                f'{args.output} is written, but not its map {picture} ({error.strerror}).'
            ) from error
        print(f'map of the splits: {picture}')
