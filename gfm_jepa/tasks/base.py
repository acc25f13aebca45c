"""What every pretraining task shares: encoder, optimizer, schedules, randomness, health."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Self, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchgeo.tasks import BaseTask

from ..data.datamodules import PretrainDataModule
from ..errors import InputError
from ..masks import Mask
from ..metrics import effective_rank, embedding_std, gradient_norm, mean_cosine
from ..modalities import resolve_all
from ..models import BaseEncoder, Encoder, TimmEncoder, build_encoder
from ..models.band_matching import format_matches, match_bands
from ..models.base import UNTRAINED, is_dated
from ..models.block import Block
from ..models.hub import from_pretrained
from ..models.patch_embed import STEMS
from ..models.projectors import span_ranks
from ..views import pick_dates

ModalitySpecs = Sequence[str | dict[str, Any]]
FEWEST_RANKED = 4  # samples: a rank is at most one less, and says nothing of fewer


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder to train.

    Args:
        preset: ``nano``, ``tiny``, ``small``, ``base`` or ``large``.
        patch_size: Side of a patch, pixels; one for all, or one per modality name.
        stem: ``linear``; ``conv`` or ``plain_conv`` (not for masked methods: they leak between
            patches); one for all, or one per modality name.
        drop_path_rate: Stochastic depth of the last block.
        backbone: Name of a timm model, such as ``resnet50`` or ``vit_small_patch16_224``, for the
            methods that compare views; null is our encoder, and only it heeds preset, patch_size
            and stem.
        small_images: Of a timm ResNet a stem of 3 x 3, stride 1 and no pooling, of a timm ViT
            patches of half the side: for images of 32 to 96 pixels.
        pretrained: Start from timm's published weights; fetched from the Hub.
        weights: What to go on from, as `from_pretrained` takes it. They say the sizes and the
            backbone; modalities that they lack get new patch embedders, of kind `stem`. Pretraining
            keeps those that the data lack; a timm model keeps its own. `drop_path_rate` holds where
            it is above 0.
        freeze: Keep what those weights hold as it is, and train new patch embedders alone.
    """

    preset: str = 'nano'
    patch_size: int | dict[str, int] = 8
    stem: str | dict[str, str] = 'linear'
    drop_path_rate: float = 0.0
    backbone: str | None = None
    small_images: bool = False
    pretrained: bool = False
    weights: str | None = None
    freeze: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay, both per optimizer step.

    Args:
        lr: Highest learning rate.
        weight_decay: Of matrices; biases, norms and vectors have none.
        final_weight_decay: Where weight decay ends, along a cosine; `weight_decay` by default.
        warmup: Share of all steps in which the rate rises from 0.
        final_lr: Rate at the end, over `lr`.
        betas: Of AdamW.

    Raises:
        InputError: If a share is none, or a rate is negative.
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    final_weight_decay: float | None = None
    warmup: float = 0.05
    final_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        """Refuse what is no rate or share."""
        for name in ('lr', 'weight_decay', 'final_lr'):
            if getattr(self, name) < 0:
                raise InputError(f'optimizer.{name} is {getattr(self, name)}; expected 0 or more.')
        if not 0 <= self.warmup <= 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(
                f'optimizer has warmup {self.warmup} and betas {list(self.betas)}; expected a '
                f'share of 0 to 1, and two from 0 to below 1.'
            )


