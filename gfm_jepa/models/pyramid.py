"""Feature maps of our ViT at strides 2 to 32, for decoders that want a pyramid.

timm knows them as ``gfm_jepa_nano_pyramid``, ..., so that smp's ``tu-`` route and with it
torchgeo's ``unet``, ``upernet``, ``segformer`` and ``deeplabv3+`` take our encoder and its weights.
"""

from collections.abc import Sequence
from typing import Any

from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .patch_embed import ConvStem, PatchEmbed
from .timm_models import RawVisionTransformer, create, keep_if_frozen

STRIDES = (2, 4, 8, 16, 32)  # pixels from one cell to the next


class Pyramid(nn.Module):
    """A ViT as a feature extractor of five scales, without a weight of its own.

    A map finer than the patches holds what the stem saw: the responses of a conv stem's stages, or
    before a linear stem the normalised pixels of each cell. The map at the patches' stride holds
    the tokens after the last block; coarser ones are their means. A frozen encoder thus is all
    pretrained, and whatever is learned is in the decoder.

    Args:
        vit: From `gfm_jepa.models.timm_models`.
        out_indices: Which of `STRIDES`.
        output_stride: Coarsest stride, pixels: 8, 16 or 32. Maps beyond it stay at it.

    Raises:
        InputError: If a scale is asked for that there is not.

    Source: Li et al., "Exploring plain vision transformer backbones for object detection" (2022),
        section 3: a pyramid from the last map alone suffices.
    Differs from the source: no learned up-sampling; fine maps are the stem's.
    """

    def __init__(
        self,
        vit: RawVisionTransformer,
        out_indices: Sequence[int] = (0, 1, 2, 3, 4),
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        if wrong := [i for i in out_indices if not 0 <= i < len(STRIDES)]:
            raise InputError(
                f'There are maps at the strides {", ".join(map(str, STRIDES))}, and none with the '
                f'index {wrong[0]}; take 0 to {len(STRIDES) - 1}.'
            )
        if output_stride not in (8, 16, 32):
            raise InputError(f'output_stride is {output_stride}; take 8, 16 or 32 pixels.')
        self.vit, self.out_indices = vit, tuple(out_indices)
        if vit.readout is not None:  # maps are made before it: ranks should not wait for it
            vit.readout.requires_grad_(False)
        self.strides = [min(s, output_stride) for s in STRIDES]
        self.feature_info = FeatureInfo(
            [{'num_chs': map_width(self.embed, s), 'reduction': s, 'module': f'stride{s}'}
             for s in self.strides],
            self.out_indices,
        )  # fmt: skip

    @property
    def embed(self) -> PatchEmbed:
        """The patch embedder."""
        found = self.vit.patch_embed.embed
        assert isinstance(found, PatchEmbed)
        return found

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map raw (B, C, H, W) to maps (B, C', H / stride, W / stride), NaN taken as the mean.

        Raises:
            InputError: If bands or size are wrong.
        """
        keep_if_frozen(self)
        grid = self.embed.grid(tuple(x.shape))
        fine = FineMaps(self.embed, x)
        last = self._trunk(fine.tokens().unflatten(1, grid)).mT.unflatten(2, grid)
        return [scale_map(self.strides[i], fine, last) for i in self.out_indices]

    def _trunk(self, tokens: Tensor) -> Tensor:
        """Tokens (B, h, w, D) after the last block, (B, N, D)."""
        tokens = self.vit._pos_embed(tokens)
        for block in self.vit.blocks:
            tokens = block(tokens)
        normed: Tensor = self.vit.norm(tokens)
        return normed


class FineMaps:
    """What a stem sees of a raster, at strides finer than its patches.

    Args:
        embed: The patch embedder.
        x: (B, C, H, W), raw.
    """

    def __init__(self, embed: PatchEmbed, x: Tensor) -> None:
        self.embed = embed
        self.pixels = embed.normalise(x)
        stem = embed.stem
        self.levels = stem.levels(self.pixels) if isinstance(stem, ConvStem) else []

    def tokens(self) -> Tensor:
        """The stem's output (B, N, D)."""
        stem = self.embed.stem
        if isinstance(stem, ConvStem):
            return stem.tokens(self.levels[-1])
        tokens: Tensor = stem(self.pixels)
        return tokens

    def at(self, stride: int) -> Tensor:
        """Responses of the stage at a stride; before a linear stem the pixels of each cell."""
        if self.levels:
            return self.levels[STRIDES.index(stride)]
        return F.pixel_unshuffle(self.pixels, stride)


def scale_map(stride: int, fine: FineMaps, last: Tensor) -> Tensor:
    """The map of a stride: what the stem saw, or the last map (B, D, h, w) or its means."""
    patch = fine.embed.patch_size
    return fine.at(stride) if stride < patch else F.avg_pool2d(last, stride // patch)


def map_width(embed: PatchEmbed, stride: int) -> int:
    """Channels of the map of a stride."""
    if stride >= embed.patch_size:
        return int(embed.modality_vector.shape[0])
    if isinstance(embed.stem, ConvStem):
        return embed.stem.widths[STRIDES.index(stride)]
    return len(embed.modality.bands) * stride**2


def create_pyramid(
    preset: str,
    pretrained: bool = False,
    features_only: bool = True,
    out_indices: Sequence[int] = (0, 1, 2, 3, 4),
    output_stride: int = 32,
    **options: Any,
) -> Pyramid:
    """Make the model that `timm.create_model('gfm_jepa_<preset>_pyramid')` returns.

    Args:
        preset: A name of `PRESETS`.
        pretrained: Load weights, as for `gfm_jepa.models.timm_models.create`.
        features_only: It always gives feature maps, asked for or not.
        out_indices: Which of `STRIDES`.
        output_stride: Coarsest stride, pixels.
        options: As for `create`: in_chans, modality, weights, ...

    Raises:
        InputError: As `create`, or if a scale is asked for that there is not.
    """
    options.pop('num_classes', None)
    vit = create(preset, pretrained, num_classes=0, **options)
    assert isinstance(vit, RawVisionTransformer)
    return Pyramid(vit, out_indices, output_stride)
