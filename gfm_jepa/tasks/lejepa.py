"""LeJEPA: views of one place agree, and their distribution is an isotropic Gaussian."""

from torch import Tensor, nn

from ..errors import InputError
from ..losses import SIGReg, view_invariance
from ..photo_views import PhotoViews
from ..views import Views
from .base import EncoderConfig, ModalitySpecs, OptimizerConfig
from .views import ViewTask


class LeJEPA(ViewTask):
    """``(1 - l) * invariance + l * SIGReg``: no target encoder, no stop-gradient, no predictor.

    Args:
        modalities: What to embed: known names, YAML paths, or mappings of `Modality` fields.
        encoder: Which encoder to train.
        optimizer: How to train it.
        views: How views are made.
        sigreg_weight: l in 0..1, with SIGReg as `gfm_jepa.losses.SIGReg` states it.
        num_slices: Random directions of SIGReg.
        projection_dim: Width P of the projection on which the loss acts.
        hidden_dim: Hidden width of the projector.

    Raises:
        InputError: If there is one view, l is no share, or there are no directions.

    Source: Balestriero & LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without
        the Heuristics" (2025).
    """

    def __init__(
        self,
        modalities: ModalitySpecs,
        encoder: EncoderConfig = EncoderConfig(stem='conv'),
        optimizer: OptimizerConfig = OptimizerConfig(),
        views: Views | PhotoViews = Views(),
        sigreg_weight: float = 0.02,
        num_slices: int = 256,
        projection_dim: int = 64,
        hidden_dim: int = 512,
    ) -> None:
        if not 0 <= sigreg_weight <= 1:
            raise InputError(f'sigreg_weight is {sigreg_weight}; give a share from 0 to 1.')
        if num_slices < 1:
            raise InputError(f'num_slices is {num_slices}; give 1 random direction or more.')
        self.sigreg_weight = sigreg_weight
        self.num_slices = num_slices
        self.projector_dims = (hidden_dim, projection_dim)
        super().__init__(modalities, encoder, optimizer, views)

    def configure_models(self) -> None:
        """Build the encoder and the projector."""
        super().configure_models()
        hidden, out = self.projector_dims
        self.projector = nn.Sequential(
            nn.Linear(self.encoder.num_features, hidden), nn.BatchNorm1d(hidden), nn.GELU(),
            nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.GELU(),
            nn.Linear(hidden, out),
        )  # fmt: skip

    def configure_losses(self) -> None:
        """Build SIGReg."""
        self.sigreg = SIGReg(self.num_slices)

    def compare(self, embeddings: Tensor, batch_idx: int) -> Tensor:
        """Project all views, and compare them."""
        projections = self.projector(embeddings.flatten(0, 1)).unflatten(0, (self.num_views, -1))
        self.log_projections(projections)
        invariance = view_invariance(projections, self.views.num_global)
        sigreg = self.sigreg(projections, self.generator(batch_idx, shared=True))
        if self.training:
            self.log_dict({'invariance': invariance, 'sigreg': sigreg})
        loss: Tensor = (1 - self.sigreg_weight) * invariance + self.sigreg_weight * sigreg
        return loss
