"""A head on an encoder: what says a class."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modalities import Modality
from ..views import are_square, turned
from .base import BaseEncoder, Batch, evaluating
from .building import build
from .hub import config_of, load_checkpoint
from .weight_files import Source, part_of, require_finite

FEATURES = ('embedding', 'depths')


@dataclass(frozen=True)
class HeadFacts:
    """What a head is for; plain values in a checkpoint.

    Attributes:
        classes: Names by label.
        features: What it reads: ``embedding``, or ``depths`` (several depths pooled).
        multilabel: Whether a sample may have several classes.
        image_sizes: Height and width, pixels, of the chips that it learned from, by modality: the
            head may be asked about these modalities; about all of the encoder's if there is none.
        gsd: Their metres per pixel, by modality, where it was told.
        turns: Whether the probabilities are the mean over all eight flips and quarter turns.
        resized_from: Height and width, pixels, that the chips had before they were resampled to
            `image_sizes`, by modality; of those alone that were.
    """

    classes: Sequence[str]
    features: str = 'embedding'
    multilabel: bool = False
    image_sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    gsd: Mapping[str, float] = field(default_factory=dict)
    turns: bool = False
    resized_from: Mapping[str, Sequence[int]] = field(default_factory=dict)


class ClassificationHead(nn.Module):
    """Standardise features by their running statistics, then a linear map that starts at 0.

    Args:
        width: Of the features D.
        num_classes: Outputs K.

    Source: He et al., "Masked autoencoders are scalable vision learners" (2022), appendix A.1, for
        the batch norm without parameters.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.linear = nn.Linear(width, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D) to logits (B, K)."""
        logits: Tensor = self.linear(self.norm(features))
        return logits


class Classifier(nn.Module):
    """An encoder and a head, in evaluation mode: raw rasters in, probabilities out.

    Args:
        encoder: Embeds.
        head: Reads the embedding.
        facts: What the head is for.
    """

    def __init__(self, encoder: BaseEncoder, head: ClassificationHead, facts: HeadFacts) -> None:
        super().__init__()
        self.encoder, self.head, self.facts = encoder, head, facts
        self.eval()

    @property
    def modalities(self) -> dict[str, Modality]:
        """What the head learned from, out of what the encoder knows."""
        known, learned = self.encoder.modalities, self.facts.image_sizes
        return {k: m for k, m in known.items() if not learned or k in learned}

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Classify rasters (B, C, H, W) by modality, raw units, any subset of the modalities.

        Returns:
            (B, K) probabilities: they sum to 1, or each is one class's own if it is multi-label;
            NaN for a sample without valid pixels.
        """
        known = {'gsd': dict(self.facts.gsd), **batch} if self.facts.gsd else batch
        return classify_turned(self.encoder, self.head, known, self.facts)


def classify_turned(
    encoder: BaseEncoder, head: nn.Module, batch: Batch, facts: HeadFacts
) -> Tensor:
    """Probabilities (B, K) of a batch, the mean over its flips and turns if the facts say so.

    Rasters that are not square are flipped and turned by half only: four ways, not eight.
    """
    rasters = encoder.rasters(batch)
    square = are_square(rasters.values())
    quarters = (0, 1, 2, 3) if square else (0, 2)
    ways = [(flip, n) for flip in (False, True) for n in quarters] if facts.turns else [(False, 0)]
    found = []
    for flip, n in ways:
        seen = {k: turned(x, flip, n) for k, x in rasters.items()}
        logits = head(encode(encoder, {**batch, **seen}, facts.features))
        found.append(probabilities(logits.float(), facts.multilabel))  # also under autocast
    return torch.stack(found).mean(dim=0)


def encode(encoder: BaseEncoder, batch: Batch, features: str) -> Tensor:
    """Embed a batch (B, D) with the ``embedding`` or the ``depths`` of an encoder."""
    if features == 'depths':
        return encoder.forward_depths(batch)
    embedding: Tensor = encoder(batch)
    return embedding


def probabilities(logits: Tensor, multilabel: bool) -> Tensor:
    """Of classes that exclude each other, or each class's own (B, K)."""
    return logits.sigmoid() if multilabel else torch.softmax(logits, dim=1)


def require_features(features: str) -> None:
    """Refuse what is neither ``embedding`` nor ``depths``.

    Raises:
        InputError: Naming both.
    """
    if features not in FEATURES:
        raise InputError(f'Unknown features {features!r}: expected {" or ".join(FEATURES)}.')


