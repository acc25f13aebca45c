"""Which samples a result stands for: a hash of the split that another run can compare."""

import hashlib
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .benchmarks import Benchmark
from .few_labels import labels_of_dataset
from .images import ImageArray


def split_hash(benchmark: Benchmark) -> str:
    """Hash which samples are in train, val and test, and in which order.

    Of samples that are files, their names and the folders these lie in; else pixels or labels.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part, dataset in parts_of(benchmark).items():
        digest.update(f'{part}\n'.encode())
        files = getattr(dataset, 'files', None)
        if files is not None:
            digest.update(
                '\n'.join(f'{Path(f).parent.name}/{Path(f).name}' for f in files).encode()
            )
        elif isinstance(dataset, ImageArray):
            digest.update(dataset.images.numpy().tobytes())
        else:
            digest.update(labels_of_dataset(dataset).numpy().tobytes())
    return digest.hexdigest()[:16]


def parts_of(benchmark: Benchmark) -> dict[str, Dataset[Any]]:
    """The three parts by name."""
    return {'train': benchmark.train, 'val': benchmark.val, 'test': benchmark.test}
