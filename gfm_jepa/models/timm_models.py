"""An encoder's path for one modality as a plain timm VisionTransformer."""

from copy import deepcopy
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import InputError
from .encoder import Encoder
from .patch_embed import PatchEmbed


class RawPatchEmbed(nn.Module):
    """The `embed_layer` of a timm ViT that takes raw units: normalisation, then our stem.

    Unlike `PatchEmbed` it knows no missing values: timm's models do not.

    Args:
        embed: The patch embedder whose stem and statistics it takes.
        img_size: Height and width, pixels.
    """

    def __init__(self, embed: PatchEmbed, img_size: tuple[int, int]) -> None:
        super().__init__()
        self.img_size = img_size
        self.patch_size = (embed.patch_size, embed.patch_size)
        self.grid_size = embed.grid((len(embed.modality.bands), *img_size))
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', embed.mean.clone())
        self.register_buffer('std', embed.std.clone())
        self.proj = deepcopy(embed.stem)

    def forward(self, x: Tensor) -> Tensor:
        """Map raw (B, C, H, W) to (B, N, D)."""
        if tuple(x.shape[-2:]) != self.img_size:
            raise InputError(
                f'The model was made for {self.img_size[0]} x {self.img_size[1]} pixels, but got '
                f'{x.shape[-2]} x {x.shape[-1]}; resize the input or call to_timm with its size.'
            )
        tokens: Tensor = self.proj((x - self.mean) / self.std)
        return tokens


def to_timm(
    encoder: Encoder, modality: str, img_size: int | tuple[int, int], num_classes: int = 0
) -> VisionTransformer:
    """Make the plain timm ViT that equals the encoder on one modality.

    Args:
        encoder: Whose weights to copy.
        modality: Which of its modalities the model takes.
        img_size: Height and width, pixels, or one number for both.
        num_classes: Outputs of a new linear head; 0 gives the embedding.

    Returns:
        A `VisionTransformer` without class token, with mean pooling, for raw (B, C, H, W).

    Raises:
        InputError: If the encoder lacks the modality, or the patch size does not divide the size.
    """
    if modality not in encoder.modalities:
        raise InputError(
            f'The encoder has no {modality!r}; it embeds {", ".join(encoder.modalities)}.'
        )
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    embed = encoder.patch_embeds[modality]
    assert isinstance(embed, PatchEmbed)

    def embed_layer(**_: Any) -> RawPatchEmbed:  # timm passes what the encoder already knows
        return RawPatchEmbed(embed, size)

    config = encoder.config
    model = VisionTransformer(
        img_size=size, patch_size=embed.patch_size, in_chans=len(embed.modality.bands),
        num_classes=num_classes, embed_dim=encoder.embed_dim, depth=config['depth'],
        num_heads=config['num_heads'], mlp_ratio=config['mlp_ratio'], class_token=False,
        global_pool='avg', fc_norm=False, embed_layer=embed_layer, weight_init='skip',
    )  # fmt: skip
    if num_classes:
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    with torch.no_grad():
        grid = embed.grid((len(embed.modality.bands), *size))
        model.pos_embed.copy_(embed.place(grid).unsqueeze(0))
        model.blocks.load_state_dict(encoder.blocks.state_dict())
        model.norm.load_state_dict(encoder.norm.state_dict())
    return model
