"""What is written of D features: all of them, a few principal components, or 8 bits of each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.class_tags import class_tags, colour_of
from ..data.raster_files import Float
from ..errors import InputError

NODATA_INT8 = -128
NODATA_CLASS = 255
Pieces = Callable[[], Iterable[Float]]


@dataclass(frozen=True)
class Projection:
    """A linear map of features, and perhaps how each value becomes 8 bits.

    Attributes:
        names: Of what comes out, K of them.
        mean: (D,) what is subtracted first; None for none.
        components: (K, D) directions; None for the identity.
        explained: (K,) share of the variance of each component.
        scale: (K,) value = stored x scale + offset; None for float32.
        offset: (K,), in the unit of the features.
    """

    names: tuple[str, ...]
    mean: NDArray[np.float64] | None = None
    components: NDArray[np.float64] | None = None
    explained: tuple[float, ...] = ()
    scale: NDArray[np.float64] | None = None
    offset: NDArray[np.float64] | None = None

    @property
    def dtype(self) -> str:
        """Of the stored values."""
        return 'float32' if self.scale is None else 'int8'

    @property
    def nodata(self) -> float:
        """What stands where nothing is there."""
        return float('nan') if self.scale is None else NODATA_INT8

    @property
    def overviews(self) -> str:
        """How GDAL makes coarser levels of the stored values."""
        return 'AVERAGE'

    @property
    def tags(self) -> dict[str, str]:
        """What a file says of the values."""
        return {'explained_variance': ', '.join(f'{x:.4f}' for x in self.explained)} if (
            self.explained) else {}  # fmt: skip

    @property
    def colours(self) -> dict[int, tuple[int, int, int, int]]:
        """Red, green, blue and opacity by stored value, 0 to 255; none for what is a range."""
        return {}

    def linear(self, values: Float) -> Float:
        """Project (D, ...) to (K, ...), float32."""
        if self.components is None or self.mean is None:
            return values
        flat = torch.from_numpy(values.reshape(len(values), -1)).double()
        mean, components = torch.from_numpy(self.mean), torch.from_numpy(self.components)
        projected = components @ (flat - mean[:, None])
        return projected.float().numpy().reshape(len(components), *values.shape[1:])

    def __call__(self, values: Float) -> NDArray[Any]:
        """What is stored of (D, ...): (K, ...)."""
        projected = self.linear(values)
        if self.scale is None or self.offset is None:
            return projected
        shape = (-1, *[1] * (values.ndim - 1))
        steps = (projected - self.offset.reshape(shape)) / self.scale.reshape(shape)
        stored = np.clip(np.rint(steps), -127, 127)
        there = np.isfinite(stored)
        return np.where(there, stored, NODATA_INT8).astype(np.int8)


@dataclass(frozen=True)
class Likeliest(Projection):
    """Probabilities become the number of the likeliest class, in 8 bits.

    Attributes:
        classes: Names by number, empty for a class without one.
    """

    classes: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """Of the stored values."""
        return 'uint8'

    @property
    def nodata(self) -> float:
        """What stands where nothing is there."""
        return NODATA_CLASS

    @property
    def overviews(self) -> str:
        """Classes have no mean."""
        return 'MODE'

    @property
    def tags(self) -> dict[str, str]:
        """Names of the classes."""
        return class_tags(self.classes)

    @property
    def colours(self) -> dict[int, tuple[int, int, int, int]]:
        """A colour a class."""
        return {i: colour_of(i) for i in range(len(self.classes))}

    def __call__(self, values: Float) -> NDArray[Any]:
        """The likeliest class of (K, ...): (1, ...)."""
        there = np.isfinite(values).all(axis=0)
        likeliest = np.nan_to_num(values).argmax(axis=0)
        return np.where(there, likeliest, NODATA_CLASS).astype(np.uint8)[None]


def fit_projection(pieces: Pieces, names: Sequence[str], pca: int | None, int8: bool) -> Projection:
    """Look at all features, piece by piece, as often as it takes.

    Args:
        pieces: Gives all features anew at each call, (D, ...) each, NaN where nothing is there.
        names: Of the features, D of them.
        pca: Principal components to keep; all features as they are by default.
        int8: Whether 8 bits are stored of each, so that the range of each is covered.

    Raises:
        InputError: If there are fewer features than components, or nothing to look at.
    """
    dims = len(names)
    projection = Projection(tuple(names))
    if pca is not None:
        if not 1 <= pca <= dims:
            raise InputError(f'There are {dims} features, of which {pca} components are asked for.')
        projection = _principal(pieces, dims, pca)
    if not int8:
        return projection
    low = np.full(len(projection.names), np.inf)
    high = -low
    for piece in pieces():
        values = _there(projection.linear(piece))
        if values.shape[1]:
            low, high = np.minimum(low, values.min(axis=1)), np.maximum(high, values.max(axis=1))
    empty = ~np.isfinite(low)
    low, high = np.where(empty, 0, low), np.where(empty, 0, high)
    scale = np.where(high > low, (high - low) / 254, 1.0)
    return replace(projection, scale=scale, offset=(high + low) / 2)


def _principal(pieces: Pieces, dims: int, pca: int) -> Projection:
    """Mean and the directions of largest variance, from one pass in float64."""
    count = 0
    total = torch.zeros(dims, dtype=torch.float64)
    square = torch.zeros(dims, dims, dtype=torch.float64)
    shift: torch.Tensor | None = None  # sums of squares far from zero lose their digits
    for piece in pieces():
        values = torch.from_numpy(_there(piece)).double()
        if not values.shape[1]:
            continue
        shift = values.mean(dim=1) if shift is None else shift
        values = values - shift[:, None]
        count += values.shape[1]
        total += values.sum(dim=1)
        square += values @ values.mT
    if shift is None:
        raise InputError('There is nothing to find components of: no cell holds data.')
    mean = total / count
    covariance = square / count - torch.outer(mean, mean)
    variances, directions = torch.linalg.eigh(covariance)
    largest = directions.flip(1)[:, :pca].mT
    # A direction has no sign of its own: its largest entry is made positive.
    at = largest.abs().argmax(dim=1, keepdim=True)
    largest = largest * largest.gather(1, at).sign()
    explained = variances.flip(0)[:pca] / variances.sum().clamp_min(1e-300)
    return Projection(
        tuple(f'pc{i}' for i in range(pca)), (mean + shift).numpy(), largest.contiguous().numpy(),
        tuple(explained.tolist()),
    )  # fmt: skip


def _there(values: Float) -> Float:
    """Features (D, n) of the places that hold data."""
    flat = values.reshape(len(values), -1)
    return np.ascontiguousarray(flat[:, np.isfinite(flat[0])])
