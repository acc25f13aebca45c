"""Views of a batch: crops in ground units, flips and quarter turns, band and modality changes.

Everything works on whole batches of raw rasters with NaN for "not there", and draws from a
generator, so that a resumed run draws the same views. Colour carries the labels of satellite
images: there is no hue, grayscale or solarise here.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError
from .modalities import Modality

Rasters = Mapping[str, Tensor]

_ROUNDING = 1e-3  # of a pixel: what float32 makes of a place in a chip, and more


def stated_gsd(batch: Mapping[str, Any], name: str) -> float | None:
    """Metres per pixel that a batch states for a modality, if it does.

    Args:
        batch: With ``gsd`` by modality, if at all: a number, or one a sample (B,), all the same.
        name: Of the modality.

    Raises:
        InputError: If that is no number above 0, or several.
    """
    given = batch.get('gsd')
    if given is not None and not isinstance(given, Mapping):
        raise InputError(
            f'The batch has gsd {given!r}; give metres per pixel by modality: {{"{name}": 10.0}}.'
        )
    stated = given.get(name) if given else None
    if stated is None:
        return None
    values = torch.as_tensor(stated).flatten()
    if not bool((values > 0).all()):
        raise InputError(f'{name} came with gsd {values.tolist()}; give metres per pixel above 0.')
    if not bool((values == values[0]).all()):
        raise InputError(
            f'{name} came with several gsd in one batch, from {float(values.min()):g} to '
            f'{float(values.max()):g} m; batch samples of one gsd together.'
        )
    return float(values[0])


def pick_dates(rasters: Rasters, count: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Choose dates for views, different ones for each as long as there are enough.

    Args:
        rasters: By modality, (B, T, C, H, W) with dates or (B, C, H, W) without.
        count: Views to choose for.
        generator: Source of randomness, on the CPU.

    Returns:
        For each view, (B, C, H, W) by modality: one date of each sample, the same in all dated
        modalities, and one at which it has data if there is any.
    """
    dated = [x for x in rasters.values() if x.ndim == 5]
    if not dated:
        return [dict(rasters)] * count
    there = torch.stack([x.isfinite().flatten(2).any(dim=2).cpu() for x in dated]).any(dim=0)
    # In random order, the empty dates last.
    order = (torch.rand(there.shape, generator=generator) + 2.0 * ~there).argsort(dim=1)
    number = there.sum(dim=1).clamp(min=1)
    rows = torch.arange(len(there))
    views = []
    for i in range(count):
        date = order[rows, i % number]
        views.append({k: x[rows, date] if x.ndim == 5 else x for k, x in rasters.items()})
    return views


def random_windows(
    batch_size: int,
    scale: tuple[float, float],
    generator: torch.Generator,
    shape: tuple[int, int] = (1, 1),
) -> Tensor:
    """Draw a square window of the chip, flipped and turned by quarters, for each sample.

    Args:
        batch_size: B.
        scale: Lowest and highest share of the area of the largest square in the chip; 1 is that
            square, and so the whole of a square chip.
        generator: Source of randomness, on the CPU.
        shape: Height and width of the chips, in any unit: pixels of one modality, say.

    Returns:
        (B, 2, 3) affine maps from a view's coordinates to its chip's, both -1..1. They know no
        pixels, so that one map cuts the same ground out of every modality, whatever its gsd.
    """
    u = torch.rand(4, batch_size, generator=generator)
    side = (scale[0] + u[0] * (scale[1] - scale[0])).sqrt()
    # As shares of the chip's width and height: of a chip that is not square, these differ.
    high, wide = (side * (min(shape) / n) for n in shape)
    right, down = (2 * u[1] - 1) * (1 - wide), (2 * u[2] - 1) * (1 - high)
    flip_x, flip_y, turn = torch.randint(2, (3, batch_size), generator=generator).float()
    x, y = wide * (1 - 2 * flip_x), high * (1 - 2 * flip_y)
    first = torch.stack([x * (1 - turn), x * turn, right], dim=1)
    second = torch.stack([y * turn, y * (1 - turn), down], dim=1)
    return torch.stack([first, second], dim=1)


