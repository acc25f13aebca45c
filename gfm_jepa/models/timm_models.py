"""An encoder's path for one modality as a timm VisionTransformer, under a name in timm."""

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..bundled import bundled_folder
from ..errors import InputError
from ..modalities import MODALITIES, Modality, resolve
from .band_matching import ModalitySpec
from .encoder import NUM_DEPTHS, Encoder, Readout, pool_depths
from .hub import from_pretrained
from .patch_embed import PatchEmbed
from .presets import PRESETS
from .weight_files import CONFIG, read_json

# Which modality a number of bands means where none is named.
BY_CHANNELS: Mapping[int, str] = {
    1: 'dem', 2: 's1', 3: 'rgb', 4: 'naip', 6: 'landsat7', 9: 'landsat8', 12: 's2_l2a',
    13: 's2_l1c',
}  # fmt: skip


def keep_if_frozen(module: nn.Module) -> None:
    """Keep the statistics of batch norms where nothing is trained, whatever mode is set."""
    if module.training and not any(p.requires_grad for p in module.parameters()):
        module.eval()


class RawPatchEmbed(nn.Module):
    """The `embed_layer` of a timm ViT that takes raw units: our `PatchEmbed` in timm's clothes.

    NaN becomes the mean, as everywhere; but a patch without data keeps its token, since a timm
    model has no way to leave one out.

    Args:
        embed: The patch embedder: statistics, stem, places.
        img_size: Nominal height and width, pixels. Any other that the patch divides works as well.
    """

    gsd: Tensor

    def __init__(self, embed: PatchEmbed, img_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.embed = embed
        # A tensor, so that weights of another modality of as many bands bring theirs.
        self.register_buffer('gsd', torch.tensor(float(embed.modality.gsd)))
        self.patch_size = (embed.patch_size, embed.patch_size)
        self.set_input_size(img_size)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        """Take this model's gsd where a file of before says none."""
        state_dict.setdefault(f'{prefix}gsd', self.gsd)
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Note the nominal size; timm calls this.

        Raises:
            InputError: If the patch size is another one, or does not divide the size.
        """
        if patch_size not in (None, self.embed.patch_size, self.patch_size):
            raise InputError(
                f'The patches have {self.patch_size[0]} pixels and keep them; got {patch_size}.'
            )
        if img_size is not None:
            size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
            self.img_size = (size[0], size[1])
            self.grid_size = self.embed.grid((len(self.embed.modality.bands), *self.img_size))
            self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels from one token to the next."""
        return self.patch_size[0] if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in tokens of an image of so many pixels."""
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def place(self, grid: tuple[int, int]) -> Tensor:
        """What is added to the tokens (N, D) of a grid: place on the ground, and sensor."""
        return self.embed.place(grid, self.gsd)

    def forward(self, x: Tensor) -> Tensor:
        """Map raw (B, C, H, W) to (B, H / p, W / p, D)."""
        keep_if_frozen(self)
        tokens: Tensor = self.embed.project(x)[0]
        return tokens.reshape(len(x), *self.embed.grid(tuple(x.shape)), -1)


class RawVisionTransformer(VisionTransformer):  # type: ignore[misc]  # timm carries no types
    """A timm ViT for raw units and images of any size, without class token.

    Args:
        embed: The patch embedder of one modality.
        img_size: Nominal height and width, pixels.
        readout: Width of the encoder's readout, which then stands before the head.
        options: Further arguments of timm's `VisionTransformer`.
    """

    def __init__(
        self,
        embed: PatchEmbed,
        img_size: int | tuple[int, int] = 64,
        readout: int | None = None,
        **options: Any,
    ) -> None:
        def embed_layer(**_: Any) -> RawPatchEmbed:  # timm passes what the embedder knows
            return RawPatchEmbed(embed, img_size)

        super().__init__(
            **{'global_pool': 'avg', **options}, img_size=img_size, patch_size=embed.patch_size,
            pos_embed='none', class_token=False, fc_norm=False, embed_layer=embed_layer,
        )  # fmt: skip
        self.dynamic_img_size = True
        self.readout: Readout | None = None
        if readout:
            depths = min(NUM_DEPTHS, len(self.blocks))
            width = (depths + 1) * self.embed_dim + embed.statistics_dim
            self.readout = Readout(width, readout)
            self.num_features = self.head_hidden_size = readout
            self.reset_classifier(self.num_classes)
            # The head stays the last child: torchgeo takes that for the output layer.
            self.head = self._modules.pop('head')

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give it a new head; timm's own does not know of a readout."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes and self.readout is not None:
            self.head = nn.Linear(self.readout.out_features, num_classes)

    def forward_features(self, x: Tensor, **options: Any) -> Tensor:
        """Map raw (B, C, H, W) to tokens (B, N, D); with a readout to (B, 1, K), its answer alone.

        Either way `forward_head` makes the encoder's embedding of it. Tokens of an encoder with a
        readout come from `forward_intermediates`. Options are timm's own.

        Raises:
            InputError: If a readout, which takes all tokens, is asked to leave some out.
        """
        if self.readout is None:
            outputs: Tensor = super().forward_features(x, **options)
            return outputs
        if options.get('attn_mask') is not None:
            raise InputError('A readout takes all tokens; leave attn_mask out.')
        first, grid = self.patch_embed, self.patch_embed.embed.grid(tuple(x.shape))
        keep_if_frozen(first)
        there = first.embed.valid_patches(x).any(dim=1)
        if not bool(there.all()):  # of what is nowhere there are no statistics: it is the mean
            x = x.where(there[:, None, None, None], first.embed.mean)
        tokens, _, statistics = first.embed.describe(x)
        tokens, levels = self.pos_drop(tokens + first.place(grid)), []
        saves = self.grad_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False) if saves else block(tokens)
            levels.append(tokens)
        levels = [*levels[-NUM_DEPTHS:-1], self.norm(tokens)]
        everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        features = torch.cat([pool_depths(levels, everywhere), statistics], dim=1)
        answer: Tensor = self.readout(features)
        return answer.unsqueeze(1)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Add the places on the ground, which are a formula and fit any grid, and the sensor."""
        place = self.patch_embed.place((x.shape[1], x.shape[2]))
        placed: Tensor = self.pos_drop(x.flatten(1, 2) + place)
        return placed


def timm_state(encoder: Encoder, modality: str) -> dict[str, Tensor]:
    """The encoder's tensors for one modality, under their names in a `RawVisionTransformer`."""
    own = f'patch_embeds.{modality}.'
    state = {
        key.replace(own, 'patch_embed.embed.'): value
        for key, value in encoder.state_dict().items()
        if key.startswith(own) or not key.startswith('patch_embeds.')
    }
    return {**state, 'patch_embed.gsd': torch.tensor(float(encoder.modalities[modality].gsd))}


def to_timm(
    encoder: Encoder, modality: str, img_size: int | tuple[int, int] = 64, num_classes: int = 0
) -> VisionTransformer:
    """Make the timm ViT that equals the encoder on one modality.

    Args:
        encoder: Whose weights to copy.
        modality: Which of its modalities the model takes.
        img_size: Nominal height and width, pixels, or one number for both.
        num_classes: Outputs of a new linear head, which is 0 at first; 0 gives the embedding.

    Returns:
        A `VisionTransformer` without class token, with mean pooling, for raw (B, C, H, W).

    Raises:
        InputError: If the encoder lacks the modality, or the patch size does not divide the size.
    """
    if modality not in encoder.modalities:
        raise InputError(
            f'The encoder has no {modality!r}; it embeds {", ".join(encoder.modalities)}.'
        )
    embed = encoder.embedder(modality)
    model = RawVisionTransformer(
        deepcopy(embed), img_size, in_chans=len(embed.modality.bands), num_classes=num_classes,
        weight_init='skip', readout=encoder.config['readout'], **_trunk(encoder.config),
    )  # fmt: skip
    if num_classes:
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    _load(model, timm_state(encoder, modality))
    return model


def create(
    preset: str,
    pretrained: bool = False,
    modality: ModalitySpec | None = None,
    weights: str | None = None,
    in_chans: int | None = None,
    **options: Any,
) -> nn.Module:
    """Make the model that `timm.create_model('gfm_jepa_<preset>')` returns.

    Args:
        preset: A name of `PRESETS`.
        pretrained: Load weights: the bundled ones of this size, if `weights` or timm's own
            ``pretrained_cfg`` (as of ``hf-hub:`` and ``local-dir:``) names no others.
        modality: What the images are, as in `from_pretrained`; by `in_chans` if None, see
            `BY_CHANNELS`.
        weights: A source as in `from_pretrained`, which is then loaded.
        in_chans: Bands of the images.
        options: Whatever timm gives: num_classes, img_size, features_only, drop_path_rate, ...

    Returns:
        A `RawVisionTransformer`, or timm's feature extractor around one. Raw units go in.

    Raises:
        InputError: If there are no such weights, or they know no such modality.
    """
    config, state = _template(preset), None
    theirs = pretrained and not weights and _names_a_file(options)
    if weights or (pretrained and not theirs):
        source = weights or f'gfm-jepa-{preset}'
        config, state, chosen = _trained(source, preset, modality, in_chans)
    else:
        chosen = _choose(modality, in_chans, config.get('modalities', []))
    if in_chans not in (None, len(chosen.bands)):
        raise InputError(
            f'in_chans is {in_chans}, but {chosen.name} has {len(chosen.bands)} bands; leave out '
            f'one of them, or name bands: modality={{"name": ..., "bands": [...]}}.'
        )
    sizes = config['patch_size']
    patch = sizes.get(chosen.name, 8) if isinstance(sizes, dict) else sizes
    make = partial(_make, chosen, patch, config, state)
    model: nn.Module = build_model_with_cfg(
        make, f'gfm_jepa_{preset}', pretrained=theirs, in_chans=len(chosen.bands),
        feature_cfg={'out_indices': 3, 'feature_cls': 'getter'}, **options,
    )  # fmt: skip
    return model


def _names_a_file(options: Mapping[str, Any]) -> bool:
    """Whether timm was told where weights in its own layout are, and has to read them."""
    found: dict[str, Any] = {}
    for given in (options.get(k) for k in ('pretrained_cfg', 'pretrained_cfg_overlay')):
        if given is not None and not isinstance(given, str):
            found |= given if isinstance(given, Mapping) else vars(given)
    return any(found.get(key) for key in ('file', 'url', 'hf_hub_id', 'state_dict'))


def _make(
    modality: Modality,
    patch_size: int,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor] | None,
    **options: Any,
) -> RawVisionTransformer:
    """Build, and load before timm wraps or prunes anything."""
    options.pop('dynamic_img_size', None)  # it always is
    stems = config['stem']
    stem = stems if isinstance(stems, str) else stems.get(modality.name, 'plain_conv')
    embed = PatchEmbed(
        modality, config['embed_dim'], patch_size, stem,
        random_filters=config.get('random_filters', 0),
    )  # fmt: skip
    model = RawVisionTransformer(
        embed, readout=config.get('readout'), **{**_trunk(config), **options}
    )
    if state is not None:
        _load(model, state)
    return model


