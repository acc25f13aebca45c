"""Figures of what an encoder sees and predicts; each function returns a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..models import Encoder
from ..models.base import Batch
from .latents import Picture, attention, on_grid, pca_colours, picture, stretch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .prediction_errors import PredictionErrors


def patch_components(encoder: Encoder, batch: Batch, sample: int = 0) -> 'Figure':
    """Draw each modality of a chip beside the three main components of its patches as colours."""
    names = encoder.layout(batch).names
    figure, rows = _grid(len(names), 2)
    for axes, name in zip(rows, names, strict=True):
        with torch.inference_mode():
            features = encoder.forward_feature_map(batch, name)[sample]
        _raster(axes[0], encoder, batch, sample, name)
        axes[1].imshow(stretch(pca_colours(features)), interpolation='nearest')
        axes[1].set_title(f'{name}: main components of {features.shape[0]} features')
    return figure


def predicted_latents(model: 'PredictionErrors', batch: Batch, sample: int = 0) -> 'Figure':
    """Draw predicted against actual latents of each modality: cosine, error, and both as colours.

    What the earlier project called the full latent map: every patch is predicted once, from the
    patches outside of its block.
    """
    names = model.encoder.layout(batch).names
    figure, rows = _grid(len(names), 5)
    for axes, name in zip(rows, names, strict=True):
        with torch.inference_mode():
            found = model.latents(batch, name)
        predicted, actual = found.predicted[sample], found.actual[sample]
        hidden = ~found.there[sample]
        both = torch.cat([actual, predicted], dim=2)
        both = both.masked_fill(torch.cat([hidden, hidden], dim=1), torch.nan)
        colours = stretch(pca_colours(both))
        width = actual.shape[2]
        cosine = F.cosine_similarity(predicted, actual, dim=0).masked_fill(hidden, torch.nan)
        error = F.smooth_l1_loss(predicted, actual, reduction='none').mean(dim=0)
        _raster(axes[0], model.encoder, batch, sample, name)
        for axis, image, title in (
            (axes[1], colours[:, :width], 'actual'), (axes[2], colours[:, width:], 'predicted')
        ):  # fmt: skip
            axis.imshow(image, interpolation='nearest')
            axis.set_title(f'{name}: {title} latents')
        _scores(figure, axes[3], cosine.numpy(), f'{name}: cosine', low=-1, high=1)
        _scores(figure, axes[4], error.masked_fill(hidden, torch.nan).numpy(), f'{name}: smooth L1')
    return figure


def attention_maps(
    encoder: Encoder, batch: Batch, modality: str, at: tuple[float, float] = (0.5, 0.5),
    sample: int = 0, block: int = -1,
) -> 'Figure':  # fmt: skip
    """Draw what one patch attends to, head by head, and below what all patches do on average.

    Bottom left is how many patches each patch attends to: the exponential of the entropy, mean
    over heads.

    Args:
        encoder: In evaluation mode.
        batch: Rasters by modality.
        modality: Whose patch and whose grid.
        at: Row and column of the patch, as shares of the height and width.
        sample: Of the batch.
        block: Of the trunk; the last by default.

    Raises:
        InputError: If nothing is there at that patch.
    """
    weights, tokens = attention(encoder, batch, block)
    numbers = on_grid(torch.arange(tokens.ids.shape[1]), tokens, sample, modality)
    row, col = (min(int(x * n), n - 1) for x, n in zip(at, numbers.shape, strict=True))
    if not np.isfinite(numbers[row, col]):
        raise InputError(f'The patch {row}, {col} of {modality} holds no data; take another.')
    there = tokens.valid[sample]
    heads = weights[sample][:, there]  # (heads, patches that are there, K)
    one = weights[sample, :, int(numbers[row, col])]
    spread = torch.zeros(len(there), device=heads.device)
    spread[there] = torch.special.entr(heads).sum(dim=2).exp().mean(dim=0)
    figure, rows = _grid(2, 1 + len(heads))
    _raster(rows[0][0], encoder, batch, sample, modality)
    _scores(figure, rows[1][0], on_grid(spread, tokens, sample, modality), 'patches seen')
    for number, (head, mean) in enumerate(zip(one, heads.mean(dim=1), strict=True)):
        upper, lower = rows[0][number + 1], rows[1][number + 1]
        _scores(figure, upper, on_grid(head, tokens, sample, modality), f'head {number}', low=0)
        upper.plot(col, row, 's', markersize=9, markerfacecolor='none', markeredgecolor='white')
        _scores(figure, lower, on_grid(mean, tokens, sample, modality),
                f'head {number}, of all', low=0)  # fmt: skip
    return figure


def hidden_by_masks(
    encoder: Encoder, batch: Batch, context_ids: Tensor, target_ids: Tensor, sample: int = 0
) -> 'Figure':
    """Draw what masks hide of a chip: the context as it is, targets coloured, the rest grey.

    Args:
        encoder: Whose tokens are masked.
        batch: Rasters by modality.
        context_ids: (B, K), -1 for none.
        target_ids: (B, M, T), -1 for none.
        sample: Of the batch.
    """
    layout = encoder.layout(batch)
    kind = torch.zeros(len(layout.positions), dtype=torch.long)
    targets, context = target_ids[sample].flatten(), context_ids[sample]
    kind[context[context >= 0]] = 1
    kind[targets[targets >= 0]] = 2
    figure, rows = _grid(1, len(layout.names))
    start = 0
    for axis, name, (height, width) in zip(rows[0], layout.names, layout.grids, strict=True):
        own = kind[start : start + height * width].view(height, width)
        start += height * width
        image = picture(_one(batch, name, sample), encoder.modalities[name])
        side = encoder.patch_sizes[name]
        shown = own.repeat_interleave(side, 0).repeat_interleave(side, 1).numpy()
        image = np.where((shown == 0)[..., None], 0.35, image)
        blue = np.array([0.0, 0.45, 0.7], np.float32)
        image = np.where((shown == 2)[..., None], 0.35 * image + 0.65 * blue, image)
        axis.imshow(image, interpolation='nearest')
        share = [float((own == k).float().mean()) for k in (1, 2)]
        axis.set_title(f'{name}: context {share[0]:.0%}, targets (blue) {share[1]:.0%}')
    return figure


def neighbours(
    queries: Sequence[Picture], found: Sequence[Sequence[tuple[Picture, float]]]
) -> 'Figure':
    """Draw queries, and right of each the pictures found for it, with their similarity."""
    figure, rows = _grid(len(queries), 1 + max(map(len, found)))
    for axes, query, others in zip(rows, queries, found, strict=True):
        axes[0].imshow(query)
        axes[0].set_title('query')
        for axis, (image, similarity) in zip(axes[1:], others, strict=False):
            axis.imshow(image)
            axis.set_title(f'{similarity:.3f}')
    return figure


def _grid(height: int, width: int) -> tuple['Figure', Any]:
    """A figure of square axes without ticks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * width, 2.9 * height), layout='constrained')
    rows = figure.subplots(height, width, squeeze=False)
    for axis in rows.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.title.set_fontsize(9)
    return figure, rows


def _scores(
    figure: 'Figure', axis: Any, image: NDArray[Any], title: str, low: float | None = None,
    high: float | None = None,
) -> None:  # fmt: skip
    shown = axis.imshow(image, interpolation='nearest', cmap='cividis', vmin=low, vmax=high)
    figure.colorbar(shown, ax=axis, shrink=0.75)
    axis.set_title(f'{title}, mean {np.nanmean(image):.3f}')


def _raster(axis: Any, encoder: Encoder, batch: Batch, sample: int, name: str) -> None:
    axis.imshow(picture(_one(batch, name, sample), encoder.modalities[name]))
    axis.set_title(name)


def _one(batch: Mapping[str, Any], name: str, sample: int) -> Tensor:
    raster: Tensor = batch[name][sample]
    return raster
