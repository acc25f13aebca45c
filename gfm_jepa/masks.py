"""Which tokens are seen and which are predicted: pure functions from a grid to token indices.

All masks are drawn on one ground grid, whatever the number of modalities: every token belongs to
the cell that its centre falls into (`token_cells`), so one block hides the same ground in all of
them. A whole batch is drawn at once, without a loop over its samples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import InputError


def sample_block_size(
    grid: tuple[int, int],
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    generator: torch.Generator,
) -> tuple[int, int]:
    """Draw the height and width, in cells, of one block.

    Args:
        grid: Height and width of the grid, in cells.
        scale: Lowest and highest share of the grid's area.
        aspect_ratio: Lowest and highest height to width ratio.
        generator: Source of randomness, on the CPU.

    Returns:
        The size whose area, among those that rounding up or down gives, lies nearest the drawn
        one; at least one cell and never the whole grid unless the scale reaches 1.
    """
    u = torch.rand(2, generator=generator).tolist()
    cells = grid[0] * grid[1]
    area = cells * (scale[0] + u[0] * (scale[1] - scale[0]))
    low, high = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    ratio = math.exp(low + u[1] * (high - low))
    height, width = math.sqrt(area * ratio), math.sqrt(area / ratio)
    options = [
        (min(max(h, 1), grid[0]), min(max(w, 1), grid[1]))
        for h in (math.floor(height), math.ceil(height))
        for w in (math.floor(width), math.ceil(width))
    ]
    if scale[1] < 1 and cells > 1:
        # Where nothing but the whole grid has the drawn ratio, a row or a column goes.
        shorter = [o for o in ((grid[0] - 1, grid[1]), (grid[0], grid[1] - 1)) if min(o)]
        options = [o for o in options if o[0] * o[1] < cells] or shorter
    return min(options, key=lambda o: abs(o[0] * o[1] - area))


def place_blocks(
    shape: tuple[int, int],
    grid: tuple[int, int],
    size: tuple[int, int],
    generator: torch.Generator,
) -> Tensor:
    """Put one block of a given size at a random place of each of many grids.

    Args:
        shape: Batch size B and number of blocks M.
        grid: Height h and width w of the grid, in cells.
        size: Height and width of a block, in cells.
        generator: Source of randomness, on the CPU.

    Returns:
        (B, M, h * w) boolean, True inside the block.
    """
    top = torch.randint(grid[0] - size[0] + 1, (*shape, 1), generator=generator)
    left = torch.randint(grid[1] - size[1] + 1, (*shape, 1), generator=generator)
    row, col = torch.arange(grid[0]), torch.arange(grid[1])
    in_rows = (row >= top) & (row < top + size[0])
    in_cols = (col >= left) & (col < left + size[1])
    return (in_rows.unsqueeze(-1) & in_cols.unsqueeze(-2)).flatten(-2)


def multi_block(
    batch_size: int,
    grid: tuple[int, int],
    generator: torch.Generator,
    num_targets: int = 4,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect_ratio: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
) -> tuple[Tensor, Tensor]:
    """Draw I-JEPA's multi-block masks: target blocks, and a large context block without them.

    The size of the blocks is drawn once for the batch, their places for each sample.

    Args:
        batch_size: B.
        grid: Height h and width w of the ground grid, in cells.
        generator: Source of randomness, on the CPU; the same state gives the same masks.
        num_targets: Target blocks M of a sample; they may overlap each other.
        target_scale: Share of the grid that one target block covers.
        target_aspect_ratio: Height to width of a target block.
        context_scale: Share of the grid that the context block covers before the targets leave it.

    Returns:
        context (B, h * w) and targets (B, M, h * w), boolean; True is seen, and predicted. They
        never overlap, and no context is empty.

    Source: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
        Architecture" (2023), section 3 and appendix A.
    Differs from the source: where the targets would leave no context (small grids), the sample's
        targets all become its first block and its context everything else.
    """
    target_size = sample_block_size(grid, target_scale, target_aspect_ratio, generator)
    context_size = sample_block_size(grid, context_scale, (1.0, 1.0), generator)
    targets = place_blocks((batch_size, num_targets), grid, target_size, generator)
    context = place_blocks((batch_size, 1), grid, context_size, generator).squeeze(1)
    context &= ~targets.any(dim=1)
    if not (has_context := context.any(dim=1)).all():
        empty = ~has_context
        targets[empty] = targets[empty, :1]
        context[empty] = ~targets[empty, 0]
    return context, targets


def token_cells(positions: Tensor, extent: tuple[float, float], grid: tuple[int, int]) -> Tensor:
    """Find the ground cell that each token's centre falls into.

    Args:
        positions: (N, 2) centres of the tokens, metres south and east of the chip's corner.
        extent: Height and width of the chip, metres.
        grid: Height h and width w of the ground grid, in cells.

    Returns:
        (N,) index of the cell, row by row.
    """
    size = torch.tensor([extent[0] / grid[0], extent[1] / grid[1]], device=positions.device)
    cell = (positions / size).long()
    row = cell[:, 0].clamp(0, grid[0] - 1)
    col = cell[:, 1].clamp(0, grid[1] - 1)
    return row * grid[1] + col


def keep_ids(keep: Tensor, count: int | None = None) -> Tensor:
    """List the indices of the tokens to keep, sample by sample.

    Args:
        keep: (..., N) boolean, True for a token to keep.
        count: Length K of the list; by default the largest number of kept tokens, 1 at least.

    Returns:
        (..., K) indices in rising order. Samples with fewer are filled with -1, those with more
        lose the last.
    """
    if count is None:
        count = max(int(keep.sum(dim=-1).max()), 1)  # a list of none has no shape to work with
    # A stable sort of "not kept" brings the kept ones to the front in their own order.
    ids = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)[..., :count]
    return ids.masked_fill(~keep.gather(-1, ids), -1)


def trim(keep: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Drop random kept tokens so that no sample keeps more than `count`.

    Args:
        keep: (B, N) boolean.
        count: Most tokens that a sample may keep.
        generator: Source of randomness, on the CPU.

    Returns:
        (B, N) boolean, a subset of `keep`.
    """
    priority = torch.rand(keep.shape, generator=generator).masked_fill(~keep, -1.0)
    best = priority.topk(min(count, keep.shape[1]), dim=1)
    return torch.zeros_like(keep).scatter_(1, best.indices, best.values >= 0)


