"""Maps of results as figures; each function returns a matplotlib Figure, nothing global changes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.class_tags import COLOURS
from .clusters import NONE
from .embeddings import EmbeddingMap, Embeddings, Places

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 1500  # cells along a side that a picture shows


def score_maps(
    embeddings: Embeddings, scores: Mapping[str, NDArray[np.floating]], title: str,
    labels: Mapping[str, str] | None = None,
) -> 'Figure':  # fmt: skip
    """Draw scores by place side by side, each on the colours from its 2nd to its 98th percentile.

    Args:
        embeddings: Whose places.
        scores: (count,) by name, NaN where there is none.
        title: Of the figure.
        labels: What each score is, with its unit; its name by default.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 5.2 * len(scores), 4.8), layout='constrained')
    for axes, (name, values) in zip(
        np.atleast_1d(figure.subplots(1, len(scores))), scores.items(), strict=True
    ):
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, [2, 98]) if len(finite) else (0, 1)
        shown = _show(
            axes, embeddings, values, cmap='cividis', vmin=low, vmax=max(high, low + 1e-9)
        )
        figure.colorbar(shown, ax=axes, label=(labels or {}).get(name, name), shrink=0.8)
    figure.suptitle(title)
    return figure


def cluster_map(embeddings: Embeddings, labels: NDArray[np.uint8], title: str) -> 'Figure':
    """Draw clusters by place, with the share of each in the legend."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    there = labels[labels != NONE]
    count = int(there.max()) + 1 if len(there) else 1
    colours = [COLOURS[i % len(COLOURS)] for i in range(count)]
    figure = Figure(figsize=(7.5, 5.5), layout='constrained')
    axes = figure.subplots()
    values = np.where(labels == NONE, np.nan, labels)
    _show(axes, embeddings, values, cmap=ListedColormap(colours), vmin=-0.5, vmax=count - 0.5)
    shares = np.bincount(there, minlength=count) / max(len(there), 1)
    figure.legend(
        handles=[Patch(color=c, label=f'{i}: {s:.0%}') for i, (c, s) in
                 enumerate(zip(colours, shares, strict=True))],
        loc='outside right upper', title='cluster', frameon=False,
    )  # fmt: skip
    axes.set_title(title)
    return figure


def found_places(
    embeddings: Embeddings, similarity: NDArray[np.floating], places: Places,
    query: Sequence[float] | None = None,
) -> 'Figure':  # fmt: skip
    """Draw where the most similar places are, numbered from the most similar, over the similarity.

    Args:
        embeddings: Whose places.
        similarity: (count,) cosine with the query.
        places: The most similar ones, in their order.
        query: Longitude and latitude of the query, degrees, if it has a place.
    """
    figure = score_maps(embeddings, {'similarity': similarity}, 'most similar places',
                        {'similarity': 'cosine with the query'})  # fmt: skip
    axes = figure.axes[0]
    x, y = _at(embeddings, places)
    axes.plot(x, y, 'o', markersize=11, markerfacecolor='none', markeredgecolor='white', mew=2.5)
    axes.plot(x, y, 'o', markersize=11, markerfacecolor='none', markeredgecolor='black', mew=1)
    for number, (column, row) in enumerate(zip(x, y, strict=True), 1):
        axes.annotate(str(number), (column, row), ha='center', va='center', fontsize=7,
                      color='white')  # fmt: skip
    if query is not None:
        place = np.array([embeddings.place_at(*query)])
        axes.plot(*_at(embeddings, place), '*', markersize=16, color='white', mec='black')
    return figure


def _show(axes: Any, embeddings: Embeddings, values: NDArray[Any], **options: Any) -> Any:
    """Draw values by place: a picture of a map's cells, or dots for chips."""
    if isinstance(embeddings, EmbeddingMap):
        axes.set_xticks([])
        axes.set_yticks([])
        image = embeddings.image(values)
        step = max(-(-max(image.shape) // MOST), 1)
        height, width = image.shape
        axes.set_xlabel(f'{width} x {height} cells of {embeddings.target.gsd:.4g} m')
        return axes.imshow(image[::step, ::step], interpolation='nearest',
                           extent=(-0.5, width - 0.5, height - 0.5, -0.5), **options)  # fmt: skip
    position = embeddings.positions(np.arange(embeddings.count))
    axes.set_xlabel('longitude (degrees)')
    axes.set_ylabel('latitude (degrees)')
    return axes.scatter(*position.T, c=values, s=12, **options)


def _at(embeddings: Embeddings, places: Places) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where places are in a picture."""
    if isinstance(embeddings, EmbeddingMap):
        row, col = np.divmod(places, embeddings.target.width)
        return col, row
    x, y = embeddings.positions(places).T
    return x, y
