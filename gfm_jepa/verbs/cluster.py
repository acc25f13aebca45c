"""`gfm-jepa cluster`: k-means of embeddings, as a map or a table, against labels if there are."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> None:
    """Cluster embeddings."""
    parser = argparse.ArgumentParser(
        'gfm-jepa cluster', description='k-means of what `gfm-jepa embed` wrote. The last line is '
        'JSON: purity and normalised mutual information, if labels are given.',
    )  # fmt: skip
    add = parser.add_argument
    add('embeddings', type=Path, help='.tif or .parquet')
    add('-k', type=int, default=8, help='clusters')
    add('-o', '--output', type=Path, required=True, help='.tif or .parquet, as the embeddings are')
    add('--labels', help='raster of classes; for a table, the name of a column')
    add('--seed', type=int, default=0)
    add('--picture', type=Path, help='PNG; beside the output by default')
    args = parser.parse_args(words)
    from ..evaluation.clusters import agreement, cluster, labels_of
    from ..evaluation.embeddings import open_embeddings, require_like
    from ..evaluation.map_figures import cluster_map
    from ..evaluation.plots import save
    from ..output_paths import picture_beside

    picture = picture_beside(args.output, args.picture, (args.embeddings, args.labels))
    embeddings = open_embeddings(args.embeddings)
    require_like(args.output, embeddings)
    found = cluster(embeddings, args.k, args.seed)
    result = {'k': args.k}
    if args.labels:
        result |= agreement(found.labels, labels_of(embeddings, args.labels))
    embeddings.write(args.output, {'cluster': found.labels})
    save(cluster_map(embeddings, found.labels, args.embeddings.name), picture)
    print(f'{args.output}, {picture}')
    print(json.dumps({k: round(v, 4) for k, v in result.items()}))
