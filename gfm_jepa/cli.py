"""The command line: Lightning's verbs on YAML configs, and a few of ours. No logic of its own."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .errors import InputError

if TYPE_CHECKING:
    from .data.chips import ChipFilter

LIGHTNING_VERBS = ('fit', 'validate', 'test', 'predict')

USAGE = f"""gfm-jepa {__version__}: JEPA pretraining on any rasters

  gfm-jepa fit --config configs/ijepa_rasters.yaml --data.paths=[my_rasters/]
  gfm-jepa validate | test | predict --config ... --ckpt_path ...     (LightningCLI)
  gfm-jepa probe WEIGHTS --dataset eurosat-rgb-spatial --root DIR     frozen features: kNN, linear
  gfm-jepa dashboard RUN -o run.png                                   one picture of a run
  gfm-jepa index PATH... -o chips.parquet                             a table of chips, with splits
  gfm-jepa cache PATH... -o chips.zarr                                chips, read once
  gfm-jepa explore PATH... -o FOLDER                                  a page of what they hold
  gfm-jepa stats PATH... --name my_sensor -o my_sensor.yaml           mean and std per band
  gfm-jepa publish WEIGHTS org/name --dry-run FOLDER                  weights, card: to the Hub
  gfm-jepa embed WEIGHTS PATH... -o map.tif                           whole scenes: maps, chips
  gfm-jepa search | cluster | anomalies | change ...                  what to do with them
  gfm-jepa look WEIGHTS PATH... -o FOLDER                             what an encoder sees: figures
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


def _dashboard(words: list[str]) -> None:
    """One picture of a run."""
    parser = argparse.ArgumentParser(
        'gfm-jepa dashboard', description='Loss, online kNN, health, gradient norm and schedules '
        'of a run, from its newest metrics.csv, in one picture.',
    )  # fmt: skip
    parser.add_argument('run', type=Path, help='folder of a run, or its metrics.csv')
    parser.add_argument('-o', '--output', type=Path, required=True, help='png, pdf or svg to write')
    args = parser.parse_args(words)
    from .evaluation.dashboard import write_dashboard

    print(write_dashboard(args.run, args.output))


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


def _index(words: list[str]) -> None:
    """A table of the chips of any rasters."""
    parser = argparse.ArgumentParser(
        'gfm-jepa index', description='Write a GeoParquet of chips: footprint, file, window, '
        'modality, gsd, CRS, time, valid and cloud share, and perhaps splits that share no ground. '
        'A call that was broken off goes on where it was.',
    )  # fmt: skip
    _add_raster_arguments(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, help='GeoParquet to write')
    parser.add_argument('--bands', nargs='+', help='band names of all rasters, if they name none')
    parser.add_argument('--nodata', type=float, help='value of "not there", if there is no tag')
    parser.add_argument('--split', help='blocks, longitude, or a column whose values stay together')
    parser.add_argument('--block-size', type=float, default=10_000.0, help='metres')
    parser.add_argument('--shares', type=float, nargs=3, default=(0.6, 0.2, 0.2),
                        help='of train, val, test')  # fmt: skip
    parser.add_argument('--seed', type=int, default=0, help='of the blocks')
    parser.add_argument('--map', type=Path, help='PNG of the splits; beside the index by default')
    args = parser.parse_args(words)
    from .data.index import IndexSettings, make_folder, modalities_of, write_index
    from .data.sidecars import Facts
    from .data.splits import SplitRule, draw_splits

    rule = SplitRule(args.split, args.block_size, tuple(args.shares), args.seed) if (
        args.split) else None  # fmt: skip
    settings = IndexSettings(
        modalities_of(args.modalities), args.chip_size, args.stride,
        Facts(bands=tuple(args.bands) if args.bands else None, nodata=args.nodata),
        _filter(args), rule,
    )  # fmt: skip
    picture = args.map or args.output.with_suffix('.png')
    if picture.suffix != '.png':
        raise InputError(f'The map {picture} should be a file that ends in .png.')
    make_folder(picture.parent)
    print(write_index(args.paths, args.output, settings))
    if rule is not None:
        import geopandas

        try:
            draw_splits(geopandas.read_parquet(args.output), picture)
        except OSError as error:
            raise InputError(
                f'{args.output} is written, but not its map {picture} ({error.strerror}).'
            ) from error
        print(f'map of the splits: {picture}')


def _cache(words: list[str]) -> None:
    """Chips, read once."""
    parser = argparse.ArgumentParser(
        'gfm-jepa cache', description='Write chips once into sharded zarr 3, float32, so that '
        'training reads them fast: give the folder as data.paths. A call that was broken off goes '
        'on where it was.',
    )  # fmt: skip
    _add_raster_arguments(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, help='zarr folder to write')
    parser.add_argument('--patch-size', type=int, default=8, help='of the encoder, pixels')
    parser.add_argument('--num-dates', type=int, default=1, help='dates of a sample; 0 is all')
    parser.add_argument('--split', help='name of the split to take from an index')
    parser.add_argument('--num-workers', type=int, default=0, help='processes that read')
    args = parser.parse_args(words)
    from dataclasses import replace

    from .data.caches import write_cache
    from .data.index import modalities_of
    from .data.rasters import Rasters

    rasters = Rasters(
        args.paths, modalities_of(args.modalities), args.chip_size, args.stride, args.patch_size,
        args.num_dates, replace(_filter(args), split=args.split),
    )  # fmt: skip
    print(rasters.report())
    print(write_cache(rasters, args.output, args.num_workers))


