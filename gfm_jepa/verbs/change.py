"""`gfm-jepa change`: how much features differ between two dates."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..evaluation.embeddings import EmbeddingMap


def main(words: Sequence[str]) -> None:
    """Compare two maps."""
    parser = argparse.ArgumentParser(
        'gfm-jepa change', description='Difference of the features of two maps that `gfm-jepa '
        'embed` wrote, on the grid of the first; with --weights of two scenes, pixel by pixel, '
        'each date standardised. The last line is JSON: mean and maximum of each score; with '
        'labels, the area under its ROC curve, and F1 above its threshold by Otsu.',
    )  # fmt: skip
    add = parser.add_argument
    add('before', type=Path, help='.tif of the earlier date')
    add('after', type=Path, help='.tif of the later date, of the same weights')
    add('--weights', help='compare two scenes by the first stage of its stem, not two maps')
    add('--modality', help='with --weights: of the scenes; the first of the weights by default')
    add('--bands', nargs='+', help="with --weights: the modality's names of the scenes' bands, or "
        'those to pick by name of scenes with more')  # fmt: skip
    add('-o', '--output', type=Path, required=True, help='.tif')
    add('--labels', type=Path, help='raster that is above 0 where something has changed')
    add('--mask', type=Path, help='.tif to write: 1 where the score lies above its threshold by '
        'Otsu, 0 below')  # fmt: skip
    add('--score', choices=('cosine', 'difference', 'standardised'),
        help='of --mask: standardised by default; of scenes there is one')  # fmt: skip
    add('--picture', type=Path, help='PNG; beside the output by default')
    args = parser.parse_args(words)
    import numpy as np
    from rasterio.enums import Resampling

    from ..errors import InputError
    from ..evaluation.change import change_maps, otsu, ranking, summary
    from ..evaluation.clusters import read_on
    from ..evaluation.embeddings import (
        EmbeddingMap,
        open_embeddings,
        open_map,
        require_like,
        require_same_weights,
    )
    from ..evaluation.map_figures import score_maps
    from ..evaluation.plots import save
    from ..output_paths import picture_beside

    if args.score and (args.weights or not args.mask):
        raise InputError(
            '--score says which score --mask is made of, of maps; give --mask and no --weights, or '
            'leave it out.'
        )
    if not args.weights and (args.modality or args.bands):
        raise InputError(
            '--modality and --bands say what scenes hold; leave them out to compare maps, or give '
            '--weights.'
        )
    read = (args.before, args.after, args.labels, args.weights)
    picture = picture_beside(args.output, args.picture, read, args.mask)
    opened = open_map if args.weights else open_embeddings  # scenes, or maps
    before, after = opened(args.before), opened(args.after)
    if not isinstance(before, EmbeddingMap) or not isinstance(after, EmbeddingMap):
        raise InputError('Change is a difference of maps; give two .tif of embeddings.')
    require_like(args.output, before)
    require_like(args.output, after)
    if args.mask:
        require_like(args.mask, before)
        require_like(args.mask, after)
    if args.weights:
        scores = {'pixels': _by_pixel(args, before, replace(after, like=before))}
    else:
        require_same_weights(before, after)
        scores = change_maps(before, after)
    result = {name: summary(values) for name, values in scores.items()}
    if args.labels:
        marks = read_on(before, args.labels, Resampling.mode)
        labels = np.where(np.isfinite(marks) & (marks >= 0), marks > 0, -1)
        result = {name: ranking(values, labels) for name, values in scores.items()}
    changed = None
    if args.mask:  # before anything is written: scores may be all alike
        chosen = scores['pixels' if args.weights else args.score or 'standardised']
        changed = (chosen > otsu(chosen)).astype(np.uint8)
        changed[np.isnan(chosen)] = 255
    before.write(args.output, scores)
    if changed is not None:
        before.write(args.mask, {'changed': changed})
    title = f'{args.before.stem} to {args.after.stem}'
    save(score_maps(before, scores, title, _LABELS), picture)
    print(f'{args.output}, {picture}')
    print(json.dumps(result))


def _by_pixel(
    args: argparse.Namespace, before: 'EmbeddingMap', after: 'EmbeddingMap'
) -> 'NDArray[np.float32]':
    """Scores of two scenes by place."""
    from ..errors import InputError
    from ..evaluation.pixel_change import band_orders, bands_of, pixel_change
    from ..models import Encoder
    from ..models.hub import from_pretrained

    wanted = args.modality and [args.modality]
    bands = args.bands and {args.modality: args.bands}
    if bands and not args.modality:
        raise InputError('--bands are names of a modality; say which with --modality.')
    encoder = from_pretrained(args.weights, modalities=wanted, bands=bands)
    if not isinstance(encoder, Encoder):
        raise InputError(f'{args.weights} is a timm model; compare maps of `gfm-jepa embed`.')
    modality = args.modality or next(iter(encoder.modalities))
    orders = band_orders(before, after, encoder.modalities[modality], stated=bool(bands))
    dates = [bands_of(x, order) for x, order in zip((before, after), orders, strict=True)]
    return pixel_change(encoder, modality, *dates).ravel()


_LABELS = {
    'cosine': '1 - cosine of both dates',
    'difference': 'difference less its mean',
    'standardised': 'difference of standardised dates',
    'pixels': 'difference of standardised bands and responses',
}
