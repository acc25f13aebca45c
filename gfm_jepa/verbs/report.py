"""`gfm-jepa report`: one page that stands alone."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        'gfm-jepa report', description='One HTML file that needs no network: a map of embeddings '
        'with layers to switch and places to click, curves of runs, results, model cards.',
    )  # fmt: skip
    add = parser.add_argument
    add('sources', nargs='+', help='map .tif of `embed`, run, .csv of `benchmark`, weights')
    add('-o', '--output', type=Path, required=True, help='.html')
    add('--scene', type=Path, help="raster of the map's ground, shown as red, green and blue")
    add('--layer', nargs='+', default=[], metavar='NAME=FILE', help='GeoTIFFs over the map')
    args = parser.parse_args(words)
    from ..errors import InputError
    from ..evaluation.report import write_report
    from ..output_paths import require_apart, require_ending

    require_ending(args.output, ('.html', '.htm'))
    layers: dict[str, Path] = {}
    for word in args.layer:
        name, _, file = word.partition('=')
        if not file or name in ('scene', 'features', *layers):
            raise InputError(f'--layer {word} should be NAME=FILE, with a name of its own.')
        layers[name] = Path(file)
    require_apart([args.output], (*args.sources, args.scene, *layers.values()))
    print(write_report(args.sources, args.output, args.scene, layers))