class PretrainTask(BaseTask):  # type: ignore[misc]  # torchgeo carries no types
    """Base of the pretraining tasks.

    A subclass builds its modules in `configure_models` after calling this one's, and writes
    `training_step`. It draws all its randomness from `generator`, so that a resumed run goes on as
    an unbroken one would.

    Args:
        modalities: What to embed: known names, YAML paths, or mappings of `Modality` fields.
        encoder: Which encoder to train.
        optimizer: How to train it.
    """

    ignore = None
    monitor = 'val_knn5'
    mode = 'max'
    encoder: BaseEncoder
    frozen: Sequence[nn.Module] = ()
    dated_beside: Sequence[str] = ()  # what has dates, and is not for the encoder
    smallest_group = 1  # samples that have to be able to share a batch

    def __init__(
        self,
        modalities: ModalitySpecs,
        encoder: EncoderConfig,
        optimizer: OptimizerConfig,
    ) -> None:
        self.modality_specs = modalities
        self.encoder_config = as_config(EncoderConfig, encoder)
        self.optimizer_config = as_config(OptimizerConfig, optimizer)
        super().__init__()
        # Loggers and weights_only loading take plain values, not dataclasses.
        self.save_hyperparameters(plain(dict(self.hparams)))

    def configure_models(self) -> None:
        """Build the encoder."""
        c = self.encoder_config
        if c.weights is not None:
            for option in ('backbone', 'small_images', 'pretrained'):
                if getattr(c, option):
                    raise InputError(
                        f'encoder.{option} is given beside encoder.weights, which say what the '
                        f'encoder is; leave one of the two out.'
                    )
            self.encoder = self._load(c.weights)
            self.train()  # weights come in evaluation mode
            return
        if c.backbone is not None:
            self.encoder = TimmEncoder(
                self.modality_specs, c.backbone, c.small_images, c.drop_path_rate, c.pretrained
            )
            return
        if c.small_images or c.pretrained:
            option = 'small_images' if c.small_images else 'pretrained'
            raise InputError(
                f'encoder.{option} is for timm models; name one as encoder.backbone, or leave it '
                f'out.'
            )
        if c.freeze:
            raise InputError('encoder.freeze keeps trained weights; name some: encoder.weights.')
        self.encoder = build_encoder(
            c.preset, self.modality_specs, c.patch_size, c.stem, c.drop_path_rate
        )
        self.encoder.untrained = frozenset(self.encoder.modalities)

    keeps_modalities = True  # of weights, where the data lack them

    def _load(self, source: str) -> BaseEncoder:
        """Take trained weights, with new patch embedders where the data hold more than they."""
        c, trained = self.encoder_config, from_pretrained(source)
        if not isinstance(trained, Encoder):
            for option in ('freeze', 'drop_path_rate'):
                if getattr(c, option):
                    raise InputError(
                        f'encoder.{option} beside weights is for encoders of ours, and {source} is '
                        f'none; leave it out.'
                    )
            return trained
        given = [m.name for m in resolve_all(self.modality_specs)]
        kept = [n for n in trained.modalities if n not in given] if self.keeps_modalities else []
        encoder, matches = match_bands(
            trained, None, [*kept, *self.modality_specs], c.stem, strict=False
        )
        rank_zero_info(format_matches(matches))
        if c.drop_path_rate:
            encoder.set_drop_path(c.drop_path_rate)
        if c.freeze:
            learned = [n for n in trained.modalities if n not in trained.untrained]
            embedders = [encoder.embedder(n) for n in learned if n in [*kept, *given]]
            readout = [] if encoder.readout is None else [encoder.readout]
            self.freeze(*embedders, encoder.blocks, encoder.norm, *readout)
        return encoder

    def freeze(self, *modules: nn.Module) -> None:
        """Keep modules as they are: no gradients, and evaluation mode from the next `train` on."""
        self.frozen = [*self.frozen, *modules]
        for module in modules:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; what is frozen stays in evaluation mode, its batch norms as they are."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def require_tight_stem(self) -> None:
        """Refuse what does not keep patches apart: every masked method needs it.

        Raises:
            InputError: If the encoder is a timm model, or its stem leaks between patches.
        """
        if not isinstance(self.encoder, Encoder):
            raise InputError(
                f"{type(self).__name__} hides tokens, and timm's {self.encoder.config['backbone']} "
                f'has none that could be dropped; take an encoder of ours, or LeJEPA, VICReg or '
                f'SimSiam with it.'
            )
        if leaking := [n for n, kind in self.encoder.stems.items() if STEMS[kind].leaks]:
            weights = self.encoder_config.weights
            remedy = 'encoder.stem=linear with this method' if weights is None else (
                f'weights whose stems are linear (and encoder.stem=linear for new sensors), or '
                f'LeJEPA, VICReg or SimSiam with {weights}'
            )  # fmt: skip
            raise InputError(
                f'The conv stem of {", ".join(leaking)} shows a token the margin of its '
                f'neighbours, so that masks would not hide them; take {remedy}.'
            )

    @property
    def evaluated_encoder(self) -> BaseEncoder:
        """The encoder that probes, `from_pretrained` and users get."""
        return self.encoder

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Embed a batch: (B, D); the mean over dates, where there are several."""
        dates = max((v.shape[1] for v in batch.values() if is_dated(v)), default=0)
        if not dates:
            embedding: Tensor = self.evaluated_encoder(batch)
            return embedding
        one_by_one = [
            self.evaluated_encoder({k: v[:, t] if is_dated(v) else v for k, v in batch.items()})
            for t in range(dates)
        ]
        return torch.stack(one_by_one).nanmean(dim=0)

    def one_date(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """The batch with one date of each sample, drawn; as it is where there are no dates."""
        if not any(is_dated(v) for v in batch.values()):
            return dict(batch)
        names = {*self.encoder.modalities, *self.dated_beside}
        rasters = {k: v for k, v in batch.items() if k in names}
        return {**batch, **pick_dates(rasters, 1, self.generator(batch_idx))[0]}

    def dates_of(self, masks: Mask, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """The batch with all its dates, if the masks span them, else with one of each sample."""
        return dict(batch) if masks.dates else self.one_date(batch, batch_idx)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Embed a batch: (B, D)."""
        return self.forward(batch)

    def generator(self, batch_idx: int, shared: bool = False) -> torch.Generator:
        """Make the source of randomness of one step: a function of seed, epoch, batch and rank.

        Args:
            batch_idx: Index of the batch in its epoch.
            shared: Whether all ranks should draw the same.
        """
        seed = torch.initial_seed() if self._seed is None else self._seed
        rank = 0 if shared else self.global_rank + 1
        key = (seed % 2**32, self.current_epoch, batch_idx, rank)
        mixed = 0
        for part in key:  # distinct streams for neighbouring keys
            mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
        return torch.Generator().manual_seed(mixed)

    _seed: int | None = None

    def setup(self, stage: str) -> None:
        """Let batch norms span all ranks, before anything wraps the modules."""
        if self.trainer.world_size > 1:
            span_ranks(self)
        data = getattr(self.trainer, 'datamodule', None)
        if isinstance(data, PretrainDataModule):
            data.smallest_group = self.smallest_group

    def configure_model(self) -> None:
        """Shard over the ranks under Lightning's ModelParallelStrategy; nothing otherwise."""
        if self.device_mesh is not None and not isinstance(self, FSDPModule):
            shard(self, self.device_mesh['data_parallel'])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let what draws without a generator, such as stochastic depth, resume as well."""
        # Not the very stream that views and masks are drawn from: what drops would follow crops.
        torch.manual_seed(self.generator(batch_idx).initial_seed() ^ 1)
        if self.encoder.untrained and isinstance(batch, Mapping):
            self._note_seen(cast(Encoder, self.encoder), batch, batch_idx)

    _seen: frozenset[str] = frozenset()

    def _note_seen(self, own: Encoder, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Note which modalities training has seen, on any of the ranks, and learned from."""
        names = sorted(own.untrained)
        self._seen |= {
            n for n, x in own.rasters(batch).items()
            if n in names and x.isfinite().any()
            and any(p.requires_grad for p in own.embedder(n).parameters())
        }  # fmt: skip
        if self.trainer.world_size > 1:
            if batch_idx > 50 and batch_idx % 50:  # what is seen late may be told late
                return
            seen = torch.tensor([n in self._seen for n in names], device=self.device)
            told = self.trainer.strategy.reduce(seen.float(), reduce_op='sum')
            self._seen = frozenset(n for n, some in zip(names, told.tolist(), strict=True) if some)
        for encoder in (own, self.evaluated_encoder):
            encoder.untrained -= self._seen

    def on_fit_start(self) -> None:
        """Fix the run's seed once: what `seed_everything` was given, or the checkpoint's."""
        if self._seed is None:
            # Of one rank for all: without seed_everything each has a seed of its own.
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed() % 2**32)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to rebuild the encoder, as plain values only."""
        checkpoint['encoder_config'] = self.encoder.config
        prefix = 'encoder.' if self.evaluated_encoder is self.encoder else 'target_encoder.'
        checkpoint['encoder_prefix'] = prefix
        checkpoint[UNTRAINED] = sorted(self.encoder.untrained)
        checkpoint['task'] = type(self).__name__
        checkpoint['seed'] = self._seed
        checkpoint['hyper_parameters'] = plain(dict(checkpoint.get('hyper_parameters', {})))
        _end_as_after_a_batch(checkpoint.get('loops', {}).get('fit_loop', {}))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed of the run that was broken off.

        Raises:
            InputError: If the checkpoint's tensors are not those of this task.
        """
        self._seed = checkpoint.get('seed')
        for encoder in (self.encoder, self.evaluated_encoder):
            encoder.untrained &= {*checkpoint.get(UNTRAINED, ())}
        own, found = self.state_dict(), checkpoint.get('state_dict', {})
        alike = {k for k in own.keys() & found.keys() if own[k].shape == found[k].shape}
        if found and (odd := sorted((own.keys() | found.keys()) - alike)):
            raise InputError(
                f'The checkpoint was made by a task of other parts ({len(odd)} tensors differ, '
                f'first {odd[0]}); repeat the --model arguments of its run, or pass --config with '
                f'the config.yaml of its log folder.'
            )

    def total_steps(self) -> int:
        """Optimizer steps of the whole run; the command line sees to it that it has an end."""
        loop = self.trainer.fit_loop
        asked_early = self.trainer.train_dataloader is None
        total = self.trainer.estimated_stepping_batches
        if asked_early and self.trainer.train_dataloader is not None:
            # To count the steps of epochs, Lightning has set the loader up, before it knows where
            # in the data a resumed run stands, and would not do so again: the epoch would begin
            # anew.
            loop._data_fetcher.teardown()
            loop._combined_loader = loop._data_fetcher = None
        if math.isinf(total):
            raise InputError('The schedules need trainer.max_steps or trainer.max_epochs.')
        return max(int(total), 1)

    def progress(self) -> float:
        """Share of the run's optimizer steps that are done, 0..1."""
        done: float = self.global_step / self.total_steps()
        return min(done, 1.0)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over everything that learns, its rate set per optimizer step."""
        c = self.optimizer_config
        # Lightning refuses to clip a fused optimizer's gradients in mixed precision.
        fused = not self.trainer.precision.endswith('mixed')
        optimizer = AdamW(self.parameter_groups(), lr=c.lr, betas=c.betas, fused=fused)
        total = self.total_steps()

        def rate(step: int) -> float:
            return warmup_cosine(step, total, c.warmup, c.final_lr)

        return {
            'optimizer': optimizer,
            'lr_scheduler': {'scheduler': LambdaLR(optimizer, rate), 'interval': 'step'},
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer gets: matrices, which decay, and all else that learns."""
        learning = [p for p in self.parameters() if p.requires_grad]
        return [
            {'params': [p for p in learning if p.ndim > 1],
             'weight_decay': self.optimizer_config.weight_decay},
            {'params': [p for p in learning if p.ndim <= 1], 'weight_decay': 0.0},
        ]  # fmt: skip

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the weight decay of this step, if it changes; log the rate and the gradient."""
        c = self.optimizer_config
        if self.logs_this_step:
            self.log('lr', optimizer.param_groups[0]['lr'])
            self.log('grad_norm', gradient_norm(self.parameters()))  # before it is clipped
        if c.final_weight_decay is not None:
            mix = (1 + math.cos(math.pi * self.progress())) / 2
            decay = c.final_weight_decay + (c.weight_decay - c.final_weight_decay) * mix
            for group in optimizer.param_groups:
                if group['params'][0].ndim > 1:
                    group['weight_decay'] = decay

    @property
    def logs_this_step(self) -> bool:
        """Whether it trains and Lightning writes this step's metrics; steps count from 1."""
        if self._trainer is None or not self.training:
            return False
        written: bool = (self.global_step + 1) % max(self.trainer.log_every_n_steps, 1) == 0
        return written

    def log_health(self, embeddings: Tensor) -> None:
        """Log whether the embeddings (B, D) of the batch are alive."""
        if not self.logs_this_step:
            return
        there = embeddings.detach()[~embeddings.detach().isnan().any(dim=1)]
        if len(there) > 1:
            self.log('embedding_std', embedding_std(there))
            self.log('mean_cosine', mean_cosine(there))
        if len(there) >= FEWEST_RANKED:
            self.log('effective_rank', effective_rank(there))

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the loss of held-out chips; never used to choose a model."""
        self._log_held_out('val_loss', batch, batch_idx)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the loss of the test chips."""
        self._log_held_out('test_loss', batch, batch_idx)

    def _log_held_out(self, name: str, batch: Mapping[str, Any], batch_idx: int) -> None:
        size = len(next(v for v in batch.values() if isinstance(v, Tensor)))
        loss = self.compute_loss(batch, batch_idx)
        if loss is not None:
            self.log(name, loss, batch_size=size, sync_dist=True)

    def compute_loss(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        """The method's loss of one batch.

        None, on all ranks alike, for a batch that is left out, as there may be outside training.
        """
        raise NotImplementedError

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """One step of the method."""
        loss = self.compute_loss(batch, batch_idx)
        assert loss is not None
        self.log('train_loss', loss, prog_bar=True)
        return loss


def shard(task: PretrainTask, mesh: DeviceMesh) -> None:
    """Shard parameters, gradients and optimizer state: each block on its own, then the rest.

    Losses call methods of the parts, not their `forward`, so that the task as a whole has to gather
    what is not in a block, when its loss begins.
    """
    for module in list(task.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(task, mesh=mesh)
    register_fsdp_forward_method(task, 'compute_loss')


def as_config[T](kind: type[T], value: T | Mapping[str, Any]) -> T:
    """Take a config as its dataclass, or as the mapping that a checkpoint holds."""
    return kind(**value) if isinstance(value, Mapping) else value


def plain(value: Any) -> Any:
    """Turn dataclasses and containers of them into dicts and lists, which load without pickle."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def warmup_cosine(step: int, total: int, warmup: float, final: float) -> float:
    """Factor of the learning rate: linear from 0 to 1, then a cosine to `final`."""
    rise = max(int(total * warmup), 1)
    if step < rise:
        return (step + 1) / rise
    done = min((step - rise) / max(total - rise, 1), 1.0)
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2


def frozen_copy[M: nn.Module](module: M) -> M:
    """A copy of a module that takes no gradient."""
    from copy import deepcopy

    return deepcopy(module).requires_grad_(False)


def _end_as_after_a_batch(loop: dict[str, Any]) -> None:
    """Let a checkpoint of the end of an epoch count as one of its last batch.

    `ModelCheckpoint` saves it so by default: processed, but not completed. Lightning would go on in
    that epoch with one more batch than it has.
    """
    if not {'epoch_progress', 'epoch_loop.batch_progress'} <= loop.keys():
        return
    epoch, batch = loop['epoch_progress'], loop['epoch_loop.batch_progress']
    if batch['is_last_batch'] and epoch['current']['processed'] > epoch['current']['completed']:
        for part in ('total', 'current'):
            epoch[part]['processed'] = epoch[part]['completed']
            batch[part]['completed'] = batch[part]['processed'] - 1
