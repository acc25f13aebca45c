"""`gfm-jepa anomalies`: how unlike what is known each place is."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.embeddings import EmbeddingMap


def main(words: Sequence[str]) -> None:
    """Score places."""
    parser = argparse.ArgumentParser(
        'gfm-jepa anomalies', description='Distance of embeddings to those of the training data '
        '(Mahalanobis, nearest neighbours); with --predictor, how badly an I-JEPA predicts each '
        'place of rasters from the others; with --bands, how unlike elsewhere the bands of rasters '
        'go together (shifted bands, stripes). The last line is JSON: the highest scores.',
    )  # fmt: skip
    add = parser.add_argument
    add('inputs', nargs='+', help='.tif or .parquet of embeddings, or rasters')
    add('-o', '--output', type=Path, required=True, help='.tif or .parquet')
    add('--train', type=Path, help='what counts as normal, of the same kind; by default the input')
    add('--neighbours', type=int, help='that the distance to neighbours is a mean of; 5 by default')
    add('--predictor', type=Path, help='checkpoint of an I-JEPA, whose prediction error is mapped')
    add('--bands', metavar='MODALITY', help='compare the bands of rasters of this modality')
    add('--window', type=int, help='of the rasters, pixels; 128 by default')
    add('--overwrite', action='store_true', help='replace what is there, with --predictor')
    add('--picture', type=Path, help='PNG; beside the output by default')
    args = parser.parse_args(words)
    from ..errors import InputError
    from ..evaluation.anomalies import highest, score_anomalies
    from ..evaluation.embeddings import (
        Embeddings,
        open_embeddings,
        require_like,
        require_same_weights,
    )
    from ..evaluation.map_figures import score_maps
    from ..evaluation.plots import save
    from ..output_paths import picture_beside, require_clear

    if args.bands and args.predictor:
        raise InputError('Give --bands or --predictor, not both.')
    if args.predictor and (args.train or args.neighbours is not None):
        raise InputError(
            'A prediction error is compared with nothing; leave out --train and --neighbours, or '
            '--predictor.'
        )
    args.neighbours = 5 if args.neighbours is None else args.neighbours
    if args.neighbours < 1:
        raise InputError(f'--neighbours is {args.neighbours}; give at least 1.')
    picture = picture_beside(args.output, args.picture, (*args.inputs, args.train, args.predictor))
    if args.bands or args.predictor:
        if args.output.suffix.lower() not in ('.tif', '.tiff'):
            raise InputError(f'{args.output} should end in .tif: what comes of rasters is a map.')
        require_clear(args.output, (*args.inputs, args.train))
        found = _score_bands(args) if args.bands else _prediction_errors(args)
        scores = {name: found.column(i) for i, name in enumerate(found.names)}
        shown: Embeddings = found
    else:
        if len(args.inputs) > 1:
            raise InputError(
                'Give one file of embeddings; several rasters go with --predictor or --bands.'
            )
        shown = open_embeddings(Path(args.inputs[0]))
        require_like(args.output, shown)
        known = open_embeddings(args.train) if args.train else None
        if known is not None:
            require_same_weights(shown, known)
        scores = score_anomalies(shown, known, args.neighbours)
        shown.write(args.output, scores)
    save(score_maps(shown, scores, 'anomalies', _LABELS), picture)
    print(f'{args.output}, {picture}')
    print(json.dumps({name: highest(shown, values) for name, values in scores.items()}))


def _prediction_errors(args: argparse.Namespace) -> 'EmbeddingMap':
    """Map how badly each place is predicted."""
    from ..evaluation.embeddings import open_map
    from ..evaluation.prediction_errors import FEATURES, PredictionErrors
    from ..inference.embed import EmbedSettings, embed

    # Errors grow towards the edges of a window, where less is seen: half of it is shared.
    window = args.window or 128
    settings = EmbedSettings(window, window // 2, overwrite=args.overwrite)
    model = PredictionErrors.from_checkpoint(args.predictor)
    embed(model, args.inputs, args.output, settings, names=FEATURES)
    return open_map(args.output)


def _score_bands(args: argparse.Namespace) -> 'EmbeddingMap':
    """Map how unlike elsewhere, or unlike in known rasters, the bands of a scene go together."""
    import numpy as np

    from ..data.index import make_folder
    from ..errors import InputError
    from ..evaluation.anomalies import score_anomalies
    from ..evaluation.band_correlations import BandCorrelations
    from ..evaluation.embeddings import open_map
    from ..inference.embed import EmbedSettings, embed
    from ..modalities import resolve

    make_folder(args.output.parent)
    model = BandCorrelations(resolve(args.bands)).eval()
    with TemporaryDirectory(dir=args.output.parent) as folder:

        def correlated(paths: Sequence[str], name: str) -> 'EmbeddingMap':
            path = Path(folder) / name
            embed(model, paths, path, EmbedSettings(args.window, overlap=0), lambda text: None)
            found = open_map(path)
            if not np.isfinite(found.column(0)).any():
                raise InputError(
                    f'No cell of {", ".join(paths)} has enough data to correlate its bands; look '
                    f'at its nodata value, or take other rasters.'
                )
            return found

        scene = correlated(args.inputs, 'scene.tif')
        known = correlated([str(args.train)], 'known.tif') if args.train else None
        scene.write(args.output, score_anomalies(scene, known, args.neighbours))
    return open_map(args.output)


_LABELS = {
    'mahalanobis': 'distance (standard deviations)', 'nearest': 'cosine distance to the nearest',
    'cosine_error': '1 - cosine of prediction and target', 'l1_error': 'smooth L1 of prediction',
}  # fmt: skip
