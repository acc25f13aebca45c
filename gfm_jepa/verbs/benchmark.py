"""`gfm-jepa benchmark`: weights and baselines on labelled data, one CSV row a result."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..evaluation.benchmark import Finetuning


def main(words: Sequence[str]) -> None:
    """Run the verb."""
    args = _parser().parse_args(list(words))
    from ..data.benchmarks import load_benchmark
    from ..data.resized import resize
    from ..evaluation.benchmark import Plan, run_benchmark
    from ..evaluation.heads import HeadWriter
    from ..evaluation.methods import Contest
    from ..evaluation.result_table import ResultTable
    from ..models.weight_files import CONFIG, WEIGHTS
    from ..output_paths import require_apart, require_folder

    within = [Path(w) / name for w in args.weights for name in (CONFIG, WEIGHTS)]
    require_apart([args.output, args.save_head], (*args.weights, *within, *args.timm))
    if args.report:
        require_folder(args.report)
    roots = _roots(args.root, args.dataset)
    if args.save_head and (len(args.dataset) > 1 or 'linear' not in args.protocols):
        raise InputError('--save-head keeps the head of one --dataset, by the protocol linear.')
    table = ResultTable(args.output, args.resume)
    contest = Contest(args.weights, args.features, args.timm, not args.no_baselines, args.seed)
    plan = Plan(
        args.protocols, args.shares, args.draws, args.seed, args.batch_size, args.num_workers,
        _finetuning(args) if 'finetune' in args.protocols else None,
    )  # fmt: skip
    benchmarks = []
    for name in args.dataset:
        benchmark = load_benchmark(name, roots[name])
        if args.save_head and benchmark.target != 'label':
            raise InputError(f'{name} has a class for every pixel; leave --save-head out.')
        if args.image_size is not None:
            benchmark = resize(benchmark, args.image_size)
        benchmarks.append(benchmark)
        writer = HeadWriter(args.save_head, benchmark) if args.save_head else None
        run_benchmark(benchmark, contest, plan, table, writer)
        if writer is not None and not writer.written:
            raise InputError(
                f'{args.save_head} is not written: the linear result is in {args.output} already; '
                f'name another file there.'
            )
    print(f'rows: {args.output}')
    if args.report:
        from ..evaluation.benchmark_report import write_report

        print(f'report: {write_report(benchmarks, table, args.report)}')


def _parser() -> argparse.ArgumentParser:
    """The words that it knows."""
    parser = argparse.ArgumentParser(
        'gfm-jepa benchmark', description='Frozen and fine-tuned accuracy of weights on labelled '
        'data, with 95 % bootstrap intervals and calibration error. Beside them in the same '
        'table: image statistics, RCF-512, hand-made features and a random-init twin. One CSV row '
        'a result, with all that repeats it; probabilities in a folder beside.',
    )  # fmt: skip
    add = parser.add_argument
    add('weights', nargs='+', help='checkpoints, folders or Hub ids')
    add('--dataset', nargs='+', required=True, help='such as eurosat-rgb-spatial')
    add('--root', nargs='+', required=True, help='folder of the data; NAME=DIR for several')
    add('-o', '--output', type=Path, required=True, help='CSV to write')
    add('--resume', action='store_true', help='go on with the rows that are in the CSV')
    add('--protocols', nargs='+', default=('knn', 'linear', 'few'),
        help='knn (5 neighbours), linear, few (shares of the labels), finetune')  # fmt: skip
    add('--shares', nargs='+', type=float, default=(0.01, 0.05, 0.1), help='of labels, for few')
    add('--draws', type=int, default=5, help='stratified draws of each share')
    add('--features', nargs='+', default=('embedding',), choices=('embedding', 'depths'))
    add('--timm', nargs='+', default=(), metavar='NAME[=FILE]',
        help='timm models beside them, with random weights or those of a file')  # fmt: skip
    add('--no-baselines', action='store_true', help='the weights alone')
    add('--image-size', type=int, help='side to resize chips to, pixels')
    add('--save-head', type=Path, help='write encoder and linear head of the first weights here')
    add('--report', type=Path, help='folder for a page of the rows: HTML, PNG and CSV')
    add('--epochs', type=int, help='of fine-tuning; 30 by default')
    add('--lr', type=float, help='of fine-tuning; 0.003 by default')
    add('--batch-size', type=int, default=256, help='chips embedded at once')
    add('--num-workers', type=int, default=0, help='processes that read')
    add('--seed', type=int, default=0)
    return parser


def _finetuning(args: argparse.Namespace) -> 'Finetuning':
    """The recipe, with what the words change of it."""
    from dataclasses import replace

    from ..tasks.finetuning import Recipe

    changed = {k: v for k in ('epochs', 'lr') if (v := getattr(args, k)) is not None}
    return replace(Recipe(), **changed).finetuning(args.num_workers)


def _roots(roots: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Which folder holds which data set."""
    stated = dict(root.split('=', 1) for root in roots if '=' in root)
    rest = [root for root in roots if '=' not in root]
    lacking = [name for name in names if name not in stated]
    if len(rest) > 1 or (lacking and not rest):
        raise InputError(
            f'Give one --root for all data sets, or NAME=DIR for each; {lacking or names} have '
            f'the folders {list(roots)}.'
        )
    return {name: stated.get(name, rest[0] if rest else '') for name in names}
