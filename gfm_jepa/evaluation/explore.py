"""A look at rasters before pretraining: one HTML page that needs no network, and its figures."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..data.chips import summed_up
from ..errors import InputError
from ..modalities import Modality
from . import explore_figures as figures
from .explore_html import STYLE, figure, number, span, table
from .explore_looks import BandNumbers, Look, rgb
from .explore_scenes import scenes
from .explore_survey import Survey, SurveySettings, survey

PAGE = 'index.html'
_MARK = '<meta name="generator" content="gfm-jepa explore">'
_OURS = re.compile(r'index\.html|(histogram_.*|examples|shares|footprints|quicklooks)\.png')
_MOST_ROWS = 500  # of what was left out


def explore(
    paths: Sequence[str | Path], output: Path, modalities: Sequence[Modality],
    settings: SurveySettings,
) -> str:  # fmt: skip
    """Look at rasters and write the page, whole or not at all.

    Args:
        paths: As `gfm_jepa.data.Rasters` takes them.
        output: Folder to write; one that an earlier call wrote is replaced.
        modalities: Candidates, the anchor's first.
        settings: How.

    Returns:
        A line that says what was looked at, and one per remark.

    Raises:
        InputError: If there is another folder at `output`, no raster, or no usable chip.
    """
    output = output.expanduser().resolve()
    _check_output(output)
    partial = output.with_name(f'{output.name}.{os.getpid()}.tmp')
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f'{output} cannot be written ({error.strerror}).') from error
    try:
        seen = survey(paths, modalities, settings)
        (partial / PAGE).write_text(_page(seen, partial), encoding='utf-8')
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    lines = [
        f'{len(seen.rasters)} chips from {len(seen.rasters.places)} places, of which at most '
        f'{settings.chips} per modality were read; open {output / PAGE}'
    ]
    lines += [f'  {name} {b.band}: {b.remark}' for name, b in _remarks(seen)]
    return '\n'.join(lines)


def _check_output(output: Path) -> None:
    """Refuse to replace anything that explore did not write."""
    if not output.exists():
        return
    page = output / PAGE
    ours = page.is_file() and _MARK in page.read_text(encoding='utf-8', errors='replace')[:1000]
    if not ours or not all(_OURS.fullmatch(p.name) for p in output.iterdir()):
        raise InputError(
            f'{output} is there already, and not only from gfm-jepa explore; give a new folder.'
        )


def _page(seen: Survey, folder: Path) -> str:
    """The whole page; its figures are written into the folder on the way."""
    parts = [
        ('overview', 'Overview', _overview(seen)),
        ('bands', 'Values per band', ''.join(_bands(seen, folder))),
        ('examples', 'Example chips', _examples(seen, folder)),
        ('shares', 'Valid pixels and cloud', _shares(seen, folder)),
        ('footprints', 'Footprints', _footprints(seen, folder)),
        ('quicklooks', 'Whole files', _quicklooks(seen, folder)),
        ('notes', 'Notes of the reader', _notes(seen)),
        ('left-out', 'Left out', _left_out(seen)),
    ]
    links = ''.join(f'<a href="#{key}">{title}</a>' for key, title, _ in parts)
    body = ''.join(f'<section id="{key}"><h2>{title}</h2>{text}</section>\n'
                   for key, title, text in parts)  # fmt: skip
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n{_MARK}\n'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>Rasters: {len(seen.rasters)} chips</title><style>{STYLE}</style></head>\n'
        f'<body><a class="skip" href="#main">Skip to content</a><h1>Rasters before pretraining</h1>'
        f'<nav aria-label="Sections">{links}</nav>\n<main id="main">{body}</main></body></html>\n'
    )


def _overview(seen: Survey) -> str:
    """A row a modality, and what looks wrong."""
    rows = []
    for name, look in seen.looks.items():
        days = sorted(f.time[:10] for f in look.files if f.time)
        gsd = sorted({f'{f.grid.gsd:.3g}' for f in look.files}, key=float)
        rows.append(
            (name, len({f.uri for f in look.files}), sum(len(c.corners) for c in look.chips),
             look.num_read, span(gsd), _crs(look), span(days) or 'unknown',
             f'{look.valid.mean():.0%}', _cloud(look))
        )  # fmt: skip
    found = [f'<li class="remark">{escape(f"{name} {b.band}: {b.remark}")}</li>'
             for name, b in _remarks(seen)]  # fmt: skip
    remarks = (
        f'<ul>{"".join(found)}</ul>'
        if found
        else '<p>None: no band is far from what its modality states.</p>'
    )
    places = len(seen.rasters.places)
    return (
        f'<p>{len(seen.rasters)} chips of {seen.rasters.chip_size} px, joined on the ground from '
        f'{places} places; {len(seen.left_out)} files left out.</p>'
        + table('Modalities', ('modality', 'files', 'chips', 'chips read', 'gsd, m', 'CRS', 'time',
                                'valid', 'cloud'), rows, text=(0, 5, 6))
        + f'<h3>Remarks</h3>{remarks}'
    )  # fmt: skip


def _bands(seen: Survey, folder: Path) -> Iterator[str]:
    """A table and a figure per modality."""
    head = ('band', 'mean', 'std', 'min', '1 %', '99 %', 'max', 'stated mean', 'stated std',
            'remark')  # fmt: skip
    for place, (name, look) in enumerate(seen.looks.items(), start=1):
        classes = look.modality.categorical
        rows = [
            (b.band, *(('-', '-') if classes else map(number, (b.mean, b.std))),
             *map(number, (b.low, b.first, b.last, b.high, b.stated_mean, b.stated_std)),
             _remark(look, b))
            for b in look.numbers
        ]  # fmt: skip
        unknown = 'nothing; `gfm-jepa stats` computes mean and std'
        stated = 'nothing, for the values are classes' if classes else unknown
        stated = look.modality.source if look.modality.mean else stated
        yield f'<h3>{escape(name)}</h3>' + table(
            f'{name}, {look.modality.unit}, from {look.num_read} chips. Stated: {stated}',
            head, rows, text=(0, 9), remark=9,
        )  # fmt: skip
        safe = re.sub(r'[^\w-]', '_', name)
        yield figure(
            figures.histograms(look), folder / f'histogram_{place:02d}_{safe}.png',
            f'Histograms of {len(rows)} bands of {name}', 'Share of pixels by value.',
        )  # fmt: skip


def _examples(seen: Survey, folder: Path) -> str:
    shown = [look.modality for name, look in seen.looks.items()
             if any(name in e.values for e in seen.examples)]  # fmt: skip
    return figure(
        figures.examples(seen.examples, shown), folder / 'examples.png',
        f'Grid of {len(seen.examples)} random places by {len(shown)} modalities',
        'A row a place (folder; longitude, latitude; date), a column a modality: red, green and '
        'blue where there are such bands, else the first band; stretched between the 2nd and 98th '
        'percentile of the chip. Magenta has no data; light grey: the place lacks the modality.',
    )  # fmt: skip


def _shares(seen: Survey, folder: Path) -> str:
    count = sum(len(c.corners) for chips in seen.shown.values() for c in chips)
    return figure(
        figures.shares(seen.shown, seen.settings.keep.min_valid), folder / 'shares.png',
        'Histograms over chips of the share of valid pixels and of cloud, a row a modality',
        f'All {count} chips, those that the filters leave out among them.',
    )  # fmt: skip


def _footprints(seen: Survey, folder: Path) -> str:
    chips = {name: look.chips for name, look in seen.looks.items()}
    return figure(
        figures.footprints(chips), folder / 'footprints.png',
        'Map of chips in longitude and latitude, coloured by modality',
        'Outlines are chips, marks are files; marks on the same ground lie in one another.',
    )  # fmt: skip


def _quicklooks(seen: Survey, folder: Path) -> str:
    coloured = any(rgb(look.modality) for look in seen.looks.values())
    some = list(scenes(seen.looks, rgb_only=coloured))
    if not some:
        return '<p>No file has a band to show.</p>'
    names = ''.join(f'<li>{escape(f"{s.file.path} {s.file.time[:10]}".strip())}</li>' for s in some)
    paths = f'<details><summary>Paths, as in the figure</summary><ol>{names}</ol></details>'
    return paths + figure(
        figures.quicklooks(some), folder / 'quicklooks.png',
        f'Reduced pictures of {len(some)} files, listed above',
        'Reduced; stretched between the 2nd and 98th percentile. Magenta has no data.',
    )  # fmt: skip


def _notes(seen: Survey) -> str:
    """What the reader decided, with the number of files."""
    found: Counter[tuple[str, str]] = Counter()
    for name, look in seen.looks.items():
        for file in {f.uri: f for f in look.files}.values():
            found.update((name, note) for note in file.notes)
            if file.warped:
                found[name, 'warped to metres: its own grid is not north-up in metres'] += 1
    grids = Counter(x.name for p in seen.rasters.places for x in p.layers if any(x.grids))
    rows = [(name, note, f'{count} files') for (name, note), count in found.items()]
    rows += [(name, 'warped to the grid of the anchor', f'{n} places') for name, n in grids.items()]
    return table('How files are read', ('modality', 'note', 'count'), rows, text=(0, 1))


def _left_out(seen: Survey) -> str:
    """Every file that is not read, and why; those of other kinds by name."""
    rows = summed_up(seen.left_out)
    if not rows:
        return '<p>No file was left out.</p>'
    more = f'<p>and {len(rows) - _MOST_ROWS} more</p>' if len(rows) > _MOST_ROWS else ''
    return table('Files left out', ('file', 'why'), rows[:_MOST_ROWS], text=(0, 1)) + more


def _remarks(seen: Survey) -> list[tuple[str, BandNumbers]]:
    """Bands that look wrong, and whose they are."""
    return [(name, b) for name, look in seen.looks.items() for b in look.numbers
            if _remark(look, b)]  # fmt: skip


def _remark(look: Look, band: BandNumbers) -> str:
    """A remark, if any chip was read."""
    return band.remark if look.num_read else ''


def _crs(look: Look, most: int = 3) -> str:
    """The commonest CRS, with the number of files."""
    counts = Counter(
        f'EPSG:{code}' if (code := f.grid.crs.to_epsg()) else 'custom' for f in look.files
    )
    named = [f'{name} ({count})' for name, count in counts.most_common(most)]
    return ', '.join(named) + (f' and {len(counts) - most} more' if len(counts) > most else '')


def _cloud(look: Look) -> str:
    known = look.cloud[np.isfinite(look.cloud)]
    return f'{known.mean():.0%}' if len(known) else 'no mask'
