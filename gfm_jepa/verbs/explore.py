"""`gfm-jepa explore`: a page of what rasters hold."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .raster_arguments import add_raster_arguments, chip_size_of, filter_of


def main(words: Sequence[str]) -> None:
    """A look at any rasters."""
    parser = argparse.ArgumentParser(
        'gfm-jepa explore', description='Look at rasters before pretraining: statistics beside the '
        'stated ones, histograms, example chips, valid and cloud shares, footprints, quicklooks, '
        'and what is left out: one HTML page that needs no network, and its figures as PNG.',
    )  # fmt: skip
    add_raster_arguments(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to write')
    parser.add_argument('--patch-size', type=int, default=8, help='of the encoder, pixels')
    parser.add_argument('--chips', type=int, default=64, help='most chips to read per modality')
    parser.add_argument('--seed', type=int, default=0, help='of the chips that are drawn')
    args = parser.parse_args(words)
    keep = filter_of(args)
    from ..data.index import modalities_of
    from ..evaluation.explore import explore
    from ..evaluation.explore_survey import SurveySettings

    settings = SurveySettings(
        chip_size_of(args),
        args.stride,
        args.patch_size,
        keep,
        args.chips,
        args.seed,
    )
    print(explore(args.paths, args.output, modalities_of(args.modalities), settings))
