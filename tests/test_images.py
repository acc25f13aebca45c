"""Image folders and CIFAR-10, made up."""

import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import calculate_md5

from gfm_jepa import InputError
from gfm_jepa.data import CIFAR10DataModule, ImageFolderDataModule
from gfm_jepa.data.benchmarks import load_benchmark
from gfm_jepa.data.images import ImageArray, ImageFiles


def write_image(path, size=(40, 30), colour=100, mode='RGB'):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(str(path))) % 2**32)
    pixels = rng.integers(colour - 20, colour + 20, (size[1], size[0], 3))
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)
    return path


@pytest.fixture
def classes(tmp_path):
    """Two classes of five images of different sizes each."""
    for i in range(5):
        write_image(tmp_path / f'data/cat/{i}.png', (40 + i, 30), 60)
        write_image(tmp_path / f'data/dog/{i}.png', (30, 50), 200, 'L' if i else 'RGB')
    return tmp_path / 'data'


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10's own files, of two images a batch, and their sums."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return calculate_md5(folder / name)

    def batch(name, count):
        content = {'data': rng.integers(0, 256, (count, 3072), dtype=np.uint8),
                   'labels': [i % 10 for i in range(count)]}  # fmt: skip
        return [name, write(name, content)]

    train = [batch(f'data_batch_{i}', 20) for i in range(1, 6)]
    monkeypatch.setattr(CIFAR10, 'train_list', train)
    monkeypatch.setattr(CIFAR10, 'test_list', [batch('test_batch', 10)])
    meta = {**CIFAR10.meta, 'md5': write('batches.meta', {'label_names': list('abcdefghij')})}
    monkeypatch.setattr(CIFAR10, 'meta', meta)
    return tmp_path


def test_class_folders_are_split_as_the_benchmark_does(classes, tmp_path):
    data = ImageFolderDataModule(str(classes), 16, batch_size=3)
    assert {k: len(v) for k, v in data.parts.items()} == {'train': 6, 'val': 2, 'test': 2}
    for i in range(5):  # the benchmark wants one size
        write_image(tmp_path / f'even/cat/{i}.png')
        write_image(tmp_path / f'even/dog/{i}.png')
    benchmark = load_benchmark('imagefolder', tmp_path / 'even')
    ours = ImageFolderDataModule(str(tmp_path / 'even'), 16)
    assert ours.parts['train'].files == benchmark.train.files
    data.setup('fit')
    assert isinstance(data.parts['train'], ImageArray)
    assert isinstance(data.parts['test'], ImageFiles)  # not asked for yet
    batch = next(iter(data.train_dataloader()))
    assert batch['rgb'].shape == (3, 3, 16, 16) and batch['rgb'].dtype == torch.float32
    assert batch.keys() == {'rgb', 'label'} and batch['rgb'].max() > 30
    _, val = data.probe_datasets()
    assert sorted(s['label'].item() for s in val) == [0, 1]
    bright = [s['rgb'].mean().item() for s in val]
    assert bright[0] < 100 < bright[1]


def test_images_of_the_ground_say_their_gsd(classes):
    data = ImageFolderDataModule(str(classes), 16, batch_size=3, gsd=0.6)
    data.setup('fit')
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))):
        assert batch['gsd'] == {'rgb': 0.6} and batch['rgb'].ndim == 4


def test_images_are_resized_whole_and_cut_in_the_middle(tmp_path):
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 250
    Image.fromarray(pixels).save(tmp_path / 'wide.png')
    image = ImageFiles([tmp_path / 'wide.png'], size=10)[0]['rgb']
    assert image.shape == (3, 10, 10) and image[:, :, 2:8].min() > 240


def test_what_does_not_fit_is_decoded_at_each_access(classes):
    small = ImageFolderDataModule(str(classes), 16, memory_limit=1e-9)
    large = ImageFolderDataModule(str(classes), 16)
    for data in (small, large):
        data.setup('fit')
    assert isinstance(small.parts['train'], ImageFiles)
    for a, b in zip(small.parts['train'], large.parts['train'], strict=True):
        assert torch.equal(a['rgb'], b['rgb']) and a['label'] == b['label']


def test_statistics_are_those_of_the_training_images_unless_given(classes, caplog):
    data = ImageFolderDataModule(str(classes), 16)
    images = torch.stack([s['rgb'] for s in data.parts['train']])
    rgb = data.modality_specs[0]
    assert rgb['mean'] == pytest.approx(images.mean((0, 2, 3)).tolist(), abs=1e-2)
    assert rgb['std'] == pytest.approx(images.std((0, 2, 3)).tolist(), rel=1e-2)
    assert rgb['source'] == f'6 of 6 training images of {classes.name}'  # no path of a machine
    given = {'name': 'rgb', 'mean': [1.0, 2.0, 3.0], 'std': [4.0, 5.0, 6.0]}
    data = ImageFolderDataModule(str(classes), 16, [given])
    assert data.modality_specs[0]['mean'] == [1.0, 2.0, 3.0]


