"""Any timm model as an encoder of one modality, for the methods that compare views.

timm is imported when a model is built: it takes longer than loading weights of ours.
"""

import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..modalities import Modality, resolve_all
from .base import BaseEncoder, Batch
from .patch_embed import all_finite, unit_problem


class TimmEncoder(BaseEncoder):
    """A timm model behind our normalisation: raw units in, NaN becomes the mean, NaN out for none.

    The first layer takes the modality's bands, as timm adapts it. A position on the ground is not
    told to it: gsd in a batch is ignored.

    Args:
        modalities: The one modality: a `Modality`, a known name, or a mapping of its fields.
        backbone: timm's name of the model, such as ``resnet50`` or ``vit_small_patch16_224``.
        small_images: Of a ResNet a stem of 3 x 3, stride 1 and no pooling; of a ViT patches of half
            the side.
        drop_path_rate: Stochastic depth, where the model has it.
        pretrained: Start from timm's published weights. They were trained on images normalised by
            statistics of their own, ours are the modality's.

    Raises:
        InputError: If there are several modalities, timm knows no such model, an option does not
            suit it, or its weights cannot be had.

    Source: Chen & He, "Exploring Simple Siamese Representation Learning" (2021), appendix D, for
        the stem for small images.
    """

    needs_half = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        modalities: Sequence[Modality | str | Mapping[str, Any]],
        backbone: str,
        small_images: bool = False,
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        resolved = resolve_all(modalities)
        if len(resolved) > 1:
            raise InputError(
                f'A timm model embeds one modality, but got {", ".join(m.name for m in resolved)}; '
                f'name one of them, or take encoder.backbone=null.'
            )
        self.modality = resolved[0].require_statistics()
        # `pretrained` says where weights come from, not what they are weights of.
        self.config = {
            'modalities': [self.modality.to_dict()],
            'backbone': backbone,
            'small_images': small_images,
            'drop_path_rate': drop_path_rate,
        }
        options: dict[str, Any] = {'in_chans': len(self.modality.bands), 'num_classes': 0}
        if drop_path_rate:
            options['drop_path_rate'] = drop_path_rate
        self.backbone: Any = _create(backbone, options, small_images, pretrained)
        # Some models end in a layer that is wider than their last map.
        self.embed_dim = int(
            getattr(self.backbone, 'head_hidden_size', None) or self.backbone.num_features
        )
        self.register_buffer('mean', torch.tensor(self.modality.mean).view(-1, 1, 1))
        self.register_buffer('std', torch.tensor(self.modality.std).view(-1, 1, 1))
        self._warned = False

    @property
    def modalities(self) -> dict[str, Modality]:
        """The one modality that it embeds, by name."""
        return {self.modality.name: self.modality}

    @property
    def patch_sizes(self) -> dict[str, int]:
        """What a ViT's input must be a multiple of, pixels; 1 for convolutions."""
        step = self._reduction() if _patch_size(self.backbone) else 1
        return {self.modality.name: step}

    def example_size(self, name: str) -> int:
        """Side of a small raster that it takes, pixels: the only one, if there is one alone."""
        fixed = _fixed_size(self.backbone)
        return fixed[0] if fixed else super().example_size(name)

    def check(self, batch: Batch) -> None:
        """Refuse a batch of other bands, or of a size that the model cannot take.

        Raises:
            InputError: If it is one.
        """
        x = self.rasters(batch)[self.modality.name]
        bands, height, width = x.shape[-3:]
        name, model = self.modality.name, self.config['backbone']
        if bands != len(self.modality.bands):
            raise InputError(
                f'{name} came with {bands} bands, but has {len(self.modality.bands)}: '
                f'{" ".join(self.modality.bands)}; give them in this order, NaN where one is '
                f'missing.'
            )
        if fixed := _fixed_size(self.backbone):
            if (height, width) != fixed:
                raise InputError(
                    f'{name} came with {height} x {width} pixels, but {model} takes {fixed[0]} x '
                    f'{fixed[1]} alone; resize to that, or take a ResNet, ConvNeXt or ViT.'
                )
            return
        step = self.patch_sizes[name]
        if height % step or width % step:
            pad = (-(-height // step) * step, -(-width // step) * step)
            raise InputError(
                f'{name} came with {height} x {width} pixels, which the patches of {model}, '
                f'{step} x {step}, do not divide; pad it with NaN to {pad[0]} x {pad[1]}, or crop '
                f'it.'
            )
        least = self._reduction()
        if min(height, width) < least:
            raise InputError(
                f'{name} came with {height} x {width} pixels, but {model} needs {least} x {least} '
                f'or more; resize the images, or set encoder.small_images for a ResNet or ViT.'
            )

    def has_data(self, batch: Batch) -> Tensor:
        """Which samples have a valid value, (B,) boolean."""
        return self.rasters(batch)[self.modality.name].isfinite().flatten(1).any(dim=1)

    def forward(self, batch: Batch) -> Tensor:
        """Embed a batch.

        Args:
            batch: Rasters (B, C, H, W) of the modality, raw units, NaN = not there.

        Returns:
            (B, D); NaN for a sample without a single valid value.

        Raises:
            InputError: If the modality is missing, or bands or size are wrong.
        """
        x, there = self._normalised(batch)
        return _only(self.backbone(x), there)

    def forward_depths(self, batch: Batch, num_depths: int = 3) -> Tensor:
        """Embed a batch with several depths: richer features for probes.

        Returns:
            (B, D'): the mean over the map of each of the last `num_depths` stages, or blocks of a
            ViT, the earlier ones layer-normed without parameters, and the standard deviation over
            the last map.
        """
        x, there = self._normalised(batch)
        maps = [m.flatten(2) for m in self._maps(x, num_depths)]
        means = [m.mean(dim=2) for m in maps]
        earlier = [F.layer_norm(m, m.shape[1:]) for m in means[:-1]]
        spread = maps[-1].var(dim=2, correction=0)
        return _only(torch.cat([*earlier, means[-1], (spread + 1e-12).sqrt()], dim=1), there)

    def forward_feature_map(self, batch: Batch, modality: str | None = None) -> Tensor:
        """Features of the last stage or block.

        Args:
            batch: As in `forward`.
            modality: None, or the only one.

        Returns:
            (B, D', h, w), D' the width of that stage; NaN in a cell without a valid value.

        Raises:
            InputError: If the encoder lacks that modality.
        """
        if modality not in (None, self.modality.name):
            raise InputError(f'No {modality} here; this encoder embeds {self.modality.name}.')
        x, _ = self._normalised(batch)
        features = self._maps(x, 1)[0]
        raster = self.rasters(batch)[self.modality.name]
        if all_finite(raster):
            return features
        valid = raster.isfinite().any(dim=1, keepdim=True).float()
        empty = F.adaptive_max_pool2d(valid, features.shape[-2:]) == 0
        return features.masked_fill(empty, torch.nan)

    def _normalised(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The raster (B, C, H, W) normalised, 0 where nothing is, and which samples are there."""
        self.check(batch)
        x = self.rasters(batch)[self.modality.name]
        if not self._warned and (problem := unit_problem(x, self.modality)):
            self._warned = True
            warnings.warn(problem, stacklevel=4)
        normalised = torch.addcmul(-self.mean / self.std, x.float(), 1 / self.std)
        normalised = normalised.to(self.mean.dtype)  # of weights in 16 bits
        if all_finite(x):
            return normalised, torch.ones(len(x), dtype=torch.bool, device=x.device)
        return normalised.nan_to_num(0.0, 0.0, 0.0), self.has_data(batch)

    def _maps(self, x: Tensor, count: int) -> list[Tensor]:
        """The last feature maps, each (B, D', h, w)."""
        if not hasattr(self.backbone, 'forward_intermediates'):
            raise InputError(
                f'timm gives no feature maps of {self.config["backbone"]}; take another model, or '
                f'features=embedding.'
            )
        maps: list[Tensor] = self.backbone.forward_intermediates(
            x, indices=count, norm=True, output_fmt='NCHW', intermediates_only=True
        )
        return maps

    def _reduction(self) -> int:
        """Pixels from one cell of the last map to the next."""
        reduction = int(self.backbone.feature_info[-1]['reduction'])
        is_small_resnet = self.config['small_images'] and not _patch_size(self.backbone)
        return reduction // 4 if is_small_resnet else reduction


def require_timm(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        InputError: Naming some that are like it.
    """
    import timm

    if not timm.is_model(name):
        close = ', '.join(get_close_matches(name, timm.list_models(), 5)) or 'resnet50'
        raise InputError(f'timm has no model {name!r}; it has {close} and others.')


def _create(name: str, options: Mapping[str, Any], small_images: bool, pretrained: bool) -> Any:
    """Let timm build a model, of any input size where it can be."""
    import timm

    require_timm(name)
    options = {**options, 'pretrained': pretrained}
    if timm.get_pretrained_cfg(name).fixed_input_size:
        model = _build(name, {**options, 'dynamic_img_size': True}, options)
    else:
        model = _build(name, options)
    if not small_images:
        return model
    if patch := _patch_size(model):
        half = {**options, 'dynamic_img_size': True, 'patch_size': patch // 2}
        return _build(name, half)
    if not isinstance(model, timm.models.ResNet) or pretrained:
        raise InputError(
            f'encoder.small_images gives a ResNet a new stem, and a ViT smaller patches, which '
            f'does not go with {name}{" pretrained" if pretrained else ""}; leave out one of them.'
        )
    model.conv1 = nn.Conv2d(
        options['in_chans'], model.bn1.num_features, 3, stride=1, padding=1, bias=False
    )
    nn.init.kaiming_normal_(model.conv1.weight, mode='fan_out', nonlinearity='relu')
    model.maxpool = nn.Identity()
    return model


def _build(name: str, *attempts: Mapping[str, Any]) -> Any:
    """Build with the first options that the model knows."""
    import timm

    refused = ''
    for options in attempts:
        try:
            return timm.create_model(name, **options)
        except TypeError as error:  # timm's constructors refuse options that they do not know
            refused = str(error)
        except (RuntimeError, OSError, HfHubHTTPError) as error:
            if not options['pretrained']:
                raise
            reason = str(error).splitlines()[0][:120]
            raise InputError(
                f'timm gave no weights of {name} ({type(error).__name__}: {reason}); check the '
                f'name and the network, or set encoder.pretrained=false.'
            ) from error
    raise InputError(f'timm cannot build {name} so ({refused}); change the options of encoder.')


def _patch_size(model: Any) -> int:
    """Side of the patches of a ViT that takes images of any size; 0 for all other models."""
    if not getattr(model, 'dynamic_img_size', False):
        return 0
    return int(model.patch_embed.patch_size[0])


def _fixed_size(model: Any) -> tuple[int, int] | None:
    """Height and width, pixels, of a model that takes no other."""
    config = model.pretrained_cfg
    if _patch_size(model) or not config.get('fixed_input_size'):
        return None
    return tuple(config['input_size'][-2:])


def _only(values: Tensor, there: Tensor) -> Tensor:
    """NaN in the rows (B, D) of samples that are not there; no gradient flows through them."""
    return values if bool(there.all()) else values.where(there[:, None], torch.nan)
