"""What answers for every pixel are worth, from counts by chip: IoU, F1, AUC, and intervals."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .result_table import Row

DRAWS = 500
BINS = 1000  # of scores 0..1
Counts = NDArray[np.float64]


def class_scores(counts: Counts, seed: int = 0) -> Row:
    """Mean IoU and mean F1 over the classes that are there.

    Args:
        counts: (chips, K, K) pixels by true and predicted class.
        seed: Of the 95 % bootstrap interval of the mean IoU over chips.
    """
    low, high = np.percentile([mean_iou(c) for c in resampled(counts, seed)], (2.5, 97.5))
    total = counts.sum(axis=0)
    return _row('mean_iou', mean_iou(total), low, high) | {'f1': f'{_mean_f1(total):.5f}'}


def change_scores(counts: Counts, threshold: float | None, seed: int = 0) -> Row:
    """F1 of the changed pixels, and the area under the ROC curve.

    Args:
        counts: (chips, 2, BINS) pixels by unchanged or changed, and by score.
        threshold: Above it a pixel counts as changed, 0..1; None takes Otsu's of all scores.
        seed: Of the 95 % bootstrap interval of F1 over chips.
    """
    total = counts.sum(axis=0)
    cut = otsu_bin(total.sum(axis=0)) if threshold is None else round(threshold * BINS)
    low, high = np.percentile([_f1(c, cut) for c in resampled(counts, seed)], (2.5, 97.5))
    return _row('f1', _f1(total, cut), low, high) | {
        'f1': f'{_f1(total, cut):.5f}', 'auc': f'{area(total):.5f}',
    }  # fmt: skip


def resampled(counts: Counts, seed: int) -> Counts:
    """Counts (DRAWS, ...) of chips drawn with replacement."""
    number = len(counts)
    weight = np.random.default_rng([seed, 95]).multinomial(
        number, np.full(number, 1 / number), DRAWS
    )
    found: Counts = (weight @ counts.reshape(number, -1)).reshape(DRAWS, *counts.shape[1:])
    return found


def mean_iou(total: Counts) -> float:
    """Mean intersection over union over the classes that there are, of (K, K)."""
    there = total.sum(axis=1) > 0
    right = np.diag(total)
    union = total.sum(axis=0) + total.sum(axis=1) - right
    return float((right[there] / union[there]).mean())


def _mean_f1(total: Counts) -> float:
    there = total.sum(axis=1) > 0
    sizes = total.sum(axis=0) + total.sum(axis=1)
    return float((2 * np.diag(total)[there] / sizes[there]).mean())


def _f1(total: Counts, cut: int) -> float:
    """F1 of the scores of a bin and above, of (2, BINS)."""
    right = total[1, cut:].sum()
    return float(2 * right / max(total[:, cut:].sum() + total[1].sum(), 1))


def area(total: Counts) -> float:
    """Area under the ROC curve of (2, BINS); scores of one bin count as ties."""
    unchanged, changed = total
    below = np.cumsum(unchanged) - unchanged
    pairs = unchanged.sum() * changed.sum()
    return float((changed * (below + unchanged / 2)).sum() / pairs) if pairs else float('nan')


def otsu_bin(counts: NDArray[Any]) -> int:
    """The bin that the upper of two groups starts with, which lie as far apart as can be.

    Args:
        counts: (BINS,) of a histogram.

    Source: Otsu, "A threshold selection method from gray-level histograms" (1979), equation 12.
    """
    at = np.arange(len(counts))
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * at)[:-1]
    above = counts.sum() - below
    apart = sums / np.maximum(below, 1) - ((counts * at).sum() - sums) / np.maximum(above, 1)
    return int((below * above * apart**2).argmax()) + 1


def _row(metric: str, value: float, low: float, high: float) -> Row:
    return {'metric': metric, 'value': f'{value:.5f}', 'low': f'{low:.5f}', 'high': f'{high:.5f}'}