def _load(model: RawVisionTransformer, state: Mapping[str, Tensor]) -> None:
    """Load strictly; only the head stays as it is."""
    head = {k: v for k, v in model.state_dict().items() if k.startswith('head.')}
    model.load_state_dict({**state, **head})


def _trunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's constructor wants to know of the trunk."""
    keys = ('embed_dim', 'depth', 'num_heads', 'mlp_ratio')
    return {key: config[key] for key in keys if key in config}


def _template(preset: str) -> dict[str, Any]:
    """What a model without weights is like: the bundled one of its size, if there is one.

    Weights that are loaded afterwards (a `WeightsEnum`, a checkpoint) then fit.
    """
    if folder := bundled_folder(f'gfm-jepa-{preset}'):
        config: dict[str, Any] = read_json(folder / CONFIG)
        return config
    return {'patch_size': 8, 'stem': 'linear', **PRESETS[preset]}


def _trained(
    source: str, preset: str, spec: ModalitySpec | None, in_chans: int | None
) -> tuple[dict[str, Any], dict[str, Tensor], Modality]:
    """Config, tensors and modality out of weights."""
    encoder = from_pretrained(source)
    if not isinstance(encoder, Encoder):
        raise InputError(f'{source} is a timm model already; load it with from_pretrained.')
    if (width := PRESETS[preset]['embed_dim']) != encoder.embed_dim:
        raise InputError(
            f'gfm_jepa_{preset} has width {width}, but {source} has {encoder.embed_dim}; take the '
            f'name of its size.'
        )
    if spec is None:
        spec = _by_channels(in_chans, encoder.modalities, source)
    if not (isinstance(spec, str) and spec in encoder.modalities):
        encoder = from_pretrained(source, modalities=[spec])
        assert isinstance(encoder, Encoder)
        spec = next(iter(encoder.modalities))
    return encoder.config, timm_state(encoder, spec), encoder.modalities[spec]


