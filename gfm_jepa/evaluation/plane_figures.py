"""Embeddings in the plane, neighbours beside each other; each function returns a Figure."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 5  # embeddings
MARKS = 'osv^D<>pP*X'
Placed = tuple[NDArray[Any], str]  # positions (N, 2), and what they are


def tsne(embeddings: Tensor, labels: Sequence[Any] | None = None, seed: int = 0) -> 'Figure':
    """Draw embeddings (N, D) by t-SNE, coloured by label.

    Raises:
        InputError: If there are fewer than five.

    Source: van der Maaten & Hinton, "Visualizing data using t-SNE" (2008), as scikit-learn has it.
    """
    return _draw([_tsne(_values(embeddings), seed)], labels)


def umap(embeddings: Tensor, labels: Sequence[Any] | None = None, seed: int = 0) -> 'Figure':
    """Draw embeddings (N, D) by t-SNE and, beside it, by UMAP of their cosines.

    What both show is more likely there than what only one does.

    Raises:
        InputError: If there are fewer than five, or umap-learn is not installed.

    Source: McInnes et al., "UMAP: uniform manifold approximation and projection" (2018), as
        umap-learn has it.
    """
    values = _values(embeddings)
    placed = _umap(values, seed)
    return _draw([_tsne(values, seed), placed], labels)


def _values(embeddings: Tensor) -> NDArray[np.float32]:
    if len(embeddings) < FEWEST:
        raise InputError(
            f'{len(embeddings)} embeddings are too few for a plane; give at least {FEWEST}.'
        )
    values: NDArray[np.float32] = embeddings.float().cpu().numpy()
    return values


def _tsne(values: NDArray[np.float32], seed: int) -> Placed:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values) - 1) / 3)
    # Of embeddings that are all alike the components are NaN, on which scikit-learn crashes.
    init = 'pca' if np.ptp(values, axis=0).max() > 1e-6 else 'random'
    placed = TSNE(2, perplexity=perplexity, init=init, random_state=seed).fit_transform(values)
    return placed, f't-SNE of {len(values)} embeddings, perplexity {perplexity:.0f}'


def _umap(values: NDArray[np.float32], seed: int) -> Placed:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the compiler, and that a seed takes one thread
        try:
            from umap import UMAP
        except ImportError as error:
            raise InputError(
                "UMAP is drawn by umap-learn, which is not installed: pip install 'gfm-jepa[umap]'."
            ) from error
        near = min(15, len(values) - 1)
        # Of few points the spectral start has too few directions.
        start = 'spectral' if len(values) > 20 else 'random'
        placed = UMAP(
            n_neighbors=near, metric='cosine', init=start, random_state=seed
        ).fit_transform(values)
    return placed, f'UMAP of {len(values)} embeddings, {near} neighbours'


def _draw(planes: Sequence[Placed], labels: Sequence[Any] | None) -> 'Figure':
    """One panel a plane, with one legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 6 * len(planes), 5.5), layout='constrained')
    count = len(planes[0][0])
    groups = np.array(['all'] * count if labels is None else list(map(str, labels)))
    names = np.unique(groups)
    for axes, (placed, title) in zip(
        figure.subplots(1, len(planes), squeeze=False)[0], planes, strict=True
    ):
        for number, name in enumerate(names):
            x, y = placed[groups == name].T
            axes.scatter(x, y, s=14, marker=MARKS[number % len(MARKS)], label=name)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(title)
    if len(names) > 1:
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc='outside right upper', frameon=False)
    return figure
