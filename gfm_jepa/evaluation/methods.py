"""What a benchmark compares: weights, and what they have to beat."""

import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch.utils.data import Dataset

from ..data.benchmarks import Benchmark
from ..errors import InputError
from ..modalities import MODALITIES, Modality, pick_bands
from ..models import BaseEncoder, TimmEncoder
from ..models.hub import from_pretrained
from ..models.timm_encoder import require_timm
from ..models.weight_files import weights_hash
from .baselines import ImageStatistics, RandomConvolutions, features_of_twin, random_init
from .features import Embed, EncoderFeatures
from .handmade import HandMade
from .pixel_features import PixelBands, PixelFeatures


@dataclass(frozen=True)
class Method:
    """Something that turns chips into features.

    Attributes:
        name: What its rows are called.
        features: ``embedding``, ``depths``, ``statistics``, ``rcf``, ``hand-made`` or ``bands``.
        build: Makes the function that embeds; called when it is needed.
        normalisation: What is done to raw values, in words.
        weights: Where they come from; '' for none.
        weights_hash: See `weights_hash`; '' for none.
        encoder: Whose features they are; None for hand-made ones.
        finetuned: Whether it is fine-tuned, too: an encoder is once, whatever its features.
    """

    name: str
    features: str
    build: Callable[[], Embed]
    normalisation: str = 'none'
    weights: str = ''
    weights_hash: str = ''
    encoder: BaseEncoder | None = None
    finetuned: bool = False


