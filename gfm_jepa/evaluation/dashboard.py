"""One picture of a run: does it learn, is it alive, and what was it told to do?"""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .plots import STYLES, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values

# Title, label of the values' axis, scale, limits; a panel is drawn if the run logged what it shows.
PANELS = {
    'loss': ('Loss', 'loss (no unit)', 'linear', None),
    'knn': ('Online kNN on held-out labels', 'accuracy (%)', 'linear', None),
    'rank': ('Effective rank', 'directions in use', 'linear', (0, None)),
    'spread': ('Spread', 'std 0, cosine 1: collapsed', 'linear', (-0.1, None)),
    'gradient': ('Gradient norm, before clipping', 'L2 norm (no unit)', 'log', None),
    'term': ('Terms of the loss', 'term (no unit)', 'log', None),
    'lr': ('Learning rate', 'rate per step', 'linear', (0, None)),
    'momentum': ('Momentum of the target encoder', 'share kept per step', 'linear', None),
}
_OTHER = {'step', 'epoch', 'hp_metric'}
_NAMES = {
    'embedding_std': 'spread', 'mean_cosine': 'spread', 'effective_rank': 'rank',
    'projection_std': 'spread', 'projection_rank': 'rank',
    'grad_norm': 'gradient', 'ema_momentum': 'momentum',
}  # fmt: skip


def dashboard(run: str | Path) -> 'Figure':
    """Draw all that a run has logged over its optimizer steps, a panel for each kind.

    Args:
        run: Folder of a run, of which the newest ``metrics.csv`` counts, or such a file, as
            Lightning's CSVLogger writes it.

    Raises:
        InputError: If there is no such file, or nothing to draw in it.
    """
    from matplotlib.figure import Figure

    path = find_metrics(Path(run))
    curves = read_curves(path)
    kinds = [k for k in PANELS if any(panel_of(name) == k for name in curves)]
    if not kinds:
        raise InputError(f'{path} has no steps with a loss or another metric; nothing to draw.')
    rows = -(-len(kinds) // 2)
    figure = Figure(figsize=(11, 0.8 + 2.5 * rows), layout='constrained')
    grid = figure.subplots(rows, 2, squeeze=False).flatten()
    last = max(steps.max() for steps, _ in curves.values())
    for axes, kind in zip(grid, kinds, strict=False):
        _draw(axes, kind, {n: c for n, c in curves.items() if panel_of(n) == kind})
        axes.set_xlim(-0.02 * last, 1.02 * last or 1)
    for axes in grid[len(kinds) :]:
        axes.remove()
    for axes in grid[max(len(kinds) - 2, 0) : len(kinds)]:
        axes.set_xlabel('optimizer step')
    figure.suptitle(f'{path.parent} to step {last:,.0f}')
    return figure


def write_dashboard(run: Path, output: Path) -> Path:
    """Draw a run into a file, whose ending says the format (png, pdf, svg)."""
    save(dashboard(run), output)
    return output


def find_metrics(run: Path) -> Path:
    """The newest ``metrics.csv`` of a run's folder.

    Raises:
        InputError: If there is none.
    """
    found = [run] if run.is_file() else list(run.rglob('metrics.csv'))
    if not found:
        raise InputError(f'There is no metrics.csv in {run}; give the folder of a run.')
    return max(found, key=lambda p: p.stat().st_mtime_ns)


def read_curves(path: Path) -> dict[str, Curve]:
    """Read each metric of a ``metrics.csv`` as steps and values, where it has a value.

    Of a step that a resumed run took again, the later value counts. A row that was broken off is
    left out.
    """
    found: dict[str, dict[float, float]] = {}
    try:
        content = path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError:
        content = '\0'
    if '\0' in content[:4096]:
        raise InputError(f'{path} is no metrics.csv, but binary; give the folder of a run.')
    for row in csv.DictReader(io.StringIO(content, newline='')):
        step = row.get('step') or ''
        if None in row or not is_number(step) or not np.isfinite(float(step)):
            continue  # a killed run's last row, and the next one's first behind it
        for name, text in row.items():
            if panel_of(name) and is_number(text):
                found.setdefault(name, {})[float(step)] = float(text)
    curves = {}
    for name, values in sorted(found.items()):
        steps = sorted(values)
        curves[name] = (np.array(steps), np.array([values[s] for s in steps]))
    return curves


def is_number(text: str | None) -> bool:
    """Whether a cell holds one."""
    try:
        float(text or '')
    except ValueError:
        return False
    return True


def panel_of(column: str) -> str:
    """Tell which panel a column belongs to; none for what counts rows."""
    name = column.lower()
    if name in _NAMES or name in _OTHER:
        return _NAMES.get(name, '')
    if name == 'lr' or name.startswith(('lr-', 'lr_', 'lr/')):
        return 'lr'
    return 'knn' if 'knn' in name else 'loss' if 'loss' in name else 'term'


def _draw(axes: 'Axes', kind: str, lines: dict[str, Curve]) -> None:
    """Draw the lines of one panel."""
    title, label, scale, limits = PANELS[kind]
    positive = all((values > 0).all() for _, values in lines.values())
    for (name, (steps, values)), style in zip(lines.items(), STYLES * 9, strict=False):
        colour, line, marker = style
        axes.plot(
            steps, values * (100 if kind == 'knn' else 1), color=colour, linestyle=line,
            marker=marker, markevery=max(1, len(steps) // 12), markersize=4, label=name,
        )  # fmt: skip
    if scale == 'log' and positive:
        axes.set_yscale('log')
    if limits:
        axes.set_ylim(*limits)
    axes.set_title(title, fontsize='medium')
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize='small')
