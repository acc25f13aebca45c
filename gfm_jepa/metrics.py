"""Measures of embeddings: is the representation alive, and does it separate classes?"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F


def embedding_std(embeddings: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation over samples, of L2-normalised embeddings.

    Multiplied by sqrt(D), so that isotropic directions give 1 and a collapsed set gives 0.

    Args:
        embeddings: (N, D).

    Returns:
        Scalar in [0, 1].

    Source: Chen & He, "Exploring Simple Siamese Representation Learning", section 4.1.
    """
    normalised = F.normalize(embeddings.float(), dim=-1)
    spread: Tensor = normalised.std(dim=0, correction=0).mean()
    return spread * math.sqrt(embeddings.shape[-1])


def mean_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine similarity over all pairs of different samples.

    Args:
        embeddings: (N, D), N > 1.

    Returns:
        Scalar in [-1, 1]; 1 means that every sample has the same direction.
    """
    count = len(embeddings)
    total = F.normalize(embeddings.float(), dim=-1).sum(dim=0).square().sum()
    return (total - count) / (count * (count - 1))


def effective_rank(embeddings: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values of the centred embeddings.

    Args:
        embeddings: (N, D).

    Returns:
        Scalar in [0, min(N, D)]; 0 for a collapsed set, NaN where the embeddings are not finite.

    Source: Roy & Vetterli, "The effective rank" (2007); used on embeddings by RankMe
    (Garrido et al., 2023).
    """
    centred = embeddings.float() - embeddings.float().mean(dim=0)
    if not bool(centred.isfinite().all()):  # which the decomposition would refuse
        return torch.full((), torch.nan, device=embeddings.device)
    singular = torch.linalg.svdvals(centred)
    total = singular.sum()
    if total <= 1e-6 * len(embeddings):
        return torch.zeros((), device=embeddings.device)
    p = singular / total
    return torch.exp(-(p * p.clamp_min(1e-12).log()).sum())


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, whole also where parameters are sharded over ranks.

    Returns:
        Scalar; 0 where nothing has a gradient.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    whole: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return whole


def knn_votes(
    train_embeddings: Tensor, train_labels: Tensor, embeddings: Tensor, k: int = 5
) -> Tensor:
    """Share of the k nearest neighbours in cosine similarity that have each class.

    A tie goes to the class of the nearest of the tied neighbours.

    Args:
        train_embeddings: (N, D) reference set.
        train_labels: (N,) integer labels of the reference set; or (N, K) with 1 for each class.
        embeddings: (Q, D) to label.
        k: neighbours that vote; cut to N.

    Returns:
        (Q, K) shares, 0..1.
    """
    k = min(k, len(train_embeddings))
    reference = F.normalize(train_embeddings.float(), dim=-1)
    has = F.one_hot(train_labels) if train_labels.ndim == 1 else train_labels
    # The vote of rank r weighs 1 + a sliver that shrinks with r: enough to break a tie in favour
    # of the nearer neighbour, too little to outvote anybody.
    weights = 1 + torch.linspace(1, 0, k, device=reference.device) / (2 * k * k)
    shares = []
    for chunk in F.normalize(embeddings.float(), dim=-1).split(1024):
        nearest = (chunk @ reference.T).topk(k, dim=1).indices
        shares.append(torch.einsum('qkc,k->qc', has[nearest].float(), weights / weights.sum()))
    return torch.cat(shares)


def knn_predict(
    train_embeddings: Tensor, train_labels: Tensor, embeddings: Tensor, k: int = 5
) -> Tensor:
    """Label each embedding (Q, D) by majority vote, as `knn_votes` counts: (Q,) labels."""
    return knn_votes(train_embeddings, train_labels, embeddings, k).argmax(dim=1)
