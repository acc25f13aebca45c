"""`gfm-jepa dashboard`: one picture of a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> None:
    """One picture of a run."""
    parser = argparse.ArgumentParser(
        'gfm-jepa dashboard', description='Loss, online kNN, health, gradient norm and schedules '
        'of a run, from its newest metrics.csv, in one picture.',
    )  # fmt: skip
    parser.add_argument('run', type=Path, help='folder of a run, or its metrics.csv')
    parser.add_argument('-o', '--output', type=Path, required=True, help='png, pdf or svg to write')
    args = parser.parse_args(words)
    from ..output_paths import PICTURES, require_apart, require_ending

    require_ending(args.output, PICTURES)
    require_apart([args.output], [args.run])
    from ..evaluation.dashboard import write_dashboard

    print(write_dashboard(args.run, args.output))
