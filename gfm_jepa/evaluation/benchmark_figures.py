"""Figures of benchmark rows; each function returns a matplotlib Figure, and nothing changes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..data.benchmarks import Benchmark
from ..modalities import MODALITIES
from .explore_figures import picture
from .result_table import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours; with lines and markers of other periods no two methods look alike.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#777777')
LINES = ('-', '--', ':', '-.')
MARKERS = ('o', 's', '^', 'D', 'v')
TITLES = {'knn': 'kNN-5', 'linear': 'linear', 'finetune': 'fine-tuned',
          'difference': 'difference'}  # fmt: skip
METRICS = {
    'accuracy': 'test accuracy (%)',
    'mean_average_precision': 'test mAP (%)',
    'mean_iou': 'test mean IoU (%)',
    'f1': 'test F1 of change (%)',
}


# What makes rows of one method different results, and among which of its rows that is looked for.
DIFFERENCES = {
    'weights': (), 'weights_hash': ('weights',), 'split_hash': (), 'image_size': (),
    'seed': ('weights',), 'settings': ('protocol',),
}  # fmt: skip
WORDS = {'weights_hash': 'hash {}', 'split_hash': 'split {}', 'image_size': '{} px',
         'seed': 'seed {}'}  # fmt: skip


def labelled(rows: Sequence[Row]) -> list[Row]:
    """Rows with a ``label``: what their methods are called in figures.

    That is the method, its features where there is a choice, and what else differs among rows of
    that name, so that no two results are taken for one.

    Args:
        rows: Of one data set, all that are shown together.
    """
    names = [f'{r["method"]}, depths' if r['features'] == 'depths' else r['method'] for r in rows]
    labels = list(names)
    for column, within in DIFFERENCES.items():
        groups = [(n, *(r[k] for k in within)) for n, r in zip(names, rows, strict=True)]
        values: dict[Any, set[str]] = {}
        for group, row in zip(groups, rows, strict=True):
            values.setdefault(group, set()).add(row[column])
        for i, group in enumerate(groups):
            if len(values[group]) > 1:
                said = rows[i][column]
                said = _unlike(said, values[group]) if column == 'settings' else said
                labels[i] += f', {WORDS.get(column, "{}").format(said)}'
    return [{**row, 'label': label} for row, label in zip(rows, labels, strict=True)]


def _unlike(value: str, values: set[str]) -> str:
    """The words of one of several values that are not in all of them."""
    common = set.intersection(*(set(v.split()) for v in values))
    return ' '.join(word for word in value.split() if word not in common) or value


def labels_in(rows: Sequence[Row]) -> list[str]:
    """The methods, in the order of their rows."""
    return list(dict.fromkeys(row['label'] for row in rows))


def interval_bars(rows: Sequence[Row]) -> 'Figure':
    """Draw each method's value with its 95 % interval, a panel a protocol.

    Args:
        rows: Of one data set, `labelled`; those of few labels are left out.
    """
    from matplotlib.figure import Figure

    shown = [p for p in TITLES if any(r['protocol'] == p for r in rows)]
    names = labels_in([r for r in rows if r['protocol'] in shown])
    height = 1.6 + 0.42 * len(names)
    figure = Figure(figsize=(3.2 + 3.2 * max(len(shown), 1), height), layout='constrained')
    panels = figure.subplots(1, max(len(shown), 1), sharey=True, squeeze=False)[0]
    for axes, protocol in zip(panels, shown, strict=False):
        for row in (r for r in rows if r['protocol'] == protocol):
            at = names.index(row['label'])
            value, low, high = (100 * float(row[k]) for k in ('value', 'low', 'high'))
            bounds = [[max(value - low, 0)], [max(high - value, 0)]]
            axes.barh(at, value, color=COLOURS[at % len(COLOURS)], xerr=bounds, capsize=3)
            axes.text(1, at, f'{value:.1f}', va='center', color='white', fontsize=8, weight='bold')
        axes.set(title=TITLES[protocol], xlim=(0, 100), xlabel=METRICS[rows[0]['metric']])
        axes.set_yticks(range(len(names)), names)
    if shown:
        panels[0].invert_yaxis()
    return figure


def few_label_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean, spread and extremes over the draws, by method and share; all labels are a share of 1.

    Args:
        rows: Of one data set, `labelled`.

    Returns:
        Rows with method, share, draws, mean, std, lowest and highest.
    """
    table = []
    for name in labels_in(rows):
        own = [r for r in rows if r['label'] == name]
        values: dict[float, list[float]] = {}
        for row in own:
            if row['protocol'] in ('few', 'linear'):
                values.setdefault(float(row['label_share']), []).append(float(row['value']))
        for share, found in sorted(values.items()):
            table.append({
                'method': name, 'share': share, 'draws': len(found), 'mean': np.mean(found),
                'std': np.std(found), 'lowest': min(found), 'highest': max(found),
            })  # fmt: skip
    return table


def few_label_curves(rows: Sequence[Row]) -> 'Figure':
    """Draw the linear probe against the share of labels; bars span the draws."""
    from matplotlib.figure import Figure

    table = few_label_table(rows)
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    names = list(dict.fromkeys(r['method'] for r in table))
    for i, name in enumerate(names):
        own = [r for r in table if r['method'] == name]
        mean, low, high = (100 * np.array([r[k] for r in own]) for k in
                           ('mean', 'lowest', 'highest'))  # fmt: skip
        axes.errorbar(
            [100 * r['share'] for r in own], mean, [mean - low, high - mean], label=name,
            color=COLOURS[i % len(COLOURS)], linestyle=LINES[i % len(LINES)],
            marker=MARKERS[i % len(MARKERS)], capsize=3, linewidth=1.5,
        )  # fmt: skip
    shares = sorted({r['share'] for r in table})
    axes.set_xscale('log')
    axes.set_xticks([100 * s for s in shares], [f'{100 * s:g}' for s in shares])
    axes.set_xticks([], minor=True)
    axes.set(xlabel='labels learned from (% of train)', ylabel=METRICS[rows[0]['metric']])
    axes.grid(alpha=0.3)
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def example_grid(
    benchmark: Benchmark, scores: Tensor, labels: Tensor, columns: int = 6, seed: int = 0
) -> 'Figure':
    """Draw test chips that were classified rightly, and below them wrongly.

    Args:
        benchmark: Whose test part.
        scores: (N, K) probabilities.
        labels: (N,) true classes.
        columns: Chips of each kind.
        seed: Of the choice.
    """
    from matplotlib.figure import Figure

    found = scores.argmax(dim=1)
    random = np.random.default_rng(seed)
    modality = MODALITIES[benchmark.modality]
    figure = Figure(figsize=(1.9 * columns, 5.2), layout='constrained')
    grid = figure.subplots(2, columns, squeeze=False)
    for line, right in zip(grid, (True, False), strict=True):
        ids = np.flatnonzero(((found == labels) == right).numpy())
        chosen = np.sort(random.permutation(ids)[:columns])
        for axes in line:
            axes.set_axis_off()
        for axes, i in zip(line, chosen, strict=False):
            axes.imshow(picture(benchmark.test[int(i)][benchmark.modality].numpy(), modality))
            true, taken = benchmark.classes[labels[i]], benchmark.classes[found[i]]
            share = 100 * float(scores[i, found[i]])
            text = (
                f'{true}\n{share:.0f} %' if right else f'{true}\ntaken for {taken}\n{share:.0f} %'
            )
            axes.set_title(text.replace('$', r'\$'), fontsize=7)
    figure.suptitle('above: right; below: wrong; with the probability of the class that was given')
    return figure