def feature_width(encoder: BaseEncoder, features: str) -> int:
    """Width D of the features.

    Raises:
        InputError: If there are no such features.
    """
    require_features(features)
    if features == 'embedding':
        return encoder.num_features
    name, modality = next(iter(encoder.modalities.items()))
    side = encoder.example_size(name)
    mean = torch.tensor(modality.mean).view(1, -1, 1, 1).expand(1, -1, side, side)
    with torch.no_grad(), evaluating(encoder):
        return encoder.forward_depths({name: mean}).shape[1]


def head_state(encoder: BaseEncoder, head: ClassificationHead, facts: HeadFacts) -> dict[str, Any]:
    """What a file of encoder and head holds: plain values and tensors, as checkpoints do."""
    state = {f'encoder.{k}': v.detach().cpu() for k, v in encoder.state_dict().items()}
    state |= {f'head.{k}': v.detach().cpu() for k, v in head.state_dict().items()}
    return {
        'encoder_config': encoder.config, 'encoder_prefix': 'encoder.', 'state_dict': state,
        'head': head_facts(facts),
    }  # fmt: skip


def head_facts(facts: HeadFacts) -> dict[str, Any]:
    """The facts as plain values."""
    return {
        'classes': list(facts.classes), 'features': facts.features,
        'multilabel': facts.multilabel, 'turns': facts.turns,
        'image_sizes': {k: list(v) for k, v in facts.image_sizes.items()}, 'gsd': dict(facts.gsd),
        'resized_from': {k: list(v) for k, v in facts.resized_from.items()},
    }  # fmt: skip


def load_classifier(path: str | Path) -> Classifier:
    """Load encoder and head from a checkpoint of the task `Classification`, or a saved head.

    Raises:
        InputError: If there is no such file, or it holds no head, or its parts do not fit.
    """

    def make(encoder: BaseEncoder, facts: dict[str, Any]) -> ClassificationHead:
        known = _as_facts(facts)
        return ClassificationHead(feature_width(encoder, known.features), len(known.classes))

    encoder, head, facts = load_head(
        path, 'head', make, 'holds an encoder, but no head; name a checkpoint of gfm_jepa.tasks.'
        'Classification, or what `gfm-jepa benchmark --save-head FILE` wrote.',
    )  # fmt: skip
    return Classifier(encoder, head, _as_facts(facts))


def _as_facts(stated: Mapping[str, Any]) -> HeadFacts:
    """Facts of plain values, each of its kind."""
    facts = HeadFacts(**stated)
    sizes, before = (
        {str(k): [int(height), int(width)] for k, (height, width) in found.items()}
        for found in (facts.image_sizes, facts.resized_from)
    )
    return HeadFacts(
        [str(name) for name in facts.classes], str(facts.features), bool(facts.multilabel), sizes,
        {str(k): float(v) for k, v in facts.gsd.items()}, bool(facts.turns), before,
    )  # fmt: skip


def load_head[T: nn.Module](
    path: str | Path, key: str, make: Callable[[BaseEncoder, dict[str, Any]], T], lacks: str
) -> tuple[BaseEncoder, T, dict[str, Any]]:
    """Load encoder and head from a checkpoint of a task with labels.

    Args:
        path: The checkpoint.
        key: Under which it says what its head is for.
        make: Makes the head, for the encoder, from what is said.
        lacks: What to say, after the path, where the key is not there.

    Returns:
        Encoder, head, and what the head is for.

    Raises:
        InputError: If there is no such file, or it holds no such head, or its parts do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'There is no file {path}; name the checkpoint of a trained head.')
    checkpoint = load_checkpoint(path)
    if key not in checkpoint:
        raise InputError(f'{path} {lacks}')
    facts, state = checkpoint[key], checkpoint['state_dict']
    encoder = build(Source(config_of(checkpoint), part_of(state, 'encoder.'), str(path)))
    own = part_of(state, 'head.')
    require_finite(own, f'the head of {path}')
    try:
        head = make(encoder, facts)
    except InputError:
        raise
    except (
        TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, AssertionError,
        LookupError,
    ) as error:  # fmt: skip
        reason = ' '.join(str(error).split())[:160]
        raise InputError(
            f'What {path} says of its head is not understood ({reason}); update gfm_jepa, or train '
            f'it again.'
        ) from error
    try:
        head.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(f'The head of {path} does not fit its encoder; train it again.') from error
    return encoder, head, facts