def cut(
    rasters: Rasters, windows: Tensor, sizes: Mapping[str, tuple[int, int]]
) -> dict[str, Tensor]:
    """Resample a window of each sample, bilinearly; where a source pixel is NaN, so is the result.

    A source pixel whose weight is no more than the rounding of its place (`_ROUNDING`) is none.

    Args:
        rasters: (B, C, H, W) by modality; whole numbers become float32.
        windows: (B, 2, 3) from `random_windows`.
        sizes: Height and width of the view, pixels, by modality.

    Returns:
        (B, C, height, width) by modality.
    """
    views = {}
    for name, x in rasters.items():
        x = x if x.is_floating_point() else x.float()
        shape = [len(x), x.shape[1], *sizes[name]]
        grid = F.affine_grid(windows.to(x), shape, align_corners=False)
        gaps = ~x.isfinite()  # the infinite is not there either
        some = bool(gaps.any())
        view = _resampled(x.masked_fill(gaps, 0.0) if some else x, grid)
        if some:
            missing = _resampled(gaps.to(x), grid)  # the weight of the gaps in each pixel
            view = (view / (1 - missing)).masked_fill(missing > _ROUNDING, torch.nan)
        views[name] = view
    return views


def _resampled(x: Tensor, grid: Tensor) -> Tensor:
    """Values of (B, C, H, W) at the places of a grid, bilinearly."""
    return F.grid_sample(x, grid, padding_mode='border', align_corners=False)


