"""What has changed between two dates: the difference of features, place by place."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .clusters import normalised
from .embeddings import EmbeddingMap
from .pixel_scores import otsu_bin

SCORES = ('cosine', 'difference', 'standardised')


def change_maps(before: EmbeddingMap, after: EmbeddingMap) -> dict[str, NDArray[np.float32]]:
    """Compare two maps cell by cell, on the grid of the first.

    Season, light and sensor change features of all places; what a scene has in common is taken
    out: its mean difference is subtracted, or each date is standardised by itself.

    Args:
        before: Earlier date.
        after: Later date; read on the grid of the earlier by nearest neighbour.

    Returns:
        ``cosine`` (1 - cosine of both features, 0 to 2), ``difference`` (length of their
        difference less its mean over the scene) and ``standardised`` (length of their difference
        after each feature of each date has mean 0 and deviation 1 over the places that both
        have), (count,) each, NaN where either is missing.

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
    # Sums of both dates and of their squares, (2, D) each: one pass for means and deviations.
    total, squares, count = np.zeros((2, len(before.names))), np.zeros((2, len(before.names))), 0
    for first, second, _ in map(_joined, zip(before.batches(), placed.batches(), strict=True)):
        both = np.stack([first, second]).astype(np.float64)
        total += both.sum(axis=1)
        squares += np.square(both).sum(axis=1)
        count += len(first)
    if not count:
        raise InputError(f'{before.path} and {after.path} share no ground that has data.')
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    found = {k: np.full(before.count, np.nan, np.float32) for k in SCORES}
    for first, second, places in map(_joined, zip(before.batches(), placed.batches(), strict=True)):
        cosine = (normalised(first) * normalised(second)).sum(axis=1)
        found['cosine'][places] = 1 - cosine
        one, two = first - mean[0], second - mean[1]
        found['difference'][places] = np.linalg.norm(two - one, axis=1)
        found['standardised'][places] = np.linalg.norm(two / std[1] - one / std[0], axis=1)
    return found


def _joined(
    pair: tuple[tuple[NDArray[np.int64], NDArray[np.float32]],
                tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:  # fmt: skip
    """Features of the places that both have."""
    (first_at, first), (second_at, second) = pair
    places, i, j = np.intersect1d(first_at, second_at, assume_unique=True, return_indices=True)
    return first[i], second[j], places


def summary(scores: NDArray[np.floating]) -> dict[str, float]:
    """Mean and maximum of scores, NaN left out; nothing if all are."""
    if np.isnan(scores).all():
        return {}
    return {'mean': round(float(np.nanmean(scores)), 4), 'max': round(float(np.nanmax(scores)), 4)}


def otsu(scores: NDArray[np.floating]) -> float:
    """The threshold that splits scores into two groups as far apart as can be; no labels.

    Args:
        scores: Any shape; NaN is left out.

    Raises:
        InputError: If there are no two different scores.

    Source: Otsu, "A threshold selection method from gray-level histograms" (1979), equation 12.
    """
    there = scores[np.isfinite(scores)]
    if not len(there) or there.min() == there.max():
        raise InputError('The scores are all alike; a threshold needs two different ones.')
    counts, edges = np.histogram(there, 512)
    return float(edges[otsu_bin(counts)])


def ranking(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, float]:
    """How well scores tell the places that labels mark.

    Args:
        scores: (n,), NaN where there is none.
        labels: (n,), above 0 where marked, 0 where not, below 0 where not known.

    Returns:
        ``auc`` (area under the ROC curve), ``f1`` of the scores above `otsu`'s ``threshold``,
        which all scores give, those without labels too, ``best_f1`` over all thresholds (chosen
        with the labels in view), and ``places``.

    Raises:
        InputError: If places of both kinds are not there.
    """
    known = np.isfinite(scores) & (labels >= 0)
    marked = labels[known] > 0
    if not marked.any() or marked.all():
        raise InputError('The labels mark all places, or none; the area under a curve needs both.')
    from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score

    threshold = otsu(scores)
    precision, recall, _ = precision_recall_curve(marked, scores[known])
    best = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {
        'auc': float(roc_auc_score(marked, scores[known])),
        'f1': float(f1_score(marked, scores[known] > threshold)),
        'best_f1': float(best.max()), 'threshold': threshold, 'places': len(marked),
    }  # fmt: skip
