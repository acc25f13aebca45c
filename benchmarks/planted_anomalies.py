"""Whether anomaly scores rank planted anomalies above normal chips of real rasters.

    python benchmarks/planted_anomalies.py WEIGHTS SCENE... --other CITY_SCENE

Cuts scenes into chips; every second one counts as known, the others are scored as they are, and
again with something planted: a chip of another scene, a cloud, a sensor stripe, a shifted band.
The last line is one JSON object: for each score and kind, the share of the planted chips that score
above 95 % of the normal ones.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gfm_jepa.data.open_files import OpenFiles
from gfm_jepa.errors import InputError, told_in_one_sentence
from gfm_jepa.evaluation.anomalies import KnownEmbeddings
from gfm_jepa.evaluation.band_correlations import BandCorrelations
from gfm_jepa.evaluation.prediction_errors import FEATURES, PredictionErrors
from gfm_jepa.inference.scenes import Scene, find_scenes
from gfm_jepa.models import BaseEncoder
from gfm_jepa.models.hub import from_pretrained

Plant = Callable[[Tensor, torch.Generator], Tensor]
Chips = list[tuple[Tensor, float]]  # of each scene (N, C, S, S), and its gsd in metres


def chips_of(scenes: list[Scene], name: str) -> Chips:
    """Whole chips of one modality without missing values in bands that are there.

    Raises:
        InputError: If a scene is of another modality, or there is no chip.
    """
    files, chips = OpenFiles(), []
    for scene in scenes:
        if scene.layers[0].name != name:
            raise InputError(
                f'{scene.file.path} is {scene.layers[0].name}, where {name} was expected; give '
                f'scenes of one sensor, as {name}=PATH if need be.'
            )
        found = []
        for row in range(0, scene.grid.height - scene.window + 1, scene.window):
            for col in range(0, scene.grid.width - scene.window + 1, scene.window):
                values = scene.read(files, row, col)[name]
                if np.isfinite(values).any(axis=0).mean() == 1:
                    found.append(torch.from_numpy(values))
        if found:
            chips.append((torch.stack(found), scene.grid.gsd))
    files.close()
    if not chips:
        raise InputError(
            f'{scenes[0].file.path} has no whole window of {scenes[0].window} pixels without gaps; '
            f'give a larger scene, or a smaller --window.'
        )
    return chips


def count(chips: Chips) -> int:
    """Number of chips."""
    return sum(len(part) for part, _ in chips)


def every_second(chips: Chips, first: int) -> Chips:
    """Half of the chips of each scene."""
    return [(part[first::2], gsd) for part, gsd in chips]


def some_of(chips: Chips, most: int, generator: torch.Generator) -> Chips:
    """So many chips at most, drawn at random."""
    drawn, found, start = torch.randperm(count(chips), generator=generator)[:most], [], 0
    for part, gsd in chips:
        own = drawn[(drawn >= start) & (drawn < start + len(part))] - start
        found.append((part[own], gsd))
        start += len(part)
    return found


def batches(chips: Chips, name: str) -> Iterator[dict[str, Any]]:
    """Chips as the encoder takes them, those of one gsd together."""
    for chip, gsd in chips:
        yield from ({name: some, 'gsd': {name: gsd}} for some in chip.split(16) if len(some))


def cloud(chip: Tensor, generator: torch.Generator) -> Tensor:
    """A bright disc with a soft edge, over a third of the chip."""
    side = chip.shape[-1]
    at = side * (0.3 + 0.4 * torch.rand(2, generator=generator))
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing='ij')
    gone = torch.hypot(row - at[0], col - at[1]) / (0.33 * side)
    opaque = (1.5 - gone).clamp(0, 1)
    bright = chip.nan_to_num(0).amax(dim=(1, 2), keepdim=True) * 1.3
    return chip * (1 - opaque) + bright * opaque


def stripe(chip: Tensor, generator: torch.Generator) -> Tensor:
    """Every eighth row of all bands at twice its value."""
    shown = chip.clone()
    start = int(torch.randint(8, (), generator=generator))
    shown[:, start::8] *= 2
    return shown


def shifted_band(chip: Tensor, generator: torch.Generator) -> Tensor:
    """A band moved by six pixels, and another turned upside down."""
    shown = chip.clone()
    first, second = torch.randperm(len(chip), generator=generator)[:2]
    shown[first] = shown[first].roll((6, 6), dims=(0, 1))
    shown[second] = shown[second].flip(0)
    return shown


def scores(
    encoder: BaseEncoder, model: PredictionErrors | None, known: KnownEmbeddings,
    deep: KnownEmbeddings, pairs: tuple[BandCorrelations, KnownEmbeddings], chips: Chips, name: str,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Every score of chips, (N,) each."""
    found: dict[str, list[np.ndarray]] = {}
    for batch in batches(chips, name):
        with torch.inference_mode():
            values = encoder(batch).numpy()
            one = {'mahalanobis': known.mahalanobis(values), 'nearest': known.nearest(values)}
            depths = encoder.forward_depths(batch).numpy()
            one['depths'] = deep.mahalanobis(depths)
            one['bands'] = pairs[1].mahalanobis(pairs[0](batch).numpy())
            if model is not None:
                errors = model(batch).numpy()
                one |= {key: errors[:, i] for i, key in enumerate(FEATURES)}
        for key, value in one.items():
            found.setdefault(key, []).append(value)
    return {key: np.concatenate(parts) for key, parts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('weights')
    parser.add_argument('scenes', nargs='+')
    parser.add_argument('--other', required=True, help='scene of another kind of ground')
    parser.add_argument('--window', type=int, default=64, help='pixels')
    args = parser.parse_args()
    encoder = from_pretrained(args.weights)
    is_task = args.weights.endswith('.ckpt') and PredictionErrors.is_in(Path(args.weights))
    model = PredictionErrors.from_checkpoint(Path(args.weights)) if is_task else None
    wanted = [args.scenes, [args.other]]
    scenes, others = (
        find_scenes(paths, encoder.modalities, encoder.patch_sizes, args.window)[0]
        for paths in wanted
    )
    name = scenes[0].layers[0].name
    chips, foreign = chips_of(scenes, name), chips_of(others, name)
    train, test = every_second(chips, 0), every_second(chips, 1)
    if not count(test):
        raise InputError(
            f'No scene has two whole windows of {args.window} pixels; give a larger one, or a '
            f'smaller --window.'
        )
    bands = BandCorrelations(scenes[0].file.modality)
    with torch.inference_mode():
        known, deep, correlated = (
            KnownEmbeddings(torch.cat([embed(b) for b in batches(train, name)]).numpy())
            for embed in (encoder, encoder.forward_depths, bands)
        )
    pairs = bands, correlated
    normal = scores(encoder, model, known, deep, pairs, test, name)
    generator = torch.Generator().manual_seed(0)
    planted = {'other_ground': some_of(foreign, 64, generator)}
    plants: dict[str, Plant] = {'cloud': cloud, 'stripe': stripe, 'shifted_band': shifted_band}
    for kind, plant in plants.items():
        planted[kind] = [
            (torch.stack([plant(chip, generator) for chip in part]), gsd)
            for part, gsd in test if len(part)
        ]  # fmt: skip
    result: dict[str, object] = {'known': count(train), 'normal': count(test)}
    for kind, some in planted.items():
        found = scores(encoder, model, known, deep, pairs, some, name)
        result[kind] = {
            key: round(float((values > np.percentile(normal[key], 95)).mean()), 3)
            for key, values in found.items()
        }
        print(kind, result[kind], flush=True)
    print(json.dumps(result))


if __name__ == '__main__':
    with told_in_one_sentence('planted_anomalies.py'):
        main()
