"""A benchmark's rows as one HTML page that stands alone, and its figures as PNG."""

import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..data.benchmarks import Benchmark
from ..data.identity import split_hash
from ..data.index import make_folder, write_whole
from .benchmark_figures import (
    METRICS,
    TITLES,
    example_grid,
    few_label_curves,
    few_label_table,
    interval_bars,
    labelled,
)
from .explore_html import figure, page, table
from .plots import confusion_matrix
from .result_table import ResultTable, Row

FEW_COLUMNS = ('method', 'share', 'draws', 'mean', 'std', 'lowest', 'highest')


def write_report(benchmarks: Sequence[Benchmark], results: ResultTable, folder: Path) -> Path:
    """Write ``index.html``, PNG figures and ``few_labels.csv`` of each data set.

    Args:
        benchmarks: Whose rows; figures of examples read their test parts.
        results: Rows and predictions.
        folder: Made if it is not there.

    Returns:
        The page.
    """
    make_folder(folder)
    sections = [(b.name, b.name, _section(b, results, folder)) for b in benchmarks]
    html = page('gfm-jepa benchmark', sections)
    path = folder / 'index.html'
    write_whole(path, html.encode())
    return path


def _section(benchmark: Benchmark, results: ResultTable, folder: Path) -> str:
    """One data set."""
    name, hashed = benchmark.name, split_hash(benchmark)
    rows = labelled([
        r for r in results.rows if (r['dataset'], r['split_hash']) == (name, hashed)
    ])  # fmt: skip
    if not rows:
        return f'<section id="{escape(name)}"><h2>{escape(name)}</h2><p>No rows.</p></section>'
    parts = [result_table(rows)]
    if any(r['protocol'] in TITLES for r in rows):
        parts.append(figure(
            interval_bars(rows), folder / f'{name}_bars.png',
            f'{METRICS[rows[0]["metric"]]} of each method on {name}; the table says the numbers',
            'Bars: the value; lines: the 95 % bootstrap interval over test samples.',
        ))  # fmt: skip
    if any(r['protocol'] == 'few' for r in rows):
        _write_few(rows, folder / f'{name}_few_labels.csv')
        parts.append(figure(
            few_label_curves(rows), folder / f'{name}_few_labels.png',
            f'Linear probe on {name} against the share of labels; few_labels.csv has the numbers',
            'Linear probe on shares of the labels, stratified: mean of the draws, lines span them.',
        ))  # fmt: skip
    parts += _mistakes(benchmark, rows, results, folder)
    first, sizes = rows[0], ' and '.join(dict.fromkeys(r['image_size'] for r in rows))
    facts = (
        f'Split {first["split"]} (hash {hashed}), {first["n_test"]} test samples, '
        f'{first["modality"]} ({first["bands"]}), {sizes} pixels.'
    )
    return (
        f'<section id="{escape(name)}"><h2>{escape(name)}</h2><p>{escape(facts)}</p>'
        f'{"".join(parts)}</section>'
    )


def result_table(rows: Sequence[Row]) -> str:
    """All results but single draws of few labels, of which the mean stands; of `labelled` rows."""
    lines = []
    for row in (r for r in rows if r['protocol'] in TITLES):
        value, low, high = (100 * float(row[k]) for k in ('value', 'low', 'high'))
        error = row['calibration_error']  # '' of pixels
        lines.append((
            row['label'], TITLES[row['protocol']], f'{value:.2f}', f'{low:.2f} to {high:.2f}',
            error and f'{float(error):.3f}', row['C'], row['width'], row['weights_hash'],
        ))  # fmt: skip
    for row in few_label_table([r for r in rows if r['protocol'] == 'few']):
        low, high = 100 * row['lowest'], 100 * row['highest']
        lines.append((
            row['method'], f'linear, {100 * row["share"]:g} % of labels',
            f'{100 * row["mean"]:.2f}', f'{low:.2f} to {high:.2f} ({row["draws"]} draws)',
            *[''] * 4,
        ))  # fmt: skip
    head = ('method', 'protocol', METRICS[rows[0]['metric']], '95 % interval, or span of draws',
            'calibration error', 'C', 'width', 'weights')  # fmt: skip
    return table(f'Results on {rows[0]["dataset"]}', head, lines, (1, 3, 7))


def _mistakes(
    benchmark: Benchmark, rows: Sequence[Row], results: ResultTable, folder: Path
) -> list[str]:
    """Confusion matrix and examples of the first method's best protocol that was kept."""
    own = {r['protocol']: r for r in rows if r['label'] == rows[0]['label']}
    row = next((own[p] for p in ('finetune', 'linear', 'knn') if p in own), None)
    kept = results.read_predictions(row) if row else None
    if row is None or kept is None or benchmark.multilabel:  # of pixels none are kept
        return []
    scores, labels = kept
    who = f'{row["label"]}, {TITLES[row["protocol"]]}'
    matrix = confusion_matrix(labels, scores.argmax(dim=1), benchmark.classes)
    return [
        figure(matrix, folder / f'{benchmark.name}_confusion_matrix.png',
               f'Confusion matrix of {who} on {benchmark.name}', f'Confusion matrix: {who}.'),
        figure(example_grid(benchmark, scores, labels), folder / f'{benchmark.name}_examples.png',
               f'Test chips of {benchmark.name}, right and wrong', f'Test chips: {who}.'),
    ]  # fmt: skip


def _write_few(rows: Sequence[Row], path: Path) -> None:
    """The few-label curves as CSV, shares and values 0..1."""
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, FEW_COLUMNS, lineterminator='\n')
    writer.writeheader()
    for row in few_label_table(rows):
        writer.writerow({k: f'{v:.5f}' if k in FEW_COLUMNS[3:] else v for k, v in row.items()})
    write_whole(path, text.getvalue().encode())
