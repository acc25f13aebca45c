"""Figures of results; each function returns a matplotlib Figure, and nothing global changes."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by colour-blind readers; line styles and markers differ as well.
_STYLES = (('#0072B2', '-', 'o'), ('#D55E00', '--', 's'), ('#009E73', ':', '^'),
           ('#CC79A7', '-.', 'D'))  # fmt: skip
_PANELS = (
    ('loss', 'loss (no unit)'),
    ('lr', 'learning rate (per step)'),
    ('knn', 'online kNN accuracy (%)'),
)


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: Sequence[str]) -> 'Figure':
    """Draw which classes are taken for which; cells hold percents of a row, and add up to 100.

    Args:
        labels: (N,) true labels.
        predictions: (N,) predicted labels.
        classes: Names by label.
    """
    from matplotlib.figure import Figure

    size = len(classes)
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (labels.numpy(), predictions.numpy()), 1)
    percents = 100 * counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = 2.5 + 0.5 * size
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(percents, cmap='cividis', vmin=0, vmax=100)
    for row, column in np.argwhere(counts > 0):
        value = percents[row, column]
        axes.text(column, row, f'{value:.0f}' if value >= 1 else '<1', ha='center', va='center',
                  fontsize=8, color='black' if value > 50 else 'white')  # fmt: skip
    names = [f'{name} ({count})' for name, count in zip(classes, counts.sum(axis=1), strict=True)]
    axes.set_xticks(range(size), list(classes), rotation=45, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(size), names)
    axes.set_xlabel('predicted class')
    axes.set_ylabel('true class (number of images)')
    axes.set_title(f'{100 * np.trace(counts) / counts.sum():.2f} % of {counts.sum()} images right')
    figure.colorbar(image, ax=axes, label='share of the true class (%)', shrink=0.8)
    return figure


def learning_curve(metrics_csv_path: str | Path) -> 'Figure':
    """Draw loss, learning rate and online kNN accuracy over steps, a panel for each that is there.

    Args:
        metrics_csv_path: ``metrics.csv`` as Lightning's CSVLogger writes it: a column ``step``, and
            columns whose names hold ``loss``, ``lr`` or ``knn`` (0..1).

    Raises:
        InputError: If there is no such file, or nothing to draw in it.
    """
    from matplotlib.figure import Figure

    curves = _read_curves(Path(metrics_csv_path))
    panels = [
        (title, {name: xy for name, xy in curves.items() if _panel(name) == key})
        for key, title in _PANELS
    ]
    panels = [(title, lines) for title, lines in panels if lines]
    if not panels:
        raise InputError(f'{metrics_csv_path} has no steps with loss, lr or knn; nothing to draw.')
    figure = Figure(figsize=(7, 0.6 + 2.2 * len(panels)), layout='constrained')
    grid = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (title, lines) in zip(grid, panels, strict=True):
        for (name, (steps, values)), style in zip(lines.items(), _STYLES * 9, strict=False):
            percent = 100 if _panel(name) == 'knn' else 1
            _draw_line(axes, name, steps, percent * values, style)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    grid[-1].set_xlabel('optimizer step')
    return figure


def probe_bars(rows: Sequence[dict[str, Any]]) -> 'Figure':
    """Draw kNN-5 and linear accuracy of each row of `gfm_jepa.evaluation.probes.probe`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.4 + 0.7 * len(rows)), layout='constrained')
    axes = figure.subplots()
    places = np.arange(len(rows))
    for key, label, offset, hatch, colour in (
        ('knn5', 'kNN-5', -0.2, '', '#56B4E9'),
        ('linear', 'linear', 0.2, '//', '#E69F00'),
    ):
        bars = axes.barh(places + offset, [100 * r[key] for r in rows], height=0.38, label=label,
                         color=colour, edgecolor='black', hatch=hatch)  # fmt: skip
        axes.bar_label(bars, fmt='%.1f', padding=3)
    datasets = {r['dataset'] for r in rows}
    several = len(datasets) > 1
    names = [f'{r["name"]}, {r["dataset"]}' if several else str(r['name']) for r in rows]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_xlabel('test accuracy (%)')
    if not several and rows:
        first = rows[0]
        axes.set_title(f'{first["dataset"]}: {first["n_train"]} train, {first["n_test"]} test')
    figure.legend(loc='outside lower center', ncols=2, frameon=False)
    return figure


def save(figure: 'Figure', path: str | Path) -> None:
    """Write a figure; the ending of the name says the format (png, pdf, svg)."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _panel(column: str) -> str:
    """Tell which panel a column belongs to."""
    name = column.lower()
    if 'knn' in name or 'loss' in name:
        return 'knn' if 'knn' in name else 'loss'
    return 'lr' if name == 'lr' or name.startswith(('lr-', 'lr_', 'lr/')) else ''


def _read_curves(path: Path) -> dict[str, tuple['np.ndarray', 'np.ndarray']]:
    """Read each column as steps and values, where it has a value."""
    if not path.is_file():
        raise InputError(f'There is no {path}; give the metrics.csv of a run.')
    curves: dict[str, tuple[list[float], list[float]]] = {}
    with path.open(newline='') as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if text and row.get('step') and _panel(name):
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(float(row['step']))
                    values.append(float(text))
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in curves.items()}


def _draw_line(
    axes: 'Axes', name: str, steps: 'np.ndarray', values: 'np.ndarray', style: tuple[str, str, str]
) -> None:
    colour, line, marker = style
    every = max(1, len(steps) // 12)
    axes.plot(steps, values, color=colour, linestyle=line, marker=marker, markevery=every,
              markersize=4, label=name)  # fmt: skip
