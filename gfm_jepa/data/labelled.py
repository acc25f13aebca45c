"""What a labelled benchmark is."""

from dataclasses import dataclass

from torch.utils.data import Dataset

from .eurosat import Sample


@dataclass(frozen=True)
class Benchmark:
    """A labelled dataset in three parts.

    Attributes:
        name: As in `load_benchmark`.
        split: Which split lists: ``spatial``, ``random0``, ``official``, ...
        modality: Key of the rasters in a sample, such as ``rgb``.
        gsd: Ground sampling distance, metres per pixel; None if the files do not tell.
        train: Of samples {modality: (C, H, W) float32 in raw units, 'label': int64 scalar}.
        val: Likewise.
        test: Likewise.
        classes: Names by label.
        multilabel: Whether a sample may have several classes; ``label`` is (K,) of 0 and 1 then.
        bands: Of the modality's, those that are there, if some are not: they are NaN.
        others: Other modalities in a sample.
        target: ``label``; or ``pixels`` or ``change``, whose samples hold ``mask`` (H, W), int64,
            -1 where not labelled, in place of ``label``; those of ``change`` two dates of rasters
            (2, C, H, W).
        resized_from: Height and width, pixels, that the chips had before they were resampled; None
            if they are as their files have them.
    """

    name: str
    split: str
    modality: str
    gsd: float | None
    train: Dataset[Sample]
    val: Dataset[Sample]
    test: Dataset[Sample]
    classes: tuple[str, ...]
    multilabel: bool = False
    bands: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    target: str = 'label'
    resized_from: tuple[int, int] | None = None
