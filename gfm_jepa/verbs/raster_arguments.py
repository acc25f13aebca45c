"""What verbs ask for alike: which chips to take, and how windows go over scenes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.chips import ChipFilter

CHIP_SIZE = 96  # pixels, where nothing is said


def add_raster_arguments(parser: argparse.ArgumentParser) -> None:
    """What index and cache have in common."""
    parser.add_argument('paths', nargs='+', help='rasters, folders, URLs; NAME=PATH states what')
    parser.add_argument(
        '--modalities', nargs='+', default=(), help='names or YAML; known by default'
    )
    parser.add_argument('--chip-size', type=int, help=f'pixels; {CHIP_SIZE} by default')
    parser.add_argument('--stride', type=int, help='pixels; chip-size by default')
    parser.add_argument('--min-valid', type=float, default=0.25, help='lowest share with data')
    parser.add_argument('--max-cloud', type=float, default=1.0, help='highest share under cloud')
    parser.add_argument('--start', help='first day, such as 2019-06-01')
    parser.add_argument('--end', help='last day')
    parser.add_argument('--area', help='GeoJSON of the area of interest')


def filter_of(args: argparse.Namespace) -> 'ChipFilter':
    """What the command line says of the chips to take.

    Args:
        args: Of `add_raster_arguments`.

    Raises:
        InputError: If shares or days are none, or the area cannot be read.
    """
    from ..data.chips import ChipFilter, read_area

    if args.area:
        read_area(Path(args.area))
    return ChipFilter(args.min_valid, args.max_cloud, args.start, args.end, args.area)


def chip_size_of(args: argparse.Namespace) -> int:
    """Side of a chip, pixels, where an index does not say it."""
    return CHIP_SIZE if args.chip_size is None else int(args.chip_size)


def add_window_arguments(parser: argparse.ArgumentParser) -> None:
    """What embed and segment have in common."""
    add = parser.add_argument
    add('--window', type=int, help='pixels; 128 by default, an index has its own')
    add('--overlap', type=int, help='pixels; a quarter of the window, none for chips')
    add('--batch-size', type=int, help='windows at once; by the size of a window by default')
    add('--overwrite', action='store_true', help='replace what is there')
    add('--device', default='cpu', help='such as cuda; under torchrun, one each')
