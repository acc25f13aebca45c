"""`gfm-jepa embed`: whole scenes to maps and tables of embeddings."""

import argparse
from collections.abc import Sequence
from pathlib import Path


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
    add('--window', type=int, help='pixels; 128 by default, an index has its own')
    add('--overlap', type=int, help='pixels; a quarter of the window, none for chips')
    add('--batch-size', type=int, default=16, help='windows at once')
    add('--ground', help='modality whose ground is mapped')
    add('--pca', type=int, help='principal components to write')
    add('--int8', action='store_true', help='8 bits a value, with scale and offset')
    add('--overwrite', action='store_true', help='replace what is there')
    add('--device', default='cpu', help='such as cuda; under torchrun, one each')
    args = parser.parse_args(words)
    from ..inference.embed import EmbedSettings, embed
    from ..models.hub import from_pretrained
    from .devices import place

    settings = EmbedSettings(
        args.window, args.overlap, args.batch_size, args.ground, args.pca, args.int8,
        args.overwrite,
    )  # fmt: skip
    embed(place(from_pretrained(args.weights), args.device), args.inputs, args.output, settings)
