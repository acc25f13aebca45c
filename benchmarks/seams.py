"""Blended maps against the encoder run on a whole scene at once.

    python benchmarks/seams.py WEIGHTS SCENE -o seams.png

Embeds a small scene (at most --most pixels a side of it) as one window, and in windows that share
nothing, a quarter and a half. For each it prints the root mean square difference from the whole,
in standard deviations of the features, and the seam: the mean step of the features between
neighbouring cells where windows meet, over that elsewhere; 1 is no seam. The picture shows three
main components of each. The last line is one JSON object.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from matplotlib.figure import Figure
from rasterio.windows import Window

from gfm_jepa.evaluation.embeddings import open_map
from gfm_jepa.evaluation.latents import pca_colours, stretch
from gfm_jepa.evaluation.plots import save
from gfm_jepa.inference.embed import EmbedSettings, embed
from gfm_jepa.models.hub import from_pretrained


def cut(scene: Path, target: Path, side: int) -> None:
    """Write the top left of a scene."""
    with rasterio.open(scene) as source:
        profile = {**source.profile, 'width': side, 'height': side, 'driver': 'GTiff'}
        names = source.descriptions
        for key in ('blockxsize', 'blockysize', 'tiled'):
            profile.pop(key, None)
        with rasterio.open(target, 'w', **profile) as written:
            written.write(source.read(window=Window(0, 0, side, side)))
            written.descriptions = names


def features(path: Path) -> torch.Tensor:
    """All features of a map (D, h, w)."""
    shown = open_map(path)
    return torch.stack([torch.from_numpy(shown.image(shown.column(i)))
                        for i in range(len(shown.names))])  # fmt: skip


def seam(values: torch.Tensor, period: int) -> float:
    """Mean step between cells where windows meet, over that elsewhere, along both axes."""
    found = []
    for axis in (1, 2):
        steps = values.diff(dim=axis).abs().nanmean(dim=0).nanmean(dim=2 - axis)
        meets = torch.arange(1, len(steps) + 1) % period == 0
        found.append(float(steps[meets].nanmean() / steps[~meets].nanmean()))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('weights')
    parser.add_argument('scene', type=Path, help='its name or its bands say the modality')
    parser.add_argument('-o', '--output', type=Path, required=True, help='PNG')
    parser.add_argument('--window', type=int, default=64, help='pixels')
    parser.add_argument('--most', type=int, default=256, help='side of the part, pixels')
    args = parser.parse_args()
    encoder = from_pretrained(args.weights)
    patch = next(iter(encoder.patch_sizes.values()))
    with rasterio.open(args.scene) as source:
        side = min(args.most, source.width, source.height) // args.window * args.window
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / args.scene.name
        cut(args.scene, part, side)
        maps = {}
        for name, window, overlap in (
            ('whole', side, 0), *((f'overlap {o}', args.window, o)
                                  for o in (0, args.window // 4, args.window // 2)),
        ):  # fmt: skip
            output = Path(folder) / 'map.tif'
            settings = EmbedSettings(window, overlap, overwrite=True)
            embed(encoder, [str(part)], output, settings, say=lambda text: None)
            maps[name] = features(output)
    spread = maps['whole'].flatten(1).std(dim=1).square().mean().sqrt()
    result: dict[str, Any] = {'cells': list(maps['whole'].shape[1:])}
    for name, values in maps.items():
        gap = (values - maps['whole']).square().nanmean().sqrt() / spread
        result[name] = {'rms_from_whole': round(float(gap), 4),
                        'seam': round(seam(values, args.window // patch), 4)}  # fmt: skip
        print(name, result[name])
    colours = stretch(pca_colours(torch.cat(list(maps.values()), dim=2)))
    figure = Figure(figsize=(3.4 * len(maps), 3.8), layout='constrained')
    parts = np.split(colours, len(maps), axis=1)
    for axis, image, name in zip(figure.subplots(1, len(maps)), parts, maps, strict=True):
        axis.imshow(image, interpolation='nearest')
        axis.set_axis_off()
        axis.set_title(f'{name}: seam {result[name]["seam"]:.2f}')
    save(figure, args.output)
    print(json.dumps(result))


if __name__ == '__main__':
    main()
