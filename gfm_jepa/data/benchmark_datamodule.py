"""The training part of a benchmark to pretrain on, under ``data:`` of `gfm-jepa fit`."""

from typing import Any

from torch.utils.data import DataLoader, Dataset

from .benchmarks import Benchmark, load_benchmark
from .datamodules import PretrainDataModule
from .samplers import ResumableLoader


class BenchmarkDataModule(PretrainDataModule):
    """A benchmark by its name: pretrains on its training part only, probes on its validation part.

    Args:
        name: As `gfm_jepa.data.benchmarks.load_benchmark` takes it, such as ``eurosat-spatial``.
        root: Folder of the data.
        modalities: That of the benchmark, perhaps with statistics of its own.
        batch_size: Samples of a batch on one rank.
        num_workers: Processes that read.

    Raises:
        InputError: If the name is unknown, or data are missing or broken.
    """

    def __init__(
        self,
        name: str,
        root: str,
        modalities: list[str | dict[str, Any]] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        self.benchmark: Benchmark = load_benchmark(name, root)
        super().__init__(modalities or [self.benchmark.modality], batch_size, num_workers)

    @property
    def train_dataset(self) -> Dataset[Any]:
        """The training part."""
        return self.benchmark.train

    def train_dataloader(self) -> ResumableLoader:
        """Batches ``{modality: (B, C, H, W), 'label': (B,)}`` in raw units."""
        return self.train_loader(self.train_dataset, self.train_groups())

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation part, in order."""
        return DataLoader(self.benchmark.val, self.batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test part, in order."""
        return DataLoader(self.benchmark.test, self.batch_size, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The validation part, in order."""
        return self.val_dataloader()

    def probe_datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        """Labelled training and validation parts, for the online kNN probe."""
        return self.benchmark.train, self.benchmark.val
