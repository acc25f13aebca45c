"""How many parameters each preset has, with which patch embedders.

The last line is one JSON object: parameters by preset, of the trunk and of each modality's linear
patch embedder at patch size 8.
"""

import json

import torch

from gfm_jepa.models import PRESETS, build_encoder

MODALITIES = ('rgb', 's2_l2a', 's1', 'dem')


def main() -> None:
    sizes = {}
    for preset in PRESETS:
        with torch.device('meta'):
            encoder = build_encoder(preset, MODALITIES)
        total = sum(p.numel() for p in encoder.parameters())
        parts = {
            m: sum(p.numel() for p in encoder.patch_embeds[m].parameters()) for m in MODALITIES
        }
        sizes[preset] = {'trunk': total - sum(parts.values()), **parts}
        own = ', '.join(f'{m} {n:,}' for m, n in parts.items())
        print(f'{preset:<6} trunk {sizes[preset]["trunk"]:>11,}; patch embedders: {own}')
    print(json.dumps(sizes))


if __name__ == '__main__':
    main()
