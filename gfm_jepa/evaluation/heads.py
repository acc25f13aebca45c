"""Keep a linear probe as a head, so that it classifies images later."""

import io
from pathlib import Path

import torch

from ..data.benchmarks import Benchmark
from ..data.index import write_whole
from ..models.heads import ClassificationHead, HeadFacts, head_state
from .classifiers import LinearMap, ProbeResult
from .methods import Method


class HeadWriter:
    """Writes the first linear probe that comes, with its encoder, as one file.

    Args:
        path: What to write; `gfm-jepa classify` and `from_pretrained` read it.
        benchmark: What the head learned from.
    """

    def __init__(self, path: Path, benchmark: Benchmark) -> None:
        self.path, self.benchmark, self.written = path, benchmark, False

    def __call__(self, method: Method, probe: ProbeResult) -> None:
        """Write it, unless that is done, or the features are hand-made."""
        if self.written or method.encoder is None or probe.linear is None:
            return
        key, known = self.benchmark.modality, self.benchmark
        sizes = {key: list(known.test[0][key].shape[-2:])}
        facts = HeadFacts(
            known.classes, method.features, known.multilabel, sizes,
            {} if known.gsd is None else {key: known.gsd},
            resized_from={} if known.resized_from is None else {key: known.resized_from},
        )  # fmt: skip
        buffer = io.BytesIO()
        head = as_head(probe.linear, len(known.classes))
        torch.save(head_state(method.encoder, head, facts), buffer)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, buffer.getvalue())
        self.written = True


def as_head(linear: LinearMap, classes: int | None = None) -> ClassificationHead:
    """The module that computes the same logits; never a class that none was learned of."""
    count, width = linear.weight.shape
    head = ClassificationHead(width, classes or count).eval()
    norm = head.norm
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.copy_(linear.mean)
        # A small deviation would be lost in what batch norm adds to the variance.
        norm.running_var.fill_(1 - norm.eps)
        head.linear.bias.fill_(-1e4)
        head.linear.weight[:count] = linear.weight / linear.std
        head.linear.bias[:count] = linear.bias
    return head
