"""What tasks with labels share: a head on an encoder that is frozen, or learns layer by layer."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchmetrics import MetricCollection

from ..errors import InputError
from .base import PretrainTask
from .layer_decay import parameter_groups


class SupervisedTask(PretrainTask):
    """Base of the tasks with labels.

    A subclass has a `head_config` with `frozen` and `layer_decay`, calls `put_head` at the end of
    its `configure_models` and `put_metrics` in `configure_metrics`, and writes `evaluate`.
    """

    keeps_modalities = False
    head_config: Any
    head: nn.Module

    def configure_model(self) -> None:
        """Refuse to be sharded: only a loss gathers the shards, and metrics need them too.

        Raises:
            InputError: Under Lightning's ModelParallelStrategy.
        """
        if self.device_mesh is not None:
            raise InputError(
                f'{type(self).__name__} came with ModelParallelStrategy, which is for pretraining; '
                f'take trainer.strategy=ddp.'
            )

    def put_head(self, head: nn.Module) -> None:
        """Set the head, and freeze the encoder if it is to stay as it is."""
        self.head = head
        if self.head_config.frozen:
            self.freeze(self.encoder)
        self.train()

    def put_metrics(self, metrics: dict[str, Any]) -> None:
        """Set a copy of the metrics for each part, under the part's name."""
        self.metrics = nn.ModuleDict(
            {p: MetricCollection(metrics).clone(prefix=f'{p}_') for p in ('val', 'test')}
        )

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log loss and metrics."""
        self.evaluate('val', batch, batch_idx)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log loss and metrics."""
        self.evaluate('test', batch, batch_idx)

    def evaluate(self, part: str, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log loss and metrics of a batch of ``val`` or ``test``."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All that learns, its rate by layer."""
        c = self.optimizer_config
        return parameter_groups(
            self.encoder, self.head.parameters(), c.lr, c.weight_decay, self.head_config.layer_decay
        )
