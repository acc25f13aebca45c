"""`gfm-jepa change`: how much features differ between two dates."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> None:
    """Compare two maps."""
    parser = argparse.ArgumentParser(
        'gfm-jepa change', description='Difference of the features of two maps that `gfm-jepa '
        'embed` wrote, on the grid of the first. The last line is JSON: with labels, the area '
        'under the ROC curve of each score, and F1 above its threshold by Otsu.',
    )  # fmt: skip
    add = parser.add_argument
    add('before', type=Path, help='.tif of the earlier date')
    add('after', type=Path, help='.tif of the later date, of the same weights')
    add('-o', '--output', type=Path, required=True, help='.tif')
    add('--labels', type=Path, help='raster that is above 0 where something has changed')
    add('--mask', type=Path, help='.tif to write: 1 where the score lies above its threshold by '
        'Otsu, 0 below')  # fmt: skip
    add('--score', default='standardised', choices=('cosine', 'difference', 'standardised'),
        help='of --mask')  # fmt: skip
    add('--picture', type=Path, help='PNG; beside the output by default')
    args = parser.parse_args(words)
    import numpy as np
    from rasterio.enums import Resampling

    from ..errors import InputError
    from ..evaluation.change import change_maps, otsu, ranking
    from ..evaluation.clusters import read_on
    from ..evaluation.embeddings import EmbeddingMap, open_embeddings, require_like
    from ..evaluation.map_figures import score_maps
    from ..evaluation.plots import save

    before, after = open_embeddings(args.before), open_embeddings(args.after)
    if not isinstance(before, EmbeddingMap) or not isinstance(after, EmbeddingMap):
        raise InputError('Change is a difference of maps; give two .tif of embeddings.')
    require_like(args.output, before)
    if args.mask:
        require_like(args.mask, before)
    scores = change_maps(before, after)
    result = {}
    if args.labels:
        labels = read_on(before, args.labels, Resampling.mode).astype(int)
        result = {name: ranking(values, labels) for name, values in scores.items()}
    before.write(args.output, scores)
    if args.mask:
        chosen = scores[args.score]
        changed = (chosen > otsu(chosen)).astype(np.uint8)
        changed[np.isnan(chosen)] = 255
        before.write(args.mask, {'changed': changed})
    picture = args.picture or args.output.with_suffix('.png')
    title = f'{args.before.stem} to {args.after.stem}'
    save(score_maps(before, scores, title, _LABELS), picture)
    print(f'{args.output}, {picture}')
    print(json.dumps(result))


_LABELS = {
    'cosine': '1 - cosine of both dates',
    'difference': 'difference less its mean',
    'standardised': 'difference of standardised dates',
}
