"""`gfm-jepa look`: figures of what an encoder sees in rasters, and what its predictor expects."""

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..inference.windows import Windows
    from ..models import Encoder

FIGURES = {
    'components': 'main components of the patches of the middle of the first scene',
    'attention': 'attention of the last block there',
    'masks': 'what masks hide there',
    'predicted': 'predicted against actual latents there, of an I-JEPA checkpoint',
    'tsne': 'windows of all scenes in the plane',
    'umap': 'the same, and UMAP beside it; needs umap-learn',
    'modalities': 'embeddings of windows of the first scene without a modality, and of it alone',
    'resolution': 'embeddings of those windows from coarser pixels',
}


def main(words: Sequence[str]) -> None:
    """Write figures."""
    parser = argparse.ArgumentParser(
        'gfm-jepa look', description='Figures of what an encoder sees: '
        + '; '.join(f'{name}: {what}' for name, what in FIGURES.items()) + '.',
    )  # fmt: skip
    add = parser.add_argument
    add('weights', help='checkpoint, folder, bundled name or Hub id')
    add('inputs', nargs='+', help='rasters or folders; NAME=PATH states what')
    add('-o', '--output', type=Path, required=True, help='folder for PNG files')
    add('--figures', nargs='+', choices=FIGURES, help='by default all that can be drawn')
    add('--window', type=int, help='pixels; 128 by default')
    add('--windows', type=int, default=200, help='drawn at random')
    add('--seed', type=int, default=0, help='of windows and masks')
    args = parser.parse_args(words)
    from ..data.index import make_folder
    from ..errors import InputError, require_seed
    from ..evaluation.plots import save
    from ..inference.scenes import find_scenes
    from ..inference.windows import Windows
    from ..models import Encoder
    from ..models.hub import from_pretrained
    from ..output_paths import require_apart, require_folder

    require_seed(args.seed)
    if args.windows < 1:
        raise InputError(f'--windows is {args.windows}; give at least 1.')
    pictures = {name: args.output / f'{name}.png' for name in args.figures or FIGURES}
    require_folder(args.output)
    require_apart(pictures.values(), (args.weights, *args.inputs))
    encoder = from_pretrained(args.weights)
    if not isinstance(encoder, Encoder):
        raise InputError(f'{args.weights} is a timm model; its inside is not drawn.')
    scenes, _ = find_scenes(args.inputs, encoder.modalities, encoder.patch_sizes, args.window)
    with closing(Windows(encoder, scenes, args.windows, args.seed)) as windows:
        for name, picture in pictures.items():
            try:
                figure = _draw(name, args, encoder, windows)
            except InputError as error:
                if args.figures:
                    raise
                print(f'{name} is left out: {error}')
                continue
            make_folder(args.output)
            save(figure, picture)
            print(picture)


def _draw(name: str, args: argparse.Namespace, encoder: 'Encoder', windows: 'Windows') -> 'Figure':
    """One figure."""
    from ..evaluation import latent_figures, plane_figures, robustness_figures
    from ..evaluation.prediction_errors import PredictionErrors

    match name:
        case 'components':
            return latent_figures.patch_components(encoder, windows.middle)
        case 'attention':
            first = windows.scenes[0].layers[0].name
            return latent_figures.attention_maps(encoder, windows.middle, first)
        case 'masks':
            return _masks(args.seed, encoder, windows)
        case 'predicted':
            model = PredictionErrors.from_checkpoint(Path(args.weights))
            return latent_figures.predicted_latents(model, windows.middle)
        case 'tsne':
            return plane_figures.tsne(*windows.embedded, args.seed)
        case 'umap':
            return plane_figures.umap(*windows.embedded, args.seed)
        case 'modalities':
            return robustness_figures.draw_without_modalities(encoder, windows.beside)
        case _:
            return robustness_figures.draw_coarser(encoder, windows.beside)


def _masks(seed: int, encoder: 'Encoder', windows: 'Windows') -> 'Figure':
    """What one draw of I-JEPA's masks hides."""
    import torch

    from ..evaluation.latent_figures import hidden_by_masks
    from ..masks import Ground, MultiBlock, token_cells

    batch = windows.middle
    layout = encoder.layout(batch)
    cells = token_cells(layout.positions, layout.extent, layout.finest)
    ground = Ground(encoder.valid_patches(batch), cells, layout.finest, layout.modality_ids, None)
    hidden = MultiBlock().sample(ground, torch.Generator().manual_seed(seed))
    return hidden_by_masks(encoder, batch, *hidden)
