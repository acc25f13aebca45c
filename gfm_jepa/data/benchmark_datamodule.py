"""A benchmark under ``data:`` of `gfm-jepa fit`: what labels are learned from."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset

from ..errors import InputError
from ..modalities import MODALITIES
from .benchmarks import Benchmark, load_benchmark
from .datamodules import PretrainDataModule
from .few_labels import labels_of_dataset, stratified
from .resized import resize
from .samplers import ResumableLoader


class BenchmarkDataModule(PretrainDataModule):
    """Any benchmark that `load_benchmark` knows, in its own train, val and test parts.

    Args:
        dataset: Its name, such as ``eurosat-rgb-spatial``; or a `Benchmark` that is open already.
        root: Folder of the data.
        label_share: Share of the labels of train to learn from, 0..1, equal in all classes.
        draw: Which draw of these.
        batch_size: Samples of a batch on one rank.
        num_workers: Processes that read.
        image_size: Side, pixels, to which chips are resampled; their own by default. A task that
            learned from crops, which it saw enlarged, is the better tested with larger chips.

    Raises:
        InputError: If there is no such benchmark, its data are missing, or it has no class a chip.
    """

    def __init__(
        self,
        dataset: str | Benchmark,
        root: str = '.',
        label_share: float = 1.0,
        draw: int = 0,
        batch_size: int = 64,
        num_workers: int = 0,
        image_size: int | None = None,
    ) -> None:
        benchmark = load_benchmark(dataset, root) if isinstance(dataset, str) else dataset
        if benchmark.target != 'label':
            raise InputError(
                f'{benchmark.name} has a class for every pixel, not for every chip; take '
                f'`gfm-jepa benchmark`, or SemanticSegmentation on RastersDataModule.'
            )
        if image_size is not None:
            benchmark = resize(benchmark, image_size)
        super().__init__([MODALITIES[benchmark.modality].to_dict()], batch_size, num_workers)
        self.benchmark = benchmark
        self.train_dataset: Dataset[Any] = benchmark.train
        if label_share != 1.0:
            ids = stratified(labels_of_dataset(benchmark.train), label_share, draw)
            self.train_dataset = Subset(benchmark.train, ids.tolist())
        if len(self.train_dataset) < batch_size:  # type: ignore[arg-type]  # it has a length
            raise InputError(
                f'The train part of {benchmark.name} has {len(self.train_dataset)} samples, fewer '  # type: ignore[arg-type]
                f'than one batch of {batch_size}; lower batch_size.'
            )

    @property
    def class_names(self) -> list[str]:
        """Names by label."""
        return list(self.benchmark.classes)

    @property
    def gsd(self) -> Mapping[str, float]:
        """As the benchmark says, if it does."""
        known = self.benchmark.gsd
        return {} if known is None else {self.benchmark.modality: known}

    def train_dataloader(self) -> ResumableLoader:
        """Batches ``{modality: (B, C, H, W), 'label': (B,)}`` in raw units."""
        return self.train_loader(self.train_dataset, self.train_groups())

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation part, in order."""
        return self._in_order(self.benchmark.val)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test part, in order."""
        return self._in_order(self.benchmark.test)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test part, in order."""
        return self.test_dataloader()

    def probe_datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        """Labelled training and validation parts, for the online kNN probe."""
        return self.train_dataset, self.benchmark.val

    def _in_order(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size=4 * self.batch_size, num_workers=self.num_workers)
