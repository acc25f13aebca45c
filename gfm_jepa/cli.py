"""The command line: Lightning's verbs on YAML configs, and a few of ours. No logic of its own."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .errors import InputError

LIGHTNING_VERBS = ('fit', 'validate', 'test', 'predict')

USAGE = f"""gfm-jepa {__version__}: JEPA pretraining on any rasters

  gfm-jepa fit --config configs/ijepa_rasters.yaml --data.paths=[my_rasters/]
  gfm-jepa validate | test | predict --config ... --ckpt_path ...     (LightningCLI)
  gfm-jepa probe WEIGHTS --dataset eurosat-rgb-spatial --root DIR     frozen features: kNN, linear
  gfm-jepa stats PATH... --name my_sensor -o my_sensor.yaml           mean and std per band
  gfm-jepa demo                                                       the whole way on made-up tiles

Each verb explains itself with --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Words of the command line; `sys.argv` by default.

    Returns:
        Exit status: 0, or 2 for bad input, which one sentence on stderr explains.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ('-h', '--help'):
            print(USAGE)
        elif words[0] == '--version':
            print(__version__)
        elif words[0] in LIGHTNING_VERBS:
            _lightning(words)
        elif words[0] in _VERBS:
            _VERBS[words[0]](words[1:])
        else:
            known = ', '.join([*LIGHTNING_VERBS, *_VERBS])
            raise InputError(f'Unknown verb {words[0]!r}: expected one of {known}.')
    except InputError as error:
        # A reading process sends its whole traceback along; the sentence stands at its end.
        sentence = str(error).rpartition('InputError: ')[2].strip()
        print(f'gfm-jepa: error: {sentence}', file=sys.stderr)
        return 2
    return 0


def _lightning(words: list[str]) -> None:
    """Fit, validate, test, predict."""
    # What Lightning still calls in jsonargparse is between those two.
    os.environ.setdefault('JSONARGPARSE_DEPRECATION_WARNINGS', 'off')
    from .tasks.cli import GfmJepaCLI

    GfmJepaCLI.run(['--data.strict=true' if word == '--strict' else word for word in words])


def _probe(words: list[str]) -> None:
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
    from .data.benchmarks import load_benchmark
    from .evaluation.probes import report
    from .models.hub import from_pretrained

    report(
        from_pretrained(args.weights), args.weights, load_benchmark(args.dataset, args.root),
        features=args.features, baselines=not args.no_baselines, output=args.output,
        figures=args.figures,
    )  # fmt: skip


def _stats(words: list[str]) -> None:
    """Mean and standard deviation per band, in one pass."""
    parser = argparse.ArgumentParser(
        'gfm-jepa stats', description='Mean and standard deviation per band in one streaming pass, '
        'nodata left out, as the YAML of a modality.',
    )  # fmt: skip
    parser.add_argument('paths', nargs='+', help='rasters, or folders of them')
    parser.add_argument('--name', help='of the modality; a known one gives bands, unit and aliases')
    parser.add_argument('--bands', nargs='+', help='band names, if the files name none')
    parser.add_argument('--unit', default='', help='physical unit of the values')
    parser.add_argument('--nodata', type=float, help='value of "not there", if the files tag none')
    parser.add_argument('-o', '--output', type=Path, help='write YAML here, not to the screen')
    args = parser.parse_args(words)
    from .data.statistics import describe

    text = describe(args.paths, args.name, args.bands, args.unit, args.nodata)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)
    else:
        print(text, end='')


def _demo(words: list[str]) -> None:
    """The whole way on made-up landscapes."""
    parser = argparse.ArgumentParser(
        'gfm-jepa demo', description='Make landscapes, pretrain, probe, draw figures: 5 minutes.'
    )
    parser.add_argument('--output', type=Path, default=Path('demo'), help='folder of the results')
    parser.add_argument('--steps', type=int, default=800, help='optimizer steps')
    parser.add_argument('--places', type=int, default=16, help='landscapes to make')
    args = parser.parse_args(words)
    from .demo import demo

    demo(args.output, steps=args.steps, places=args.places)


_VERBS = {'probe': _probe, 'stats': _stats, 'demo': _demo}

if __name__ == '__main__':
    sys.exit(main())
