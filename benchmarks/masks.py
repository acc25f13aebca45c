"""What drawing multi-block masks costs: a batch of 256 on a 14 x 14 grid.

The last line is one JSON object; milliseconds, median of 200 draws.
"""

import json
import statistics
import time

import torch

from gfm_jepa.masks import Ground, MultiBlock, multi_block


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    everything = torch.ones(256, 196, dtype=torch.bool)
    ground = Ground(everything, torch.arange(196), (14, 14), torch.zeros(196, dtype=torch.long))
    times: dict[str, list[float]] = {'masks_ms': [], 'masks_and_ids_ms': []}
    for _ in range(210):
        start = time.perf_counter()
        multi_block(256, (14, 14), generator)
        times['masks_ms'].append(1e3 * (time.perf_counter() - start))
        start = time.perf_counter()
        MultiBlock().sample(ground, generator)
        times['masks_and_ids_ms'].append(1e3 * (time.perf_counter() - start))
    result = {name: round(statistics.median(t[10:]), 3) for name, t in times.items()}
    print(json.dumps({**result, 'batch_size': 256, 'grid': [14, 14]}))


if __name__ == '__main__':
    main()
