"""Objectives as functions and small modules, each with its formula and its source."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too: torch's own is deprecated since 2.14."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def unrounded[**P, R](loss: Callable[P, R]) -> Callable[P, R]:
    """Compute a loss in float32 or better, where autocast would round its products to 16 bits."""

    @wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> R:
        given = [*args, *kwargs.values()]
        device = next(a.device.type for a in given if isinstance(a, Tensor))
        exact: Any = [_exact(a) for a in args]
        named: Any = {key: _exact(a) for key, a in kwargs.items()}
        with torch.autocast(device, enabled=False):
            return loss(*exact, **named)

    return computed


def _exact(value: Any) -> Any:
    """A tensor of numbers in float32 or better; anything else as it is."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.to(torch.promote_types(value.dtype, torch.float32))


def cross_rank_mean(x: Tensor) -> Tensor:
    """Average over all ranks, differentiably; the identity in one process."""
    if _ranks() == 1:
        return x
    total: Tensor = _SumOverRanks.apply(x)
    return total / _ranks()


def count_over_ranks(count: int, device: torch.device) -> int:
    """Sum of a number of samples over all ranks, which may hold different ones, or none."""
    if _ranks() == 1:
        return count
    total = torch.tensor(count, device=device)
    dist.all_reduce(total)
    return int(total)


def joined_mean(x: Tensor, dim: list[int]) -> Tensor:
    """Mean over axes of what all ranks hold, however much each does; axes are kept."""
    if _ranks() == 1:
        return x.mean(dim, keepdim=True)
    own = x.sum(dim, keepdim=True)
    count = own.new_tensor([math.prod(x.shape[axis] for axis in dim)])
    joined: Tensor = _SumOverRanks.apply(torch.cat([own.flatten(), count]))
    return (joined[:-1] / joined[-1]).view_as(own)


def part_of_mean(x: Tensor) -> Tensor:
    """What a rank's x add to the mean of all ranks' x; the mean over ranks is that mean."""
    if _ranks() == 1:
        return x.mean()
    return x.sum() * (_ranks() / count_over_ranks(x.numel(), x.device))


