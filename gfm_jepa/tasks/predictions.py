"""What `gfm-jepa predict` writes: embeddings as rasters, which our reader reads like any other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from affine import Affine
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from ..data.rasters import Rasters
from ..errors import InputError
from .pixelwise import PixelTask
from .supervised import SupervisedTask


class WriteEmbeddings(BasePredictionWriter):
    """Write the embedding of each chip as a pixel of a zarr array (D, rows, columns) per place.

    Each array carries ``crs``, ``transform`` and ``bands`` in its attributes; a pixel is as wide as
    a chip, and NaN where there was none. The folder gets its name when all is written.

    Args:
        output: Folder to write, which ends in .zarr.

    Raises:
        InputError: If the output exists, the task has a head, or the data is not of rasters.
    """

    def __init__(self, output: str) -> None:
        super().__init__('batch')
        self.output = Path(output)
        if self.output.suffix != '.zarr':
            raise InputError(f'{output} should be a folder whose name ends in .zarr.')

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the arrays."""
        if isinstance(pl_module, SupervisedTask):
            verb = 'segment' if isinstance(pl_module, PixelTask) else 'classify'
            raise InputError(
                f'{type(pl_module).__name__} answers with its head, and what is written here are '
                f'embeddings; give its checkpoint to `gfm-jepa {verb}`, or to `gfm-jepa embed`.'
            )
        loader: Any = trainer.predict_dataloaders
        if not isinstance(loader.dataset, Rasters):
            raise InputError(
                f'Embeddings of {type(loader.dataset).__name__} have no place on the ground; '
                f'predict on rasters or an index.'
            )
        if self.output.exists():
            raise InputError(f'{self.output} is there already; delete it, or name another output.')
        if trainer.world_size > 1:
            raise InputError('WriteEmbeddings runs in one process; set trainer.devices=1.')
        self.rasters = loader.dataset
        dim = int(pl_module.encoder.num_features)  # type: ignore[union-attr,arg-type]
        root = zarr.create_group(self._partial, overwrite=True)
        chip = self.rasters.chip_size
        self.arrays = []
        for number, place in enumerate(self.rasters.places):
            first, last = place.corners.min(axis=0), place.corners.max(axis=0)
            if ((place.corners - first) % chip).any():
                raise InputError(
                    f'Chips of {place.layers[0].files[0].path} overlap, and each is to be a pixel; '
                    f'index them anew, with a stride of {chip}, or take `gfm-jepa embed`.'
                )
            shape = (dim, *((last - first) // chip + 1).tolist())
            grid = place.layers[0].files[0].grid
            array = root.create_array(
                f'place{number:05d}', shape=shape,
                chunks=(dim, min(shape[1], 64), min(shape[2], 64)), dtype='float32',
                fill_value=float('nan'), dimension_names=['band', 'y', 'x'],
            )  # fmt: skip
            corner = Affine.translation(int(first[1]), int(first[0])) @ Affine.scale(chip)
            array.attrs.update(
                crs=grid.to_dict()['crs'],
                transform=list(grid.transform @ corner)[:6],
                bands=[f'd{i}' for i in range(dim)],
                files=[f.path for layer in place.layers for f in layer.files],
            )
            self.arrays.append(np.full(shape, np.nan, dtype=np.float32))

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Tensor,
        batch_indices: Sequence[int] | None, batch: Any, batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        """Put the embeddings of a batch into their pixels."""
        for index, embedding in zip(batch_indices or (), prediction.cpu().numpy(), strict=True):
            number = int(np.searchsorted(self.rasters.ends, index, side='right'))
            place, at = self.rasters.locate(index)
            row, col = (place.corners[at] - place.corners.min(axis=0)) // self.rasters.chip_size
            self.arrays[number][:, row, col] = embedding

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, and give the folder its name."""
        root: Any = zarr.open_group(self._partial, mode='r+')
        for number, values in enumerate(self.arrays):
            root[f'place{number:05d}'][:] = values
        self._partial.rename(self.output)

    @property
    def _partial(self) -> Path:
        return self.output.with_name(self.output.name + '.partial')
