"""Fine-tune an encoder on a benchmark: the protocol ``finetune`` of `gfm-jepa benchmark`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ..data import BenchmarkDataModule
from ..data.benchmarks import Benchmark
from ..data.few_labels import labels_of_dataset
from ..errors import InputError
from ..evaluation.benchmark import Finetuning, Tuned
from ..models import BaseEncoder
from ..models.heads import feature_width
from ..models.hub import save_pretrained
from ..views import Views
from .base import EncoderConfig, OptimizerConfig
from .callbacks import NaNGuard
from .classification import Classification, HeadConfig
from .runs import AtomicCheckpointIO


@dataclass(frozen=True)
class Recipe:
    """How `gfm-jepa benchmark` fine-tunes: as configs/finetune_eurosat_rgb.yaml does.

    Args:
        epochs: Passes over the train part.
        lr: Highest learning rate.
        layer_decay: Factor of the learning rate from one layer to the one below.
        batch_size: Samples of a batch; fewer if train has fewer.
        weight_decay: Of matrices.
        label_smoothing: Share of the target that goes to all classes alike.
        mixup: As in `HeadConfig`.
        fraction: Side of a training crop over the chip's shorter one, in pixels.
        scale: Share of the area of the chip's largest square that a crop shows, at least.
        features: What the head reads, as in `HeadConfig`.
        turns: Whether the test part is classified by the mean over flips and quarter turns.

    Raises:
        InputError: If there are no epochs, or the rate is not above 0.
    """

    epochs: int = 30
    lr: float = 3e-3
    layer_decay: float = 1.0
    batch_size: int = 64
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    mixup: float = 0.0
    fraction: float = 1.0
    scale: float = 0.5
    features: str = 'depths'
    turns: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.epochs < 1 or not 0 < self.lr < float('inf'):
            raise InputError(
                f'epochs is {self.epochs} and lr {self.lr:g}; give at least 1 and a rate above 0.'
            )

    def describe(self) -> str:
        """The recipe in words, for a row of results."""
        shown = {k: v if isinstance(v, str) else f'{v:g}' for k, v in vars(self).items()}
        return ' '.join(f'{name}={value}' for name, value in shown.items())

    def finetuning(self, num_workers: int = 0) -> Finetuning:
        """The protocol, for a `Plan`."""

        def run(encoder: BaseEncoder, benchmark: Benchmark, seed: int, folder: Path) -> Tuned:
            return finetune(encoder, benchmark, self, seed, folder, num_workers)

        return Finetuning(run, self.describe())


def finetune(
    encoder: BaseEncoder,
    benchmark: Benchmark,
    recipe: Recipe,
    seed: int,
    folder: Path,
    num_workers: int = 0,
) -> Tuned:
    """Fine-tune a copy of an encoder, and classify the test part with its last weights.

    A run that was broken off goes on from ``last.ckpt`` in the folder, which is the classifier at
    the end: `gfm-jepa classify` takes it.

    Args:
        encoder: What to start from; it does not change.
        benchmark: Learned from train; val is not used; test is what comes back.
        recipe: How.
        seed: Of order, views and mixtures.
        folder: For the checkpoint.
        num_workers: Processes that read.
    """
    seed_everything(seed, verbose=False)
    size = min(recipe.batch_size, len(labels_of_dataset(benchmark.train)))
    data = BenchmarkDataModule(benchmark, batch_size=size, num_workers=num_workers)
    with tempfile.TemporaryDirectory() as start:
        task = Classification(
            [encoder.modalities[benchmark.modality].to_dict()], list(benchmark.classes),
            EncoderConfig(weights=str(save_pretrained(encoder, start))),
            optimizer=OptimizerConfig(lr=recipe.lr, weight_decay=recipe.weight_decay, warmup=0.1),
            head=HeadConfig(
                features=recipe.features, layer_decay=recipe.layer_decay,
                label_smoothing=recipe.label_smoothing, mixup=recipe.mixup,
                multilabel=benchmark.multilabel, turns=recipe.turns,
            ),
            views=Views(num_global=1, global_scale=(recipe.scale, 1.0),
                        global_fraction=recipe.fraction, gain=0.1, offset=0.1),
        )  # fmt: skip
    steps = len(data.train_dataloader())
    keep = ModelCheckpoint(folder, every_n_train_steps=steps, save_last=True, save_top_k=0)
    trainer = Trainer(
        max_steps=recipe.epochs * steps, max_epochs=-1, logger=False, callbacks=[keep, NaNGuard()],
        plugins=[AtomicCheckpointIO()], use_distributed_sampler=False, gradient_clip_val=1.0,
        limit_val_batches=0, num_sanity_val_steps=0, enable_model_summary=False,
    )  # fmt: skip
    last = folder / 'last.ckpt'
    trainer.fit(task, datamodule=data, ckpt_path=str(last) if last.is_file() else None)
    width = feature_width(encoder, recipe.features)
    return Tuned(_classify(task, trainer, data), labels_of_dataset(benchmark.test), width)


def _classify(task: Classification, trainer: Trainer, data: BenchmarkDataModule) -> Tensor:
    """Probabilities (N, K) on the test part."""
    predicted = trainer.predict(task, datamodule=data)
    assert predicted is not None
    return torch.cat([scores for scores in predicted if isinstance(scores, Tensor)])