def test_images_without_labels_are_all_for_training(tmp_path):
    for i in range(4):
        write_image(tmp_path / f'galaxies/{i}.jpg')
    data = ImageFolderDataModule(str(tmp_path / 'galaxies'), 16, batch_size=2)
    data.setup('fit')
    assert next(iter(data.train_dataloader())).keys() == {'rgb'}
    assert data.probe_datasets is None and data.val_dataloader() == []
    write_image(tmp_path / 'parts/train/0.jpg')
    write_image(tmp_path / 'parts/validation/1.jpg')
    data = ImageFolderDataModule(str(tmp_path / 'parts'), 16)
    assert {k: len(v) for k, v in data.parts.items()} == {'train': 1, 'val': 1}
    assert len(list(data.val_dataloader())) == 1


def test_own_parts_are_kept(tmp_path):
    for part, count in (('train', 3), ('val', 1), ('test', 2)):
        for i in range(count):
            write_image(tmp_path / f'{part}/a/{i}.png')
            write_image(tmp_path / f'{part}/b/{i}.png')
    data = ImageFolderDataModule(str(tmp_path), 16)
    assert {k: len(v) for k, v in data.parts.items()} == {'train': 6, 'val': 2, 'test': 4}
    write_image(tmp_path / 'val/c/0.png')
    with pytest.raises(InputError, match="the class 'c', which train lacks"):
        ImageFolderDataModule(str(tmp_path), 16)


def test_an_epoch_goes_on_where_it_was_left(classes):
    seed_everything(0, verbose=False)
    whole = ImageFolderDataModule(str(classes), 16, batch_size=2).train_dataloader()
    expected = [b['rgb'] for b in whole]
    first = ImageFolderDataModule(str(classes), 16, batch_size=2).train_dataloader()
    next(iter(first))
    again = ImageFolderDataModule(str(classes), 16, batch_size=2).train_dataloader()
    again.load_state_dict(first.state_dict())
    got = [b['rgb'] for b in again]
    assert len(got) == 2 and all(map(torch.equal, got, expected[1:]))


def test_wrong_folders_are_explained(tmp_path, classes):
    with pytest.raises(InputError, match='There is no folder nowhere'):
        ImageFolderDataModule('nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='No images in'):
        ImageFolderDataModule(str(tmp_path / 'empty'))
    write_image(tmp_path / 'one/cat/0.png')
    with pytest.raises(InputError, match='has 1 class folders; expected two or more'):
        ImageFolderDataModule(str(tmp_path / 'one'))
    with pytest.raises(InputError, match='Images hold the modality rgb'):
        ImageFolderDataModule(str(classes), 16, ['s1'])
    deep = ImageFiles([tmp_path / 'deep.png'])
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(deep.files[0])
    with pytest.raises(InputError, match=r'deep\.png has pixel type I;16.* convert it to 8 bits'):
        deep.read(0)


def test_cifar10_is_read_in_its_own_layout(cifar):
    data = CIFAR10DataModule(str(cifar), batch_size=4)
    assert {k: len(v) for k, v in data.parts.items()} == {'train': 90, 'val': 10, 'test': 10}
    batch = next(iter(data.train_dataloader()))
    assert batch['rgb'].shape == (4, 3, 32, 32) and batch['rgb'].max() > 200
    raw = pickle.loads((cifar / CIFAR10.base_folder / 'test_batch').read_bytes())
    sample = data.parts['test'][3]
    assert sample['label'] == 3
    assert sample['rgb'].flatten().tolist() == raw['data'][3].tolist()
    benchmark = load_benchmark('cifar10', cifar)
    assert len(benchmark.val) == 10 and benchmark.classes == tuple('abcdefghij')


def test_cifar10_that_is_not_there_is_explained(cifar, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r'CIFAR-10 is not there, or damaged in .*download=true'):
        CIFAR10DataModule(str(tmp_path / 'nowhere'))

    def offline(*_):
        raise OSError('no network')

    monkeypatch.setattr(CIFAR10, 'download', offline)
    with pytest.raises(InputError, match=r'could not be fetched in .* \(no network\)'):
        CIFAR10DataModule(str(tmp_path), download=True)
    (cifar / CIFAR10.base_folder / 'test_batch').write_bytes(b'x')
    with pytest.raises(InputError, match='damaged'):
        CIFAR10DataModule(str(cifar))
