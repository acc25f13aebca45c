"""Random convolutional features: what fixed filters say of the fine detail of a raster."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 5  # of a filter, pixels
_STRIDE = 2  # as good as 1 in probes, at a quarter of the cost
_CHUNK = 8  # samples at once on a CPU: the responses stay in the cache


class RandomFilters(nn.Module):
    """Fixed filters whose responses are averaged, above and below 0; nothing here is trained.

    They are 0 when new; `gfm_jepa.evaluation.readouts.add_random_filters` cuts them from images.

    Args:
        in_channels: Bands C.
        count: Filters F.

    Source: Rolf et al., "A generalizable and accessible approach to machine learning with global
        satellite imagery" (2021).
    Differs from the source: stride 2, and pixels that are not there count for nothing.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, in_channels: int, count: int) -> None:
        super().__init__()
        self.register_buffer('weight', torch.zeros(count, in_channels, SIDE, SIDE))
        self.register_buffer('bias', torch.zeros(count))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Describe a batch.

        Args:
            x: (B, C, H, W), standardised, 0 where nothing is.
            there: (B, 1, H, W), share of the bands that are there.

        Returns:
            (B, 2 F): mean of what is above 0, then of what is below, over the places of a filter,
            each weighted by the share of its pixels that are there; NaN where none is.
        """
        chunk = _CHUNK if x.device.type == 'cpu' else max(len(x), 1)
        pairs = zip(x.split(chunk), there.split(chunk), strict=True)
        return torch.cat([self._describe(*pair) for pair in pairs])

    def _describe(self, x: Tensor, there: Tensor) -> Tensor:
        share = F.avg_pool2d(there, SIDE, _STRIDE, SIDE // 2)
        share = share / share.sum(dim=(2, 3), keepdim=True)
        responses = F.conv2d(x, self.weight, self.bias, _STRIDE, SIDE // 2)
        # The two halves differ by the mean, which saves a pass over the responses.
        mean = (responses * share).sum(dim=(2, 3))
        above = (responses.relu_() * share).sum(dim=(2, 3))
        return torch.cat([above, above - mean], dim=1)
