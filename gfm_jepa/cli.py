"""The command line: Lightning's verbs on YAML configs, and a few of ours. No logic of its own."""

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from . import __version__
from .errors import InputError

LIGHTNING_VERBS = ('fit', 'validate', 'test', 'predict')
# Each is a module of `verbs`, imported when it is asked for.
VERBS = ('probe', 'benchmark', 'classify', 'dashboard', 'index', 'cache', 'explore', 'stats',
         'publish', 'embed', 'segment', 'search', 'cluster', 'anomalies', 'change',
         'look', 'report', 'demo')  # fmt: skip

USAGE = f"""gfm-jepa {__version__}: JEPA pretraining on any rasters

  gfm-jepa fit --config configs/ijepa_rasters.yaml --data.paths=[my_rasters/]
  gfm-jepa validate | test | predict --config ... --ckpt_path ...     (LightningCLI)
  gfm-jepa probe WEIGHTS --dataset eurosat-rgb-spatial --root DIR     frozen features: kNN, linear
  gfm-jepa benchmark WEIGHTS... --dataset NAME... --root DIR -o rows.csv   and baselines, intervals
  gfm-jepa classify HEAD image.tif                                    class and probabilities
  gfm-jepa dashboard RUN -o run.png                                   one picture of a run
  gfm-jepa index PATH... -o chips.parquet                             a table of chips, with splits
  gfm-jepa cache PATH... -o chips.zarr                                chips, read once
  gfm-jepa explore PATH... -o FOLDER                                  a page of what they hold
  gfm-jepa stats PATH... --name my_sensor -o my_sensor.yaml           mean and std per band
  gfm-jepa publish WEIGHTS org/name --dry-run FOLDER                  weights, card: to the Hub
  gfm-jepa embed WEIGHTS PATH... -o map.tif                           whole scenes: maps, chips
  gfm-jepa segment HEAD PATH... -o classes.tif                        a head over whole scenes
  gfm-jepa search | cluster | anomalies | change ...                  what to do with them
  gfm-jepa look WEIGHTS PATH... -o FOLDER                             what an encoder sees: figures
  gfm-jepa report MAP.tif RUN rows.csv WEIGHTS -o page.html           one page to look at it all
  gfm-jepa demo                                                       the whole way on made-up tiles

Each verb explains itself with --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Words of the command line; `sys.argv` by default.

    Returns:
        Exit status: 0, or 2 for bad input, which one sentence on stderr explains. A fit that
        SIGTERM or SIGUSR1 ended leaves with 143 or 138; see `gfm_jepa.tasks.Preemption`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    warnings.formatwarning = _format_warning
    try:
        if not words or words[0] in ('-h', '--help'):
            print(USAGE)
        elif words[0] == '--version':
            print(__version__)
        elif words[0] in LIGHTNING_VERBS:
            _lightning(words)
        elif words[0] in VERBS:
            _ours(words[0], words[1:])
        else:
            known = ', '.join([*LIGHTNING_VERBS, *VERBS])
            raise InputError(f'Unknown verb {words[0]!r}: expected one of {known}.')
    except InputError as error:
        print(f'gfm-jepa: error: {error.sentence}', file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno is None:  # raised by a library, and not the operating system's
            raise
        print(
            f'gfm-jepa: error: {error.filename or "A file"} cannot be read or written '
            f'({error.strerror}); see whether it may be, and whether the disk has space.',
            file=sys.stderr,
        )
        return 2
    return 0


_formatted = warnings.formatwarning


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Our own warnings as one sentence, like errors; others with their place, as Python does."""
    if category is UserWarning and Path(__file__).parent in Path(filename).parents:
        return f'gfm-jepa: warning: {message}\n'
    return _formatted(message, category, filename, lineno, line)


def _lightning(words: list[str]) -> None:
    """Fit, validate, test, predict."""
    # What Lightning still calls in jsonargparse is between those two.
    os.environ.setdefault('JSONARGPARSE_DEPRECATION_WARNINGS', 'off')
    from .tasks.cli import GfmJepaCLI

    strict = ['--data.strict=true'] if '--strict' in words else []  # last: behind what names data
    GfmJepaCLI.run([word for word in words if word != '--strict'] + strict)


def _ours(verb: str, words: list[str]) -> None:
    """Any other verb."""
    module = import_module(f'.verbs.{verb}', __package__)
    if verb not in ('search', 'cluster', 'anomalies', 'change', 'look', 'report'):
        module.main(words)
        return
    from .data.raster_files import gdal

    with gdal():  # maps are read block by block, and the cache of blocks is bounded
        module.main(words)


if __name__ == '__main__':
    sys.exit(main())
