"""From a raster in physical units to tokens: normalise, mask, project, place on the ground."""

import math
import warnings

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modalities import Modality
from .random_filters import RandomFilters


def sincos_positions(positions: Tensor, embed_dim: int) -> Tensor:
    """Encode ground positions as sines and cosines.

    Args:
        positions: (N, 2) metres south and east of the chip's corner.
        embed_dim: D, a multiple of 4.

    Returns:
        (N, D): sine and cosine of the southing, then of the easting, at D / 4 wavelengths from
        16 m to 16 km in equal ratios.

    Source: Vaswani et al., "Attention is all you need" (2017), section 3.5.
    Differs from the source: wavelengths are metres on the ground, not counts of patches, so that
        tokens of different gsd and patch size share one space.
    """
    wavelengths = 16.0 * 1000.0 ** torch.linspace(0, 1, embed_dim // 4, device=positions.device)
    angles = positions.float().unsqueeze(-1) * (2 * math.pi / wavelengths)  # (N, 2, D / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


def order_encoding(date_ids: Tensor, embed_dim: int) -> Tensor:
    """Encode which date of its sample a token is of: its place in the order, not its time.

    Batches hold dates in their order and do not say when they were; nothing is made up.

    Args:
        date_ids: (N,) index of the date.
        embed_dim: D, even.

    Returns:
        (N, D): sines, and cosines less 1, at D / 2 wavelengths from 2 pi to 200 pi dates. The first
        date is 0, so that a single date, which every embedding is made of, looks as it always does.
    """
    rates = 0.01 ** torch.linspace(0, 1, embed_dim // 2, device=date_ids.device)
    angles = date_ids.unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos() - 1], dim=-1)


