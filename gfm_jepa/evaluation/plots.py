"""Figures of results; each function returns a matplotlib Figure, and nothing global changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..output_paths import PICTURES, require_ending

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by colour-blind readers; line styles and markers differ as well.
STYLES = (('#0072B2', '-', 'o'), ('#D55E00', '--', 's'), ('#009E73', ':', '^'),
           ('#CC79A7', '-.', 'D'))  # fmt: skip


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
    """Write a figure; the ending of the name says the format (png, pdf, svg).

    Raises:
        InputError: If it says none.
    """
    require_ending(Path(path), PICTURES)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
