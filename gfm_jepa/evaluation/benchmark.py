"""Run protocols on benchmarks, one row a result."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from ..data.benchmarks import Benchmark
from ..data.few_labels import stratified
from ..data.identity import parts_of, split_hash
from ..errors import InputError, require_seed
from ..modalities import MODALITIES
from ..models import BaseEncoder
from .classifiers import ProbeResult, knn_probe, linear_probe
from .features import Features, extract_features
from .methods import Contest, Method
from .pixel_benchmark import PixelMeasure, pixel_results
from .probes import require_classes
from .result_table import ResultTable, Row, versions
from .scores import score

PROTOCOLS = ('knn', 'linear', 'few', 'finetune')
SHARES = (0.01, 0.05, 0.1)
DRAWS = 5


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning gives back.

    Attributes:
        scores: (N, K) probabilities on the test part.
        labels: (N,) or (N, K) of the test part.
        width: Of the features that the head reads.
    """

    scores: Tensor
    labels: Tensor
    width: int


@dataclass(frozen=True)
class Finetuning:
    """How to fine-tune; the task lives elsewhere, since evaluation knows no tasks.

    Args:
        run: Takes the encoder, the benchmark, a seed and a folder for checkpoints.
        settings: The recipe in words, for the rows.
    """

    run: Callable[[BaseEncoder, Benchmark, int, Path], Tuned]
    settings: str


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        protocols: Some of `PROTOCOLS`.
        shares: Shares of labels for ``few``, 0..1.
        draws: Draws of each share.
        seed: Of random weights, draws of labels, and fine-tuning.
        batch_size: Chips embedded at once.
        num_workers: Processes that read.
        finetuning: How, if it is among the protocols.

    Raises:
        InputError: If a protocol is unknown, a number cannot be, or nobody says how to fine-tune.
    """

    protocols: Sequence[str] = ('knn', 'linear', 'few')
    shares: Sequence[float] = SHARES
    draws: int = DRAWS
    seed: int = 0
    batch_size: int = 256
    num_workers: int = 0
    finetuning: Finetuning | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if unknown := [p for p in self.protocols if p not in PROTOCOLS]:
            raise InputError(
                f'Unknown protocol {unknown[0]!r}: expected some of {", ".join(PROTOCOLS)}.'
            )
        if wrong := [s for s in self.shares if not 0 < s <= 1]:
            raise InputError(
                f'The share of labels is {wrong[0]:g}; give shares above 0 and at most 1.'
            )
        for name, least in (('draws', 1), ('batch_size', 1), ('num_workers', 0)):
            if (number := getattr(self, name)) < least:
                raise InputError(f'{name} is {number}; give at least {least}.')
        require_seed(self.seed)
        if 'finetune' in self.protocols and self.finetuning is None:
            raise InputError('The protocol finetune needs to be told how.')

    def results(self, method: Method) -> Iterator[Row]:
        """Yield protocol, share and draw of each result of a method."""
        for protocol in self.protocols:
            if protocol == 'finetune':
                if method.finetuned:
                    assert self.finetuning is not None
                    # One name whatever features are asked for; what the head reads is a setting.
                    name = {'features': 'embedding'}
                    yield _result(protocol, 1.0, 0, self.finetuning.settings) | name
            elif protocol == 'few':
                for share in self.shares:
                    for draw in range(self.draws):
                        yield _result(protocol, share, draw, 'logistic, C on that share of val')
            elif protocol == 'knn':
                yield _result(protocol, 1.0, 0, 'k=5, cosine')
            else:
                yield _result(protocol, 1.0, 0, 'logistic, C on val')


def run_benchmark(
    benchmark: Benchmark,
    contest: Contest,
    plan: Plan,
    table: ResultTable,
    on_linear: Callable[[Method, ProbeResult], None] | None = None,
) -> None:
    """Measure all methods by all protocols, and write each row as soon as it is there.

    Args:
        benchmark: On what.
        contest: Whom.
        plan: How.
        table: Where rows go; those that it has are not computed again.
        on_linear: Called with each result of the protocol ``linear``.

    Raises:
        InputError: If weights do not fit the benchmark, a class has no training sample, or an
            embedding is not finite.
    """
    facts = benchmark_facts(benchmark) | {'seed': plan.seed, 'versions': versions()}
    if benchmark.target != 'label' and (other := set(plan.protocols) - {'linear'}):
        rank_zero_info(
            f'{benchmark.name} has a class for every pixel: {", ".join(sorted(other))} left out.'
        )
    for method in contest.methods(benchmark):
        told = facts | {
            'method': method.name, 'features': method.features, 'weights': method.weights,
            'weights_hash': method.weights_hash, 'normalisation': method.normalisation,
        }  # fmt: skip
        measure: PixelMeasure | _Measure
        if benchmark.target == 'label':
            results, measure = plan.results(method), _Measure(benchmark, method, plan, table)
        else:
            results = iter(pixel_results(benchmark, plan.protocols))
            measure = PixelMeasure(benchmark, method, plan.num_workers, plan.seed)
        for result in results:
            row = told | result
            if table.has(row):
                continue
            start = time.perf_counter()
            found, scores, labels, probe = measure(row)
            row |= found | {'seconds': round(time.perf_counter() - start, 2)}
            table.add(row, *((None, None) if row['protocol'] == 'few' else (scores, labels)))
            rank_zero_info(sentence(row))
            if on_linear is not None and probe is not None and row['protocol'] == 'linear':
                on_linear(method, probe)


class _Measure:
    """Computes the results of one method, its features once, when the first result needs them."""

    def __init__(
        self, benchmark: Benchmark, method: Method, plan: Plan, table: ResultTable
    ) -> None:
        self.benchmark, self.method, self.plan, self.table = benchmark, method, plan, table

    @cached_property
    def parts(self) -> tuple[Features, Features, Features]:
        """Features of train, val and test."""
        embed, plan = self.method.build(), self.plan
        train, val, test = (
            extract_features(embed, part, plan.batch_size, plan.num_workers)
            for part in parts_of(self.benchmark).values()
        )
        require_classes(self.benchmark, (train, val, test))
        return train, val, test

    def __call__(self, row: Row) -> tuple[Row, Tensor, Tensor, ProbeResult | None]:
        """Return what to add to the row, probabilities and labels of test, and the probe."""
        if row['protocol'] == 'finetune':
            return self._finetune(row)
        train, val, test = self.parts
        if row['protocol'] == 'few':
            seed = 1000 * self.plan.seed + row['draw']
            train, val = (_subset(part, row['label_share'], seed) for part in (train, val))
        probe = knn_probe(train, test) if row['protocol'] == 'knn' else (
            linear_probe(train, val, test))  # fmt: skip
        found = _scored(probe.scores, test.labels, self.plan.seed) | {
            'C': '' if probe.C is None else f'{probe.C:g}', 'width': train.embeddings.shape[1],
            'n_train': len(train), 'n_val': len(val),
        }  # fmt: skip
        return found, probe.scores, test.labels, probe

    def _finetune(self, row: Row) -> tuple[Row, Tensor, Tensor, None]:
        assert self.plan.finetuning is not None and self.method.encoder is not None
        folder = self.table.path.with_suffix('.heads') / self.table.name(row)
        tuned = self.plan.finetuning.run(
            self.method.encoder, self.benchmark, self.plan.seed, folder
        )
        sizes = {f'n_{p}': len(d) for p, d in parts_of(self.benchmark).items()}  # type: ignore[arg-type]
        found = _scored(tuned.scores, tuned.labels, self.plan.seed) | sizes
        return found | {'width': tuned.width}, tuned.scores, tuned.labels, None


def benchmark_facts(benchmark: Benchmark) -> Row:
    """What a row says of the data."""
    key = benchmark.modality
    sample: dict[str, Any] = benchmark.test[0]
    height, width = sample[key].shape[-2:]
    return {
        'dataset': benchmark.name, 'split': benchmark.split, 'split_hash': split_hash(benchmark),
        'modality': ' '.join((key, *benchmark.others)),
        'bands': ' '.join(b for m in (key, *benchmark.others) for b in MODALITIES[m].bands),
        'gsd': benchmark.gsd or '', 'image_size': f'{height}x{width}',
    }  # fmt: skip


def sentence(row: Row) -> str:
    """A row in words."""
    share = f' {100 * float(row["label_share"]):g} %' if row['protocol'] == 'few' else ''
    value, low, high = (100 * float(row[k]) for k in ('value', 'low', 'high'))
    return (
        f'{row["dataset"]}: {row["method"]} ({row["features"]}), {row["protocol"]}{share}: '
        f'{value:.2f} % ({low:.2f} to {high:.2f})'
    )


def _result(protocol: str, share: float, draw: int, settings: str) -> Row:
    return {'protocol': protocol, 'label_share': share, 'draw': draw, 'settings': settings}


def _subset(part: Features, share: float, draw: int) -> Features:
    ids = stratified(part.labels, share, draw)
    return Features(part.embeddings[ids], part.labels[ids])


def _scored(scores: Tensor, labels: Tensor, seed: int) -> Row:
    found = score(scores, labels, seed)
    return {
        'metric': found.metric, 'value': f'{found.value:.5f}', 'low': f'{found.low:.5f}',
        'high': f'{found.high:.5f}', 'calibration_error': f'{found.calibration_error:.5f}',
        'n_test': len(labels),
    }  # fmt: skip
