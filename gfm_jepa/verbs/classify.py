"""`gfm-jepa classify`: what an image shows, and how sure that is."""

import argparse
import json
from collections.abc import Sequence

from ..errors import InputError


def main(words: Sequence[str]) -> None:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        'gfm-jepa classify', description='Class and probabilities of images, by a head that '
        '`gfm-jepa fit` (task Classification) or `gfm-jepa benchmark` (finetune, --save-head FILE) '
        'wrote. Pictures are resized to what it learned from; of rasters the middle is taken.',
    )  # fmt: skip
    parser.add_argument('head', help='checkpoint of encoder and head')
    parser.add_argument(
        'images', nargs='+', help='tif, png or jpg; NAME=PATH for one sample of several modalities'
    )
    parser.add_argument('--bands', nargs='+', help='names of the bands, if the files name none')
    parser.add_argument('--top', type=int, default=5, help='classes to print')
    parser.add_argument('--json', action='store_true', help='all probabilities, as JSON')
    args = parser.parse_args(list(words))
    if args.top < 1:
        raise InputError(f'--top is {args.top}; give at least 1.')
    from ..evaluation.classify import classify
    from ..models.heads import load_classifier

    verdicts = classify(load_classifier(args.head), args.images, args.bands)
    if args.json:
        print(json.dumps({v.image: v.probabilities for v in verdicts}, indent=2))
    else:
        print('\n'.join(verdict.lines(args.top) for verdict in verdicts))
