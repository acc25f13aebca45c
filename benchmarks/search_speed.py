"""Speed and recall of search among a million embeddings.

    python benchmarks/search_speed.py

Draws clustered vectors, searches them, and compares the ten found with those of float64 products.
The last line is one JSON object: milliseconds a query after loading (median),
those of all cores together, and recall@10.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch

from gfm_jepa.evaluation.search import Search


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--count', type=int, default=1_000_000)
    parser.add_argument('--dims', type=int, default=128)
    parser.add_argument('--queries', type=int, default=50)
    args = parser.parse_args()
    torch.manual_seed(0)
    centres = torch.randn(1000, args.dims)
    values = torch.empty(args.count, args.dims)
    for part in values.split(65536):
        part.copy_(centres[torch.randint(1000, (len(part),))] + 0.5 * torch.randn(part.shape))
    queries = values[torch.randint(args.count, (args.queries,))] + 0.1 * torch.randn(1, args.dims)
    search = Search(values.numpy())
    times, busy, hits = [], [], 0
    search(queries[0].numpy())
    for query in queries:
        start, cpu = time.perf_counter(), time.process_time()
        _, found = search(query.numpy(), 10)
        times.append(1000 * (time.perf_counter() - start))
        busy.append(1000 * (time.process_time() - cpu))
        exact = np.concatenate([
            torch.nn.functional.normalize(part.double(), dim=1) @ query.double()
            for part in values.split(65536)
        ])  # fmt: skip
        hits += len(np.intersect1d(found, np.argpartition(-exact, 10)[:10]))
    print(json.dumps({
        'count': args.count, 'dims': args.dims, 'threads': torch.get_num_threads(),
        'ms_per_query': round(statistics.median(times), 2),
        'cpu_ms_per_query': round(statistics.median(busy), 2),
        'recall_at_10': hits / (10 * args.queries),
    }))  # fmt: skip


if __name__ == '__main__':
    main()