class LinearStem(nn.Module):
    """One linear map of the pixels of a patch: no pixel is seen by two patches.

    Args:
        in_channels: Bands C.
        embed_dim: D.
        patch_size: Side of a patch, pixels.
    """

    leaks = False  # whether a token sees pixels of other patches

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        # A convolution in name, so that the weights are those of a timm PatchEmbed.
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(embed_dim, -1))
        nn.init.zeros_(_bias(self.proj))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, N, D)."""
        p = self.patch_size
        batch, bands, height, width = x.shape
        # Cutting patches and one matrix product is faster on CPUs than the strided convolution.
        patches = x.view(batch, bands, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, -1, bands * p * p)
        return nn.functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class ResidualConvs(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; the identity when new.

    Args:
        channels: In and out.

    Source: He et al., "Deep residual learning" (2016), section 3.3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]  # a BatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        return nn.functional.relu(x + self.layers(x))


class ConvStem(nn.Module):
    """Overlapping stride-2 convolutions, residual ones between; learns faster from few samples.

    A token sees a margin of the neighbouring patches, so masked methods must not use it.

    Args:
        in_channels: Bands C.
        embed_dim: D.
        patch_size: Side of a patch, pixels; a power of two.

    Raises:
        InputError: If the patch size is not a power of two above 1.

    Source: Xiao et al., "Early convolutions help transformers see better" (2021).
    Differs from the source: residual convolutions after each stage but the first.
    """

    leaks = True
    residual = True  # whether there are residual convolutions

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        stages = int(math.log2(patch_size)) if patch_size > 1 else 0
        if not stages or 2**stages != patch_size:
            raise InputError(
                f'The conv stem halves the raster at each stage, so that its patch size must be a '
                f'power of two; got {patch_size}: take 4, 8 or 16, or the linear stem.'
            )
        self.stages = nn.ModuleList()
        self.widths: list[int] = []  # of the responses
        before = in_channels
        for i in range(stages):
            width = max(embed_dim // 2 ** (stages - 1 - i), 16)
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(width), nn.ReLU(inplace=True),
                    ResidualConvs(width) if i and self.residual else nn.Identity(),
                )
            )  # fmt: skip
            before = width
            self.widths.append(width)
        self.project = nn.Conv2d(before, embed_dim, 1)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Responses (B, width, H / 2^i, W / 2^i) of each stage i, all at least 0."""
        responses = []
        for stage in self.stages:
            x = stage(x)
            responses.append(x)
        return responses

    def tokens(self, response: Tensor) -> Tensor:
        """Map the response of the last stage to (B, N, D)."""
        tokens: Tensor = self.project(response).flatten(2).transpose(1, 2)
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, N, D)."""
        return self.tokens(self.levels(x)[-1])


class PlainConvStem(ConvStem):
    """The conv stem of the source: fewer parameters, for sensors with little data."""

    residual = False


STEMS: dict[str, type[LinearStem] | type[ConvStem]] = {
    'linear': LinearStem, 'conv': ConvStem, 'plain_conv': PlainConvStem,
}  # fmt: skip


class PatchEmbed(nn.Module):
    """Turn rasters of one modality into tokens that know their place and their sensor.

    The statistics are buffers: users pass raw physical units, and nobody normalises twice.

    Args:
        modality: What the raster holds; its statistics are required.
        embed_dim: D, a multiple of 4.
        patch_size: Side of a patch, pixels.
        stem: ``linear``, ``conv`` or ``plain_conv``.
        min_valid: Share of valid values below which a patch makes no token.
        random_filters: Fixed filters whose responses `describe` adds.

    Raises:
        InputError: If the modality has no statistics, or the stem is unknown.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        modality: Modality,
        embed_dim: int,
        patch_size: int,
        stem: str = 'linear',
        min_valid: float = 0.5,
        random_filters: int = 0,
    ) -> None:
        super().__init__()
        self.modality = modality.require_statistics()
        self.patch_size = patch_size
        self.min_valid = min_valid
        self.register_buffer('mean', torch.tensor(modality.mean).view(-1, 1, 1))
        self.register_buffer('std', torch.tensor(modality.std).view(-1, 1, 1))
        if stem not in STEMS:
            raise InputError(f'Unknown stem {stem!r}: expected one of {", ".join(STEMS)}.')
        bands = len(modality.bands)
        self.stem = STEMS[stem](bands, embed_dim, patch_size)
        self.modality_vector = nn.Parameter(torch.empty(embed_dim))
        nn.init.trunc_normal_(self.modality_vector, std=0.02)
        self.filters = RandomFilters(bands, random_filters) if random_filters else None
        self._warned = False

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width, in patches, of a raster of shape (..., C, H, W).

        Raises:
            InputError: If the band count is wrong, or H or W is no multiple of the patch size.
        """
        bands, height, width = shape[-3:]
        p, name = self.patch_size, self.modality.name
        if bands != len(self.modality.bands):
            raise InputError(
                f'{name} came with {bands} bands, but has {len(self.modality.bands)}: '
                f'{" ".join(self.modality.bands)}; give them in this order, NaN where one is '
                f'missing.'
            )
        if height % p or width % p or not height or not width:
            pad = (max(-(-height // p), 1) * p, max(-(-width // p), 1) * p)
            raise InputError(
                f'{name} came with {height} x {width} pixels, which patches of {p} x {p} do not '
                f'divide; pad it with NaN to {pad[0]} x {pad[1]}, or crop it.'
            )
        return height // p, width // p

    def forward(self, x: Tensor, gsd: float | None = None) -> tuple[Tensor, Tensor]:
        """Embed a batch of rasters.

        Args:
            x: (B, C, H, W) in the modality's unit, NaN = not there.
            gsd: Metres per pixel of this batch; the modality's nominal one by default.

        Returns:
            tokens (B, N, D), and valid (B, N), True where a patch has enough valid values. What
            stands in `tokens` where `valid` is False has no meaning.
        """
        tokens, valid = self.project(x)
        return tokens + self.place(self.grid(tuple(x.shape)), gsd), valid

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same without place and sensor: what a patch holds, wherever it lies."""
        complete = self._look(x)
        return self.stem(self.normalise(x, complete)), self._valid_patches(x, complete)

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `project`, and what can be said of the raster before the trunk, pooled.

        Returns:
            tokens, valid, and (B, S): mean and standard deviation over the valid pixels of each
            response of each stage of a conv stem, then what the random filters say; NaN for a
            sample without any valid pixel. S is 0 for a linear stem without random filters.
        """
        complete = self._look(x)
        normalised, pooled = self.normalise(x, complete), []
        there = x.isfinite().float().mean(dim=1, keepdim=True)
        if isinstance(self.stem, ConvStem):
            levels = self.stem.levels(normalised)
            tokens = self.stem.tokens(levels[-1])
            pooled += [self._pool(response, there) for response in levels]
        else:
            tokens = self.stem(normalised)
        if self.filters is not None:
            pooled.append(self.filters(normalised, there.to(normalised)))
        found = torch.cat(pooled, dim=1) if pooled else x.new_empty(len(x), 0)
        return tokens, self._valid_patches(x, complete), found

    def _pool(self, response: Tensor, there: Tensor) -> Tensor:
        """Mean and standard deviation of (B, w, h, w) over the valid pixels: (B, 2 w)."""
        weight = nn.functional.avg_pool2d(there, there.shape[-1] // response.shape[-1])
        weight = (weight >= self.min_valid).to(response)
        number = weight.sum(dim=(2, 3), keepdim=True)
        weight = weight / number.clamp_min(1)
        mean = (response * weight).sum(dim=(2, 3))
        square = (response.square() * weight).sum(dim=(2, 3))
        pooled = torch.cat([mean, (square - mean.square()).clamp_min(1e-12).sqrt()], dim=1)
        # Not by 0 / 0, whose gradient is NaN for the stem whatever becomes of this sample.
        return pooled.masked_fill(number.flatten(1) == 0, torch.nan)

    @property
    def statistics_dim(self) -> int:
        """S of `describe`."""
        widths = self.stem.widths if isinstance(self.stem, ConvStem) else []
        return 2 * (sum(widths) + (len(self.filters.bias) if self.filters is not None else 0))

    def _look(self, x: Tensor) -> bool:
        """Refuse wrong shapes, warn of wrong units, and say whether no value is missing."""
        self.grid(tuple(x.shape))
        self._check_unit(x)
        return all_finite(x)

    def normalise(self, x: Tensor, complete: bool = False) -> Tensor:
        """Standard deviations from the mean (B, C, H, W), NaN as the mean, in the weights' type.

        Args:
            x: (B, C, H, W), raw.
            complete: Whether it is known that no value is missing.
        """
        # One pass over the pixels, not two: (x - mean) / std.
        mean, std = self.mean.float(), self.std.float()  # raw values may not fit into 16 bits
        normalised = torch.addcmul(-mean / std, x.float(), 1 / std)
        normalised = normalised if complete else normalised.nan_to_num_(0.0, 0.0, 0.0)
        return normalised.to(self.modality_vector.dtype)

    def place(self, grid: tuple[int, int], gsd: float | Tensor | None = None) -> Tensor:
        """What is added to the tokens (N, D): their position on the ground, and their sensor."""
        width = self.modality_vector.shape[0]
        places = sincos_positions(self.positions(grid, gsd), width)
        return places.to(self.modality_vector.dtype) + self.modality_vector

    @torch.no_grad()
    def signal(self, x: Tensor, kind: str) -> Tensor:
        """How much each patch of (B, C, H, W) holds: (B, N); see `Encoder.patch_signal`.

        Over what is there alone: a gap taken for the mean would look like an edge. What makes no
        token holds nothing.
        """
        values, there = self.normalise(x), x.isfinite()
        weight = nn.functional.avg_pool2d(there.to(values), self.patch_size)  # by band
        mean, square = (
            nn.functional.avg_pool2d(v, self.patch_size) / weight.clamp_min(1e-6)
            for v in (values, values.square())
        )
        by_band = mean if kind == 'brightness' else (square - mean.square()).clamp_min(0).sqrt()
        signal = (by_band * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1e-6)
        signal, gone = signal.flatten(1), ~self.valid_patches(x)
        if kind == 'brightness':
            signal = signal - signal.masked_fill(gone, math.inf).amin(dim=1, keepdim=True)
        return signal.masked_fill(gone, 0.0)

    def valid_patches(self, x: Tensor) -> Tensor:
        """Which patches of (B, C, H, W) have enough valid values: (B, N) boolean."""
        return self._valid_patches(x, all_finite(x))

    def _valid_patches(self, x: Tensor, complete: bool) -> Tensor:
        if complete:
            grid = self.grid(tuple(x.shape))
            return torch.ones(len(x), grid[0] * grid[1], dtype=torch.bool, device=x.device)
        there = x.isfinite().float().mean(dim=1, keepdim=True)
        return nn.functional.avg_pool2d(there, self.patch_size).flatten(1) >= self.min_valid

    def positions(self, grid: tuple[int, int], gsd: float | Tensor | None = None) -> Tensor:
        """Centres (N, 2) of the patches, metres south and east of the chip's corner."""
        step = self.patch_size * (self.modality.gsd if gsd is None else gsd)
        row, col = ((torch.arange(n, device=self.mean.device) + 0.5) * step for n in grid)
        return torch.cartesian_prod(row, col)

    def _check_unit(self, x: Tensor) -> None:
        """Warn once when the values cannot be in the modality's unit."""
        if not self._warned and (problem := unit_problem(x, self.modality)):
            self._warned = True
            warnings.warn(problem, stacklevel=5)


