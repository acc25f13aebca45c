"""What reads classes off frozen features: the nearest neighbours, and logistic regression."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from ..metrics import knn_votes
from ..models.heads import probabilities
from .features import Features
from .logistic import LogisticRegression

GRID = tuple(10.0**e for e in range(-4, 4))  # of C, the inverse strength of the penalty


@dataclass(frozen=True)
class LinearMap:
    """Standardise features, then map them to logits.

    Attributes:
        mean: (D,) of the train part.
        std: (D,) likewise, 1 where a feature is constant.
        weight: (K, D).
        bias: (K,).
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Map (N, D) to logits (N, K)."""
        return (embeddings - self.mean) / self.std @ self.weight.T + self.bias


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        accuracy: Share of the test part that is right, 0..1; of several labels a sample, the mean
            over classes of the average precision.
        predictions: (N,) labels predicted for the test part; of several labels, (N, K) of 0 and 1.
        scores: (N, K) probabilities.
        C: Inverse strength of the penalty that was chosen; None for kNN.
        linear: The map that was fitted; None for kNN.
    """

    accuracy: float
    predictions: Tensor
    scores: Tensor
    C: float | None = None
    linear: LinearMap | None = None


def knn_probe(train: Features, test: Features, k: int = 5) -> ProbeResult:
    """Classify by the k nearest neighbours in cosine similarity; a tie goes to the nearest."""
    scores = knn_votes(train.embeddings, train.labels, test.embeddings, k)
    return ProbeResult(accuracy_of(scores, test.labels), decide(scores, test.labels), scores)


def linear_probe(
    train: Features,
    val: Features,
    test: Features,
    grid: Sequence[float] = GRID,
    progress: bool = True,
) -> ProbeResult:
    """Classify by logistic regression with L2 penalty, fitted by L-BFGS on the train part.

    Features are standardised by mean and standard deviation of the train part. C is the smallest
    of those with the highest accuracy on the validation part; the grid is left when two values in
    a row were worse than the best.

    Args:
        train: What is fitted.
        val: What C is chosen on.
        test: What is reported.
        grid: Values of C, rising, as scikit-learn's LogisticRegression means it.
        progress: Show a bar once it has taken more than two seconds.
    """
    from tqdm import tqdm

    mean, std = train.embeddings.mean(dim=0), train.embeddings.std(dim=0, correction=0)
    std = std.where(std > 1e-8 * mean.abs().clamp_min(1e-8), 1.0)
    fit = LogisticRegression((train.embeddings - mean) / std, train.labels)
    best, best_C, chosen, worse = -1.0, grid[0], None, 0
    for C in tqdm(grid, 'Linear probe', delay=2, leave=False, disable=not progress, unit='fit'):
        linear = LinearMap(mean, std, *fit(C))
        accuracy = accuracy_of(linear(val.embeddings), val.labels)
        worse = worse + 1 if accuracy < best else 0
        if accuracy > best:
            best, best_C, chosen = accuracy, C, linear
        if worse == 2:
            break
    assert chosen is not None  # an accuracy is never below 0
    scores = probabilities(chosen(test.embeddings), test.labels.ndim == 2)
    return ProbeResult(
        accuracy_of(scores, test.labels), decide(scores, test.labels), scores, best_C, chosen
    )


def accuracy_of(scores: Tensor, labels: Tensor) -> float:
    """Accuracy of scores (N, K) for labels (N,); mean average precision for labels (N, K).

    The mean is over the classes that some sample has: of the others nothing can be found.
    """
    if labels.ndim == 2:
        there = labels.any(dim=0).nonzero().flatten().tolist()
        found = [binary_average_precision(scores[:, k], labels[:, k].long()) for k in there]
        return float(torch.stack(found).mean()) if found else 0.0
    return int((scores.argmax(dim=1) == labels).sum()) / max(len(labels), 1)


def decide(scores: Tensor, labels: Tensor) -> Tensor:
    """Labels (N,) that probabilities (N, K) say, or which of several, as `labels` are."""
    return (scores > 0.5).long() if labels.ndim == 2 else scores.argmax(dim=1)
