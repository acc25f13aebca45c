"""How good frozen features are: k nearest neighbours and logistic regression, beside baselines."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.benchmarks import Benchmark
from ..errors import InputError
from ..models import BaseEncoder
from ..models.weight_files import weights_hash
from .baselines import ImageStatistics, RandomConvolutions, features_of_twin, random_init
from .classifiers import knn_probe as knn_probe  # read from here by benchmarks
from .classifiers import linear_probe as linear_probe
from .features import Embed, EncoderFeatures, Features, extract_features
from .methods import PresentBands
from .plots import confusion_matrix, probe_bars, save

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A row of the table, and what a confusion matrix needs.

    Attributes:
        row: As `probe` returns it.
        labels: (N,) of the test part.
        predictions: (N,) of the linear probe.
    """

    row: Row
    labels: Tensor
    predictions: Tensor


def probe(
    encoder: BaseEncoder,
    name: str,
    benchmark: Benchmark,
    features: str = 'embedding',
    baselines: bool = True,
    batch_size: int = 256,
    num_workers: int = 0,
    seed: int = 0,
    progress: bool = True,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Row]:
    """Probe frozen weights on a benchmark, with baselines beside them.

    Args:
        encoder: The weights, on any device.
        name: What the row of the weights is called.
        benchmark: From `gfm_jepa.data.benchmarks.load_benchmark`.
        features: ``embedding`` (B, D), or ``depths``: several depths pooled, wider.
        baselines: Add rows for image statistics, RCF-512 and a random copy of the encoder.
        batch_size: Chips a batch.
        num_workers: Processes that read chips.
        seed: Of the random copy.
        progress: Show bars.
        on_outcome: Called with each outcome as soon as it is there, the weights' first.

    Returns:
        Rows with name, dataset, split, knn5 and linear (accuracies on the test part, 0..1),
        n_train, n_val, n_test, C, features, embed_dim (width of the features) and seconds; the
        first, of the weights, with weights_hash, by which `gfm-jepa publish` knows its weights.

    Raises:
        InputError: If the encoder lacks the benchmark's modality or has other bands in it, a class
            is not in the train part, or an embedding is not finite.
    """
    if benchmark.target != 'label':
        raise InputError(
            f'{benchmark.name} has a class for every pixel, not for every chip; take '
            f'`gfm-jepa benchmark`.'
        )
    rows: list[Row] = []
    start = time.perf_counter()
    for title, kind, embed in _embeds(encoder, name, benchmark, features, baselines, seed):
        train, val, test = (
            extract_features(embed, part, batch_size, num_workers, progress)
            for part in (benchmark.train, benchmark.val, benchmark.test)
        )
        outcome = _outcome(title, kind, benchmark, (train, val, test), progress)
        outcome.row['seconds'] = round(time.perf_counter() - start, 2)
        if not rows:
            outcome.row['weights_hash'] = weights_hash(encoder)
        start = time.perf_counter()
        rows.append(outcome.row)
        if on_outcome is not None:
            on_outcome(outcome)
    return rows


def report(
    encoder: BaseEncoder,
    name: str,
    benchmark: Benchmark,
    features: str = 'embedding',
    baselines: bool = True,
    output: str | Path | None = None,
    figures: str | Path | None = None,
) -> list[Row]:
    """Probe, print the table, write the rows and draw the figures.

    Args:
        encoder: As in `probe`.
        name: Likewise.
        benchmark: Likewise.
        features: Likewise.
        baselines: Likewise.
        output: JSON file for the rows.
        figures: Folder for ``probe.png`` and ``confusion_matrix.png`` (of the weights, linear).
    """
    outcomes: list[Outcome] = []
    rows = probe(encoder, name, benchmark, features, baselines, on_outcome=outcomes.append)
    print(format_table(rows))
    if output is not None:
        write_rows(rows, output)
    if figures is not None:
        own = outcomes[0]
        matrix = confusion_matrix(own.labels, own.predictions, benchmark.classes)
        save(matrix, Path(figures) / 'confusion_matrix.png')
        save(probe_bars(rows), Path(figures) / 'probe.png')
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text, accuracies in percent."""
    head = ('name', 'dataset', 'split', 'features', 'width', 'kNN-5 %', 'linear %', 'C', 'seconds')
    lines = [head]
    for r in rows:
        text = (r['name'], r['dataset'], r['split'], r['features'], str(r['embed_dim']))
        percents = (f'{100 * r["knn5"]:.2f}', f'{100 * r["linear"]:.2f}')
        lines.append((*text, *percents, f'{r["C"]:g}', f'{r["seconds"]:.1f}'))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = '  '.join(f'{{:{"<" if i < 4 else ">"}{width}}}' for i, width in enumerate(widths))
    return '\n'.join(form.format(*line) for line in lines)


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write rows as a JSON list; the file is there in full or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    temporary.write_text(json.dumps(list(rows), indent=2, allow_nan=False) + '\n')
    temporary.replace(path)


def _embeds(
    encoder: BaseEncoder, name: str, benchmark: Benchmark, features: str, baselines: bool, seed: int
) -> Iterator[tuple[str, str, Embed]]:
    """Yield title, kind of features and function: the weights, then the baselines."""
    yield name, features, EncoderFeatures(encoder, name, benchmark, features)
    if baselines:
        shown = PresentBands(benchmark)
        yield 'image statistics', 'statistics', shown.before(lambda: ImageStatistics(shown.name))
        yield (
            'RCF-512',
            'rcf',
            shown.before(lambda: RandomConvolutions(shown.of(benchmark.train), shown.name)),
        )
        twin = random_init(encoder, seed)
        kind = features_of_twin(encoder, features)
        yield 'random init', kind, EncoderFeatures(twin, name, benchmark, kind)


def _outcome(
    title: str,
    kind: str,
    benchmark: Benchmark,
    parts: tuple[Features, Features, Features],
    progress: bool,
) -> Outcome:
    """Run both probes."""
    train, val, test = parts
    require_classes(benchmark, parts)
    linear = linear_probe(train, val, test, progress=progress)
    row = {
        'name': title,
        'dataset': benchmark.name,
        'split': benchmark.split,
        'knn5': knn_probe(train, test, k=5).accuracy,
        'linear': linear.accuracy,
        'n_train': len(train),
        'n_val': len(val),
        'n_test': len(test),
        'C': linear.C,
        'features': kind,
        'embed_dim': train.embeddings.shape[1],
    }
    return Outcome(row, test.labels, linear.predictions)


def require_classes(benchmark: Benchmark, parts: tuple[Features, Features, Features]) -> None:
    """Refuse what cannot be learned or tested.

    Raises:
        InputError: If train has one class only, or lacks one that val or test has.
    """
    known, *others = (_classes(part.labels) for part in parts)
    if unknown := set().union(*others) - known:
        raise InputError(
            f'Class {benchmark.classes[min(unknown)]!r} of {benchmark.name} has no image in the '
            f'train part; add some, or leave the class out.'
        )
    if len(known) < 2:
        raise InputError(f'The train part of {benchmark.name} has one class only; give two.')


def _classes(labels: Tensor) -> set[int]:
    """Which classes there are among labels (N,) or (N, K)."""
    several = labels.ndim == 2
    return set(labels.amax(dim=0).nonzero().flatten().tolist() if several else labels.tolist())
