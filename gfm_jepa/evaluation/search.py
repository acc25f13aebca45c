"""The most similar places: exact, or by faiss where there are very many and it is installed."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ..errors import InputError
from .embeddings import Embeddings, Float, Places

EXACT = 1_000_000  # up to so many embeddings, every one is looked at
CHUNK = 65536


class Search:
    """Find the embeddings that are most similar to a query, by cosine.

    Args:
        values: (n, D) embeddings.
        exact: Look at every one; by default up to a million, or where faiss is not installed.
    """

    def __init__(self, values: Float, exact: bool | None = None) -> None:
        self.unit = F.normalize(torch.from_numpy(values).float(), dim=1)
        self.index: Any = None
        if exact is None:
            exact = len(values) <= EXACT
        if not exact and (faiss := _faiss()) is not None:
            lists = int(4 * len(values) ** 0.5)
            self.index = faiss.index_factory(
                values.shape[1], f'IVF{lists},Flat', faiss.METRIC_INNER_PRODUCT
            )
            self.index.train(self.unit[:: max(len(values) // (64 * lists), 1)].numpy())
            self.index.add(self.unit.numpy())
            self.index.nprobe = max(lists // 32, 8)

    def __len__(self) -> int:
        """Number of embeddings."""
        return len(self.unit)

    def __call__(self, query: Float, k: int = 10) -> tuple[Float, Places]:
        """The k most similar ones, the most similar first.

        Args:
            query: (D,), or (Q, D) for several at once.
            k: How many, at most all.

        Returns:
            Cosine similarity and number of each, (k,) or (Q, k).

        Raises:
            InputError: If the query has another width, or is not finite.
        """
        wanted = torch.from_numpy(np.atleast_2d(query)).float()
        if wanted.shape[1] != self.unit.shape[1] or not bool(wanted.isfinite().all()):
            raise InputError(
                f'The query has {wanted.shape[1]} features, NaN or not, where {self.unit.shape[1]} '
                f'finite ones are searched; take one that holds data, of the same weights and kind.'
            )
        wanted, k = F.normalize(wanted, dim=1), min(k, len(self))
        found = None if self.index is None else self.index.search(wanted.numpy(), k)
        if found is None or (found[1] < 0).any():  # an index may find fewer than k
            best, at = self._exact(wanted.numpy(), k)
            found = best.numpy(), at.numpy()
        similar, numbers = found
        single = np.ndim(query) == 1
        return (similar[0], numbers[0]) if single else (similar, numbers)

    def _exact(self, wanted: Float, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix products chunk by chunk, of each of which only the best stay."""
        best, at = [], []
        unit = self.unit.numpy()
        for start in range(0, len(unit), CHUNK):
            # numpy's product with a single vector takes a third of the time of torch's.
            similar = torch.from_numpy(wanted @ unit[start : start + CHUNK].T)
            top = similar.topk(min(k, similar.shape[1]), dim=1)
            best.append(top.values)
            at.append(top.indices + start)
        values, order = torch.cat(best, dim=1).topk(k, dim=1)
        return values, torch.cat(at, dim=1).gather(1, order)


def load(embeddings: Embeddings) -> tuple[Float, Places]:
    """All features (n, D) that hold data, and their places (n,).

    Raises:
        InputError: If there are none.
    """
    parts = [(places, values) for places, values in embeddings.batches() if len(places)]
    if not parts:
        raise InputError(f'No place of {embeddings.path} holds data.')
    return np.concatenate([v for _, v in parts]), np.concatenate([p for p, _ in parts])


def similarity(embeddings: Embeddings, query: Float) -> NDArray[np.float32]:
    """Cosine of each place with a query (D,): (count,), NaN where nothing is there."""
    found = np.full(embeddings.count, np.nan, np.float32)
    unit = query / np.linalg.norm(query)
    for places, values in embeddings.batches():
        found[places] = values @ unit / np.maximum(np.linalg.norm(values, axis=1), 1e-12)
    return found


def _faiss() -> Any:
    """The faiss package, if it is installed."""
    try:
        import faiss  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    return faiss