@dataclass(frozen=True)
class Contest:
    """Who takes part.

    Args:
        sources: Weights, as `from_pretrained` takes them; a row for each kind of features.
        features: Kinds of features of encoders: ``embedding``, ``depths``.
        timm: timm's models by name, with random weights, or ``NAME=FILE`` with those of a file.
        baselines: Whether the standing baselines take part; they should.
        seed: Of random weights.

    Raises:
        InputError: If timm knows no such model, or there is no such file.
    """

    sources: Sequence[str]
    features: Sequence[str] = ('embedding',)
    timm: Sequence[str] = ()
    baselines: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is not there before anything is computed."""
        for spec in self.timm:
            name, _, file = spec.partition('=')
            require_timm(name)
            if file and not Path(file).is_file():
                raise InputError(f'There is no file {file} with weights of {name}.')

    def methods(self, benchmark: Benchmark) -> Iterator[Method]:
        """Yield the weights, then the baselines, then timm's models.

        Raises:
            InputError: If weights are not there or do not fit the benchmark.
        """
        first = None
        for source in self.sources:
            encoder = from_pretrained(source)
            first = first or encoder
            yield from self._of(encoder, _title(source), source, benchmark)
        if self.baselines:
            yield from _standing(benchmark)
            if first is not None:
                twin, seed = random_init(first, self.seed), f'seed {self.seed}'
                kinds = self.features
                if benchmark.target == 'label':
                    kinds = list(dict.fromkeys(features_of_twin(first, k) for k in kinds))
                yield from self._of(twin, 'random init', seed, benchmark, kinds)
        for spec in self.timm:
            name, _, file = spec.partition('=')
            model = timm_encoder(name, file, MODALITIES[benchmark.modality], self.seed)
            title = f'{name}' if file else f'{name}, random'
            yield from self._of(model, title, file or f'seed {self.seed}', benchmark)

    def _of(
        self,
        encoder: BaseEncoder,
        title: str,
        source: str,
        benchmark: Benchmark,
        features: Sequence[str] = (),
    ) -> Iterator[Method]:
        """One encoder with each kind of features."""
        found = weights_hash(encoder)
        for number, kind in enumerate(features or self.features):
            pixels = benchmark.target != 'label'
            features_of = PixelFeatures if pixels else EncoderFeatures
            embed = features_of(encoder, title, benchmark, kind)
            statistics = encoder.modalities[benchmark.modality].source or 'statistics of its own'
            yield Method(
                title, kind, lambda embed=embed: embed,  # type: ignore[misc]
                f'in the encoder: {statistics}', source, found, encoder, number == 0,
            )  # fmt: skip


def timm_encoder(name: str, file: str, modality: Modality, seed: int) -> TimmEncoder:
    """A timm model as an encoder, with random weights or those of a file.

    Args:
        name: timm's.
        file: safetensors or a checkpoint of tensors; '' draws weights. Of three bands they are
            taken to expect timm's own mean and standard deviation over 255.
        modality: What it embeds.
        seed: Of drawn weights.

    Raises:
        InputError: If there is no such model or file, or they do not fit each other.
    """
    if file and modality.name == 'rgb' and timm.is_model(name):
        known = timm.get_pretrained_cfg(name)
        mean, std = (tuple(255 * v for v in values) for values in (known.mean, known.std))
        modality = replace(modality, mean=mean, std=std, source=f"timm's of {name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = TimmEncoder([modality], name)
    if file:
        try:
            state = timm.models.load_state_dict(file, use_ema=False, weights_only=True)
            own = encoder.backbone.state_dict()
            # A head of classes has no place here; all else must be there, and fit.
            kept = {k: v for k, v in state.items() if k in own}
            encoder.backbone.load_state_dict(kept)
        except (
            SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError,
            struct.error, LookupError, AttributeError, TypeError,
        ) as error:  # fmt: skip
            reason = ' '.join(str(error).split())[:160]
            raise InputError(f'{file} does not hold weights of {name} ({reason}).') from error
    return encoder.eval()


def _standing(benchmark: Benchmark) -> Iterator[Method]:
    """The baselines that need no weights; they see only bands that are there."""
    if benchmark.target != 'label':
        yield Method('pixel bands', 'bands', lambda: PixelBands(benchmark))
        return
    shown = PresentBands(benchmark)
    embeds: dict[tuple[str, str, str], Callable[[], Embed]] = {
        ('image statistics', 'statistics', 'none'): lambda: ImageStatistics(shown.name),
        ('RCF-512', 'rcf', '99.9th percentile of train'): (
            lambda: RandomConvolutions(shown.of(benchmark.train), shown.name)
        ),
        ('hand-made', 'hand-made', 'none'): lambda: HandMade(shown.modality),
    }
    for (name, kind, normalisation), build in embeds.items():
        yield Method(name, kind, partial(shown.before, build), normalisation)


class PresentBands:
    """Cuts bands that are never there out of batches and samples.

    Args:
        benchmark: Says which bands of its modality are there.

    Attributes:
        modality: With those.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        known = MODALITIES[benchmark.modality]
        self.modality = pick_bands(known, benchmark.bands) if benchmark.bands else known
        self.name = known.name
        self.ids = [known.bands.index(b) for b in self.modality.bands]

    def before(self, build: Callable[[], Embed]) -> Embed:
        """Make a function that embeds, of batches with all bands."""
        embed = build()
        return lambda batch: embed({**batch, self.name: batch[self.name][:, self.ids]})

    def of(self, dataset: Dataset[Any]) -> Dataset[Any]:
        """A dataset whose samples hold those bands alone."""
        return _Cut(dataset, self)


class _Cut(Dataset[Any]):
    """See `PresentBands.of`."""

    def __init__(self, dataset: Dataset[Any], bands: PresentBands) -> None:
        self.dataset, self.bands = dataset, bands

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[index]
        return {**sample, self.bands.name: sample[self.bands.name][self.bands.ids]}


def _title(source: str) -> str:
    """A short name of weights: of a checkpoint the run and the file, else what was given."""
    path = Path(source)
    if path.suffix != '.ckpt':
        return path.name or source
    run = [p for p in path.parts[-4:-1] if p not in ('checkpoints', '/')]
    return '/'.join([*run, path.stem])
