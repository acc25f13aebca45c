"""Clusters of embeddings, and how well they agree with labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from ..data.raster_files import reason
from ..errors import InputError, require_seed
from .embeddings import EmbeddedTable, EmbeddingMap, Embeddings, require_crs, sample

MOST = 100_000  # places that centres are fitted to
NONE = 255  # no data


@dataclass(frozen=True)
class Clusters:
    """Clusters of all places.

    Attributes:
        labels: (count,) uint8 cluster of each place, 255 where nothing is there.
        centres: (k, D); the largest cluster first.
    """

    labels: NDArray[np.uint8]
    centres: NDArray[np.float32]


def cluster(embeddings: Embeddings, k: int, seed: int = 0) -> Clusters:
    """k-means on L2-normalised embeddings: fitted to a random part, then all places are assigned.

    Args:
        embeddings: Places.
        k: Clusters, 2 to 254.
        seed: Of the part and of the first centres.

    Raises:
        InputError: If k or the seed does not fit.

    Source: Arthur & Vassilvitskii, "k-means++" (2007), as scikit-learn has it.
    """
    from sklearn.cluster import KMeans

    require_seed(seed)
    some = normalised(sample(embeddings, MOST, seed))
    if not 2 <= k <= min(254, len(some)):
        raise InputError(f'{k} clusters of {len(some)} places cannot be; take 2 to 254.')
    centres = KMeans(k, n_init=4, random_state=seed).fit(some).cluster_centers_
    labels = np.full(embeddings.count, NONE, dtype=np.uint8)
    for places, values in embeddings.batches():
        # Of unit vectors, |x - c|^2 = 1 - 2 x c + |c|^2.
        gaps = np.square(centres).sum(axis=1) - 2 * normalised(values) @ centres.T
        labels[places] = gaps.argmin(axis=1)
    sizes = np.bincount(labels[labels != NONE], minlength=k)
    order = np.argsort(-sizes, kind='stable')
    rank = np.full(256, NONE, dtype=np.uint8)
    rank[order] = np.arange(k)
    return Clusters(rank[labels], centres[order].astype(np.float32))


def agreement(clusters: NDArray[np.uint8], labels: NDArray[np.integer]) -> dict[str, float]:
    """Purity and normalised mutual information of clusters and labels.

    Args:
        clusters: (n,), 255 where nothing is there.
        labels: (n,), below 0 where there is none.

    Returns:
        ``purity`` (share of places whose label is the commonest in their cluster), ``nmi`` (mutual
        information over the mean of both entropies), ``chance`` (purity of one single cluster) and
        ``places`` that have both.

    Raises:
        InputError: If no place has both.
    """
    from sklearn.metrics import normalized_mutual_info_score

    both = (clusters != NONE) & (labels >= 0)
    if not both.any():
        raise InputError('The labels cover no place that has an embedding.')
    ours, theirs = clusters[both], np.unique(labels[both], return_inverse=True)[1]
    counts = np.zeros((256, int(theirs.max()) + 1), dtype=np.int64)
    np.add.at(counts, (ours, theirs), 1)
    return {
        'purity': float(counts.max(axis=1).sum() / both.sum()),
        'nmi': float(normalized_mutual_info_score(theirs, ours)),
        'chance': float(counts.sum(axis=0).max() / both.sum()),
        'places': int(both.sum()),
    }


def labels_of(embeddings: Embeddings, source: str) -> NDArray[np.int64]:
    """Labels by place: (count,), -1 where there is none.

    Args:
        embeddings: Places.
        source: Of a map, a raster of classes, of which each cell takes the commonest; of a table,
            the name of a column.

    Raises:
        InputError: If there are none.
    """
    if isinstance(embeddings, EmbeddedTable):
        if source not in embeddings.table:
            known = ', '.join(embeddings.table.columns)
            raise InputError(f'{embeddings.path} has no column {source!r}; it has {known}.')
        try:
            codes = embeddings.table[source].astype('category').cat.codes
        except (TypeError, AttributeError) as error:  # geometries, lists
            raise InputError(
                f'The column {source!r} of {embeddings.path} holds no classes; name another.'
            ) from error
        labels: NDArray[np.int64] = codes.to_numpy().astype(np.int64)
        return labels
    return read_on(embeddings, Path(source), Resampling.mode).astype(np.int64)


def read_on(embeddings: EmbeddingMap, path: Path, how: Resampling) -> NDArray[np.float64]:
    """First band of a raster on the grid of a map: (count,), -1 where there is none.

    Raises:
        InputError: If it cannot be read, or has no data on the ground of the map.
    """
    grid = embeddings.target
    try:
        with rasterio.open(path) as source:
            require_crs(source)
            # An alpha band says what the raster covers, whatever its type, nodata value and mask.
            own = [c is ColorInterp.alpha for c in source.colorinterp]
            with WarpedVRT(source, crs=grid.crs, transform=grid.transform, width=grid.width,
                           height=grid.height, resampling=how, add_alpha=not any(own),
                           dtype='float64') as warped:  # fmt: skip
                alpha = own.index(True) + 1 if any(own) else warped.count
                # Where the CRS of a far place knows no such ground, GDAL leaves memory as it is.
                out = np.zeros((2, grid.height, grid.width))
                values, covered = warped.read([1, alpha], out=out).reshape(2, -1)
    except RasterioError as error:
        raise InputError(f'{path} cannot be read ({reason(error)}).') from error
    there = (covered > 0) & np.isfinite(values)
    if not there.any():
        raise InputError(
            f'{path} covers no place of {embeddings.path}: it has no data there; give a raster of '
            f'the same ground.'
        )
    return np.where(there, values, -1.0)


def normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (n, D) of length 1."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (values / np.maximum(length, 1e-12)).astype(np.float32)
    return unit
