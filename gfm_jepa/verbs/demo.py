"""`gfm-jepa demo`: the whole way on made-up landscapes."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> None:
    """The whole way on made-up landscapes."""
    parser = argparse.ArgumentParser(
        'gfm-jepa demo', description='Make landscapes, pretrain, probe, draw figures: 5 minutes.'
    )
    parser.add_argument('--output', type=Path, default=Path('demo'), help='folder of the results')
    parser.add_argument('--steps', type=int, default=800, help='optimizer steps')
    parser.add_argument('--places', type=int, default=16, help='landscapes to make')
    args = parser.parse_args(words)
    from ..demo import demo

    demo(args.output, steps=args.steps, places=args.places)
