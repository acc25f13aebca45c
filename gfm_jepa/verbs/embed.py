"""`gfm-jepa embed`: whole scenes to maps and tables of embeddings."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .raster_arguments import add_window_arguments


def main(words: Sequence[str]) -> None:
    """Embed scenes."""
    parser = argparse.ArgumentParser(
        'gfm-jepa embed', description='Embed whole scenes: overlapping windows, blended, in memory '
        'that does not grow with the scene. A call that was killed goes on where it was; under '
        'torchrun, processes share the work. The ending of OUT says what is written: .tif (COG, a '
        'band a feature), .zarr, .parquet (chips with footprints), none (a folder of COGs).',
    )  # fmt: skip
    add = parser.add_argument
    add('weights', help='checkpoint, folder, bundled name or Hub id')
    add('inputs', nargs='+', help='rasters, folders, URLs, or one index; NAME=PATH states what')
    add('-o', '--output', type=Path, required=True, help='what to write')
    add_window_arguments(parser)
    add('--ground', help='modality whose ground is mapped')
    add('--pca', type=int, help='principal components to write')
    add('--int8', action='store_true', help='8 bits a value, with scale and offset')
    add(
        '--features',
        choices=('embedding', 'depths'),
        default='embedding',
        help='of chips: depths are wider, and show what an embedding looks past',
    )
    args = parser.parse_args(words)
    from ..inference.embed import EmbedSettings, embed
    from ..models.hub import from_pretrained
    from .devices import place

    settings = EmbedSettings(
        args.window, args.overlap, args.batch_size, args.ground, args.pca, args.int8,
        args.overwrite, features=args.features,
    )  # fmt: skip
    embed(place(from_pretrained(args.weights), args.device), args.inputs, args.output, settings)
