"""Blended maps against the encoder run on a whole scene at once.

    python benchmarks/seams.py WEIGHTS SCENE -o seams.png

Embeds a small scene (at most --most pixels a side of it) as one window, and in windows that share
nothing, a quarter and a half. For each it prints the root mean square difference from the whole,
in standard deviations of the features, and the seam: the mean step of the features between
neighbouring cells where windows begin or end, over that elsewhere, over the same of the whole; 1 is
no seam. The picture shows three main components of each. The last line is one JSON object.
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
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from gfm_jepa.data.sidecars import Facts, facts_of
from gfm_jepa.errors import InputError, told_in_one_sentence
from gfm_jepa.evaluation.embeddings import open_map
from gfm_jepa.evaluation.latents import pca_colours, stretch
from gfm_jepa.evaluation.plots import save
from gfm_jepa.inference.embed import EmbedSettings, embed
from gfm_jepa.inference.scenes import find_scenes
from gfm_jepa.models.hub import from_pretrained


def cut(scene: Path, target: Path, window: Window) -> None:
    """Write a part of a scene, with what its file says of the values.

    Raises:
        InputError: If files beside it say more, which nobody would look for beside the copy.
    """
    if facts_of(scene) != Facts():
        raise InputError(
            f'{scene} is described by a YAML or STAC file beside it, which a cut part of it would '
            f'lack; write what that says into the raster.'
        )
    with rasterio.open(scene) as source:
        profile = {**source.profile, 'width': window.width, 'height': window.height,
                   'transform': source.window_transform(window), 'driver': 'GTiff'}  # fmt: skip
        for key in ('blockxsize', 'blockysize', 'tiled'):
            profile.pop(key, None)
        with rasterio.open(target, 'w', **profile) as written:
            written.write(source.read(window=window))
            written.descriptions = source.descriptions
            written.scales, written.offsets = source.scales, source.offsets
            written.colorinterp = source.colorinterp  # which says what is alpha
            if source.mask_flag_enums[0] == [MaskFlags.per_dataset]:
                written.write_mask(source.dataset_mask(window=window))


def features(path: Path) -> torch.Tensor:
    """All features of a map (D, h, w)."""
    shown = open_map(path)
    return torch.stack([torch.from_numpy(shown.image(shown.column(i)))
                        for i in range(len(shown.names))])  # fmt: skip


def steps_at_edges(values: torch.Tensor, window: int, stride: int) -> float:
    """Mean step between cells where windows begin or end, over that elsewhere, along both axes.

    Args:
        values: Features (D, h, w).
        window: Cells of a window.
        stride: Cells from one window to the next.
    """
    found = []
    for axis in (1, 2):
        steps = values.diff(dim=axis).abs().nanmean(dim=0).nanmean(dim=2 - axis)
        place = torch.arange(1, len(steps) + 1)
        meets = (place % stride == 0) | ((place - window) % stride == 0)
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
    patches = encoder.patch_sizes
    with rasterio.open(args.scene) as source:
        side = min(args.most, source.width, source.height)
    maps, overlaps = {}, [0, args.window // 4, args.window // 2]
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / args.scene.name
        cut(args.scene, part, Window(0, 0, side, side))
        scene = find_scenes([str(part)], encoder.modalities, patches, args.window)[0][0]
        patch = patches[scene.layers[0].name]
        shorter = min(scene.grid.height, scene.grid.width)
        if not 2 * patch <= args.window < shorter:
            raise InputError(
                f'The part is {shorter} pixels wide, in which windows of {args.window} have no '
                f'seam to measure; give a --window from {2 * patch} to {shorter - 1}, or a larger '
                f'--most.'
            )
        # One window over all of it, also where a geographic scene is warped.
        whole = -(-max(scene.grid.height, scene.grid.width) // patch) * patch
        for overlap in (None, *overlaps):
            output = Path(folder) / 'map.tif'
            window, shared = (whole, 0) if overlap is None else (args.window, overlap)
            embed(encoder, [str(part)], output, EmbedSettings(window, shared, overwrite=True),
                  say=lambda text: None)  # fmt: skip
            maps['whole' if overlap is None else f'overlap {overlap}'] = features(output)
    known = maps['whole']
    flat = known.flatten(1)[:, known[0].flatten().isfinite()]
    spread = flat.std(dim=1).square().mean().sqrt()
    result: dict[str, Any] = {'cells': list(known.shape[1:]), 'window': args.window}
    for overlap in overlaps:
        name = f'overlap {overlap}'
        gap = (maps[name] - known).square().nanmean().sqrt() / spread
        edges = (args.window // patch, (args.window - overlap) // patch)
        seam = steps_at_edges(maps[name], *edges) / steps_at_edges(known, *edges)
        result[name] = {'rms_from_whole': round(float(gap), 4), 'seam': round(seam, 4)}
        print(name, result[name])
    colours = stretch(pca_colours(torch.cat(list(maps.values()), dim=2)))
    figure = Figure(figsize=(3.4 * len(maps), 3.8), layout='constrained')
    parts = np.split(colours, len(maps), axis=1)
    for axis, image, name in zip(figure.subplots(1, len(maps)), parts, maps, strict=True):
        axis.imshow(image, interpolation='nearest')
        axis.set_axis_off()
        axis.set_title(f'{name}: seam {result[name]["seam"]:.2f}' if name in result else name)
    save(figure, args.output)
    print(json.dumps(result))


if __name__ == '__main__':
    with told_in_one_sentence('seams.py'):
        main()
