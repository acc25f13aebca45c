"""Projectors: small MLPs behind an encoder, and batch norm that spans all ranks."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..losses import count_over_ranks, joined_mean


def projector(dims: Sequence[int], last_norm: bool = False) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them.

    Args:
        dims: Width of the input, of each hidden layer, and of the output.
        last_norm: Whether a batch norm without scale and shift ends it, as SimSiam's does.
    """
    layers: list[nn.Module] = []
    for i, (width, after) in enumerate(pairwise(dims)):
        last = i == len(dims) - 2
        # What a batch norm follows needs no bias.
        layers.append(nn.Linear(width, after, bias=last and not last_norm))
        if not last:
            layers += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(after, affine=False))
    return nn.Sequential(*layers)


class CrossRankBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of the joined batch of all ranks, on CPUs too.

    torch's SyncBatchNorm runs on GPUs alone.

    Args:
        num_features: Channels.
        eps: Added to the variance.
        momentum: Of the running statistics.
        affine: Whether it has scale and shift.
        track_running_stats: Whether it keeps running statistics.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.after: nn.Module = nn.Identity()  # what timm's fused norms do to the result

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (N, C, ...) will do."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...) over N, the other axes and all ranks; then what follows."""
        output: Tensor = self.after(self._normalise(input))
        return output

    def _normalise(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        # Mixed precision brings 16 bits, in which squares overflow.
        exact = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = joined_mean(exact, axes).flatten()
        centred = exact - mean.view(shape)
        variance = joined_mean(centred.square(), axes).flatten()
        if self.running_mean is not None and self.running_var is not None:
            count = count_over_ranks(input.numel() // input.shape[1], input.device)
            rate = self.momentum or 0.1
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), rate)
                self.running_var.lerp_(variance.detach() * (count / max(count - 1, 1)), rate)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)


def span_ranks(module: nn.Module) -> nn.Module:
    """Replace every batch norm below a module by one that spans ranks; names and weights stay."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, CrossRankBatchNorm):
            spanning = CrossRankBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine,
                child.track_running_stats,
            )  # fmt: skip
            # The same tensors, so that optimizers and checkpoints know them still.
            spanning._parameters, spanning._buffers = child._parameters, child._buffers
            if isinstance(child, BatchNormAct2d):
                spanning.after = nn.Sequential(child.drop, child.act)
            spanning.train(child.training)
            setattr(module, name, spanning)
        else:
            span_ranks(child)
    return module
