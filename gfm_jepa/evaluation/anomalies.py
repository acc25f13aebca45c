"""How unlike what is known a place is: two distances to known embeddings."""

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from .embeddings import Embeddings, Float, sample

MOST = 20_000  # known embeddings that are looked at
_SAME = 1e-5  # cosine distance within which an embedding is itself, rounded


class KnownEmbeddings:
    """Embeddings that count as normal.

    Args:
        known: (n, D) of the training data, or of a scene, most of which is normal.
        neighbours: How many of the nearest are looked at.

    Raises:
        InputError: If there are too few.

    Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples"
        (2018), equation 2, for one class; Sun et al., "Out-of-distribution detection with deep
        nearest neighbors" (2022), equation 2.
    Differs from the source: the covariance is shrunk towards its mean variance (Ledoit & Wolf,
        2004); the mean over the nearest neighbours instead of the k-th.
    """

    def __init__(self, known: Float, neighbours: int = 5) -> None:
        if len(known) <= neighbours + 1:
            raise InputError(f'{len(known)} known embeddings are too few to compare with.')
        self.neighbours = neighbours
        self.mean = known.mean(axis=0, dtype=np.float64)
        self.precision = np.linalg.inv(shrunk_covariance(known - self.mean))
        self.unit = _unit(torch.from_numpy(known))

    def mahalanobis(self, values: Float) -> Float:
        """Distance (n,) of features (n, D) from the mean, in standard deviations."""
        gaps = values - self.mean
        squares = np.einsum('nd,de,ne->n', gaps, self.precision, gaps, optimize=True)
        distances: Float = np.sqrt(np.maximum(squares, 0)).astype(np.float32)
        return distances

    def nearest(self, values: Float, among_known: bool = False) -> Float:
        """Mean cosine distance (n,) to the nearest known embeddings, 0 to 2.

        Args:
            values: (n, D).
            among_known: Whether they may themselves be among the known: what is the same is then
                left out once.
        """
        found = []
        more = int(among_known)
        for part in torch.from_numpy(values).split(2048):
            near = (_unit(part) @ self.unit.mT).topk(self.neighbours + more, dim=1).values
            if among_known:
                # Only some are: of the others the nearest counts.
                own = near[:, :1] > 1 - _SAME
                near = torch.where(own, near[:, 1:], near[:, :-1])
            found.append(1 - near.mean(dim=1))
        return torch.cat(found).numpy() if found else np.zeros(0, np.float32)


def score_anomalies(
    embeddings: Embeddings, known: Embeddings | None = None, neighbours: int = 5, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Both distances by place.

    Args:
        embeddings: Places to score.
        known: What counts as normal; the places themselves by default.
        neighbours: Of the nearest-neighbour distance.
        seed: Of the known ones that are drawn.

    Returns:
        ``mahalanobis`` and ``nearest``, (count,) each, NaN where nothing is there.

    Raises:
        InputError: If both have other features, or too few are known.
    """
    normal = embeddings if known is None else known
    if normal.names != embeddings.names:
        raise InputError(
            f'{normal.path} has {len(normal.names)} features, {embeddings.path} '
            f'{len(embeddings.names)}; take two maps or two tables, of the same weights.'
        )
    against = KnownEmbeddings(sample(normal, MOST, seed), neighbours)
    scores = {k: np.full(embeddings.count, np.nan, np.float32) for k in ('mahalanobis', 'nearest')}
    for places, values in embeddings.batches():
        scores['mahalanobis'][places] = against.mahalanobis(values)
        scores['nearest'][places] = against.nearest(values, among_known=known is None)
    return scores


def highest(
    embeddings: Embeddings, scores: NDArray[np.floating], count: int = 3
) -> list[list[float]]:
    """The highest scores, each with the longitude and latitude of its place, degrees."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind='stable')[:count]
    order = order[np.isfinite(scores[order])]
    at = embeddings.positions(order)
    return [[round(float(scores[i]), 4), round(float(x), 6), round(float(y), 6)]
            for i, (x, y) in zip(order, at, strict=True)]  # fmt: skip


def shrunk_covariance(centred: NDArray[np.floating]) -> NDArray[np.float64]:
    """Covariance (D, D) of centred features (n, D), shrunk so that it can be inverted.

    Source: Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices"
        (2004), as scikit-learn has it.
    """
    from sklearn.covariance import ledoit_wolf

    shrunk, _ = ledoit_wolf(centred.astype(np.float64), assume_centered=True)
    # Features that never vary at all leave nothing to shrink towards.
    covariance: NDArray[np.float64] = shrunk + 1e-12 * np.eye(len(shrunk))
    return covariance


def _unit(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(values.float(), dim=1)
