"""One page that stands alone: a map to click, the curves of a run, results, a model card."""

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from ..bundled import bundled_folder
from ..data.index import make_folder, write_whole
from ..errors import InputError
from .benchmark_figures import labelled
from .benchmark_report import result_table
from .dashboard import dashboard
from .embeddings import open_map
from .explore_html import page, picture
from .report_map import STYLE, map_section
from .result_table import read_rows

MAPS = ('.tif', '.tiff')


def write_report(
    sources: Sequence[str],
    output: Path,
    scene: Path | None = None,
    layers: Mapping[str, Path] | None = None,
) -> Path:
    """Write a page of whatever is given.

    Args:
        sources: Of each kind any number, but one map: a map of embeddings (``.tif``), rows of
            `gfm-jepa benchmark` (``.csv``), weights with a card (a folder or bundled name), runs
            (folders that hold a ``metrics.csv`` somewhere).
        output: HTML file.
        scene: Raster that shows the map's ground.
        layers: GeoTIFFs to lay over the map, by name.

    Returns:
        The page.

    Raises:
        InputError: If a source is of no such kind, or layers come without a map.
    """
    maps = [s for s in sources if s.lower().endswith(MAPS)]
    if len(maps) > 1 or ((scene or layers) and not maps):
        raise InputError(
            f'A page shows one map of embeddings, and got {len(maps)}; give one .tif of `gfm-jepa '
            f'embed`, and every other raster as --layer NAME=FILE.'
        )
    # The map stands first, whatever the order that things came in.
    sections = [('map-section', 'Map', map_section(open_map(Path(m)), scene, layers)) for m in maps]
    for i, source in enumerate(s for s in sources if s not in maps):
        name, html = _section(source)
        title = f'<h2>{escape(name)}</h2>'
        sections.append((f'part{i}', name, f'<section id="part{i}">{title}{html}</section>'))
    if not sections:
        raise InputError('There is nothing to show; give a map, a run, results or weights.')
    make_folder(output.parent)
    write_whole(output, page('gfm-jepa report', sections, STYLE).encode())
    return output


def _section(source: str) -> tuple[str, str]:
    """Name and HTML of anything but a map."""
    path = bundled_folder(source) or Path(source)
    if path.suffix == '.csv' and path.is_file():
        rows = read_rows(path)
        by_set = {r['dataset']: [x for x in rows if x['dataset'] == r['dataset']] for r in rows}
        tables = [result_table(labelled(own)) for own in by_set.values()]
        return f'Results: {path.name}', ''.join(tables)
    if (path / 'README.md').is_file() and (path / 'config.json').is_file():
        text = (path / 'README.md').read_text()
        if text.startswith('---\n'):  # metadata for the Hub
            text = text.partition('\n---\n')[2]
        card = MarkdownIt('js-default', {'html': False}).render(text)
        return f'Weights: {path.name}', f'<div class="card">{card}</div>'
    if path.is_dir() and any(path.rglob('metrics.csv')):
        file = io.BytesIO()
        dashboard(path).savefig(file, dpi=110, format='png')
        alt = f'Curves of the run {path.name}: loss, accuracy, health and schedules over steps'
        return f'Run: {path.name}', picture(file.getvalue(), alt, str(path.name))
    raise InputError(
        f'{source} is not a map (.tif), rows of `gfm-jepa benchmark` (.csv), weights with a '
        f'README.md, or a run with a metrics.csv; give one of these.'
    )
