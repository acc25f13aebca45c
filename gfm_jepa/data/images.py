"""Image files without a place on the ground: photographs, galaxies, any folder of 8-bit RGB."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..modalities import RGB, Modality
from .eurosat import Sample, decode_rgb, with_progress

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.bmp', '.webp')
PARTS = {'train': ('train',), 'val': ('val', 'validation'), 'test': ('test',)}


class ImageFiles(Dataset[Sample]):
    """RGB image files, perhaps with labels, read at each access.

    Args:
        files: N paths.
        labels: N labels; None where there are none.
        size: Side, pixels, to which the shorter side is resized before the middle is cut out; by
            default images stay as they are.

    Attributes:
        gsd: Metres per pixel of all samples, if they say so.
    """

    gsd: float | None = None

    def __init__(
        self, files: Sequence[Path], labels: Sequence[int] | None = None, size: int | None = None
    ) -> None:
        self.files = list(files)
        self.labels = None if labels is None else torch.tensor(labels)
        self.size = size

    def __len__(self) -> int:
        """Return N."""
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Return ``rgb`` (3, H, W), 0..255, and what is known of ``label`` and ``gsd``."""
        return _sample(self.read(index), self.labels, index, self.gsd)

    def read(self, index: int) -> Tensor:
        """Decode an image: (3, H, W) uint8."""
        return read_rgb(self.files[index], None if self.size is None else (self.size, self.size))


def read_rgb(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Decode an image.

    Args:
        path: The file.
        size: Height and width, pixels, of the middle that is cut out once the image is resized to
            just cover them; by default it stays as it is.

    Returns:
        (3, H, W) uint8.

    Raises:
        InputError: If it is broken.
    """
    from PIL import Image, ImageOps

    pixels = decode_rgb(path)
    if size is not None and pixels.shape[:2] != size:
        fitted = ImageOps.fit(Image.fromarray(pixels), size[::-1], Image.Resampling.BICUBIC)
        pixels = np.array(fitted)
    return torch.from_numpy(pixels).permute(2, 0, 1)


class ImageArray(Dataset[Sample]):
    """RGB images in memory, perhaps with labels.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, or None.

    Attributes:
        gsd: Metres per pixel of all samples, if they say so.
    """

    gsd: float | None = None

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Return ``rgb`` (3, H, W), 0..255, and what is known of ``label`` and ``gsd``."""
        return _sample(self.images[index], self.labels, index, self.gsd)

    def read(self, index: int) -> Tensor:
        """Return an image: (3, H, W) uint8."""
        return self.images[index]


type Images = ImageFiles | ImageArray


def _sample(image: Tensor, labels: Tensor | None, index: int, gsd: float | None) -> Sample:
    """An image as a sample."""
    sample: Sample = {'rgb': image.float()}
    if labels is not None:
        sample['label'] = labels[index]
    if gsd is not None:
        sample['gsd'] = {'rgb': gsd}
    return sample


def in_memory(files: ImageFiles) -> ImageArray:
    """Decode all images once; they must be resized to one size."""
    assert files.size is not None
    images = torch.empty(len(files), 3, files.size, files.size, dtype=torch.uint8)
    for row, _ in enumerate(with_progress(files.files, 'Decoding images')):
        images[row] = files.read(row)
    array = ImageArray(images, files.labels)
    array.gsd = files.gsd
    return array


def image_statistics(dataset: Images, source: str, most: int = 2000) -> Modality:
    """The modality ``rgb`` with the statistics of these images, in place of Sentinel-2's.

    Args:
        dataset: Whose images, as they are trained on.
        source: What to call them; of a folder's path the name alone, since it is published.
        most: Images to read, evenly spaced.
    """
    total, squares, count = torch.zeros(3).double(), torch.zeros(3).double(), 0
    ids = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int))
    for index in ids.tolist():
        pixels = dataset.read(index).flatten(1).double()
        total += pixels.sum(dim=1)
        squares += pixels.square().sum(dim=1)
        count += pixels.shape[1]
    mean = total / count
    # One grey level at least: a channel that never changes still has a scale.
    std = (squares / count - mean.square()).clamp_min(1.0).sqrt()
    name = Path(source).resolve().name
    return Modality(
        **{
            **RGB.to_dict(),
            'mean': [round(m, 3) for m in mean.tolist()],
            'std': [round(s, 3) for s in std.tolist()],
            'source': f'{len(ids)} of {len(dataset)} training images of {name}',
        }
    )


