"""Results on benchmarks with a class for every pixel: a linear head, and a plain difference."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from ..data.benchmarks import Benchmark
from ..errors import InputError
from ..models.base import evaluating
from .classifiers import LinearMap, linear_probe
from .features import Embed, Features
from .methods import Method
from .pixel_features import MOST_CHIPS, batches, dense, difference, sample_pixels
from .pixel_scores import BINS, Counts, change_scores, class_scores
from .probes import require_classes
from .result_table import Row

TRAIN_PIXELS, VAL_PIXELS = 50_000, 20_000
AT_ONCE = 8  # chips, whose features of every pixel lie in memory
Answer = Callable[[tuple[Tensor, ...], Tensor], Tensor]  # features, mask: (B, H, W)


def pixel_results(benchmark: Benchmark, protocols: Sequence[str]) -> list[Row]:
    """Protocol and settings of each result of a method.

    Raises:
        InputError: If none of the protocols suits pixels.
    """
    rows: list[Row] = []
    if benchmark.target == 'change':
        words = 'no training: length of the difference, dates standardised by chip, Otsu'
        rows.append({'protocol': 'difference', 'settings': words})
    if 'linear' in protocols:
        on = 'differences' if rows else 'pixels'
        words = f'logistic on {TRAIN_PIXELS} {on}, C on val'
        rows.append({'protocol': 'linear', 'settings': words})
    if not rows:
        raise InputError(f'{benchmark.name} has a class for every pixel; use --protocols linear.')
    return [{'label_share': 1.0, 'draw': 0, **row} for row in rows]


class PixelMeasure:
    """Computes the results of one method.

    Args:
        benchmark: With masks.
        method: Its function gives (B, D, H, W).
        num_workers: Processes that read.
        seed: Of the draws of pixels and of chips.
    """

    def __init__(
        self, benchmark: Benchmark, method: Method, num_workers: int = 0, seed: int = 0
    ) -> None:
        self.benchmark, self.method = benchmark, method
        self.num_workers, self.seed = num_workers, seed

    @cached_property
    def embed(self) -> Embed:
        """What embeds; made when the first result needs it."""
        return self.method.build()

    def __call__(self, row: Row) -> tuple[Row, None, None, None]:
        """Return what to add to the row; of pixels neither scores nor labels are kept.

        Raises:
            InputError: If a class has no training pixel, or features are not finite.
        """
        measured = self._difference() if row['protocol'] == 'difference' else self._linear()
        return measured, None, None, None

    def _difference(self) -> Row:
        counts = self._histograms(lambda dates, mask: difference(dates[0], dates[1], mask >= 0))
        return change_scores(counts, None, self.seed) | {'n_test': len(counts)}

    def _linear(self) -> Row:
        train, val = self.parts
        probe = linear_probe(train, val, val)
        assert probe.linear is not None
        head = probe.linear
        if self.benchmark.target == 'change':
            counts = self._histograms(
                lambda dates, _: apply(head, (dates[1] - dates[0]).abs()).softmax(dim=1)[:, 1]
            )
            found = change_scores(counts, 0.5, self.seed)
        else:
            counts = self._confusions(head)
            found = class_scores(counts, self.seed)
        return found | {
            'n_test': len(counts), 'n_train': len(train), 'n_val': len(val), 'C': f'{probe.C:g}',
            'width': train.embeddings.shape[1],
        }  # fmt: skip

    @cached_property
    def parts(self) -> tuple[Features, Features]:
        """Pixels of train and val."""
        known = ((self.benchmark.train, TRAIN_PIXELS), (self.benchmark.val, VAL_PIXELS))
        train, val = (
            sample_pixels(self.embed, part, count, AT_ONCE, self.num_workers, self.seed)
            for part, count in known
        )
        # A class that no chip drawn from train has may be in others; its pixels count as wrong.
        require_classes(self.benchmark, (train, val, val) if self.whole else (train,) * 3)
        return train, val

    @property
    def whole(self) -> bool:
        """Whether pixels are drawn from all chips of train, and not from some."""
        return len(self.benchmark.train) <= MOST_CHIPS  # type: ignore[arg-type]  # it has a length

    def _histograms(self, answer: Answer) -> Counts:
        """Pixels of each test chip by class and score: (chips, 2, BINS)."""

        def count(scores: Tensor, mask: Tensor) -> Counts:
            bins = (scores * BINS).long().clamp(0, BINS - 1)
            return _count(mask.clamp_max(1), bins, (2, BINS))

        return self._each(answer, count)

    def _confusions(self, head: LinearMap) -> Counts:
        """Pixels of each test chip by true and predicted class: (chips, K, K)."""
        known, total = set(self.parts[0].labels.tolist()), len(self.benchmark.classes)
        lacking: set[int] = set()

        def count(taken: Tensor, mask: Tensor) -> Counts:
            lacking.update(set(mask.unique().tolist()) - known)
            if lacking and self.whole:
                raise InputError(
                    f'Class {self.benchmark.classes[min(lacking)]!r} of {self.benchmark.name} has '
                    f'no pixel in the train part; add some, or leave the class out.'
                )
            return _count(mask, taken, (total, total))

        counts = self._each(lambda found, _: apply(head, found[0]).argmax(dim=1), count)
        if lacking:
            rank_zero_info(
                f'{self.benchmark.name}: pixels are drawn from {MOST_CHIPS} training chips, none '
                f'of which shows {", ".join(self.benchmark.classes[i] for i in sorted(lacking))}; '
                f'such test pixels count as wrong.'
            )
        return counts

    def _each(self, answer: Answer, count: Callable[[Tensor, Tensor], Counts]) -> Counts:
        """Count the labelled pixels of each test chip."""
        rows, part = [], self.benchmark.test
        with torch.inference_mode(), evaluating(self.embed):
            for batch in batches(part, AT_ONCE, self.num_workers, 'Testing'):
                mask = batch.pop('mask')
                answers = answer(dense(self.embed, batch), mask)
                for one, own in zip(answers, mask, strict=True):
                    if bool((own >= 0).any()):
                        rows.append(count(one[own >= 0], own[own >= 0]))
        if not rows:
            raise InputError(f'No pixel of the test part of {self.benchmark.name} is labelled.')
        return np.stack(rows)


def apply(head: LinearMap, features: Tensor) -> Tensor:
    """Logits (B, K, H, W) of features (B, D, H, W)."""
    logits: Tensor = head(features.movedim(1, -1)).movedim(-1, 1)
    return logits


def _count(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> Counts:
    flat: Any = torch.bincount(rows * shape[1] + cols, minlength=shape[0] * shape[1])
    found: Counts = flat.reshape(shape).double().numpy()
    return found