class SIGReg(nn.Module):
    """Sketched isotropic Gaussian regularisation: every random projection should be N(0, 1).

    For S random unit vectors a_s and the Epps-Pulley test of each projection::

        SIGReg(X) = 1/S sum_s  N * integral_{-t_max}^{t_max} |phi_s(t) - exp(-t^2/2)|^2
                                                           exp(-t^2/2) dt
        phi_s(t)  = 1/N sum_n exp(i t <a_s, x_n>)

    The factor N makes it a test statistic: under N(0, I) its mean is
    ``integral (1 - exp(-t^2)) exp(-t^2/2) dt`` = 1.05 whatever N, and far from it the value grows
    with N. With several views the mean over views is taken, each tested on its own.

    Args:
        num_slices: Random directions S, new in each call.
        num_knots: Points of the trapezoid rule on [0, t_max]; the integrand is even.
        t_max: End of the integration interval.

    Source: Balestriero & LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without
        the Heuristics" (2025), section 4; Epps & Pulley (1983).
    """

    knots: Tensor
    weights: Tensor

    def __init__(self, num_slices: int = 256, num_knots: int = 17, t_max: float = 3.0) -> None:
        super().__init__()
        self.num_slices = num_slices
        knots = torch.linspace(0, t_max, num_knots)
        trapezoid = torch.full((num_knots,), 2 * t_max / (num_knots - 1))
        trapezoid[[0, -1]] /= 2
        self.register_buffer('knots', knots, persistent=False)
        self.register_buffer(
            'weights', trapezoid * torch.exp(-knots.square() / 2), persistent=False
        )

    @unrounded
    def forward(self, projections: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the statistic, averaged over slices and views.

        Args:
            projections: (V, N, P) or (N, P); computed in float32, or float64 if it is that.
            generator: Source of the directions, on the CPU. Under several processes it must be in
                the same state on every rank, so that all test the same directions.

        Returns:
            Scalar, without upper bound; about 1.05 for a standard normal.
        """
        x = projections.unsqueeze(0) if projections.dim() == 2 else projections
        shape = (x.shape[-1], self.num_slices)
        slices = torch.randn(shape, generator=generator, dtype=torch.float32).to(x)
        # The epsilon keeps a direction that came out as zero from giving NaN.
        slices = slices / (slices.norm(dim=0) + 1e-12)
        knots = self.knots.to(x)
        angles = (x @ slices).unsqueeze(-1) * knots  # (V, N, S, knots)
        real, imaginary = (joined_mean(w, [1]).squeeze(1) for w in (angles.cos(), angles.sin()))
        error = (real - torch.exp(-knots.square() / 2)).square() + imaginary.square()
        count = count_over_ranks(x.shape[1], x.device)
        return count * (error @ self.weights.to(x)).mean()


@unrounded
def view_invariance(projections: Tensor, num_global: int) -> Tensor:
    """Mean squared distance of every view's projection to the mean of its sample's global views.

    ``1 / (V N P) sum_{v,n,p} (x_vnp - 1/G sum_{g<G} x_gnp)^2``

    Args:
        projections: (V, N, P), the global views first.
        num_global: Number of global views G.

    Returns:
        Scalar.

    Source: Balestriero & LeCun, "LeJEPA" (2025), the prediction loss; the mean over P, where the
        paper sums, only rescales the weight of SIGReg.
    """
    centre = projections[:num_global].mean(dim=0)
    return part_of_mean((projections - centre).square())


class VICReg(nn.Module):
    """Invariance between two views, a floor under the variance, no covariance.

    For projections X, X' (N, P) of two views, with ``C(X)`` their covariance over samples::

        VICReg = l * 1/(N P) sum (X - X')^2 + m * [v(X) + v(X')] / 2 + n * [c(X) + c(X')]
        v(X)   = 1/P sum_j max(0, 1 - sqrt(C(X)_jj + 1e-4))
        c(X)   = 1/P sum_{i != j} C(X)_ij^2

    Covariances divide by N - 1. With V > 2 views the first term is the mean over all pairs, and
    v and c are averaged over views: c then counts twice its mean, as the sum above does.

    Args:
        invariance: Weight l.
        variance: Weight m.
        covariance: Weight n.

    Source: Bardes, Ponce & LeCun, "VICReg: Variance-Invariance-Covariance Regularization for
        Self-Supervised Learning" (2022), equations 1 to 6.
    Differs from the source: invariance is a mean over P and variance over both views, as in the
        authors' code.
    """

    def __init__(
        self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
    ) -> None:
        super().__init__()
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    @unrounded
    def forward(self, projections: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three weighted terms, whose sum is the loss.

        Args:
            projections: (V, N, P), N above 1 over all ranks.
        """
        views, count, width = projections.shape
        pairs = [(i, j) for i in range(views) for j in range(i)]
        distance = part_of_mean(
            torch.stack([(projections[i] - projections[j]).square() for i, j in pairs])
        )
        centred = projections - joined_mean(projections, [1])
        # The mean over all ranks of the products, turned into the unbiased estimate.
        total = count_over_ranks(count, projections.device)
        product = centred.mT @ centred / total * _ranks()
        covariance = cross_rank_mean(product) * (total / (total - 1))
        deviation = (covariance.diagonal(dim1=1, dim2=2) + 1e-4).sqrt()
        spread = (1 - deviation).relu().mean()
        diagonal = torch.eye(width, dtype=torch.bool, device=projections.device)
        mixing = covariance.masked_fill(diagonal, 0.0).square().sum(dim=(1, 2)) / width
        return (
            self.invariance * distance,
            self.variance * spread,
            self.covariance * 2 * mixing.mean(),
        )


@unrounded
def negative_cosine(predictions: Tensor, projections: Tensor) -> Tensor:
    """Negative cosine similarity to projections that take no gradient, symmetric over two views.

    ``-1/2 mean_n [cos(p_1n, stop(z_2n)) + cos(p_2n, stop(z_1n))]``

    Args:
        predictions: (2, N, P).
        projections: (2, N, P), already detached by the caller, whose stop-gradient it is.

    Returns:
        Scalar, -1 at best.

    Source: Chen & He, "Exploring Simple Siamese Representation Learning" (2021), equations 1 to 4.
    """
    return -part_of_mean(F.cosine_similarity(predictions, projections.flip(0), dim=-1))


@unrounded
def patch_discrimination(
    predictions: Tensor,
    targets: Tensor,
    there: Tensor,
    temperature: float = 0.1,
    kinds: Tensor | None = None,
) -> Tensor:
    """Each predicted token should be closest to its own target among those of its kind and sample.

    ``-1/T sum_t log [exp(cos(p_t, y_t)/tau) / sum_u exp(cos(p_t, y_u)/tau)]``, averaged over
    samples. Targets that equal token t's own (cosine above 0.999: sea, desert) are no negatives,
    nor are those of another modality, which would be told apart by that alone.

    Args:
        predictions: (B, T, D).
        targets: (B, T, D), without gradient.
        there: (B, T) boolean, True for a token that counts.
        temperature: tau.
        kinds: (B, T) modality of each token; one for all by default.

    Returns:
        Scalar; samples without targets count as 0.

    Source: Wei et al., "Towards Latent Masked Image Modeling for Self-Supervised Visual
        Representation Learning" (2024), section 3.3; tau from OlmoEarth (2025).
    Differs from the sources: equal targets are not told apart, since nothing could; OlmoEarth
        multiplies by 2 tau and sums over modalities.
    """
    predicted, actual = F.normalize(predictions, dim=-1), F.normalize(targets, dim=-1)
    same = (actual @ actual.mT) > 0.999
    own = torch.eye(same.shape[1], dtype=torch.bool, device=same.device)
    hidden = (same & ~own) | ~there[:, None, :]
    if kinds is not None:
        hidden = hidden | (kinds[:, :, None] != kinds[:, None, :])
    # A token that is not there still needs one finite entry in its row.
    logits = (predicted @ actual.mT / temperature).masked_fill(hidden & ~own, -torch.inf)
    losses = -logits.log_softmax(dim=-1).diagonal(dim1=1, dim2=2)
    per_sample = losses.masked_fill(~there, 0.0).sum(dim=1) / there.sum(dim=1).clamp_min(1)
    return per_sample.mean()


@unrounded
def info_nce(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """Each sample's two embeddings should find each other among those of all samples.

    ``-1/(2N) sum_n [log softmax_m(cos(a_n, b_m)/tau)_n + log softmax_m(cos(b_n, a_m)/tau)_n]``

    Args:
        first: (N, D) embeddings a; NaN where a sample shows nothing, which is left out.
        second: (N, D) embeddings b of the same samples; on several ranks, negatives come from all.
        temperature: tau.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding"
        (2018), equation 4; symmetric as in Radford et al., "CLIP" (2021).
    """
    there = (first.detach().isfinite() & second.detach().isfinite()).all(dim=-1)
    a, b = (F.normalize(x.nan_to_num(0.0), dim=-1) for x in (first, second))
    rank = dist.get_rank() if _ranks() > 1 else 0
    own = torch.arange(len(a), device=a.device) + rank * len(a)
    everywhere = gather(there.to(a.dtype)).bool()
    # A sample that is not there still needs one finite entry in its row.
    gone = ~everywhere & (torch.arange(len(everywhere), device=a.device) != own[:, None])
    losses = torch.zeros_like(a[:, 0])
    for x, y in ((a, gather(b)), (b, gather(a))):
        logits = (x @ y.mT / temperature).masked_fill(gone, -torch.inf)
        losses = losses + F.cross_entropy(logits, own, reduction='none') / 2
    count = (everywhere.sum() / _ranks()).clamp_min(1 / _ranks())
    return losses.masked_fill(~there, 0.0).sum() / count


def gather(x: Tensor) -> Tensor:
    """Join (N, ...) of all ranks along the first axis, differentiably."""
    if _ranks() == 1:
        return x
    parts = [x if rank == dist.get_rank() else torch.zeros_like(x) for rank in range(_ranks())]
    joined: Tensor = _SumOverRanks.apply(torch.cat(parts))
    return joined
