"""How fast the I-JEPA training step is, beside that of facebookresearch/ijepa.

    python benchmarks/train_step.py --reference PATH   # PATH: a checkout of it that you bring

Both train the same encoder (ViT, patch 8, 64 px) and predictor on the same images with the same
masks, in turns, in one process: draw masks, encode the targets, encode the context, predict,
backward, AdamW, EMA. The masks that both compute on are drawn by the reference's MaskCollator;
each draws its own as well, and the time of that counts. The last line is one JSON object.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gfm_jepa.masks import Ground, MultiBlock
from gfm_jepa.models import Encoder, Predictor
from gfm_jepa.models.encoder import take
from gfm_jepa.tasks.base import frozen_copy
from gfm_jepa.tasks.ijepa import masked_smooth_l1, update_ema

Masks = tuple[Tensor, Tensor]  # context_ids (B, K), target_ids (B, M, T)


def our_step(args: argparse.Namespace) -> tuple[Callable[[Tensor, Masks], float], nn.Module]:
    """Build ours; returns the step, and its encoder."""
    encoder = Encoder(['rgb'], 8, args.width, args.depth, args.heads)
    predictor = Predictor(args.width, 1, args.predictor_width, args.predictor_depth, args.heads)
    target_encoder = frozen_copy(encoder)
    learning = [*encoder.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, fused=True)  # as our tasks do
    generator = torch.Generator().manual_seed(0)
    grid = args.size // 8
    count = grid * grid
    valid = torch.ones(args.batch_size, count, dtype=torch.bool)
    one_modality = torch.zeros(count, dtype=torch.long)
    ground = Ground(valid, torch.arange(count), (grid, grid), one_modality)

    def step(images: Tensor, masks: Masks) -> float:
        MultiBlock().sample(ground, generator)
        context_ids, target_ids = masks
        batch = {'rgb': images}
        with torch.no_grad():
            latents = target_encoder.forward_tokens(batch).values
            latents = F.layer_norm(latents, (args.width,))
            targets = take(latents, target_ids.flatten(1)).view(*target_ids.shape, -1)
        context = encoder.forward_tokens(batch, context_ids)
        predictions = predictor(context.values, context_ids, target_ids, context.layout)
        loss = masked_smooth_l1(predictions, targets, target_ids, context_ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_ema(target_encoder, encoder, 0.996)
        return loss.item()

    return step, encoder


def their_step(
    args: argparse.Namespace, modules: dict[str, Any]
) -> tuple[Callable[[Tensor, Masks], float], nn.Module, Callable[[Tensor], Masks]]:
    """Build the reference's; returns the step, its encoder, and what draws the masks."""
    vit = modules['src.models.vision_transformer']
    apply_masks = modules['src.masks.utils'].apply_masks
    norm = partial(nn.LayerNorm, eps=1e-6)
    encoder = vit.VisionTransformer(
        img_size=[args.size], patch_size=8, embed_dim=args.width, depth=args.depth,
        num_heads=args.heads, norm_layer=norm,
    )  # fmt: skip
    predictor = vit.VisionTransformerPredictor(
        (args.size // 8) ** 2, embed_dim=args.width, predictor_embed_dim=args.predictor_width,
        depth=args.predictor_depth, num_heads=args.heads, norm_layer=norm,
    )  # fmt: skip
    target_encoder = frozen_copy(encoder)
    learning = [p for m in (encoder, predictor) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    collator = modules['src.masks.multiblock'].MaskCollator(
        input_size=args.size, patch_size=8, enc_mask_scale=(0.85, 1.0), pred_mask_scale=(0.15, 0.2),
        aspect_ratio=(0.75, 1.5), nenc=1, npred=4,
        min_keep=4,  # its own default; the 10 of its configs never ends on a grid as small as this
    )  # fmt: skip
    samples = [torch.zeros(1)] * args.batch_size  # collated elsewhere: only the masks are timed

    def draw(_: Tensor) -> Masks:
        _, context, targets = collator(samples)
        return context[0], torch.stack(targets, dim=1)

    def step(images: Tensor, masks: Masks) -> float:
        collator(samples)
        context_ids, target_ids = [masks[0]], list(masks[1].unbind(1))
        with torch.no_grad():
            latents = target_encoder(images)
            latents = F.layer_norm(latents, (args.width,))
            targets = apply_masks(latents, target_ids)
        predictions = predictor(encoder(images, context_ids), context_ids, target_ids)
        loss = F.smooth_l1_loss(predictions, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for theirs, ours in zip(target_encoder.parameters(), encoder.parameters(), strict=True):
                theirs.mul_(0.996).add_((1.0 - 0.996) * ours.detach())
        return loss.item()

    return step, encoder, draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else '')
    parser.add_argument('--reference', type=Path, required=True, help='checkout of ijepa')
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--size', type=int, default=64, help='pixels')
    parser.add_argument('--width', type=int, default=192)
    parser.add_argument('--depth', type=int, default=6)
    parser.add_argument('--heads', type=int, default=3)
    parser.add_argument('--predictor-width', type=int, default=96)
    parser.add_argument('--predictor-depth', type=int, default=6)
    parser.add_argument('--steps', type=int, default=15, help='timed steps of each')
    args = parser.parse_args()
    if not (args.reference / 'src/models/vision_transformer.py').is_file():
        parser.error(
            f'{args.reference} is no checkout of facebookresearch/ijepa: it lacks src/models'
        )
    sys.path.insert(0, str(args.reference))
    names = ('src.models.vision_transformer', 'src.masks.multiblock', 'src.masks.utils')
    modules = {name: importlib.import_module(name) for name in names}
    torch.manual_seed(0)
    ours, encoder = our_step(args)
    theirs, reference, draw = their_step(args, modules)
    counts = [
        sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (encoder, reference)
    ]
    print(f'encoder parameters that learn: ours {counts[0]:,}, reference {counts[1]:,}')
    times: dict[str, list[float]] = {'ours': [], 'reference': []}
    for index in range(args.steps + 3):
        images = torch.rand(args.batch_size, 3, args.size, args.size) * 255
        masks = draw(images)
        for name, step in (('ours', ours), ('reference', theirs)):
            # Both see the same: ours normalises raw values inside, the reference before.
            x = images if name == 'ours' else (images - 127.5) / 73.6
            start = time.perf_counter()
            step(x, masks)
            if index >= 3:  # the first steps warm caches up
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(t) for name, t in times.items()}
    for name, seconds in median.items():
        print(f'{name:<10} {seconds:.3f} s a step, {args.batch_size / seconds:.0f} chips/s')
    result = {
        'ratio': round(median['reference'] / median['ours'], 3),
        'ours_s': round(median['ours'], 4),
        'reference_s': round(median['reference'], 4),
        'threads': torch.get_num_threads(),
        **{k: v for k, v in vars(args).items() if k != 'reference'},
    }
    print(json.dumps(result))


if __name__ == '__main__':
    main()
