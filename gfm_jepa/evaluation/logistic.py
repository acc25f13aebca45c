"""Logistic regression for probes, fast on correlated features."""

import torch
from torch import Tensor
from torch.nn import functional as F


class LogisticRegression:
    """Minimise ``C * sum(cross entropy) + |weight|^2 / 2``, one C after another, warm-started.

    Args:
        inputs: (N, D), standardised.
        labels: (N,), each class at least once; or (N, K) with 1 for each class of a sample, which
            makes a regression of each class against the rest.
        max_iter: Of L-BFGS, for each C.
        tolerance: Smallest change of the mean loss that is worth another iteration.

    Differs from scikit-learn's: the same objective, but L-BFGS walks in the principal axes of the
    inputs, scaled by a bound of the loss's curvature. On 16,200 x 512 correlated features that took
    a third of the time, and ended lower for C of 0.1 and more.
    """

    def __init__(
        self, inputs: Tensor, labels: Tensor, max_iter: int = 300, tolerance: float = 1e-6
    ) -> None:
        self.several = labels.ndim == 2
        self.labels = labels.float() if self.several else labels
        self.max_iter, self.tolerance = max_iter, tolerance
        exact = inputs.double()
        self.curvature, axes = torch.linalg.eigh(exact.T @ exact / len(inputs))
        self.rotated, self.axes = (exact @ axes).float(), axes.float()
        count = labels.shape[1] if self.several else int(labels.max()) + 1
        self.weight = inputs.new_zeros(count, inputs.shape[1])
        self.bias = inputs.new_zeros(count)

    def __call__(self, C: float) -> tuple[Tensor, Tensor]:
        """Return weight (K, D) and bias (K,) for K classes."""
        penalty = 1 / (C * len(self.labels))
        scale = (self.curvature.clamp_min(0) / 4 + penalty).rsqrt().float()
        inputs = self.rotated * scale
        weight = (self.weight / scale).requires_grad_()
        bias = self.bias.clone().requires_grad_()
        solver = torch.optim.LBFGS(
            [weight, bias],
            max_iter=self.max_iter,
            tolerance_change=self.tolerance,
            line_search_fn='strong_wolfe',
        )

        def closure() -> Tensor:
            solver.zero_grad()
            loss: Tensor = self._mean_loss(inputs @ weight.T + bias)
            loss = loss + (weight * scale).square().sum() * (penalty / 2)
            loss.backward()
            return loss

        solver.step(closure)
        self.weight, self.bias = weight.detach() * scale, bias.detach()
        return self.weight @ self.axes.T, self.bias

    def _mean_loss(self, logits: Tensor) -> Tensor:
        """Mean over samples; of several classes, their sum."""
        if not self.several:
            return F.cross_entropy(logits, self.labels)
        mean: Tensor = F.binary_cross_entropy_with_logits(logits, self.labels)
        return mean * logits.shape[1]
