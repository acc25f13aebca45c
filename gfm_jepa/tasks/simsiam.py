"""SimSiam: one view predicts the other, which takes no gradient."""

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..losses import negative_cosine
from ..models.projectors import projector
from ..photo_views import PhotoViews
from ..views import Views
from .base import EncoderConfig, ModalitySpecs, OptimizerConfig
from .views import ViewTask


class SimSiam(ViewTask):
    """Negative cosine between the prediction from one view and the projection of the other.

    Args:
        modalities: What to embed: known names, YAML paths, or mappings of `Modality` fields.
        encoder: Which encoder to train.
        optimizer: How to train it.
        views: How the two views are made.
        projection_dim: Width of the projector's three layers.
        bottleneck_dim: Hidden width of the predictor.
        predictor_rate: The predictor's learning rate, over the encoder's. A predictor that lags
            behind lets the projections fall into a few directions.
        stop_gradient: Whether the projections take no gradient; without, it collapses.

    Raises:
        InputError: If there are not exactly two views, or the predictor would not learn.

    Source: Chen & He, "Exploring Simple Siamese Representation Learning" (2021), section 3 and
        algorithm 1; the predictor's rate Tian, Chen & Ganguli, "Understanding Self-Supervised
        Learning Dynamics without Contrastive Pairs" (2021), section 3.
    Differs from the source: AdamW, a projector of 512 in place of 2048 by default, for small
        encoders, whose own batch norms see both views at once, and the predictor's rate, which is
        ten times the encoder's and falls as it does, where theirs is the same and does not fall.
    """

    def __init__(
        self,
        modalities: ModalitySpecs,
        encoder: EncoderConfig = EncoderConfig(stem='conv'),
        optimizer: OptimizerConfig = OptimizerConfig(),
        views: Views | PhotoViews = Views(),
        projection_dim: int = 512,
        bottleneck_dim: int = 128,
        predictor_rate: float = 10.0,
        stop_gradient: bool = True,
    ) -> None:
        self.projection_dim, self.bottleneck_dim = projection_dim, bottleneck_dim
        if predictor_rate <= 0:
            raise InputError(f'predictor_rate is {predictor_rate}; expected above 0.')
        self.predictor_rate, self.stop_gradient = predictor_rate, stop_gradient
        super().__init__(modalities, encoder, optimizer, views)
        if self.num_views != 2:
            raise InputError(f'SimSiam compares two views, but {self.num_views} are configured.')

    def configure_models(self) -> None:
        """Build the encoder, the projector and the predictor."""
        super().configure_models()
        width = self.projection_dim
        self.projector = projector([self.encoder.num_features, width, width, width], last_norm=True)
        self.predictor = projector([width, self.bottleneck_dim, width])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """As ever, and the predictor's apart, if it has a rate of its own."""
        if self.predictor_rate == 1:
            return super().parameter_groups()
        faster = {id(p) for p in self.predictor.parameters()}
        rates = {False: 1.0, True: self.predictor_rate}
        return [
            {**group, 'params': [p for p in group['params'] if (id(p) in faster) == predicts],
             'lr': self.optimizer_config.lr * rate}
            for group in super().parameter_groups() for predicts, rate in rates.items()
        ]  # fmt: skip

    def compare(self, embeddings: Tensor, batch_idx: int) -> Tensor:
        """Project and predict both views."""
        # View by view: these batch norms see one view at a time, as in the source.
        projections = torch.stack([self.projector(view) for view in embeddings])
        self.log_projections(projections)
        predictions = torch.stack([self.predictor(view) for view in projections])
        if self.stop_gradient:
            projections = projections.detach()
        return negative_cosine(predictions, projections)
