"""Signal-biased masks against random ones on a made sparse scene, such as galaxies on dark sky.

    python benchmarks/sparse_scene.py

Makes chips of noise with one small source each (disc, ring, bar, pair or cross; place, turn,
size and brightness at random), trains `IJEPA` on them twice, with as many cells in the context, and
probes the frozen encoder for the kind of source, beside one that was not trained. The last line is
one JSON object: share of context patches on the source, kNN-5 and linear accuracy over seeds.
"""

import argparse
import json
import statistics
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gfm_jepa.evaluation.features import extract_features
from gfm_jepa.evaluation.probes import knn_probe, linear_probe
from gfm_jepa.masks import Mask, RandomCells, SignalBiased
from gfm_jepa.modalities import Modality
from gfm_jepa.tasks import IJEPA, EncoderConfig, OptimizerConfig
from gfm_jepa.tasks.ijepa import sample_masks

KINDS = ('disc', 'ring', 'bar', 'pair', 'cross')
SIDE, PATCH = 32, 4
SKY = Modality('sky', ('flux',), 1.0, 'count', (0.2,), (1.0,), 'made up here')


class SparseScenes(Dataset[dict[str, Tensor]]):
    """Chips with one source each.

    Args:
        count: Chips.
        seed: Of everything.

    Attributes:
        on_source: (N, H / p, W / p) boolean, True for a patch that the source touches.
    """

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(len(KINDS), (count,), generator=generator)
        u = torch.rand(6, count, 1, 1, generator=generator)
        size = 4 + 2 * u[0]  # pixels
        row = size + (SIDE - 2 * size) * u[1]
        col = size + (SIDE - 2 * size) * u[2]
        y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing='ij')
        cos, sin = (2 * torch.pi * u[3]).cos(), (2 * torch.pi * u[3]).sin()
        along = ((x - col) * cos + (y - row) * sin) / size
        across = ((y - row) * cos - (x - col) * sin) / size
        radius = (along.square() + across.square()).sqrt()
        in_bar = (along.abs() < 1) & (across.abs() < 0.3)
        two = ((along.abs() - 0.7).square() + across.square()).sqrt() < 0.3
        in_cross = in_bar | ((across.abs() < 1) & (along.abs() < 0.3))
        masks = torch.stack([radius < 0.8, (radius < 1) & (radius > 0.6), in_bar, two, in_cross])
        source = masks[self.labels, torch.arange(count)]
        noise = 0.15 * torch.randn(count, SIDE, SIDE, generator=generator)
        self.chips = (source * (3 + 3 * u[4]) + noise).unsqueeze(1)
        blocks = source.view(count, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH)
        self.on_source = blocks.any(dim=4).any(dim=2)

    def __len__(self) -> int:
        return len(self.chips)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'sky': self.chips[index], 'label': self.labels[index]}


def pretrain(scenes: SparseScenes, masks: Mask, steps: int) -> IJEPA:
    """Train I-JEPA with the given masks."""
    task = IJEPA(
        [SKY.to_dict()], EncoderConfig('nano', patch_size=PATCH), OptimizerConfig(lr=1e-3), masks,
        ema=(0.99, 1.0),
    )  # fmt: skip
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(task, DataLoader(scenes, 64, shuffle=True, drop_last=True))
    return task


def share_on_source(task: IJEPA, scenes: SparseScenes) -> float:
    """Share of the context patches that touch a source."""
    batch = {'sky': scenes.chips[:512]}
    generator = torch.Generator().manual_seed(0)
    context_ids, _ = sample_masks(task.masks, task.encoder, batch, generator)
    touched = scenes.on_source[:512].flatten(1).gather(1, context_ids.clamp_min(0))
    return float(touched[context_ids >= 0].float().mean())


def measure(masks: Mask, steps: int, seed: int) -> dict[str, float]:
    """Train, and probe on scenes that training has not seen."""
    torch.manual_seed(seed)
    scenes = SparseScenes(4096, seed)
    task = pretrain(scenes, masks, steps)
    parts = [scenes, SparseScenes(1024, seed + 1000), SparseScenes(2048, seed + 2000)]
    encoder = task.evaluated_encoder
    train, val, test = (
        extract_features(lambda batch: encoder(batch), part, progress=False) for part in parts
    )
    return {
        'context_on_source': share_on_source(task, scenes),
        'knn5': knn_probe(train, test, k=5).accuracy,
        'linear': linear_probe(train, val, test, progress=False).accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--steps', type=int, default=1000)
    parser.add_argument('--seeds', type=int, default=2)
    args = parser.parse_args()
    # A source covers 7 cells of 64, of which the biased masks show half: 3 cells, too.
    random, biased = RandomCells((0.05, 0.05)), SignalBiased()
    kinds: dict[str, tuple[Mask, int]] = {
        'not_trained': (random, 0), 'random': (random, args.steps),
        'signal_biased': (biased, args.steps),
    }  # fmt: skip
    result: dict[str, Any] = {'steps': args.steps, 'seeds': args.seeds}
    for name, (masks, steps) in kinds.items():
        found = [measure(masks, steps, seed) for seed in range(args.seeds)]
        result[name] = {k: round(statistics.mean(f[k] for f in found), 4) for k in found[0]}
        for score in ('knn5', 'linear'):
            values = [f[score] for f in found]
            result[name][f'{score}_spread'] = round(max(values) - min(values), 4)
        print(name, result[name], flush=True)
    print(json.dumps(result))


if __name__ == '__main__':
    main()
