"""A number and how far to trust it: bootstrap intervals, calibration error."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from .classifiers import accuracy_of

DRAWS = 2000  # of whole test parts
SLOW_DRAWS = 200  # where each draw computes average precisions


@dataclass(frozen=True)
class Score:
    """What probabilities are worth on a test part.

    Attributes:
        metric: ``accuracy``; of several labels a sample, ``mean_average_precision``.
        value: 0..1.
        low: Lower end of the 95 % bootstrap interval over test samples.
        high: Upper end.
        calibration_error: Expected, L1, 15 bins; 0 is best.
    """

    metric: str
    value: float
    low: float
    high: float
    calibration_error: float


def score(scores: Tensor, labels: Tensor, seed: int = 0) -> Score:
    """Score probabilities (N, K) against labels (N,) or (N, K).

    Source: Efron & Tibshirani, "An introduction to the bootstrap" (1993), section 13.3; Naeini et
    al., "Obtaining well calibrated probabilities using Bayesian binning" (2015).
    """
    several = labels.ndim == 2
    value = accuracy_of(scores, labels)
    low, high = interval(scores, labels, seed)
    error = (
        binary_calibration_error(scores.flatten(), labels.flatten().long())
        if several
        else multiclass_calibration_error(scores, labels, scores.shape[1])
    )
    metric = 'mean_average_precision' if several else 'accuracy'
    return Score(metric, value, low, high, float(error))


def interval(scores: Tensor, labels: Tensor, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the metric over resampled test samples."""
    random = np.random.default_rng([seed, 95])
    count = len(labels)
    if labels.ndim == 1:
        # The number of right ones among N drawn with replacement is binomial: exact, and fast.
        share = accuracy_of(scores, labels)
        drawn = random.binomial(count, share, DRAWS) / count
    else:
        ids = torch.from_numpy(random.integers(count, size=(SLOW_DRAWS, count)))
        drawn = np.array([accuracy_of(scores[i], labels[i]) for i in ids])
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return float(low), float(high)