@dataclass(frozen=True)
class Ground:
    """What masks may know of a batch of N tokens.

    Attributes:
        valid: (B, N) boolean, True for a token that is there.
        cells: (N,) ground cell of each token.
        grid: Height h and width w of the ground grid, in cells.
        modality_ids: (N,) index of each token's modality.
        signal: (B, N) how much each patch holds, above 0, if the mask asks for it.
    """

    valid: Tensor
    cells: Tensor
    grid: tuple[int, int]
    modality_ids: Tensor
    signal: Tensor | None = None

    @cached_property
    def cells_with_data(self) -> Tensor:
        """(B, h * w) boolean, True for a cell in which a sample has a valid token."""
        there = torch.zeros(len(self.valid), self.grid[0] * self.grid[1], dtype=torch.long)
        return there.index_add_(1, self.cells, self.valid.long()) > 0


def _require_blocks(
    count: int,
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    context_scale: tuple[float, float],
) -> None:
    """Refuse blocks that cannot be drawn, or leave nothing to see."""
    if count < 1:
        raise InputError(f'There are {count} target blocks; expected 1 or more.')
    _require_range('target scale', scale)
    _require_range('context_scale', context_scale, most=1.0)
    if not 0 < aspect_ratio[0] <= aspect_ratio[1]:
        raise InputError(f'Aspect ratios are {list(aspect_ratio)}; expected two above 0, rising.')


def _require_range(
    name: str, share: tuple[float, float], least: float = 1e-6, most: float = 0.99
) -> None:
    """Refuse what are not two shares, rising."""
    if not least <= share[0] <= share[1] <= most:
        raise InputError(
            f'{name} is {list(share)}; expected a lowest and a highest share, {least:g} to '
            f'{most:g}.'
        )


