"""Figures of rasters before pretraining; each function returns a matplotlib Figure."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..data.chips import FileChips
from ..modalities import Modality
from .explore_looks import Float, Look, rgb
from .explore_scenes import Scene
from .explore_survey import Example

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by colour-blind readers; markers differ as well.
COLOURS = ('#0072B2', '#E69F00', '#009E73', '#D55E00', '#56B4E9', '#CC79A7', '#F0E442', '#777777')
MARKERS = ('o', 's', '^', 'D', 'v', 'p', 'h', 'X', 'P', '*')
MISSING = (0.85, 0.0, 0.85)  # magenta: no stretch makes it, and it is in no palette above
MOST_MARKS = 2000  # footprints drawn per modality


def histograms(look: Look) -> 'Figure':
    """Draw how the values of each band are spread, and where the modality states them to be."""
    from matplotlib.figure import Figure

    numbers = look.numbers
    cols = min(len(numbers), 4)
    rows = math.ceil(len(numbers) / cols)
    figure = Figure(figsize=(max(2.9 * cols, 5), 0.8 + 1.9 * rows), layout='constrained')
    grid = figure.subplots(rows, cols, squeeze=False).ravel()
    for i, (axes, band) in enumerate(zip(grid, numbers, strict=False)):
        values = look.pixels(i)
        axes.set_title(_plain(band.band), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis='x', nbins=4)
        if not len(values):
            _say(axes, 'no data')
        elif look.modality.categorical:
            classes, counts = np.unique(values, return_counts=True)
            axes.bar([f'{c:g}' for c in classes], 100 * counts / counts.sum(), color=COLOURS[0])
        else:
            _spread(axes, values, band.stated_mean, band.stated_std)
    for axes in grid[len(numbers) :]:
        axes.set_axis_off()
    figure.supxlabel(_plain(f'{look.modality.name}: {look.modality.unit}'), fontsize=9)
    figure.supylabel('share of pixels, %', fontsize=9)
    if look.modality.mean:
        handles, labels = grid[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc='outside upper right', ncols=2, fontsize=8)
    return figure


def examples(chips: Sequence[Example], modalities: Sequence[Modality]) -> 'Figure':
    """Draw chips, a row a place and a column a modality; what a place lacks stays grey."""
    from matplotlib.figure import Figure

    count = (len(chips), len(modalities))
    figure = Figure(figsize=(1.2 + 1.45 * count[1], 0.5 + 1.4 * count[0]), layout='constrained')
    grid = figure.subplots(*count, squeeze=False)
    for row, chip in zip(grid, chips, strict=True):
        row[0].set_ylabel(
            _plain(chip.title), fontsize=7, rotation='horizontal', ha='right', va='center'
        )
        for axes, modality in zip(row, modalities, strict=True):
            axes.set(xticks=[], yticks=[])
            if modality.name in chip.values:
                image = picture(chip.values[modality.name], modality)
                axes.imshow(image, interpolation='nearest')
            else:
                axes.set_facecolor('#f4f4f4')
                axes.set_box_aspect(1)
            for side in axes.spines.values():
                side.set_visible(modality.name in chip.values)
    for axes, modality in zip(grid[0], modalities, strict=True):
        axes.set_title(_plain(modality.name), fontsize=9)
    return figure


def shares(shown: Mapping[str, Sequence[FileChips]], min_valid: float) -> 'Figure':
    """Draw how many chips hold how much data, and how much cloud, a row a modality.

    Args:
        shown: Chips by modality, before any filter.
        min_valid: Lowest valid share that passes.
    """
    from matplotlib.figure import Figure

    valid = {name: np.concatenate([c.valid for c in chips]) for name, chips in shown.items()}
    cloud = {name: np.concatenate([c.cloud for c in chips]) for name, chips in shown.items()}
    known = any(np.isfinite(c).any() for c in cloud.values())
    columns = [('valid pixels, %', valid), *([('cloud, %', cloud)] if known else [])]
    size = (3.6 * len(columns) + 1, 0.9 + 0.8 * len(shown))
    figure = Figure(figsize=size, layout='constrained')
    grid = figure.subplots(len(shown), len(columns), squeeze=False, sharex=True)
    for row, name in zip(grid, shown, strict=True):
        row[0].set_ylabel(
            _plain(f'{name}\n{len(valid[name])} chips'), fontsize=8,
            rotation='horizontal', ha='right', va='center',
        )  # fmt: skip
        for axes, (_, by_name) in zip(row, columns, strict=True):
            some = by_name[name][np.isfinite(by_name[name])]
            axes.tick_params(labelsize=7)
            if len(some):
                weights = np.full(len(some), 100 / len(some))
                axes.hist(100 * some, bins=20, range=(0, 100), weights=weights, color=COLOURS[0])
                axes.set(ylim=(0, 105), yticks=(0, 100))
            else:
                _say(axes, 'no cloud mask')
        row[0].axvline(100 * min_valid, color=COLOURS[3], linestyle='--', linewidth=1)
    for axes, (label, _) in zip(grid[-1], columns, strict=True):
        axes.set_xlabel(f'{label} of the chip', fontsize=8)
    figure.supylabel('share of chips, %', fontsize=8)
    figure.suptitle(f'dashed: lowest valid share that passes, {min_valid:.0%}', fontsize=8)
    return figure


def footprints(chips: Mapping[str, Sequence[FileChips]]) -> 'Figure':
    """Draw where chips lie, by modality, and by split where there are splits."""
    from matplotlib.figure import Figure

    by_split: dict[str, list[FileChips]] = {}
    for some in chips.values():
        for c in some:
            for name in np.unique(c.split):
                by_split.setdefault(str(name), []).append(c.take(c.split == name))
    panels = [('modality', {k: list(v) for k, v in chips.items()})]
    if set(by_split) != {''}:
        panels.append(('split', {k or 'across borders': v for k, v in sorted(by_split.items())}))
    figure = Figure(figsize=(8, 5.2 * len(panels)), layout='constrained')
    for axes, (what, groups) in zip(
        figure.subplots(len(panels), squeeze=False).ravel(), panels, strict=True
    ):
        for i, (name, some) in enumerate(groups.items()):
            count = sum(len(c.corners) for c in some)
            _mark(axes, some, i, _plain(f'{name} ({count} chips)'), 18 - 14 * i / len(groups))
        axes.set(xlabel='longitude, degrees', ylabel='latitude, degrees')
        axes.set_title(f'Footprints by {what}; marks are files', fontsize=10)
        axes.margins(0.08)
        axes.grid(alpha=0.3)
        axes.ticklabel_format(useOffset=False)
        axes.legend(loc='center left', bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False,
                    labelspacing=1.3, handletextpad=1.2)  # fmt: skip
    return figure


def quicklooks(scenes: Sequence[Scene]) -> 'Figure':
    """Draw whole files at reduced size."""
    from matplotlib.figure import Figure

    cols = min(len(scenes), 4)
    rows = math.ceil(len(scenes) / cols)
    figure = Figure(figsize=(3 * cols, 3.3 * rows), layout='constrained')
    grid = figure.subplots(rows, cols, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, scene in zip(grid, scenes, strict=False):
        axes.imshow(picture(scene.values, scene.file.modality))
        axes.set_title(_plain(scene.title), fontsize=7)
    return figure


def picture(values: Float, modality: Modality) -> Float:
    """Make a chip visible: red, green and blue if it has them, else its first band with data.

    Args:
        values: (C, H, W), NaN where there is no data.
        modality: Whose.

    Returns:
        (H, W, 3), 0..1; magenta where there is no data.
    """
    at = list(rgb(modality))
    there = [i for i in range(len(values)) if np.isfinite(values[i]).any()]
    if not set(at) <= set(there) or not at:
        at = there[:1]
    if not at:
        return np.full((*values.shape[1:], 3), MISSING, np.float32)
    image = values[at]
    lacks = ~np.isfinite(image).all(axis=0)
    if modality.categorical:
        palette = np.array([_fraction(c) for c in COLOURS], np.float32)
        shown = palette[np.nan_to_num(image[0]).astype(int) % len(palette)]
    else:
        low, high = np.nanpercentile(image, (2, 98), axis=(1, 2))[..., None, None]
        # Haze lifts the darkest of each band; a free range each would make water colourful.
        spread = np.maximum(high - low, (high - low).max() / 2)
        spread[spread <= 0] = 1.0
        stretched = np.nan_to_num(np.clip((image - low) / spread, 0, 1))
        shown = np.broadcast_to(stretched.transpose(1, 2, 0), (*lacks.shape, 3))
    coloured: Float = shown.astype(np.float32)
    coloured[lacks] = MISSING
    return coloured


def _spread(axes: 'Axes', values: Float, mean: float, std: float) -> None:
    """Histogram between the extremes of 99.8 % of the pixels, and the stated mean and std."""
    low, high = np.percentile(values, (0.1, 99.9))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    weights = np.full(len(values), 100 / len(values))
    axes.hist(values, bins=60, range=(low, high), weights=weights, color=COLOURS[0])
    if math.isfinite(mean):
        axes.axvspan(mean - std, mean + std, color=COLOURS[1], alpha=0.3, zorder=0,
                     label='stated ± std')  # fmt: skip
        axes.axvline(mean, color=COLOURS[3], linestyle='--', label='stated mean')
        # Far off, it would squeeze the data into a line; the table says how far.
        axes.set_xlim(max(min(low, mean - std), 2 * low - high),
                      min(max(high, mean + std), 2 * high - low))  # fmt: skip
        if not axes.get_xlim()[0] <= mean <= axes.get_xlim()[1]:
            _say(axes, f'stated mean {mean:.4g} is {"left" if mean < low else "right"} of here')


def _mark(axes: 'Axes', chips: Sequence[FileChips], i: int, label: str, size: float) -> None:
    """Outlines of chips, and an open mark per file: a footprint alone vanishes on a world map."""
    from matplotlib.collections import PolyCollection

    colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    rings = np.concatenate([np.stack([c.lon, c.lat], axis=2) for c in chips])
    # One that crosses the date line would be drawn around the world.
    rings = rings[np.ptp(rings[:, :, 0], axis=1) < 180]
    rings = rings[:: math.ceil(max(len(rings), 1) / MOST_MARKS)]
    axes.add_collection(
        PolyCollection(list(rings), facecolor='none', edgecolor=colour, linewidth=0.6, alpha=0.6)
    )
    step = math.ceil(len(chips) / MOST_MARKS)
    middle = np.array([(np.median(c.lon), np.median(c.lat)) for c in chips[::step]])
    # Rings in one another, the first the widest: modalities often lie on the same ground.
    axes.plot(*middle.T, marker, color=colour, markerfacecolor='none', markersize=size,
              markeredgewidth=1.4, label=label)  # fmt: skip


def _say(axes: 'Axes', text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha='center', va='center', fontsize=8,
              color='#555555', wrap=True)  # fmt: skip
    if not axes.has_data():
        axes.set(xticks=[], yticks=[])


def _plain(text: str) -> str:
    """Names as they are: no formulas, and no letters that the font of the figures lacks."""
    return ''.join(c if ord(c) < 0x530 else '?' for c in text).replace('$', r'\$')


def _fraction(colour: str) -> tuple[float, ...]:
    """``#0072B2`` as three numbers 0..1."""
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
