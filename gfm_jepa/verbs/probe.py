"""`gfm-jepa probe`: frozen features of weights, kNN and linear."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> None:
    """Frozen features, kNN and linear, with baselines."""
    parser = argparse.ArgumentParser(
        'gfm-jepa probe', description='kNN-5 and linear accuracy of frozen features, baselines '
        'beside them: image statistics, random convolutional features, a random-init twin.',
    )  # fmt: skip
    parser.add_argument('weights', help='checkpoint, folder or Hub id')
    parser.add_argument('--dataset', required=True, help='such as eurosat-rgb-spatial')
    parser.add_argument('--root', required=True, help='folder of the data set')
    parser.add_argument('--features', default='embedding', choices=('embedding', 'depths'))
    parser.add_argument('--output', type=Path, help='write the rows to this JSON file')
    parser.add_argument('--figures', type=Path, help='write figures into this folder')
    parser.add_argument('--no-baselines', action='store_true', help='the weights alone')
    args = parser.parse_args(words)
    from ..output_paths import require_apart, require_ending, require_folder

    if args.output:
        require_ending(args.output, ('.json',))
        require_apart([args.output], (args.weights, Path(args.weights) / 'config.json'))
    if args.figures:
        require_folder(args.figures)
    from ..data.benchmarks import load_benchmark
    from ..evaluation.probes import report
    from ..models.hub import from_pretrained

    report(
        from_pretrained(args.weights), args.weights, load_benchmark(args.dataset, args.root),
        features=args.features, baselines=not args.no_baselines, output=args.output,
        figures=args.figures,
    )  # fmt: skip