def jitter_bands(
    rasters: Rasters,
    std: Mapping[str, Tensor],
    gain: float,
    offset: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Change contrast and level of each band of each sample a little, as haze and season do.

    ``x -> m + (1 + gain u) (x - m) + offset v std``, with m the chip's mean and u, v uniform in
    -1..1; half of each change is common to all bands of a sample.

    Args:
        rasters: (B, C, H, W) by modality.
        std: (C,) standard deviation of the modality, in its unit, by modality.
        gain: Largest relative change of contrast.
        offset: Largest change of level, in standard deviations of the modality.
        generator: Source of randomness, on the CPU.

    Returns:
        The changed rasters.
    """
    changed = {}
    for name, x in rasters.items():
        bands = 2 * torch.rand(2, len(x), x.shape[1], 1, 1, generator=generator) - 1
        common = 2 * torch.rand(2, len(x), 1, 1, 1, generator=generator) - 1
        u, v = ((bands + common) / 2).to(x.device)
        mean = x.nanmean(dim=(2, 3), keepdim=True)
        scale = std[name].to(x.device).view(1, -1, 1, 1)
        changed[name] = torch.addcmul(mean * (-gain * u) + offset * v * scale, x, 1 + gain * u)
    return changed


def turned(x: Tensor, flip: bool, quarters: int) -> Tensor:
    """Rasters (..., H, W), perhaps mirrored, turned by so many quarters."""
    return torch.rot90(x.flip(-1) if flip else x, quarters, (-2, -1))


def are_square(rasters: Iterable[Tensor]) -> bool:
    """Whether all rasters (..., H, W) are: others keep their shape in half turns only."""
    return all(x.shape[-1] == x.shape[-2] for x in rasters)


def drop_bands(
    rasters: Rasters, probability: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Set whole bands of samples to NaN; half of a modality's bands, rounded up, stay.

    With fewer the encoder would make no tokens of a sample (`PatchEmbed.min_valid`), and the loss
    would silently leave it out. So of three bands one goes at most: 0.2 drops 16 % of them.

    Args:
        rasters: (B, C, H, W) by modality.
        probability: That a band of a sample is dropped.
        generator: Source of randomness, on the CPU.
    """
    dropped = {}
    for name, x in rasters.items():
        there = x.isfinite().flatten(2).any(dim=2).cpu()
        most = there.sum(dim=1) - (x.shape[1] + 1) // 2
        drop = _drawn(there, probability, most, generator)
        dropped[name] = x.masked_fill(drop[:, :, None, None].to(x.device), torch.nan)
    return dropped


def drop_modalities(
    rasters: Rasters, probability: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Set whole modalities of samples to NaN, never the last one that a sample has.

    Args:
        rasters: (B, C, H, W) by modality.
        probability: That a modality of a sample is dropped.
        generator: Source of randomness, on the CPU.
    """
    if len(rasters) < 2:
        return dict(rasters)
    there = torch.stack([x.isfinite().flatten(1).any(dim=1).cpu() for x in rasters.values()], dim=1)
    drop = _drawn(there, probability, there.sum(dim=1) - 1, generator)
    return {
        name: x.masked_fill(gone[:, None, None, None].to(x.device), torch.nan)
        for (name, x), gone in zip(rasters.items(), drop.T, strict=True)
    }


def _drawn(there: Tensor, probability: float, most: Tensor, generator: torch.Generator) -> Tensor:
    """Draw what goes (B, n): each that is there with one probability, of a sample `most` (B,)."""
    u = torch.rand(there.shape, generator=generator).masked_fill(~there, 2.0)
    place = u.argsort(dim=1).argsort(dim=1)  # in a random order, what is there first
    return (u < probability) & (place < most[:, None])


def add_noise(
    rasters: Rasters, std: Mapping[str, Tensor], noise: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Add white noise.

    Args:
        rasters: (B, C, H, W) by modality.
        std: (C,) standard deviation of the modality, in its unit, by modality.
        noise: Standard deviation of the noise, in those of the modality.
        generator: Source of randomness, on the CPU.
    """
    return {
        name: x + noise * std[name].to(x).view(1, -1, 1, 1)
        * torch.randn(x.shape, generator=generator).to(x)
        for name, x in rasters.items()
    }  # fmt: skip


def erase(rasters: Rasters, probability: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Set a square of some samples to NaN: the same ground in all modalities.

    Args:
        rasters: (B, C, H, W) by modality.
        probability: That a sample loses 2 to 20 % of its area.
        generator: Source of randomness, on the CPU.

    Source: Zhong et al., "Random erasing data augmentation" (2020).
    Differs from the source: squares, and NaN in place of noise.
    """
    batch_size = len(next(iter(rasters.values())))
    u = torch.rand(4, batch_size, generator=generator)
    side = (0.02 + 0.18 * u[0]).sqrt() * (u[1] < probability)
    start = u[2:] * (1 - side)
    erased = {}
    for name, x in rasters.items():
        row, col = ((torch.arange(n) + 0.5) / n for n in x.shape[-2:])
        in_rows = (row >= start[0, :, None]) & (row < (start[0] + side)[:, None])
        in_cols = (col >= start[1, :, None]) & (col < (start[1] + side)[:, None])
        gone = in_rows[:, None, :, None] & in_cols[:, None, None, :]
        erased[name] = x.masked_fill(gone.to(x.device), torch.nan)
    return erased


@dataclass(frozen=True)
class Crops:
    """How many views there are, and what each shows: large (global) ones and small (local) ones.

    Views are square.

    Args:
        num_global: Global views G.
        num_local: Local views.
        global_scale: Share of the area of the chip's largest square that a global view shows.
        global_fraction: Side of a global view over the chip's shorter one, in pixels.
        local_scale: Share of the area of the chip's largest square that a local view shows.
        local_fraction: Side of a local view over the chip's shorter one, in pixels.

    Raises:
        InputError: If there is no global view, or a scale or fraction is none.
    """

    num_global: int = 2
    num_local: int = 0
    global_scale: tuple[float, float] = (0.3, 1.0)
    global_fraction: float = 1.0
    local_scale: tuple[float, float] = (0.05, 0.3)
    local_fraction: float = 0.5

    def __post_init__(self) -> None:
        """Refuse views that are none."""
        if self.num_global < 1 or self.num_local < 0:
            raise InputError(
                f'views has num_global {self.num_global} and num_local {self.num_local}; give at '
                f'least 1, and 0 or more.'
            )
        self.require_rising('global_scale', 'local_scale', most=1.0)
        for name in ('global_fraction', 'local_fraction'):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f'views.{name} is {getattr(self, name)}; give a share above 0.')

    def require_rising(self, *names: str, most: float = math.inf) -> None:
        """Refuse what are not a lowest and a highest number above 0.

        Raises:
            InputError: If one is 0 or less, above `most`, or they fall.
        """
        for name in names:
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                limit = '' if most == math.inf else f' and up to {most:g}'
                raise InputError(
                    f'views.{name} is {[low, high]}; give a lowest and a highest number above 0'
                    f'{limit}.'
                )

    def require_probabilities(self, *names: str) -> None:
        """Refuse what are no probabilities.

        Raises:
            InputError: If one is below 0 or above 1.
        """
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f'views.{name} is {getattr(self, name)}; give a probability from 0 to 1.'
                )

    def require_strengths(self, *names: str) -> None:
        """Refuse changes of less than nothing.

        Raises:
            InputError: If one is negative.
        """
        for name in names:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f'views.{name} is {getattr(self, name)}; give 0 or more.')

    def kinds(self) -> list[tuple[int, tuple[float, float], float]]:
        """Count, scale and fraction of each kind that there is, the global views first."""
        kinds = [
            (self.num_global, self.global_scale, self.global_fraction),
            (self.num_local, self.local_scale, self.local_fraction),
        ]
        return [kind for kind in kinds if kind[0]]


@dataclass(frozen=True)
class Views(Crops):
    """How views are made: large (global) ones first, then small (local) ones.

    Views are square, on the ground too: of a chip that is not, each shows a part of the largest
    square that fits, anywhere in the chip, and the same in all modalities.

    Args:
        num_global: Global views G.
        num_local: Local views.
        global_scale: Share of the area of the chip, or of that square, that a global view shows.
        global_fraction: Side of a global view over the chip's shorter one, in pixels.
        local_scale: Share of the area of the chip, or of that square, that a local view shows.
        local_fraction: Side of a local view over the chip's shorter one, in pixels.
        gain: Largest relative change of a band's contrast.
        offset: Largest change of a band's level, in standard deviations of the modality.
        band_dropout: Probability that a band becomes NaN; half of them stay.
        modality_dropout: Probability that a modality becomes NaN; the last one stays.
        noise: Standard deviation of white noise, in standard deviations of the modality.
        erasing: Probability that a square of a view becomes NaN.

    Raises:
        InputError: If there is no global view, or a number is none of its kind.
    """

    gain: float = 0.2
    offset: float = 0.2
    band_dropout: float = 0.0
    modality_dropout: float = 0.0
    noise: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse views that are none."""
        super().__post_init__()
        self.require_strengths('gain', 'offset', 'noise')
        self.require_probabilities('band_dropout', 'modality_dropout', 'erasing')

    def make(
        self,
        batch: Mapping[str, Any],
        modalities: Mapping[str, Modality],
        patch_sizes: Mapping[str, int],
        generator: torch.Generator,
    ) -> list[dict[str, Any]]:
        """Make the views of a batch, those of one kind joined along the batch axis.

        Args:
            batch: (B, C, H, W) by modality, or (B, T, C, H, W) with dates, of which each view
                shows one; and perhaps ``gsd``.
            modalities: By name; what is not among them is left out.
            patch_sizes: Side of a patch, pixels, by modality.
            generator: Source of randomness, on the CPU.

        Returns:
            One batch of G * B samples, view by view, then, if there are local
            views, one of L * B samples. The zoom of a window is not told to the encoder, since the
            same ground should be recognised at any zoom.
        """
        rasters = {name: batch[name] for name in modalities if name in batch}
        std = {name: torch.tensor(modalities[name].std) for name in rasters}
        height, width = next(iter(rasters.values())).shape[-2:]
        gsd = {n: stated_gsd(batch, n) or modalities[n].gsd for n in rasters}
        joined = []
        for count, scale, fraction in self.kinds():
            sizes = {n: view_size(x, fraction, patch_sizes[n]) for n, x in rasters.items()}
            dates = pick_dates(rasters, count, generator)
            repeated = {n: torch.cat([d[n] for d in dates]) for n in rasters}
            length = len(next(iter(repeated.values())))
            windows = random_windows(length, scale, generator, (height, width))
            view = cut(repeated, windows, sizes)
            if self.gain or self.offset:
                view = jitter_bands(view, std, self.gain, self.offset, generator)
            if self.noise:
                view = add_noise(view, std, self.noise, generator)
            if self.erasing:
                view = erase(view, self.erasing, generator)
            if self.band_dropout:
                view = drop_bands(view, self.band_dropout, generator)
            if self.modality_dropout:
                view = drop_modalities(view, self.modality_dropout, generator)
            step = {
                n: gsd[n] * min(x.shape[-2:]) * fraction / sizes[n][0] for n, x in rasters.items()
            }
            joined.append({**view, 'gsd': step})
        return joined


def view_size(x: Tensor, fraction: float, patch: int) -> tuple[int, int]:
    """Height and width, pixels, of a fraction of a raster's shorter side, in whole patches."""
    side = max(round(min(x.shape[-2:]) * fraction / patch), 1) * patch
    return side, side