def find_parts(root: Path, size: int) -> tuple[dict[str, ImageFiles], list[str]]:
    """Find the images of a folder, split as its own folders say.

    Args:
        root: With ``train/`` (and perhaps ``val/`` and ``test/``), or none of them; in each, a
            folder a class, or images without labels.
        size: Side of the images, pixels.

    Returns:
        The parts that are there, and the class names, none without labels. Class folders without
        parts are split 60/20/20 within each class, with seed 0, as the benchmark ``imagefolder``
        does; images without labels and parts are all for training.

    Raises:
        InputError: If there are no images, or a part has classes that train lacks.
    """
    if not root.is_dir():
        raise InputError(f'There is no folder {root}; give the one that holds the images.')
    folders = {part: f for part in PARTS if (f := part_folder(root, part))}
    if 'train' not in folders:
        folders = {'train': root}
    first = folders['train']
    if not any(images_in(d) for d in first.iterdir() if d.is_dir()):
        found = {part: images_in(folder) for part, folder in folders.items()}
        if not found['train']:
            raise InputError(f'No images in {first}: {", ".join(EXTENSIONS)}, or folders of them.')
        return {part: ImageFiles(files, None, size) for part, files in found.items() if files}, []
    classes = class_names(first)
    found = {part: class_images(folder, classes) for part, folder in folders.items()}
    if first is root:
        found = dict(zip(PARTS, split_by_class(found['train'], classes), strict=True))
    return {
        part: ImageFiles(files, labels_of(files, classes), size) for part, files in found.items()
    }, classes


def part_folder(root: Path, part: str) -> Path | None:
    """The folder of ``train``, ``val`` or ``test``, if there is one."""
    return next((root / name for name in PARTS[part] if (root / name).is_dir()), None)


def class_names(folder: Path) -> list[str]:
    """Sorted names of the class folders.

    Raises:
        InputError: If there are fewer than two.
    """
    classes = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith('.'))
    if len(classes) < 2:
        raise InputError(
            f'{folder} has {len(classes)} class folders; expected two or more, with images in each.'
        )
    return classes


def class_images(folder: Path, classes: Sequence[str]) -> list[Path]:
    """List the images of a part, class by class.

    Raises:
        InputError: If there are none, or there is a class beyond those given.
    """
    if unknown := set(class_names(folder)) - set(classes):
        raise InputError(f'{folder} has the class {min(unknown)!r}, which train lacks.')
    files = []
    for name in classes:
        if (folder / name).is_dir():
            files += images_in(folder / name)
    if not files:
        raise InputError(f'No images in the class folders of {folder}: {", ".join(EXTENSIONS)}.')
    return files


def split_by_class(files: Sequence[Path], classes: Sequence[str]) -> list[list[Path]]:
    """Split 60/20/20 within each class, seed 0.

    Raises:
        InputError: If a class has fewer than three images.
    """
    parts: list[list[Path]] = [[], [], []]
    for label, name in enumerate(classes):
        own = [f for f in files if f.parent.name == name]
        if len(own) < 3:
            raise InputError(f'Class {name!r} has {len(own)} images; a 60/20/20 split needs 3.')
        order = np.random.default_rng([0, label]).permutation(len(own))
        held = max(1, round(0.2 * len(own)))
        for part, ids in zip(parts, np.split(order, [len(own) - 2 * held, len(own) - held]),
                             strict=True):  # fmt: skip
            part += [own[i] for i in sorted(ids)]
    return parts


def labels_of(files: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """Number of each image's class: that of its folder."""
    numbers = {name: label for label, name in enumerate(classes)}
    return [numbers[f.parent.name] for f in files]


def images_in(folder: Path) -> list[Path]:
    """Sorted images that lie in a folder itself."""
    return sorted(f for f in folder.glob('*') if f.suffix.lower() in EXTENSIONS)


def read_cifar10(
    root: str | Path, download: bool = False
) -> tuple[tuple[ImageArray, ImageArray, ImageArray], list[str]]:
    """Read CIFAR-10 into memory (184 MB) with torchvision, which checks the files' sums.

    Args:
        root: Folder that holds, or will hold, ``cifar-10-batches-py/``.
        download: Fetch it if it is not there.

    Returns:
        The training part, a validation part (the last tenth of the training images, 5,000), the
        test part, and the class names.

    Raises:
        InputError: If it is not there, or damaged, and is not to be fetched or cannot be.
    """
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(root, train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        what = 'could not be fetched' if download else 'is not there, or damaged'
        raise InputError(
            f'CIFAR-10 {what} in {root} ({str(error).splitlines()[0][:120]}): expected the folder '
            f'{CIFAR10.base_folder}; unpack {CIFAR10.url} there, or let `gfm-jepa fit` fetch it '
            f'with data.download=true.'
        ) from error
    images, test = (torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous() for p in parts)
    labels, test_labels = (torch.tensor(p.targets) for p in parts)
    cut = len(images) - len(images) // 10
    return (
        ImageArray(images[:cut], labels[:cut]),
        ImageArray(images[cut:], labels[cut:]),
        ImageArray(test, test_labels),
    ), list(parts[0].classes)
