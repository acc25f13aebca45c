"""Watching a run: is it alive, and does it separate classes yet?"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from ..data.datamodules import PretrainDataModule
from ..data.rasters import collate
from ..errors import InputError
from ..metrics import gradient_norm, knn_predict


class CollapseGuard(Callback):
    """Stop a run whose embeddings, or the projections that its loss compares, have collapsed.

    Each measure is judged by its mean over the last checks, since single batches are noisy. On
    EuroSAT within an epoch, LeJEPA without SIGReg came to a projection std of 0.004 (0.9 with it),
    and SimSiam without stop-gradient to a projection rank of 1.8 (20 with it), while the
    embeddings before the projector's batch norms still varied (docs/methods.md).

    Args:
        min_std: Lowest embedding std (1 = isotropic, 0 = collapsed). A mean common to all, which
            LeJEPA and VICReg leave free, lowers it without harm: healthy runs were at 0.018.
        min_rank: Lowest effective rank of the embeddings.
        min_projection_std: Lowest std of the projections, not normalised; SIGReg, VICReg and a
            batch norm at the end pull it to 1.
        min_projection_rank: Lowest effective rank of the projections, which are judged where a
            process has eight samples or more.
        checks: Checks in the mean; one comes with every logged step.
        warmup_steps: Optimizer steps before the first check.
    """

    def __init__(
        self,
        min_std: float = 0.005,
        min_rank: float = 1.5,
        min_projection_std: float = 0.1,
        min_projection_rank: float = 2.5,
        checks: int = 5,
        warmup_steps: int = 20,
    ) -> None:
        self.lowest = {
            'embedding_std': min_std, 'effective_rank': min_rank,
            'projection_std': min_projection_std, 'projection_rank': min_projection_rank,
        }  # fmt: skip
        self.checks = checks
        self.warmup_steps = warmup_steps
        self.seen: dict[str, list[float]] = {}
        self.checked_step = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check what the task has logged."""
        step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it late
        logged = every and step % every == 0
        if step < self.warmup_steps or not logged or step == self.checked_step:
            return
        self.checked_step = step
        told = []
        for name in self.lowest.keys() & trainer.callback_metrics.keys():
            value = float(trainer.callback_metrics[name])
            self.seen[name] = [*self.seen.get(name, []), value][-self.checks :]
            mean = sum(self.seen[name]) / self.checks
            if len(self.seen[name]) == self.checks and mean < self.lowest[name]:
                told.append(f'{name} {mean:.4f} (lowest allowed {self.lowest[name]})')
        # One rank that stops alone would leave the others waiting for it.
        if trainer.strategy.reduce_boolean_decision(bool(told), all=False):
            trainer.should_stop = True
            raise InputError(
                f'The representation has collapsed at step {step}: '
                f'{" and ".join(sorted(told)) or "on another rank"}, mean of {self.checks} checks; '
                f'raise the weight of the regulariser, or lower the learning rate.'
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to judge as an unbroken one would."""
        return {'seen': self.seen, 'checked_step': self.checked_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on judging."""
        self.seen = dict(state_dict.get('seen', {}))  # an older guard counted instead
        self.checked_step = state_dict['checked_step']


_LARGEST_VARIANCE = 1e12  # of a batch norm; of rasters in standard deviations it is some hundred


class NaNGuard(Callback):
    """Stop a run at a loss or gradient that is not finite, before it reaches the weights.

    Nor may batch norms count a value that is no measurement, such as a float's largest where
    nothing says nodata: the loss stays finite, but what they average is lost for all later chips.

    The message names the files of the samples whose values are infinite or nearly so; if none are,
    those of the whole batch. On several ranks all stop together.

    Args:
        max_names: Samples to name; the rest is counted.
    """

    def __init__(self, max_names: int = 10) -> None:
        self.max_names = max_names
        self.batch_idx = 0
        self.losses: dict[int, torch.Tensor] = {}  # of the batches that make up one step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember which batch it is."""
        self.batch_idx = batch_idx

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor
    ) -> None:
        """Remember its loss."""
        self.losses[self.batch_idx] = loss.detach()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look, once a step: one wait for the device."""
        norm = gradient_norm(pl_module.parameters())
        # With float16, a scaler skips the steps whose scaled gradients overflow: let it.
        scaled = getattr(trainer.precision_plugin, 'scaler', None) is not None
        checked = [*self.losses.values(), *([] if scaled else [norm])]
        variances = [
            buffer.detach().max().float() / _LARGEST_VARIANCE
            for name, buffer in pl_module.named_buffers() if name.endswith('running_var')
        ]  # fmt: skip
        sound = [c.float().isfinite() for c in checked] + [v < 1 for v in variances]
        bad = not bool(torch.stack(sound).all())
        if trainer.strategy.reduce_boolean_decision(bad, all=False):
            # The gradient is of all ranks by now, the losses are this one's.
            lost = any(not bool(loss.isfinite()) for loss in self.losses.values())
            if trainer.strategy.reduce_boolean_decision(lost, all=False) and not lost:
                raise InputError(
                    f'A loss on another rank is not finite at step {trainer.global_step}; its '
                    f'message names the files.'
                )
            raise InputError(self._explain(trainer, float(norm)))
        self.losses = {}

    def _explain(self, trainer: Trainer, norm: float) -> str:
        """The sentence."""
        bad = [i for i, loss in self.losses.items() if not loss.isfinite()] or list(self.losses)
        names: list[str] = []
        huge: list[str] = []
        if sources := getattr(trainer.train_dataloader, 'sources', None):
            for i in bad:
                some = sources(i)
                names, huge = names + some[0], huge + some[1]
        told = list(dict.fromkeys(huge or names))
        more = f' and {len(told) - self.max_names} more' if len(told) > self.max_names else ''
        what = 'its values are infinite or nearly so in' if huge else 'it was read from'
        do = 'mend or leave out those' if huge else 'look at those, or lower the learning rate'
        return (
            f'Loss {float(self.losses[bad[0]]):g} with a gradient norm of {norm:g} at step '
            f'{trainer.global_step}, epoch {trainer.current_epoch}, batch '
            f'{", ".join(map(str, bad))}, rank {trainer.global_rank}, where both should be finite, '
            f'and the variances of batch norms below {_LARGEST_VARIANCE:g}; {what} '
            f'{"; ".join(told[: self.max_names])}{more}: {do}, and go on from the last '
            f'checkpoint, which is sound.'
        )


class OnlineKNN(Callback):
    """Log the kNN accuracy of the frozen encoder on labelled chips while it trains.

    Labels come from the data module's ``probe_datasets()``: a training and a validation part, of
    which at most `num_samples` each are used, evenly spaced. A data module without labels is left
    alone. This metric, never the loss, should choose a model.

    Args:
        every_n_steps: Optimizer steps between two measurements; the last step counts too.
        num_samples: Chips of each part.
        k: Neighbours that vote.
        batch_size: Chips embedded at once.
    """

    def __init__(
        self, every_n_steps: int = 500, num_samples: int = 2000, k: int = 5, batch_size: int = 256
    ) -> None:
        self.every_n_steps = every_n_steps
        self.num_samples = num_samples
        self.k = k
        self.batch_size = batch_size
        self.measured_step = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every so many steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the end."""
        if trainer.global_step:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Embed both parts and log the accuracy."""
        source = getattr(getattr(trainer, 'datamodule', None), 'probe_datasets', None)
        if self.measured_step == trainer.global_step or source is None:
            return
        self.measured_step = trainer.global_step
        train, val = source()
        if torch.as_tensor(train[0]['label']).ndim:
            return  # several classes at once: neighbours have no one vote
        train_embeddings, train_labels = self._embed(pl_module, train)
        embeddings, labels = self._embed(pl_module, val)
        predicted = knn_predict(train_embeddings, train_labels, embeddings, self.k)
        accuracy = (predicted == labels).float().mean()
        for logger in trainer.loggers:
            logger.log_metrics({f'val_knn{self.k}': float(accuracy)}, step=trainer.global_step)
        trainer.callback_metrics[f'val_knn{self.k}'] = accuracy

    @torch.inference_mode()
    def _embed(
        self, pl_module: LightningModule, dataset: Dataset[Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings and labels of evenly spaced samples."""
        total = len(dataset)  # type: ignore[arg-type]
        ids = torch.linspace(0, total - 1, min(self.num_samples, total)).long().tolist()
        chosen = torch.utils.data.Subset(dataset, ids)
        loader = DataLoader(chosen, self.batch_size, collate_fn=_with_labels)
        was_training = pl_module.training
        pl_module.eval()
        embeddings, labels = [], []
        for batch in loader:
            labels.append(batch.pop('label'))
            moved = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
            datamodule: Any = getattr(pl_module.trainer, 'datamodule', None)
            if isinstance(datamodule, PretrainDataModule):  # may tell what a pixel covers
                moved = datamodule.on_after_batch_transfer(moved, 0)
            embeddings.append(pl_module(moved).cpu())
        pl_module.train(was_training)
        return torch.cat(embeddings), torch.cat(labels)


def _with_labels(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch and its labels (B,), which may be plain numbers."""
    labels = torch.stack([torch.as_tensor(sample['label']) for sample in samples])
    return {**collate(samples), 'label': labels}
