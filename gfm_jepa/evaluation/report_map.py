"""A map of embeddings as a part of a page: layers to switch, and places to click."""

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from matplotlib import colormaps
from matplotlib.image import imsave
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from ..data.class_tags import class_names, colour_of
from ..data.finding import band_key
from ..data.grids import Grid
from ..data.raster_files import reason
from ..errors import InputError
from .clusters import normalised, read_on
from .embeddings import EmbeddingMap, require_crs, sample, warped_to

MOST_CELLS = 20_000  # of a page: its vectors are 32 bytes each
WIDTH = 32  # components of a vector
APART = 3  # cells: what lies closer to a place is no news
FINEST = 1024  # pixels of a picture's longer side
RED_GREEN_BLUE = (('b4', 'red'), ('b3', 'green'), ('b2', 'blue'))  # as `band_key` says them

STYLE = """.card{overflow-x:auto}.card th,.card td{text-align:left;vertical-align:top}
@media(min-width:64rem){#atlas{display:grid;grid-template-columns:minmax(0,1fr) 22rem;gap:1rem}}
#map{position:relative;line-height:0;background:#ddd;cursor:crosshair}
#map img{width:100%;image-rendering:pixelated}
#map svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
fieldset{border:1px solid #999;margin:1rem 0}
fieldset label{display:inline-block;margin-right:1.2rem}
.near circle{fill:#000;stroke:#fff;stroke-width:.5}
.near text{fill:#fff;font-size:3px;text-anchor:middle}
rect{fill:none}.chosen .halo{stroke:#fff;stroke-width:1.6}.chosen rect{stroke:#000;stroke-width:.8}
.cursor .halo{stroke:#000;stroke-width:1.6}
.cursor rect{stroke:#fff;stroke-width:.8;stroke-dasharray:1}
#found{list-style:none;padding:0;margin:0;font-size:.85rem}
#found li{display:grid;grid-template-columns:auto 1fr;gap:.7rem;margin:0 0 .5rem}
#found canvas{border:1px solid #666}
.swatch{display:inline-block;width:1em;height:1em;margin:0 .3em 0 1em;border:1px solid #666}
.bar{display:inline-block;width:12rem;height:1em;margin:0 .5em;border:1px solid #666}
"""


