"""The encoder: one patch embedder per modality, one shared ViT trunk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..modalities import Modality, resolve_all
from ..views import stated_gsd
from .base import BaseEncoder, Batch
from .block import Block
from .patch_embed import PatchEmbed, order_encoding

_MOST = 65_536  # of any width, depth or side of a patch; what is above it is a mistake
NUM_DEPTHS = 3  # blocks whose tokens `forward_depths` pools by default


class Readout(nn.Linear):
    """A linear map that adds up in double precision, where the device has it.

    Features that hardly change weigh most in it. Their sums would be rounded by 1e-5, and otherwise
    on every processor.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F) to (B, K), of the type of the features."""
        wide = torch.float32 if x.device.type == 'mps' else torch.float64
        return F.linear(x.to(wide), self.weight.to(wide), self.bias.to(wide)).to(x.dtype)


@dataclass(frozen=True)
class TokenLayout:
    """Where the N tokens of a batch lie: those of each modality row by row, one after another.

    Attributes:
        names: Modalities that are there, in the encoder's order.
        grids: Height and width in patches, per modality.
        positions: (N, 2) centres, metres south and east of the chip's corner.
        modality_ids: (N,) index of each token's modality in the encoder's order.
        extent: Height and width of the chip, metres.
        date_ids: (N,) index of each token's date, in the order in which the batch holds them; 0
            where there is one date or none.
    """

    names: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    positions: Tensor
    modality_ids: Tensor
    extent: tuple[float, float]
    date_ids: Tensor

    def span(self, modality: str) -> slice:
        """Which of the N tokens are of one modality.

        Raises:
            InputError: If the batch lacks it.
        """
        if modality not in self.names:
            raise InputError(f'No {modality} in the batch; it holds {", ".join(self.names)}.')
        at = self.names.index(modality)
        start = sum(h * w for h, w in self.grids[:at])
        return slice(start, start + self.grids[at][0] * self.grids[at][1])

    def grid(self, modality: str) -> tuple[int, int]:
        """Height and width in patches of one modality."""
        return self.grids[self.names.index(modality)]

    @property
    def finest(self) -> tuple[int, int]:
        """The grid with the most patches: the ground grid on which masks are drawn."""
        return max(self.grids, key=lambda g: g[0] * g[1])


@dataclass(frozen=True)
class Tokens:
    """Tokens after the trunk.

    Attributes:
        values: (B, K, D); no meaning where `valid` is False.
        valid: (B, K), True for a token that is there.
        ids: (B, K) index of each token in the layout, -1 where there is none.
        layout: Of all N tokens.
        depths: The same tokens after earlier blocks, each (B, K, D), if asked for.
    """

    values: Tensor
    valid: Tensor
    ids: Tensor
    layout: TokenLayout
    depths: tuple[Tensor, ...] = ()

    def dense(self) -> Tensor:
        """All N tokens of the layout in order, (B, N, D), NaN where there is none."""
        total = len(self.layout.positions)
        if self.ids.shape[1] == total and bool(self.valid.all()):
            return self.values  # every token is there, and their order never changes
        width = self.values.shape[-1]
        full = self.values.new_full((len(self.ids), total + 1, width), torch.nan)
        slots = self.ids.where(self.valid, total)  # what is not there goes to a spare slot
        full.scatter_(1, slots.unsqueeze(-1).expand_as(self.values), self.values)
        return full[:, :total]


class Encoder(BaseEncoder):
    """Embed any subset of its modalities with one trunk.

    Args:
        modalities: Modalities, known names, or mappings of `Modality` fields.
        patch_size: Side of a patch, pixels; one for all, or one per modality name.
        embed_dim: D, a multiple of 4 and of num_heads.
        depth: Blocks of the trunk.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over D.
        stem: ``linear``, ``conv`` (learns faster; not for masked methods) or ``plain_conv`` (a conv
            stem with fewer parameters); one for all, or one per modality name.
        drop_path_rate: Stochastic depth of the last block, rising linearly to it.
        readout: Width of the embedding, a linear map of `forward_depths` that
            `gfm_jepa.evaluation.readouts` fits; by default it is the mean over tokens.
        random_filters: Fixed filters of each modality, which are added to `forward_depths`; the
            same module cuts them from images.

    Raises:
        InputError: If a modality is unknown or lacks statistics, or widths do not divide.
    """

    def __init__(
        self,
        modalities: Sequence[Modality | str | Mapping[str, Any]],
        patch_size: int | Mapping[str, int] = 8,
        embed_dim: int = 192,
        depth: int = 6,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        stem: str | Mapping[str, str] = 'linear',
        drop_path_rate: float = 0.0,
        readout: int | None = None,
        random_filters: int = 0,
    ) -> None:
        super().__init__()
        resolved = resolve_all(modalities)
        sizes = _by_modality(patch_size, resolved, 'patch_size')
        counts = {'embed_dim': embed_dim, 'depth': depth, 'num_heads': num_heads,
                  **{f'patch_size of {name}': size for name, size in sizes.items()}}  # fmt: skip
        for key, count in counts.items():
            if not isinstance(count, int) or not 0 < count <= _MOST:
                raise InputError(f'{key} is {count!r}; give a whole number from 1 to {_MOST}.')
        if embed_dim % 4 or embed_dim % num_heads:
            raise InputError(
                f'embed_dim {embed_dim} should be a multiple of 4 and of num_heads {num_heads}.'
            )
        stems = _by_modality(stem, resolved, 'stem')
        self.config: dict[str, Any] = {
            'modalities': [m.to_dict() for m in resolved],
            'patch_size': sizes,
            'embed_dim': embed_dim,
            'depth': depth,
            'num_heads': num_heads,
            'mlp_ratio': mlp_ratio,
            'stem': stem if isinstance(stem, str) else stems,
            'drop_path_rate': drop_path_rate,
            'readout': readout,
            'random_filters': random_filters,
        }
        self.embed_dim = embed_dim
        if taken := [m.name for m in resolved if hasattr(nn.ModuleDict(), m.name)]:
            raise InputError(f'torch keeps the name {taken[0]!r}; call the modality another.')
        self.patch_embeds = nn.ModuleDict(
            {
                m.name: PatchEmbed(
                    m, embed_dim, sizes[m.name], stems[m.name], random_filters=random_filters
                )
                for m in resolved
            }
        )
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.set_drop_path(drop_path_rate)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.readout = Readout(self.depths_dim, readout) if readout else None
        self.apply(_init_linear)

    def set_drop_path(self, rate: float) -> None:
        """Set the stochastic depth of the last block, rising linearly to it.

        Raises:
            InputError: If it is no chance below 1.
        """
        if not 0 <= rate < 1:
            raise InputError(f'drop_path_rate is {rate}; give a chance from 0 to below 1.')
        self.config['drop_path_rate'] = rate
        for i, block in enumerate(self.blocks):
            cast(Block, block).drop_path = rate * i / max(len(self.blocks) - 1, 1)

    @property
    def modalities(self) -> dict[str, Modality]:
        """The modalities that it embeds, by name."""
        return {name: self.embedder(name).modality for name in self.patch_embeds}

    @property
    def patch_sizes(self) -> dict[str, int]:
        """Side of a patch, pixels, by modality."""
        return dict(self.config['patch_size'])

    @property
    def num_features(self) -> int:
        """Width of the embedding: of the readout, or D."""
        return self.config['readout'] or self.embed_dim

    @property
    def stems(self) -> dict[str, str]:
        """The kind of stem, by modality."""
        stem = self.config['stem']
        return {name: stem if isinstance(stem, str) else stem[name] for name in self.patch_embeds}

    def check(self, batch: Batch) -> None:
        """Refuse a batch that it cannot embed; see `layout`."""
        self.layout(batch)

    def layout(self, batch: Batch) -> TokenLayout:
        """Say where the tokens of a batch lie, without computing them.

        Raises:
            InputError: If the batch holds no modality of this encoder, or their chips cover
                different ground.
        """
        rasters = self.rasters(batch)
        grids, positions, ids, dates, extents = [], [], [], [], {}
        for index, name in enumerate(self.patch_embeds):
            if name not in rasters:
                continue
            embed = self.embedder(name)
            gsd = stated_gsd(batch, name) or embed.modality.gsd
            grid = embed.grid(tuple(rasters[name].shape))
            number = rasters[name].shape[1] if rasters[name].ndim == 5 else 1
            grids.append(grid)
            positions.append(embed.positions(grid, gsd).repeat(number, 1))
            ids.append(torch.full((len(positions[-1]),), index, device=positions[-1].device))
            date = torch.arange(number, device=positions[-1].device)
            dates.append(date.repeat_interleave(grid[0] * grid[1]))
            extents[name] = (rasters[name].shape[-2] * gsd, rasters[name].shape[-1] * gsd)
        extent = next(iter(extents.values()))
        for name, other in extents.items():
            if max(abs(a - b) / a for a, b in zip(extent, other, strict=True)) > 0.01:
                first = next(iter(extents))
                raise InputError(
                    f'{first} covers {extent[0]:g} x {extent[1]:g} m, but {name} '
                    f'{other[0]:g} x {other[1]:g} m; give chips of the same ground, and '
                    f'batch["gsd"] where it is not the nominal one.'
                )
        return TokenLayout(
            tuple(extents), tuple(grids), torch.cat(positions), torch.cat(ids), extent,
            torch.cat(dates),
        )  # fmt: skip

    def valid_patches(self, batch: Batch) -> Tensor:
        """Which tokens are there, (B, N) boolean, without computing them."""
        rasters = self.rasters(batch)
        return torch.cat(
            [by_date(x, self.embedder(n).valid_patches(one_by_one(x))) for n, x in rasters.items()],
            dim=1,
        )

    def has_data(self, batch: Batch) -> Tensor:
        """Which samples have a token that is there, (B,) boolean."""
        return self.valid_patches(batch).any(dim=1)

    def patch_signal(self, batch: Batch, kind: str) -> Tensor:
        """How much each patch holds, (B, N), at least 0, in standard deviations of its modality.

        Args:
            batch: As in `forward`.
            kind: ``variance`` (standard deviation within the patch, mean over bands) or
                ``brightness`` (its mean over bands and pixels above the darkest patch's), both over
                what is there.
        """
        signals = [
            by_date(x, self.embedder(n).signal(one_by_one(x), kind))
            for n, x in self.rasters(batch).items()
        ]
        return torch.cat(signals, dim=1)

    @property
    def statistics_dim(self) -> int:
        """S: width of the statistics of the stems, 0 unless those of all modalities are alike."""
        widths = {self.embedder(name).statistics_dim for name in self.patch_embeds}
        return widths.pop() if len(widths) == 1 else 0

    @property
    def depths_dim(self) -> int:
        """Width of `forward_depths` with its default number of depths."""
        return (min(NUM_DEPTHS, len(self.blocks)) + 1) * self.embed_dim + self.statistics_dim

    def embed_patches(
        self, batch: Batch, statistics: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, TokenLayout]:
        """Tokens before the trunk: (B, N, D), valid (B, N), and their layout.

        Args:
            batch: As in `forward`.
            statistics: Takes up those of the stem (B, T, S) of each modality, if given.
        """
        layout, rasters = self.layout(batch), self.rasters(batch)
        tokens, valid = [], []
        for name in layout.names:
            x, embed = rasters[name], self.embedder(name)
            if statistics is None:
                embedded, there = embed.project(one_by_one(x))
            else:
                embedded, there, found = embed.describe(one_by_one(x))
                statistics.append(by_date(x, found.unsqueeze(1)))
            embedded = embedded + embed.place(embed.grid(tuple(x.shape)), stated_gsd(batch, name))
            tokens.append(by_date(x, embedded))
            valid.append(by_date(x, there))
        joined = torch.cat(tokens, dim=1)
        if bool(layout.date_ids.any()):
            joined = joined + order_encoding(layout.date_ids, self.embed_dim).to(joined)
        return joined, torch.cat(valid, dim=1), layout

    def forward_tokens(
        self,
        batch: Batch,
        keep_ids: Tensor | None = None,
        num_depths: int = 0,
        statistics: list[Tensor] | None = None,
    ) -> Tokens:
        """Run the trunk over the tokens that are there.

        Args:
            batch: Rasters (B, C, H, W) by modality, raw units, NaN = not there; or (B, T, C, H, W)
                with dates in their order, whose tokens follow each other.
            keep_ids: (B, K) indices of the tokens to keep, -1 for none; all by default.
            num_depths: How many blocks before the last to keep the output of.
            statistics: As in `embed_patches`.

        Returns:
            The tokens. Nothing is computed from tokens that are not there or not kept.
        """
        tokens, valid, layout = self.embed_patches(batch, statistics)
        ids = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
        if keep_ids is not None:
            ids = keep_ids
            valid = valid.gather(1, ids.clamp_min(0)) & (ids >= 0)
        if not bool(valid.all()):
            # Bring the valid ones to the front and cut what no sample needs, so that a modality
            # that is all NaN costs and changes as much as one that is absent: nothing.
            order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
            order = order[:, : max(int(valid.sum(dim=1).max()), 1)]
            ids, valid = ids.gather(1, order), valid.gather(1, order)
            ids = ids.masked_fill(~valid, -1)
        if keep_ids is not None or ids.shape[1] != tokens.shape[1] or not bool(valid.all()):
            tokens = take(tokens, ids.clamp_min(0))
        mask = attention_mask(valid)
        depths = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, attn_mask=mask)
            if len(self.blocks) - 1 - num_depths <= index < len(self.blocks) - 1:
                depths.append(tokens)
        return Tokens(self.norm(tokens), valid, ids, layout, tuple(depths))

    def forward(self, batch: Batch, keep_ids: Tensor | None = None) -> Tensor:
        """Embed a batch: the mean over the tokens that are there, or the readout.

        Args:
            batch: Rasters (B, C, H, W) by modality, raw units, NaN = not there; any subset of the
                modalities. A single-modality encoder accepts torchgeo's key ``image``.
            keep_ids: (B, K) indices of the tokens to use; not with a readout.

        Returns:
            (B, num_features); NaN for a sample without a single valid patch.

        Raises:
            InputError: If no modality fits, band counts or sizes are wrong.
        """
        if self.readout is not None:
            if keep_ids is not None:
                raise InputError(
                    'A readout takes all tokens; leave keep_ids out, or call forward_tokens.'
                )
            features = self.forward_depths(batch)
            gone = features.isnan().any(dim=1, keepdim=True)
            embedding: Tensor = self.readout(features.masked_fill(gone, 0.0))
            return embedding.masked_fill(gone, torch.nan)  # and no NaN in the gradient
        tokens = self.forward_tokens(batch, keep_ids)
        return masked_mean(tokens.values, tokens.valid)

    def forward_depths(self, batch: Batch, num_depths: int = NUM_DEPTHS) -> Tensor:
        """Embed a batch with several depths: richer features for probes.

        Returns:
            (B, (num_depths + 1) * D + S): the mean over tokens after each of the last `num_depths`
            blocks (the earlier ones layer-normed without parameters), then the standard deviation
            over the tokens of the last; behind conv stems of one size, the statistics of their
            stages, and with random filters those (`PatchEmbed.describe`), averaged over the
            modalities and dates that are there.
        """
        statistics: list[Tensor] | None = [] if self.statistics_dim else None
        tokens = self.forward_tokens(batch, None, num_depths - 1, statistics)
        pooled = pool_depths([*tokens.depths, tokens.values], tokens.valid)
        if statistics is None:
            return pooled
        return torch.cat([pooled, torch.cat(statistics, dim=1).nanmean(dim=1)], dim=1)

    def forward_feature_map(self, batch: Batch, modality: str | None = None) -> Tensor:
        """Features on the token grid of one modality, informed by all that are there.

        Args:
            batch: As in `forward`.
            modality: Whose grid; the first of the encoder's that is there by default.

        Returns:
            (B, D, H / p, W / p); NaN where there is no token.

        Raises:
            InputError: If the batch lacks that modality, or holds several dates.
        """
        if any(x.ndim == 5 for x in self.rasters(batch).values()):
            raise InputError('A feature map is of one date; give rasters (B, C, H, W).')
        tokens = self.forward_tokens(batch)
        layout = tokens.layout
        name = modality or layout.names[0]
        own = tokens.dense()[:, layout.span(name)]
        return own.mT.reshape(len(own), self.embed_dim, *layout.grid(name))

    def embedder(self, name: str) -> PatchEmbed:
        """The patch embedder of one of its modalities."""
        module = self.patch_embeds[name]
        assert isinstance(module, PatchEmbed)
        return module


def _by_modality[T](
    value: T | Mapping[str, T], modalities: Sequence[Modality], option: str
) -> dict[str, T]:
    """An option that is one for all, or one per modality name, as the latter."""
    if not isinstance(value, Mapping):
        return {m.name: value for m in modalities}
    if lacking := [m.name for m in modalities if m.name not in value]:
        raise InputError(f'{option} says nothing of {", ".join(lacking)}; add them.')
    return {m.name: value[m.name] for m in modalities}


def one_by_one(x: Tensor) -> Tensor:
    """Dates (B, T, C, H, W) as samples of their own (B T, C, H, W); others as they are."""
    return x.flatten(0, 1) if x.ndim == 5 else x


def by_date(x: Tensor, tokens: Tensor) -> Tensor:
    """Join what `one_by_one` took apart: (B T, n, ...) to (B, T n, ...), date after date."""
    return tokens.unflatten(0, x.shape[:2]).flatten(1, 2) if x.ndim == 5 else tokens


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Gather tokens: (B, N, D) at (B, K) gives (B, K, D)."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def attention_mask(valid: Tensor) -> Tensor | None:
    """Attention mask (B, 1, 1, K) that hides tokens which are not there; None if all are.

    A sample without any token attends to its first slot: its output has no meaning, but stays
    finite, and so do the gradients of the others.
    """
    if bool(valid.all()):
        return None
    mask = valid.clone()
    mask[:, 0] |= ~valid.any(dim=1)
    return mask[:, None, None, :]


def masked_mean(tokens: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid tokens: (B, K, D) and (B, K) give (B, D), NaN where there is none."""
    if bool(valid.all()):
        return tokens.mean(dim=1)
    total = tokens.masked_fill(~valid.unsqueeze(-1), 0.0).sum(dim=1)
    return total / valid.sum(dim=1, keepdim=True)


def pool_depths(levels: Sequence[Tensor], valid: Tensor) -> Tensor:
    """Pool the tokens of several depths.

    Args:
        levels: Tokens (B, K, D) after some blocks, and last the trunk's own output.
        valid: (B, K), True for a token that is there.

    Returns:
        (B, (L + 1) D): the mean of each of L levels, all but the last layer-normed, and the
        standard deviation of the last.
    """
    width = (levels[-1].shape[-1],)
    normed = [F.layer_norm(tokens, width) for tokens in levels[:-1]] + [levels[-1]]
    means = [masked_mean(tokens, valid) for tokens in normed]
    # A sample without tokens has NaN for means, whose gradient would reach all weights.
    centre = means[-1].nan_to_num(0.0).unsqueeze(1)
    spread = masked_mean((levels[-1] - centre).square(), valid)
    return torch.cat([*means, (spread + 1e-12).sqrt()], dim=1)


def _init_linear(module: nn.Module) -> None:
    """Initialise as ViTs are: truncated normal of 0.02, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
