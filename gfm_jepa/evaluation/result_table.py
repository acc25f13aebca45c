"""Rows of results on disk: one a result, with all that repeats it, and the predictions beside."""

import csv
import hashlib
import io
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.index import write_whole
from ..errors import InputError

Row = dict[str, Any]

# What makes a result the same one: with --resume it is not computed again.
KEY = ('dataset', 'split_hash', 'method', 'features', 'weights_hash', 'protocol', 'label_share',
       'draw', 'image_size', 'seed', 'settings')  # fmt: skip
COLUMNS = ('dataset', 'split', 'method', 'features', 'protocol', 'label_share', 'draw', 'metric',
           'value', 'low', 'high', 'f1', 'auc', 'calibration_error', 'n_train', 'n_val', 'n_test',
           'C', 'settings', 'width', 'modality', 'bands', 'gsd', 'image_size', 'normalisation',
           'weights', 'weights_hash', 'split_hash', 'seed', 'seconds', 'versions')  # fmt: skip


class ResultTable:
    """A CSV file that is whole at any moment, and a folder of predictions beside it.

    Args:
        path: CSV; the predictions of ``rows.csv`` are in ``rows.predictions/``.
        resume: Go on with the rows that are there.

    Raises:
        InputError: If there are rows and they are not to be gone on with, or they are not ours.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.suffix != '.csv':
            raise InputError(f'Results go to a file that ends in .csv; got {path}.')
        if path.exists():
            if not resume:
                raise InputError(
                    f'{path} is there already; add --resume to go on with it, or name another file.'
                )
            self.rows = read_rows(path)
        self._done = {_key(row) for row in self.rows}

    @property
    def predictions(self) -> Path:
        """Folder of the predictions."""
        return self.path.with_suffix('.predictions')

    def has(self, row: Row) -> bool:
        """Whether a result with this row's key is there."""
        return _key(row) in self._done

    def add(self, row: Row, scores: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Write a row; probabilities (N, K) and labels of the test part first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if scores is not None and labels is not None:
            self.predictions.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, scores=scores.numpy().astype(np.float16),
                                labels=labels.numpy())  # fmt: skip
            write_whole(self._file(row), buffer.getvalue())
        self.rows.append({column: str(row.get(column, '')) for column in COLUMNS})
        self._done.add(_key(row))
        text = io.StringIO(newline='')
        writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue().encode())

    def read_predictions(self, row: Row) -> tuple[Tensor, Tensor] | None:
        """Probabilities and labels of a row, if they were kept."""
        if not self._file(row).is_file():
            return None
        with np.load(self._file(row)) as file:
            return (torch.from_numpy(file['scores'].astype(np.float32)),
                    torch.from_numpy(file['labels']))  # fmt: skip

    def name(self, row: Row) -> str:
        """A short name of a result for files: a hash of its key."""
        return hashlib.sha256('|'.join(_key(row)).encode()).hexdigest()[:12]

    def _file(self, row: Row) -> Path:
        return self.predictions / f'{self.name(row)}.npz'


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file.

    Raises:
        InputError: If it is none of ours.
    """
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file)
            rows: list[Row] = list(reader)
            found: Sequence[str] = reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f'{path} is no CSV in UTF-8 ({error}); name another file.') from error
    if tuple(found) != COLUMNS:
        raise InputError(
            f'{path} has other columns than `gfm-jepa benchmark` writes; name another file.'
        )
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise InputError(f'Row {number} of {path} is cut off, or too long; delete it.')
    return rows


def versions() -> str:
    """Versions of what a number depends on."""
    names = ('gfm-jepa', 'torch', 'torchgeo', 'timm', 'torchmetrics')
    return ' '.join(f'{name}={version(name)}' for name in names)


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(column, '')) for column in KEY)