def map_section(
    embeddings: EmbeddingMap, scene: Path | None = None, layers: Mapping[str, Path] | None = None
) -> str:
    """HTML of a map that needs nothing but itself.

    Args:
        embeddings: What is searched when a place is clicked. Of large maps every n-th cell is
            shown, 20,000 at most.
        scene: Raster that is shown as red, green and blue: by the names of its bands, else its
            first three.
        layers: GeoTIFFs by name. Three bands or more are shown as the scene is; of fewer the first
            counts: whole numbers of 8 bits are classes, all else is a range.

    Raises:
        InputError: If a file cannot be read, or no cell holds data.
    """
    height, width = embeddings.target.height, embeddings.target.width
    step = max(int(np.ceil(np.sqrt(height * width / MOST_CELLS))), 1)
    shown = []
    if scene:
        shown.append(('scene', _png(_scene(embeddings, scene, step)), escape(scene.name)))
    # What may not fit is read before the slow work.
    over = [(name, *_layer(embeddings, path, step)) for name, path in (layers or {}).items()]
    values, places, basis = _vectors(embeddings, step)
    shown.append(('features', _png(_components(embeddings, values, places, step)),
                  'three principal components as red, green and blue'))  # fmt: skip
    shown += [(name, _png(picture), legend) for name, picture, legend in over]
    at = embeddings.positions(places)
    row, col = np.divmod(places, width)
    columns = -(-width // step)
    vectors, scale, offset = _eight_bits(normalised(values @ basis))
    payload = {
        'rows': -(-height // step), 'columns': columns, 'step': step, 'width': basis.shape[1],
        'last': [height - 1, width - 1],
        'apart': APART, 'count': 8, 'thumbnail': max(3, 12 // step),
        'vectors': _text(vectors), 'scale': scale.tolist(), 'offset': offset.tolist(),
        'cells': _text((row // step * columns + col // step).astype('<u4')),
        'lon': _text(at[:, 0].astype('<f4')), 'lat': _text(at[:, 1].astype('<f4')),
    }  # fmt: skip
    return _html(shown, payload, f'{embeddings.path.name}: {width} x {height} cells', step)


def _vectors(
    embeddings: EmbeddingMap, step: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Unit features of every n-th cell, their places, and the directions that keep most of them."""
    grid = embeddings.target
    kept = [(f[on], p[on]) for p, f in embeddings.batches() if (on := _on(p, grid, step)).any()]
    if not kept:
        raise InputError(f'No cell of {embeddings.path} holds data.')
    values = normalised(np.concatenate([f for f, _ in kept]))
    places = np.concatenate([p for _, p in kept])
    # Not centred, so that products of what is kept stay cosines.
    _, vectors = np.linalg.eigh(values.T.astype(np.float64) @ values)
    return values, places, vectors[:, ::-1][:, :WIDTH].astype(np.float32)


def _eight_bits(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
    """Vectors (n, K) as 8 bits, with the scale and offset (K,) of each component's own range.

    One range for all would round away what tells places apart where their cosines are near 1.
    """
    low, high = values.min(axis=0).astype(float), values.max(axis=0).astype(float)
    scale, offset = np.maximum(high - low, 1e-9) / 254, (high + low) / 2
    return np.round((values - offset) / scale).astype('i1'), scale, offset


def _middles(length: int, step: int) -> NDArray[np.int64]:
    """The cell in the middle of each block of so many cells, which stands for it."""
    return np.minimum(np.arange(0, length, step) + step // 2, length - 1)


def _on(places: NDArray[np.int64], grid: Grid, step: int) -> NDArray[np.bool_]:
    row, col = np.divmod(places, grid.width)
    rows, columns = _middles(grid.height, step), _middles(grid.width, step)
    chosen: NDArray[np.bool_] = (row == rows[row // step]) & (col == columns[col // step])
    return chosen


def _thinned[T: np.generic](image: NDArray[T], step: int) -> NDArray[T]:
    """One cell of each block of a map (H, W, ...)."""
    height, width = image.shape[:2]
    return image[_middles(height, step)][:, _middles(width, step)]


def _components(
    embeddings: EmbeddingMap, values: NDArray[np.float32], places: NDArray[np.int64], step: int
) -> NDArray[np.uint8]:
    """Three principal components, each from its 2nd to its 98th percentile, as a picture."""
    some = normalised(sample(embeddings, 5000))
    covariance = np.cov(some.T.astype(np.float64), ddof=0)  # of a single cell, too
    _, vectors = np.linalg.eigh(covariance.reshape(some.shape[1], -1))
    scores = (values - some.mean(axis=0)) @ vectors[:, ::-1][:, :3]
    low, high = np.percentile(scores, (2, 98), axis=0)
    share = np.clip((scores - low) / np.maximum(high - low, 1e-9), 0, 1)
    picture = np.zeros((embeddings.count, 4), np.uint8)
    picture[places, : share.shape[1]] = 255 * share
    picture[places, 3] = 255
    full = picture.reshape(embeddings.target.height, embeddings.target.width, 4)
    return _thinned(full, step)


def _layer(embeddings: EmbeddingMap, path: Path, step: int) -> tuple[NDArray[np.uint8], str]:
    """A raster as a picture on the map's cells, and its legend."""
    try:
        with rasterio.open(path) as source:
            coloured = source.count >= 3
            classes, names = source.dtypes[0] == 'uint8', class_names(source.tags())
    except RasterioError as error:
        raise InputError(f'{path} cannot be read ({reason(error)}).') from error
    if coloured:
        return _scene(embeddings, path, step, 'layers of it'), escape(path.name)
    how = Resampling.mode if classes else Resampling.average
    values = _thinned(embeddings.image(read_on(embeddings, path, how)), step)
    there = np.isfinite(values) & (values != -1)
    if not there.any():
        raise InputError(f'{path} has no data where {embeddings.path} has; give layers of it.')
    if classes:
        kinds = np.unique(values[there]).astype(int).tolist()
        picture = np.zeros((*values.shape, 4), np.uint8)
        for kind in kinds:
            picture[there & (values == kind)] = colour_of(kind)
        return picture, ''.join(
            f'<span class="swatch" style="background:rgb{colour_of(kind)[:3]}"></span>'
            f'{escape(names.get(kind, str(kind)))}' for kind in kinds
        )  # fmt: skip
    low, high = np.percentile(values[there], (2, 98))
    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    picture = (255 * colormaps['cividis'](np.nan_to_num(share))).astype(np.uint8)
    picture[~there] = 0
    ramp = ','.join(
        f'rgb({",".join(str(int(255 * c)) for c in colormaps["cividis"](x)[:3])})'
        for x in np.linspace(0, 1, 6)
    )
    bar = f'<span class="bar" style="background:linear-gradient(to right,{ramp})"></span>'
    return picture, f'{low:.3g}{bar}{high:.3g}'


def _scene(
    embeddings: EmbeddingMap, path: Path, step: int, wanted: str = 'its scene'
) -> NDArray[np.uint8]:
    """A raster's red, green and blue over the shown cells of a map, 2nd to 98th percentile."""
    grid = embeddings.target
    rows, columns = -(-grid.height // step), -(-grid.width // step)
    finer = max(FINEST // max(rows, columns), 1)  # pixels of the picture a shown cell
    height, width = rows * finer, columns * finer
    shown = Grid(grid.crs, grid.transform @ Affine.scale(step / finer), width, height)
    try:
        with rasterio.open(path) as source:
            require_crs(source)
            known = {band_key(d or ''): i + 1 for i, d in enumerate(source.descriptions)}
            named = [next((known[n] for n in names if n in known), 0) for names in RED_GREEN_BLUE]
            bands = named if all(named) else [min(i, source.count) for i in (1, 2, 3)]
            with warped_to(source, shown, Resampling.average) as warped:
                raw = warped.read(bands, masked=True)
    except RasterioError as error:
        raise InputError(f'{path} cannot be read ({reason(error)}).') from error
    values = raw.filled(0).astype(np.float32)
    there = ~np.ma.getmaskarray(raw).any(axis=0) & np.isfinite(values).all(axis=0)
    if not there.any():
        raise InputError(f'{path} has no data where {embeddings.path} has; give {wanted}.')
    low, high = np.percentile(values[:, there], (2, 98), axis=1)[..., None, None]
    picture = np.zeros((height, width, 4), np.uint8)
    share = np.clip((values - low) / np.maximum(high - low, 1e-9), 0, 1)
    picture[..., :3] = np.nan_to_num(255 * share).transpose(1, 2, 0)
    picture[..., 3] = 255 * there
    return picture


def _png(picture: NDArray[np.uint8]) -> str:
    """A picture (H, W, 4) as a data URI."""
    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(picture), format='png')
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def _text(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _html(
    layers: list[tuple[str, str, str]], payload: Mapping[str, Any], title: str, step: int
) -> str:
    choices, pictures, legends = [], [], []
    for i, (name, picture, legend) in enumerate(layers):
        hidden, checked = (' hidden' if i else ''), ('' if i else ' checked')
        label = escape(name)
        choices.append(
            f'<label><input type="radio" name="layer" value="{label}"{checked}> {label}</label>'
        )
        pictures.append(f'<img data-layer="{label}" alt="{label}" src="{picture}"{hidden}>')
        legends.append(f'<p data-layer="{label}"{hidden}>{label}: {legend}</p>')
    ordinal = {1: '', 2: '2nd ', 3: '3rd '}.get(step, f'{step}th ')
    every = f', every {ordinal}row and column shown' if step > 1 else ''
    shape = 85 * payload['columns'] / payload['rows']  # the whole map on one screen
    script = files(__package__).joinpath('report.js').read_text()
    text = json.dumps(payload).replace('<', '\\u003c')
    return (
        f'<section id="map-section"><h2>Map</h2><p>{escape(title)}{every}. Click a place, or move '
        f'with the arrow keys (Shift: ten cells) and press Enter: the {payload["count"]} most '
        f'similar places, at least {APART} cells from it and from each other, are numbered.</p>'
        f'<fieldset><legend>Layer</legend>{"".join(choices)}</fieldset>'
        f'<div id="atlas"><div><div id="map" style="max-width:min(56rem,{shape:.0f}vh)" '
        f'tabindex="0" role="application" aria-label="Map: arrow keys move, Enter '
        f'finds similar places">{"".join(pictures)}<svg id="marks" aria-hidden="true" '
        f'viewBox="0 0 {payload["columns"]} {payload["rows"]}" preserveAspectRatio="none"></svg>'
        f'</div>{"".join(legends)}</div>'
        f'<div><p id="said" aria-live="polite"></p><ol id="found"></ol></div></div>'
        f'<script type="application/json" id="map-data">{text}</script>'
        f'<script>{script}</script></section>'
    )
