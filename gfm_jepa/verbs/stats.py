"""`gfm-jepa stats`: mean and std per band."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> None:
    """Mean and standard deviation per band, in one pass."""
    parser = argparse.ArgumentParser(
        'gfm-jepa stats', description='Mean and standard deviation per band in one streaming pass, '
        'nodata left out, as the YAML of a modality.',
    )  # fmt: skip
    parser.add_argument('paths', nargs='+', help='rasters, or folders of them')
    parser.add_argument('--name', help='of the modality; a known one gives bands, unit and aliases')
    parser.add_argument('--bands', nargs='+', help='band names, if the files name none')
    parser.add_argument('--unit', default='', help='physical unit of the values')
    parser.add_argument('--nodata', type=float, help='value of "not there", if the files tag none')
    parser.add_argument('-o', '--output', type=Path, help='write YAML here, not to the screen')
    args = parser.parse_args(words)
    from ..output_paths import require_apart, require_ending

    if args.output:
        require_ending(args.output, ('.yaml', '.yml'))
        require_apart([args.output], args.paths)
    from ..data.statistics import describe

    text = describe(args.paths, args.name, args.bands, args.unit, args.nodata)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)
        print(f'written: {args.output}')
    else:
        print(text, end='')