def unit_problem(x: Tensor, modality: Modality) -> str:
    """Say what is wrong when values (B, C, H, W) cannot be in the modality's unit; else ''."""
    bounds, decibels = modality.valid_range, 'dB' in modality.unit
    if bounds is None and not decibels:
        return ''
    sample = x[..., ::11, ::11]  # 1 % of the pixels tell a wrong unit as well as all
    seen = sample[sample.isfinite()]
    if not len(seen):
        return ''
    # Linear power given as dB lies inside the range too, but hardly any ground echoes all it gets.
    linear = decibels and float(seen.min()) >= 0 and float(seen.max()) > 0
    if not linear and (bounds is None or not _are_outside(seen, bounds)):
        return ''
    expected = '' if bounds is None else f' ({bounds[0]:g} to {bounds[1]:g})'
    remedy = 'take 10 log10 of linear power' if linear else 'pass raw values'
    return (
        f'{modality.name} came with values from {float(seen.min()):.4g} to '
        f'{float(seen.max()):.4g}, but is expected in the unit "{modality.unit}"{expected}; '
        f'{remedy}, the encoder normalises them.'
    )


def _are_outside(seen: Tensor, bounds: tuple[float, float]) -> bool:
    """Whether more values (n,) lie beyond the bounds of a unit than noise explains."""
    margin = 0.2 * (bounds[1] - bounds[0])  # views with another contrast are no reason to warn
    outside = (seen < bounds[0] - margin) | (seen > bounds[1] + margin)
    # Reflectance 0..1 given as DN 0..10000 lies inside the range; its size betrays it.
    scaled = bounds[0] >= 0 and bounds[1] > 100 and 0 < float(seen.max()) <= 1.5
    return float(outside.float().mean()) > 0.01 or scaled


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite: a sum is, as soon as one of its terms is.

    A sum that overflows says no where yes is right, which costs time and nothing else.
    """
    return bool(x.sum().isfinite())


def _bias(layer: nn.Conv2d) -> Tensor:
    """The bias of a layer that has one."""
    assert layer.bias is not None
    return layer.bias
