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
from ..metrics import knn_predict
from ..models import BaseEncoder
from .baselines import ImageStatistics, RandomConvolutions, random_init
from .features import Embed, EncoderFeatures, Features, extract_features
from .logistic import LogisticRegression
from .plots import confusion_matrix, probe_bars, save

Row = dict[str, Any]

GRID = tuple(10.0**e for e in range(-4, 4))  # of C, the inverse strength of the penalty


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        accuracy: Share of the test part that is right, 0..1.
        predictions: (N,) labels predicted for the test part.
        C: Inverse strength of the penalty that was chosen; None for kNN.
    """

    accuracy: float
    predictions: Tensor
    C: float | None = None


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


def knn_probe(train: Features, test: Features, k: int = 5) -> ProbeResult:
    """Classify by the k nearest neighbours in cosine similarity; a tie goes to the nearest."""
    predictions = knn_predict(train.embeddings, train.labels, test.embeddings, k)
    return ProbeResult(_accuracy(predictions, test.labels), predictions)


def linear_probe(
    train: Features,
    val: Features,
    test: Features,
    grid: Sequence[float] = GRID,
    progress: bool = True,
) -> ProbeResult:
    """Classify by logistic regression with L2 penalty, fitted by L-BFGS on the train part.

    Features are standardised by mean and standard deviation of the train part. C is the smallest
    of those with the highest accuracy on the validation part; the grid is left when two values in
    a row were worse than the best.

    Args:
        train: What is fitted.
        val: What C is chosen on.
        test: What is reported.
        grid: Values of C, rising, as scikit-learn's LogisticRegression means it.
        progress: Show a bar once it has taken more than two seconds.
    """
    from tqdm import tqdm

    mean, std = train.embeddings.mean(dim=0), train.embeddings.std(dim=0, correction=0)
    std = std.where(std > 1e-8 * mean.abs().clamp_min(1e-8), 1.0)
    fit = LogisticRegression((train.embeddings - mean) / std, train.labels)
    held, shown = (val.embeddings - mean) / std, (test.embeddings - mean) / std
    best, best_C, predictions, worse = -1.0, grid[0], test.labels, 0
    for C in tqdm(grid, 'Linear probe', delay=2, leave=False, disable=not progress, unit='fit'):
        weight, bias = fit(C)
        accuracy = _accuracy((held @ weight.T + bias).argmax(dim=1), val.labels)
        worse = worse + 1 if accuracy < best else 0
        if accuracy > best:
            best, best_C = accuracy, C
            predictions = (shown @ weight.T + bias).argmax(dim=1)
        if worse == 2:
            break
    return ProbeResult(_accuracy(predictions, test.labels), predictions, best_C)


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
        n_train, n_val, n_test, C, features, embed_dim (width of the features) and seconds.

    Raises:
        InputError: If the encoder lacks the benchmark's modality or has other bands in it, a class
            is not in the train part, or an embedding is not finite.
    """
    rows, start = [], time.perf_counter()
    for title, kind, embed in _embeds(encoder, name, benchmark, features, baselines, seed):
        train, val, test = (
            extract_features(embed, part, batch_size, num_workers, progress)
            for part in (benchmark.train, benchmark.val, benchmark.test)
        )
        outcome = _outcome(title, kind, benchmark, (train, val, test), progress)
        outcome.row['seconds'] = round(time.perf_counter() - start, 2)
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
        yield 'image statistics', 'statistics', ImageStatistics(benchmark.modality)
        yield 'RCF-512', 'rcf', RandomConvolutions(benchmark.train, benchmark.modality)
        twin = random_init(encoder, seed)
        # What a readout is made of, where the weights have one: the twin has none to fit.
        kind = 'depths' if twin.num_features != encoder.num_features else features
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
    known = set(train.labels.tolist())
    if unknown := (set(val.labels.tolist()) | set(test.labels.tolist())) - known:
        raise InputError(
            f'Class {benchmark.classes[min(unknown)]!r} of {benchmark.name} has no image in the '
            f'train part; add some, or leave the class out.'
        )
    if len(known) < 2:
        raise InputError(f'The train part of {benchmark.name} has one class only; give two.')
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


def _accuracy(predictions: Tensor, labels: Tensor) -> float:
    return int((predictions == labels).sum()) / max(len(labels), 1)
