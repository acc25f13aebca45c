"""`gfm-jepa look`: figures of what an encoder sees in rasters, and what its predictor expects."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..inference.scenes import Scene
    from ..models import Encoder


def main(words: Sequence[str]) -> None:
    """Write figures."""
    parser = argparse.ArgumentParser(
        'gfm-jepa look', description='Figures of the middle of the first scene: main components '
        'of the patches, attention, what masks hide, and, of an I-JEPA checkpoint, predicted '
        'against actual latents; and t-SNE of windows of all scenes.',
    )  # fmt: skip
    add = parser.add_argument
    add('weights', help='checkpoint, folder, bundled name or Hub id')
    add('inputs', nargs='+', help='rasters or folders; NAME=PATH states what')
    add('-o', '--output', type=Path, required=True, help='folder for PNG files')
    add('--window', type=int, help='pixels; 128 by default')
    add('--windows', type=int, default=200, help='windows of the t-SNE, drawn at random')
    add('--seed', type=int, default=0, help='of windows and masks')
    args = parser.parse_args(words)
    from ..data.index import make_folder
    from ..errors import InputError
    from ..evaluation.plots import save
    from ..inference.scenes import find_scenes
    from ..models import Encoder
    from ..models.hub import from_pretrained

    encoder = from_pretrained(args.weights)
    if not isinstance(encoder, Encoder):
        raise InputError(f'{args.weights} is a timm model; its inside is not drawn.')
    scenes, _ = find_scenes(args.inputs, encoder.modalities, encoder.patch_sizes, args.window)
    make_folder(args.output)
    for name, figure in _figures(args, encoder, scenes).items():
        save(figure, args.output / f'{name}.png')
        print(args.output / f'{name}.png')


def _figures(
    args: argparse.Namespace, encoder: 'Encoder', scenes: 'Sequence[Scene]'
) -> 'dict[str, Figure]':
    """All figures by name."""
    import torch

    from ..data.open_files import OpenFiles
    from ..evaluation import latent_figures as draw
    from ..evaluation.prediction_errors import PredictionErrors
    from ..masks import Ground, MultiBlock, token_cells

    files = OpenFiles()
    first = scenes[0]
    row, col = (max(n - first.window, 0) // 2 // first.unit * first.unit
                for n in (first.grid.height, first.grid.width))  # fmt: skip
    batch = _batch(first, files, row, col)
    name = first.layers[0].name
    figures = {'components': draw.patch_components(encoder, batch),
               'attention': draw.attention_maps(encoder, batch, name)}  # fmt: skip
    layout = encoder.layout(batch)
    cells = token_cells(layout.positions, layout.extent, layout.finest)
    ground = Ground(encoder.valid_patches(batch), cells, layout.finest, layout.modality_ids, None)
    generator = torch.Generator().manual_seed(args.seed)
    hidden = MultiBlock().sample(ground, generator)
    figures['masks'] = draw.hidden_by_masks(encoder, batch, *hidden)
    if str(args.weights).endswith('.ckpt') and PredictionErrors.is_in(Path(args.weights)):
        model = PredictionErrors.from_checkpoint(Path(args.weights))
        figures['predicted'] = draw.predicted_latents(model, batch)
    embeddings, names = [], []
    for i in range(args.windows):
        scene = scenes[i % len(scenes)]
        steps = [max(n - scene.window, 0) // scene.unit + 1
                 for n in (scene.grid.height, scene.grid.width)]  # fmt: skip
        at = [int(torch.randint(n, (), generator=generator)) * scene.unit for n in steps]
        with torch.inference_mode():
            one = encoder(_batch(scene, files, *at))[0]
        if bool(one.isfinite().all()):
            embeddings.append(one)
            names.append(scene.name)
    files.close()
    if len(embeddings) >= 5:
        figures['tsne'] = draw.tsne(torch.stack(embeddings), names, args.seed)
    return figures


def _batch(scene: 'Scene', files: Any, row: int, col: int) -> dict[str, Any]:
    """One window as a batch."""
    import torch

    values = scene.read(files, row, col)
    return {**{n: torch.from_numpy(v)[None] for n, v in values.items()}, 'gsd': scene.gsd}
