"""The transformer block of trunk and predictor."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: Width D, a multiple of num_heads.
        num_heads: Attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend: (B, N, D) to (B, N, D).

        Args:
            x: Tokens.
            attn_mask: Boolean, broadcast to (B, heads, N, N): True where a row's token may see a
                column's.
        """
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        mixed: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return mixed


class Mlp(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map each token: (B, N, D) to (B, N, D)."""
        mapped: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return mapped


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to what came in.

    Names of tensors and outputs are those of timm's `vision_transformer.Block`, which is not used
    since importing timm takes more than a second, most of what loading weights would take.

    Args:
        dim: Width D, a multiple of num_heads.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over D.
        drop_path: Chance that a sample skips the attention, and the MLP, in training.

    Source: Dosovitskiy et al. (2021), section 3.1; Huang et al. (2016) for stochastic depth.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = drop_path

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Transform (B, N, D) to (B, N, D); for the mask see `Attention`."""
        x = x + self._sometimes(self.attn(self.norm1(x), attn_mask))
        return x + self._sometimes(self.mlp(self.norm2(x)))

    def _sometimes(self, branch: Tensor) -> Tensor:
        if not self.drop_path or not self.training:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)