@dataclass(frozen=True)
class MultiBlock:
    """How multi-block masks are drawn; see `multi_block` for the numbers' meaning.

    Args:
        num_targets: Target blocks M of a sample.
        target_scale: Share of the grid that one target block covers.
        target_aspect_ratio: Height to width of a target block.
        context_scale: Share of the grid that the context block covers before the targets leave it.
    """

    dates: ClassVar[bool] = False  # whether it spans the dates of a sample

    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect_ratio: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)

    def __post_init__(self) -> None:
        """Refuse blocks that are none."""
        _require_blocks(
            self.num_targets, self.target_scale, self.target_aspect_ratio, self.context_scale
        )

    def sample(self, ground: Ground, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw masks on the ground grid and list the tokens that they keep.

        Args:
            ground: Of the batch.
            generator: Source of randomness, on the CPU.

        Returns:
            context_ids (B, K) and target_ids (B, M, T), -1 where there is none. Contexts are cut
            at random to the shortest of the batch, so that full rasters need no padding.
        """
        context, targets = multi_block(
            len(ground.valid), ground.grid, generator, self.num_targets, self.target_scale,
            self.target_aspect_ratio, self.context_scale,
        )  # fmt: skip
        context = context[:, ground.cells] & ground.valid
        targets = targets[:, :, ground.cells] & ground.valid[:, None]
        # A sample with next to nothing in its context must not cut those of all the others.
        shortest = max(int(context.sum(dim=1).min()), ground.valid.shape[1] // 8, 1)
        return keep_ids(trim(context, shortest, generator)), keep_ids(targets)


@dataclass(frozen=True)
class RandomCells:
    """Random cells of the ground grid are seen, and all others predicted, as one block.

    Args:
        context_share: Lowest and highest share of the cells that is seen, drawn per batch.
    """

    dates: ClassVar[bool] = False  # whether it spans the dates of a sample

    context_share: tuple[float, float] = (0.25, 0.5)

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        _require_range('context_share', self.context_share, least=0.0, most=1.0)

    def sample(self, ground: Ground, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw masks: context_ids (B, K) and target_ids (B, 1, T), -1 where there is none."""
        keys = torch.rand(len(ground.valid), ground.grid[0] * ground.grid[1], generator=generator)
        return _first_cells(keys, ground, self.context_share, generator)


@dataclass(frozen=True)
class SignalBiased:
    """Cells that hold something are seen: for scenes that are mostly empty.

    A cell holds something where its signal is more than three robust standard deviations (1.4826
    times the median absolute deviation) above the median of its sample's cells; the excess over
    the median is its weight. Where nothing stands out, all cells are drawn alike.

    Args:
        context_share: Lowest and highest share of the cells that is seen, drawn per batch; of a
            sample, no more than half of the cells that hold something, so that the rest of them
            is there to be predicted.
        signal: ``brightness`` (mean of a patch above its chip's darkest) or ``variance``.
        power: How strongly the excess counts; 0 treats all cells that hold something alike.
        background: Share of the draws that fall on empty cells, so that the encoder knows them.

    Source: Efraimidis & Spirakis, "Weighted random sampling with a reservoir" (2006), for the draw.
    """

    dates: ClassVar[bool] = False  # whether it spans the dates of a sample

    context_share: tuple[float, float] = (0.1, 0.2)
    signal: str = 'variance'
    power: float = 1.0
    background: float = 0.05

    def __post_init__(self) -> None:
        """Refuse a signal that is none, and what is no share or power."""
        if not 0 <= self.power < math.inf:
            raise InputError(f'power is {self.power}; give 0 or more.')
        if self.signal not in ('brightness', 'variance'):
            raise InputError(f'Unknown signal {self.signal!r}: expected brightness or variance.')
        if not 0 <= self.background <= 1:
            raise InputError(f'background is a share of 0 to 1, not {self.background}.')
        _require_range('context_share', self.context_share, least=0.0, most=1.0)

    def sample(self, ground: Ground, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw masks: context_ids (B, K) and target_ids (B, 1, T), -1 where there is none."""
        excess = self.excess(ground)
        holds = excess > 0
        weights = excess.pow(self.power).where(holds, torch.zeros(()))
        empty = (ground.cells_with_data & ~holds).float()
        # Where nothing holds anything, the empty cells have all the weight.
        weights = (1 - self.background) * _shares(weights) + self.background * _shares(empty)
        # The smallest of these keys are a weighted draw without replacement.
        noise = torch.rand(excess.shape, generator=generator).clamp_min(1e-12)
        keys = -noise.log() / weights.clamp_min(1e-12)
        half = (holds.sum(dim=1) // 2).clamp_min(1)
        most = half.where(holds.any(dim=1), excess.shape[1])
        return _first_cells(keys, ground, self.context_share, generator, most)

    def excess(self, ground: Ground) -> Tensor:
        """How far each cell stands out (B, C): 1 the sample's strongest, 0 where it does not."""
        assert ground.signal is not None
        shape = (len(ground.valid), ground.grid[0] * ground.grid[1])
        # The strongest token of a cell, of any modality, speaks for it; an invalid one never does.
        strength = ground.signal.masked_fill(~ground.valid, -math.inf)
        by_cell = torch.full(shape, -math.inf)
        by_cell = by_cell.scatter_reduce(1, ground.cells.expand_as(strength), strength, 'amax')
        by_cell = by_cell.masked_fill(by_cell.isinf(), math.nan)
        level = by_cell.nanmedian(dim=1, keepdim=True).values
        spread = 1.4826 * (by_cell - level).abs().nanmedian(dim=1, keepdim=True).values
        above = by_cell - level
        above = above.where(above > 3 * spread, torch.zeros(()))
        return above / above.amax(dim=1, keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True)
class CrossModal:
    """Whole modalities are hidden, and predicted from the others on the same ground.

    A batch of one modality, which leaves nothing to predict it from, gets `RandomCells`.

    Args:
        hidden: Modalities that are hidden of each sample; at least one that it has stays seen.
    """

    dates: ClassVar[bool] = False  # whether it spans the dates of a sample

    hidden: int = 1

    def __post_init__(self) -> None:
        """Refuse to hide nothing."""
        if self.hidden < 1:
            raise InputError(f'hidden is {self.hidden}; expected 1 modality or more.')

    def sample(self, ground: Ground, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw masks: context_ids (B, K) and target_ids (B, 1, T), -1 where there is none."""
        ids, which = ground.modality_ids.unique(return_inverse=True)
        if len(ids) < 2:
            return RandomCells().sample(ground, generator)
        kind = torch.nn.functional.one_hot(which, len(ids)).bool()  # (N, modalities)
        has = (ground.valid[:, :, None] & kind).any(dim=1)
        order = torch.rand(has.shape, generator=generator).masked_fill(~has, 2.0).argsort(dim=1)
        count = (has.sum(dim=1, keepdim=True) - 1).clamp(max=self.hidden)
        chosen = torch.zeros_like(has).scatter_(1, order, torch.arange(len(ids)) < count)
        target = chosen[:, which] & ground.valid
        return keep_ids(~target & ground.valid), keep_ids(target[:, None])


@dataclass(frozen=True)
class Tube:
    """Multi-block masks through time: the same cells are hidden at all dates of a sample.

    Context and targets span the dates, so that what one date hides cannot be read off another. A
    date that is not there makes no tokens.

    Args:
        tubes: Target blocks M of a sample.
        tube_scale: Share of the grid that one target block covers.
        tube_aspect_ratio: Height to width of a target block.
        context_scale: Share of the grid that the context block covers before the targets leave it.

    Source: Tong et al., "VideoMAE" (2022), tube masks; here with I-JEPA's blocks.
    """

    dates: ClassVar[bool] = True  # whether it spans the dates of a sample

    tubes: int = 4
    tube_scale: tuple[float, float] = (0.15, 0.2)
    tube_aspect_ratio: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)

    def __post_init__(self) -> None:
        """Refuse blocks that are none."""
        _require_blocks(self.tubes, self.tube_scale, self.tube_aspect_ratio, self.context_scale)

    def sample(self, ground: Ground, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw masks: context_ids (B, K) and target_ids (B, M, T), -1 where there is none."""
        # Cells are ground: those of all dates and modalities are hidden together.
        blocks = MultiBlock(self.tubes, self.tube_scale, self.tube_aspect_ratio, self.context_scale)
        return blocks.sample(ground, generator)


@dataclass(frozen=True)
class MixtureSettings:
    """How the masks of a `Mixture` are drawn.

    Args:
        multi_block: Of `MultiBlock`.
        random_cells: Of `RandomCells`.
        signal_biased: Of `SignalBiased`.
        cross_modal: Of `CrossModal`.
        tube: Of `Tube`.
    """

    multi_block: MultiBlock = MultiBlock()
    random_cells: RandomCells = RandomCells()
    signal_biased: SignalBiased = SignalBiased()
    cross_modal: CrossModal = CrossModal()
    tube: Tube = Tube()


@dataclass(frozen=True)
class Mixture:
    """One of several masks, drawn anew for each batch.

    Args:
        multi_block: Weight of `MultiBlock`.
        random_cells: Weight of `RandomCells`.
        signal_biased: Weight of `SignalBiased`.
        cross_modal: Weight of `CrossModal`; batches of one modality take another.
        tube: Weight of `Tube`. Above 0, samples keep all their dates for all masks, and each hides
            the same ground at all of them.
        settings: How each is drawn.

    Raises:
        InputError: If a weight is negative, or all are 0.
    """

    multi_block: float = 1.0
    random_cells: float = 0.0
    signal_biased: float = 0.0
    cross_modal: float = 0.0
    tube: float = 0.0
    settings: MixtureSettings = MixtureSettings()

    def __post_init__(self) -> None:
        """Refuse weights that are none."""
        weights = {f.name: getattr(self, f.name) for f in fields(self) if f.name != 'settings'}
        if not all(0 <= w < math.inf for w in weights.values()) or not any(weights.values()):
            told = ', '.join(f'{name} {weight:g}' for name, weight in weights.items())
            raise InputError(
                f'Mixture has the weights {told}; give 0 or more to each, and more than 0 to one.'
            )

    @property
    def dates(self) -> bool:
        """Whether it spans the dates of a sample."""
        return self.tube > 0

    @property
    def signal(self) -> str:
        """What the signal-biased masks among them ask for."""
        return self.settings.signal_biased.signal if self.signal_biased else ''

    def sample(self, ground: Ground, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw masks: context_ids (B, K) and target_ids (B, M, T), -1 where there is none."""
        several, s = len(ground.modality_ids.unique()) > 1, self.settings
        masks: list[tuple[Any, float]] = [
            (s.multi_block, self.multi_block), (s.random_cells, self.random_cells),
            (s.signal_biased, self.signal_biased), (s.cross_modal, self.cross_modal * several),
            (s.tube, self.tube),
        ]  # fmt: skip
        weights = torch.tensor([float(weight) for _, weight in masks])
        if not weights.sum() > 0:
            return s.random_cells.sample(ground, generator)
        drawn = int(torch.multinomial(weights, 1, generator=generator))
        ids: tuple[Tensor, Tensor] = masks[drawn][0].sample(ground, generator)
        return ids


Mask = MultiBlock | RandomCells | SignalBiased | CrossModal | Tube | Mixture


def as_mask(value: Any) -> Mask:
    """Take masks as they are, or as the mapping that a checkpoint holds: all fields of one kind.

    Raises:
        InputError: If they are of no kind.
    """
    if not isinstance(value, Mapping):
        mask: Mask = value
        return mask
    for kind in (MultiBlock, RandomCells, SignalBiased, CrossModal, Tube, Mixture):
        if {f.name for f in fields(kind)} == value.keys():
            given = dict(value)
            if 'settings' in given:
                settings: dict[str, Any] = {k: as_mask(v) for k, v in given['settings'].items()}
                given['settings'] = MixtureSettings(**settings)
            return kind(**given)
    raise InputError(f'Masks of the fields {", ".join(value)} are of no kind that is known.')


def _first_cells(
    keys: Tensor,
    ground: Ground,
    share: tuple[float, float],
    generator: torch.Generator,
    most: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See the cells with the smallest keys (B, h * w), and predict all others as one block.

    Shares are of the cells in which a sample has a valid token; others are neither seen nor
    predicted. `most` (B,) bounds how many cells of each sample are seen.
    """
    there = ground.cells_with_data
    number = there.sum(dim=1)
    part = share[0] + (share[1] - share[0]) * float(torch.rand((), generator=generator))
    count = (number * part).round().long().clamp_min(1).minimum((number - 1).clamp_min(0))
    if most is not None:
        count = count.minimum(most)
    order = keys.masked_fill(~there, math.inf).argsort(dim=1)
    kept = torch.arange(keys.shape[1]) < count[:, None]
    seen = torch.zeros_like(there).scatter_(1, order, kept)
    context = seen[:, ground.cells]
    return keep_ids(context & ground.valid), keep_ids((~context & ground.valid)[:, None])


def _shares(weights: Tensor) -> Tensor:
    """Weights (B, C) as shares of their sample's sum, which may be 0."""
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
