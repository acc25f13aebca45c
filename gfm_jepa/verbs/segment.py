"""`gfm-jepa segment`: a trained head for pixels over whole scenes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .raster_arguments import add_window_arguments


def main(words: Sequence[str]) -> None:
    """Map answers."""
    parser = argparse.ArgumentParser(
        'gfm-jepa segment', description='The answers of a head for pixels over whole scenes, '
        'window by window, blended, in memory that does not grow with the scene: the likeliest '
        'class of each pixel in 8 bits (255: no data; names are tags, class_0 and so on), or a '
        'quantity in its unit.',
    )  # fmt: skip
    add = parser.add_argument
    add('head', help='checkpoint of SemanticSegmentation or PixelwiseRegression')
    add('inputs', nargs='+', help='rasters or folders; NAME=PATH states what')
    add('-o', '--output', type=Path, required=True, help='.tif, or a folder for several scenes')
    add_window_arguments(parser)
    add('--probabilities', action='store_true', help='of each class, a band each')
    args = parser.parse_args(words)
    from ..errors import InputError
    from ..inference.embed import EmbedSettings, embed
    from ..inference.projections import NODATA_CLASS
    from ..models.segmenter import load_segmenter
    from .devices import place

    if args.output.suffix.lower() not in ('.tif', '.tiff', ''):
        raise InputError(f'{args.output} should end in .tif, or be a folder.')
    model = load_segmenter(args.head)
    classes = model.facts['mean'] is None
    if args.probabilities and not classes:
        raise InputError(f'{args.head} answers a quantity; leave out --probabilities.')
    known = model.facts.get('classes') or [''] * model.embed_dim
    likeliest = tuple(known) if classes and not args.probabilities else ()
    if len(likeliest) > NODATA_CLASS:
        raise InputError(
            f'{args.head} tells {len(likeliest)} classes apart, and 8 bits hold {NODATA_CLASS}; '
            f'add --probabilities.'
        )
    names = [n or f'class {i}' for i, n in enumerate(known)] if args.probabilities else (
        [model.facts['target']])  # fmt: skip
    settings = EmbedSettings(
        args.window, args.overlap, args.batch_size, model.facts['modality'],
        overwrite=args.overwrite, likeliest=likeliest,
    )  # fmt: skip
    embed(place(model, args.device), args.inputs, args.output, settings, names=names)
