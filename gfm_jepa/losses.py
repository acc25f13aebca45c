"""Objectives as functions and small modules, each with its formula and its source."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def cross_rank_mean(x: Tensor) -> Tensor:
    """Average over all ranks, differentiably; the identity in one process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # The functional form RETURNS its result and leaves its argument alone.
        from torch.distributed.nn.functional import all_reduce

        total: Tensor = all_reduce(x)
        return total / dist.get_world_size()
    return x


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

    def forward(self, projections: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the statistic, averaged over slices and views.

        Args:
            projections: (V, N, P) or (N, P), any floating type; computed in float32.
            generator: Source of the directions, on the CPU. Under several processes it must be in
                the same state on every rank, so that all test the same directions.

        Returns:
            Scalar, without upper bound; about 1.05 for a standard normal.
        """
        x = projections.float()
        x = x.unsqueeze(0) if x.dim() == 2 else x
        slices = torch.randn(x.shape[-1], self.num_slices, generator=generator).to(x.device)
        # The epsilon keeps a direction that came out as zero from giving NaN.
        slices = slices / (slices.norm(dim=0) + 1e-12)
        angles = (x @ slices).unsqueeze(-1) * self.knots  # (V, N, S, knots)
        real = cross_rank_mean(angles.cos().mean(dim=1))
        imaginary = cross_rank_mean(angles.sin().mean(dim=1))
        error = (real - torch.exp(-self.knots.square() / 2)).square() + imaginary.square()
        count = x.shape[1] * (dist.get_world_size() if dist.is_initialized() else 1)
        return count * (error @ self.weights).mean()


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
    return (projections - centre).square().mean()