def _by_channels(in_chans: int | None, known: Mapping[str, Modality], source: str) -> str:
    """The trained modality that a number of bands means."""
    if in_chans is None and len(known) == 1:
        return next(iter(known))
    count = in_chans or 3
    fitting = [name for name, m in known.items() if len(m.bands) == count]
    if (usual := BY_CHANNELS.get(count)) in fitting:
        return str(usual)
    if len(fitting) == 1:
        return fitting[0]
    having = ', '.join(f'{name} ({len(m.bands)})' for name, m in known.items())
    raise InputError(
        f'{count} bands say nothing to {source}, which knows {having}; name the images: '
        f'modality="..." or modality={{"name": ..., "bands": [...]}}.'
    )


def _choose(
    spec: ModalitySpec | None, in_chans: int | None, template: list[Mapping[str, Any]]
) -> Modality:
    """The modality of a model without weights; statistics as in the template, if it has them."""
    known = {m['name']: resolve(m) for m in template}
    if spec is None:
        count = in_chans or 3
        if count not in BY_CHANNELS:
            return _by_name(_by_channels(count, known or MODALITIES, 'this model'), known)
        spec = BY_CHANNELS[count]
    return _by_name(spec, known) if isinstance(spec, str) else resolve(spec)


def _by_name(name: str, known: Mapping[str, Modality]) -> Modality:
    return known[name] if name in known else resolve(name)
