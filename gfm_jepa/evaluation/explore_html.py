"""Pieces of an HTML page that stands alone: tables, embedded figures, numbers."""

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from .plots import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:76rem;padding:1rem;
color:#1a1a1a;background:#fff}
.skip{position:absolute;left:-99rem}.skip:focus{position:static}
nav a{margin-right:1rem}a{color:#0050a0}
:focus-visible{outline:3px solid #d55e00;outline-offset:2px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
caption{text-align:left;font-weight:600;padding:.3rem 0}
th,td{padding:.2rem .6rem;border-bottom:1px solid #ccc;text-align:right}
.number{white-space:nowrap}th:first-child,td.text,th.text{text-align:left}td.text{overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:1rem 0}
.remark{font-weight:600;background:#ffe9c7}
figure{margin:1rem 0}img{max-width:100%;height:auto}figcaption{color:#444}
"""


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], text: Sequence[int],
    remark: int = -1,
) -> str:  # fmt: skip
    """A table that scrolls by keyboard where it is wider than the window.

    Args:
        caption: Its title.
        head: Titles of columns.
        rows: Cells, escaped here.
        text: Columns that hold words.
        remark: Column that is marked where it says something.
    """
    titles = ''.join(f'<th scope="col"{' class="text"' if i in text else ""}>{escape(h)}</th>'
                     for i, h in enumerate(head))  # fmt: skip
    lines = []
    for row in rows:
        cells = [f'<th scope="row">{escape(str(row[0]))}</th>']
        for i, cell in enumerate(row[1:], start=1):
            kind = 'text remark' if i == remark and cell else 'text' if i in text else 'number'
            cells.append(f'<td class="{kind}">{escape(str(cell))}</td>')
        lines.append(f'<tr>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f'<caption>{escape(caption)}</caption><thead><tr>{titles}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div>'
    )


def figure(figure: 'Figure', path: Path, alt: str, caption: str) -> str:
    """Write a figure as PNG and embed the same bytes."""
    save(figure, path)
    return picture(path.read_bytes(), alt, caption)


def page(title: str, sections: Sequence[tuple[str, str, str]], style: str = '') -> str:
    """A whole page.

    Args:
        title: Of the page.
        sections: Identifier, name in the navigation and HTML of each.
        style: CSS beside the common one.
    """
    links = ''.join(f'<a href="#{escape(key)}">{escape(name)}</a>' for key, name, _ in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>'
        f'<a class="skip" href="#main">Skip to the results</a><nav>{links}</nav><main id="main">'
        f'<h1>{escape(title)}</h1>{"".join(html for _, _, html in sections)}</main></body></html>\n'
    )


def picture(png: bytes, alt: str, caption: str) -> str:
    """Embed the bytes of a PNG."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
        f'<figcaption>{escape(caption)}</figcaption></figure>'
    )


def number(value: float) -> str:
    """Four digits, and all those before the point; a hyphen for what is unknown."""
    if not math.isfinite(value):
        return '-'
    return f'{value:.0f}' if 1e4 <= abs(value) < 1e9 else f'{value:.4g}'


def span(values: Sequence[str]) -> str:
    """First and last of sorted values."""
    return ' to '.join(dict.fromkeys((values[0], values[-1]))) if values else ''