def _explore(words: list[str]) -> None:
    """A look at any rasters."""
    parser = argparse.ArgumentParser(
        'gfm-jepa explore', description='Look at rasters before pretraining: statistics beside the '
        'stated ones, histograms, example chips, valid and cloud shares, footprints, quicklooks, '
        'and what is left out: one HTML page that needs no network, and its figures as PNG.',
    )  # fmt: skip
    _add_raster_arguments(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to write')
    parser.add_argument('--patch-size', type=int, default=8, help='of the encoder, pixels')
    parser.add_argument('--chips', type=int, default=64, help='most chips to read per modality')
    parser.add_argument('--seed', type=int, default=0, help='of the chips that are drawn')
    args = parser.parse_args(words)
    from .data.index import modalities_of
    from .evaluation.explore import explore
    from .evaluation.explore_survey import SurveySettings

    settings = SurveySettings(
        args.chip_size, args.stride, args.patch_size, _filter(args), args.chips, args.seed
    )
    print(explore(args.paths, args.output, modalities_of(args.modalities), settings))


def _add_raster_arguments(parser: argparse.ArgumentParser) -> None:
    """What index and cache have in common."""
    parser.add_argument('paths', nargs='+', help='rasters, folders, URLs; NAME=PATH states what')
    parser.add_argument(
        '--modalities', nargs='+', default=(), help='names or YAML; known by default'
    )
    parser.add_argument('--chip-size', type=int, default=96, help='pixels')
    parser.add_argument('--stride', type=int, help='pixels; chip-size by default')
    parser.add_argument('--min-valid', type=float, default=0.25, help='lowest share with data')
    parser.add_argument('--max-cloud', type=float, default=1.0, help='highest share under cloud')
    parser.add_argument('--start', help='first day, such as 2019-06-01')
    parser.add_argument('--end', help='last day')
    parser.add_argument('--area', help='GeoJSON of the area of interest')


def _filter(args: argparse.Namespace) -> 'ChipFilter':
    """What the command line says of the chips to take."""
    from .data.chips import ChipFilter

    return ChipFilter(args.min_valid, args.max_cloud, args.start, args.end, args.area)


def _publish(words: list[str]) -> None:
    """Weights with a model card, to the Hub."""
    parser = argparse.ArgumentParser(
        'gfm-jepa publish', description='Write config, safetensors, model card and golden '
        'embeddings of an encoder, refuse tokens and paths of this machine, and push one commit to '
        'the Hub; or write the folder alone.',
    )  # fmt: skip
    parser.add_argument('weights', help='checkpoint, folder or bundled name')
    parser.add_argument('repo', help='name on the Hub, such as org/name')
    parser.add_argument('--dry-run', type=Path, help='folder to write; nothing is uploaded')
    parser.add_argument('--license', default='apache-2.0', help="of the weights, the Hub's name")
    parser.add_argument('--data', nargs='+', default=(), help='what it saw: "NAME (LICENCE)"')
    parser.add_argument('--datasets', nargs='+', default=(), help='the same, as ids of the Hub')
    parser.add_argument('--compute', default='', help='hardware and time')
    parser.add_argument('--limits', help='what it should not be used for')
    parser.add_argument('--rows', type=Path, help='JSON of gfm-jepa probe --output')
    parser.add_argument('--tag', help='of the commit, such as v1')
    parser.add_argument('--private', action='store_true', help='make a new repository private')
    args = parser.parse_args(words)
    from .models.model_card import CardFacts
    from .models.publishing import publish, read_rows

    facts = CardFacts(
        args.license, args.data, args.datasets, args.compute, args.limits or CardFacts.limits,
        read_rows(args.rows) if args.rows else (),
    )  # fmt: skip
    where = publish(args.weights, args.repo, facts, args.dry_run, args.tag, args.private)
    print(f'{"written" if args.dry_run else "published"}: {where}')


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


def _verb(name: str) -> Callable[[list[str]], None]:
    """A verb that is a module of its own, imported when it is asked for."""

    def run(words: list[str]) -> None:
        from .data.raster_files import gdal

        module = import_module(f'.verbs.{name}', __package__)
        with gdal():  # the cache of blocks is bounded
            module.main(words)

    return run


_VERBS = {**{n: _verb(n) for n in ('embed', 'search', 'cluster', 'anomalies', 'change', 'look')},
          'probe': _probe, 'index': _index, 'cache': _cache, 'stats': _stats, 'demo': _demo,
          'explore': _explore, 'dashboard': _dashboard, 'publish': _publish}  # fmt: skip

if __name__ == '__main__':
    sys.exit(main())
