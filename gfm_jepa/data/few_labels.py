"""A share of the labels, drawn so that every class keeps its weight."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError


def stratified(labels: Tensor, share: float, draw: int) -> Tensor:
    """Choose the same share of each class, at least one sample of each.

    Args:
        labels: (N,) class of each sample; or (N, K) with 1 for each class that a sample has, which
            are drawn class by class, the rarest first, until each has its share.
        share: Of the samples of a class, above 0 and up to 1.
        draw: Which draw; the same number draws the same samples.

    Returns:
        Sorted indices of the chosen samples.

    Raises:
        InputError: If the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise InputError(f'The share of labels is {share:g}; give one above 0 and at most 1.')
    random = np.random.default_rng([draw, 20])
    has = torch.nn.functional.one_hot(labels.long()) if labels.ndim == 1 else labels
    member = has.numpy() > 0
    chosen = np.zeros(len(member), dtype=bool)
    for label in np.argsort(member.sum(axis=0), kind='stable'):
        wanted = max(round(share * member[:, label].sum()), 1) - (chosen & member[:, label]).sum()
        left = np.flatnonzero(member[:, label] & ~chosen)
        chosen[random.permutation(left)[: max(wanted, 0)]] = True
    return torch.from_numpy(np.flatnonzero(chosen))


def labels_of_dataset(dataset: Dataset[Any]) -> Tensor:
    """All labels of a dataset, (N,) or (N, K), without reading rasters where it knows them."""
    known = getattr(dataset, 'labels', None)
    if known is not None:
        return torch.as_tensor(known)
    return torch.stack([dataset[i]['label'] for i in range(len(dataset))])  # type: ignore[arg-type]
