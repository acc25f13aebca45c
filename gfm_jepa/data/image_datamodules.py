"""Images without a place on the ground, under ``data:`` of `gfm-jepa fit`.

They are the modality ``rgb``. Unless the config says how many metres a pixel covers, batches carry
no ``gsd``: our encoder then counts a pixel as the modality's nominal one, which makes its positions
positions in the image, and timm's models use none.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from .datamodules import PretrainDataModule
from .images import Images, find_parts, image_statistics, in_memory, read_cifar10
from .rasters import collate
from .samplers import ResumableLoader

type ProbeDatasets = Callable[[], tuple[Dataset[Any], Dataset[Any]]]


class ImagesDataModule(PretrainDataModule):
    """Base of the data modules of RGB images; batches ``{'rgb': (B, 3, H, W), 'label': (B,)}``.

    Args:
        parts: Images by part: ``train``, and perhaps ``val`` and ``test``.
        source: What to call them.
        modalities: ``rgb`` alone: with statistics of its own, or, as the name, with those of the
            training images. The ones known under that name are Sentinel-2's.
        batch_size: Samples of a batch on one rank.
        num_workers: Processes that read.

    Raises:
        InputError: If another modality is asked for.
    """

    def __init__(
        self,
        parts: dict[str, Images],
        source: str,
        modalities: Sequence[str | dict[str, Any]],
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__(modalities, batch_size, num_workers)
        if [m.name for m in self.modalities] != ['rgb']:
            raise InputError('Images hold the modality rgb, and no other.')
        self.parts = parts
        if list(modalities) == ['rgb']:
            self.modalities = (image_statistics(parts['train'], source),)
        rgb = self.modalities[0]
        counts = ', '.join(f'{len(images)} {part}' for part, images in parts.items())
        rank_zero_info(f'{source}: {counts}; mean {rgb.mean}, std {rgb.std} ({rgb.source})')

    @property
    def train_dataset(self) -> Images:
        """The training part."""
        return self.parts['train']

    def train_dataloader(self) -> ResumableLoader:
        """Batches of the training part; no label where there is none."""
        return self.train_loader(self.train_dataset, self.train_groups(), collate_fn=collate)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The validation part, in order; none where there is none."""
        return self._in_order('val')

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The test part, in order; none where there is none."""
        return self._in_order('test')

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """As `val_dataloader`."""
        return self.val_dataloader()

    @property
    def probe_datasets(self) -> ProbeDatasets | None:
        """A function that gives labelled training and validation parts; None without labels."""
        train, val = self.parts['train'], self.parts.get('val')
        if train.labels is None or val is None:
            return None
        return lambda: (train, val)

    def _in_order(self, part: str) -> DataLoader[Any] | list[Any]:
        if part not in self.parts:
            return []
        return DataLoader(
            self.parts[part], self.batch_size, num_workers=self.num_workers, collate_fn=collate
        )


class ImageFolderDataModule(ImagesDataModule):
    """A folder of 8-bit images: folders of one class each, or images without labels.

    Args:
        root: Folder, perhaps with ``train/``, ``val/`` and ``test/`` in it. Class folders without
            these are split 60/20/20 with seed 0, as ``gfm-jepa probe --dataset imagefolder`` does.
        image_size: Side, pixels, to which the shorter side is resized before the middle is cut out.
        modalities: ``rgb``, perhaps with statistics of its own; by default those of the training
            images are computed.
        memory_limit: Most GB that decoded images may take; above it they are decoded at each
            access.
        batch_size: Samples of a batch on one rank.
        num_workers: Processes that read.
        gsd: Metres per pixel of the resized images, if they show the ground.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        modalities: Sequence[str | dict[str, Any]] = ('rgb',),
        memory_limit: float = 4.0,
        batch_size: int = 64,
        num_workers: int = 0,
        gsd: float | None = None,
    ) -> None:
        files, self.classes = find_parts(Path(root), image_size)
        for part in files.values():
            part.gsd = gsd
        super().__init__(dict(files), root, modalities, batch_size, num_workers)
        self.files, self.memory_limit = files, memory_limit

    def setup(self, stage: str) -> None:
        """Decode the images, once, if they fit."""
        wanted = ('test',) if stage == 'test' else ('train', 'val')
        needed = 3 * sum(len(f) * (f.size or 0) ** 2 for f in self.files.values())
        if needed > self.memory_limit * 1e9:
            return
        for part in wanted:
            if part in self.files and self.parts[part] is self.files[part]:
                self.parts[part] = in_memory(self.files[part])


class CIFAR10DataModule(ImagesDataModule):
    """CIFAR-10: 45,000 images of 32 pixels to train on, 5,000 to validate, 10,000 to test.

    Args:
        root: Folder that holds ``cifar-10-batches-py/``.
        download: Fetch it (170 MB) if it is not there.
        modalities: ``rgb``, perhaps with statistics of its own; by default those of the training
            images are computed.
        batch_size: Samples of a batch on one rank.
        num_workers: Processes that read; the images are in memory.
    """

    def __init__(
        self,
        root: str,
        download: bool = False,
        modalities: Sequence[str | dict[str, Any]] = ('rgb',),
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        (train, val, test), self.classes = read_cifar10(root, download)
        parts: dict[str, Images] = {'train': train, 'val': val, 'test': test}
        super().__init__(parts, 'CIFAR-10', modalities, batch_size, num_workers)
