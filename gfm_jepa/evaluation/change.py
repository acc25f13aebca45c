"""What has changed between two dates: the difference of features, place by place."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .clusters import normalised
from .embeddings import EmbeddingMap


def change_maps(before: EmbeddingMap, after: EmbeddingMap) -> dict[str, NDArray[np.float32]]:
    """Compare two maps cell by cell, on the grid of the first.

    Season, light and sensor change features of all places; what a scene has in common is taken
    out: its mean difference is subtracted.

    Args:
        before: Earlier date.
        after: Later date; read on the grid of the earlier by nearest neighbour.

    Returns:
        ``cosine`` (1 - cosine of both features, 0 to 2) and ``difference`` (length of their
        difference less its mean over the scene), (count,) each, NaN where either is missing.

    Raises:
        InputError: If both have other features, or share no ground.
    """
    if before.names != after.names:
        raise InputError(
            f'{before.path} has {len(before.names)} features, {after.path} {len(after.names)}; '
            f'embed both with the same weights, and without --pca, whose components differ.'
        )
    if before.names[0].startswith('pc'):
        raise InputError(
            f'{before.path} holds components, which differ from map to map; embed without --pca.'
        )
    placed = replace(after, like=before)
    pairs = zip(before.batches(), placed.batches(), strict=True)
    total, count = np.zeros(len(before.names)), 0
    for first, second, _ in map(_joined, pairs):
        total += (second - first).sum(axis=0, dtype=np.float64)
        count += len(first)
    if not count:
        raise InputError(f'{before.path} and {after.path} share no ground that has data.')
    mean = (total / count).astype(np.float32)
    found = {k: np.full(before.count, np.nan, np.float32) for k in ('cosine', 'difference')}
    for first, second, places in map(_joined, zip(before.batches(), placed.batches(), strict=True)):
        cosine = (normalised(first) * normalised(second)).sum(axis=1)
        found['cosine'][places] = 1 - cosine
        found['difference'][places] = np.linalg.norm(second - first - mean, axis=1)
    return found


def _joined(
    pair: tuple[tuple[NDArray[np.int64], NDArray[np.float32]],
                tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:  # fmt: skip
    """Features of the places that both have."""
    (first_at, first), (second_at, second) = pair
    places, i, j = np.intersect1d(first_at, second_at, assume_unique=True, return_indices=True)
    return first[i], second[j], places


def ranking(scores: NDArray[np.float32], labels: NDArray[np.integer]) -> dict[str, float]:
    """How well scores find the places that labels mark.

    Args:
        scores: (n,), NaN where there is none.
        labels: (n,), above 0 where marked, 0 where not, below 0 where not known.

    Returns:
        ``auc``, the area under the ROC curve; ``f1`` of the places above `split_scores`'s
        ``threshold``, which no label chooses; ``places``, how many labels count.

    Raises:
        InputError: If places of both kinds are not there.
    """
    known = np.isfinite(scores) & (labels >= 0)
    marked = labels[known] > 0
    if not marked.any() or marked.all():
        raise InputError('The labels mark all places, or none; the area under a curve needs both.')
    from sklearn.metrics import f1_score, roc_auc_score

    threshold = split_scores(scores)
    return {
        'auc': float(roc_auc_score(marked, scores[known])),
        'f1': float(f1_score(marked, scores[known] > threshold)),
        'threshold': threshold, 'places': len(marked),
    }  # fmt: skip


def split_scores(scores: NDArray[np.float32]) -> float:
    """The threshold that splits scores into two classes, without labels.

    It has the least variance within both, which is Otsu's criterion and that of k-means with two
    centres.

    Args:
        scores: Any shape, NaN where there is none; at least one value.

    Source: Otsu, "A threshold selection method from gray-level histograms" (1979).
    """
    from sklearn.cluster import KMeans

    values = scores[np.isfinite(scores)].reshape(-1, 1)
    centres = KMeans(2, n_init=1, init=np.percentile(values, [[5], [99]])).fit(values)
    return float(centres.cluster_centers_.mean())
