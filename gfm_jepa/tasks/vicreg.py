"""VICReg: views of one place agree, every direction varies, and no two say the same."""

from torch import Tensor

from ..errors import InputError
from ..losses import VICReg as VICRegLoss
from ..models.projectors import projector
from ..photo_views import PhotoViews
from ..views import Views
from .base import EncoderConfig, ModalitySpecs, OptimizerConfig
from .views import ViewTask


class VICReg(ViewTask):
    """Invariance, variance and covariance of the expanded embeddings of two or more views.

    Args:
        modalities: What to embed: known names, YAML paths, or mappings of `Modality` fields.
        encoder: Which encoder to train.
        optimizer: How to train it.
        views: How views are made.
        weights: Of invariance, variance and covariance.
        expander_dims: Width of each of the expander's layers.

    Raises:
        InputError: If there is one view, or a weight is negative.

    Source: Bardes, Ponce & LeCun, "VICReg" (2022), section 4 and algorithm 1.
    Differs from the source: an expander of 512 in place of 8192, for small encoders, and all views
        of a batch at once in batch norms.
    """

    def __init__(
        self,
        modalities: ModalitySpecs,
        encoder: EncoderConfig = EncoderConfig(stem='conv'),
        optimizer: OptimizerConfig = OptimizerConfig(),
        views: Views | PhotoViews = Views(),
        weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
        expander_dims: tuple[int, ...] = (512, 512, 512),
    ) -> None:
        if min(weights) < 0:
            raise InputError(f'weights is {list(weights)}; give three of 0 or more.')
        self.weights = weights
        self.expander_dims = expander_dims
        super().__init__(modalities, encoder, optimizer, views)

    def configure_models(self) -> None:
        """Build the encoder and the expander."""
        super().configure_models()
        self.projector = projector([self.encoder.num_features, *self.expander_dims])

    def configure_losses(self) -> None:
        """Build the loss."""
        self.criterion = VICRegLoss(*self.weights)

    def compare(self, embeddings: Tensor, batch_idx: int) -> Tensor:
        """Expand the views, and compare them."""
        projections = self.projector(embeddings.flatten(0, 1)).unflatten(0, (self.num_views, -1))
        self.log_projections(projections)
        invariance, variance, covariance = self.criterion(projections)
        if self.training:
            self.log_dict(
                {'invariance': invariance, 'variance': variance, 'covariance': covariance}
            )
        loss: Tensor = invariance + variance + covariance
        return loss
