"""Rasters and labels on the same ground, through torchgeo's own command line."""

import os

import numpy as np
import pytest
import torch
from small_weights import make_bundle
from torchgeo.main import main as torchgeo_main

from gfm_jepa import InputError, from_pretrained
from gfm_jepa.torchgeo import LabelledRastersDataModule

CONFIG = """
model:
  class_path: torchgeo.tasks.SemanticSegmentation
  init_args:
    model: unet
    backbone: tu-gfm_jepa_nano_pyramid
    weights: true
    in_channels: 12
    num_classes: 3
    ignore_index: 255
    freeze_backbone: true
data:
  class_path: gfm_jepa.torchgeo.LabelledRastersDataModule
  init_args: {train_paths: [ROOT/a], val_paths: [ROOT/b], batch_size: 4}
trainer:
  logger: false
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: ROOT/out, save_last: true}
"""


@pytest.fixture
def places(tmp_path, write_raster):
    """Two places; a corner of the first has neither reflectance nor a label."""
    bands = [f'B{i:02d}' for i in range(1, 9)] + ['B8A', 'B09', 'B11', 'B12']
    for number, name in enumerate('ab'):
        origin = (500000.0 + 20000.0 * number, 5000000.0)
        labels = np.random.default_rng(number).integers(0, 3, (1, 128, 128))
        values = 500 + 1000 * labels.repeat(12, axis=0)
        if name == 'a':
            labels[:, :32, :32], values[:, :32, :32] = 255, 0
        write_raster(tmp_path / name / 's2_l2a.tif', origin=origin, values=values, nodata=0,
                     names=bands)  # fmt: skip
        write_raster(tmp_path / name / 'lulc.tif', origin=origin, values=labels, nodata=255,
                     dtype='uint8')  # fmt: skip
    return tmp_path


def test_chips_have_an_image_in_raw_units_and_a_mask_on_the_same_ground(places):
    data = LabelledRastersDataModule([f'{places}/a'], [f'{places}/b'])
    data.setup('fit')
    data.setup('test')
    assert len(data.train_dataset) == 9 and len(data.val_dataset) == len(data.test_dataset) == 4
    for chip in (data.train_dataset[i] for i in range(9)):
        image, mask = chip['image'], chip['mask']
        assert image.shape == (12, 64, 64) and mask.shape == (64, 64) and mask.dtype == torch.long
        assert torch.equal(image.isnan().all(dim=0), mask == 255)
        there = mask != 255
        assert torch.equal(image[3][there], 500.0 + 1000 * mask[there])
    assert sum(
        bool((c['mask'] == 255).any()) for c in map(data.train_dataset.__getitem__, range(9))
    )


def test_a_split_without_paths_and_ground_without_labels_are_told(places):
    with pytest.raises(InputError, match=r'no val rasters; set data\.val_paths'):
        LabelledRastersDataModule([f'{places}/a'], []).setup('fit')
    (places / 'a/lulc.tif').unlink()
    with pytest.raises(InputError, match='has both s2_l2a and lulc'):
        LabelledRastersDataModule([f'{places}/a'], [f'{places}/b']).setup('fit')


@pytest.mark.filterwarnings('ignore')  # of Lightning and its parser among themselves
def test_torchgeos_command_line_trains_and_tests_a_decoder(places, monkeypatch, capsys):
    make_bundle(places, monkeypatch, 'conv')
    monkeypatch.setattr(os, 'environ', dict(os.environ))  # torchgeo sets what GDAL reads
    config = places / 'config.yaml'
    config.write_text(CONFIG.replace('ROOT', str(places)))
    monkeypatch.chdir(places)
    torchgeo_main(['fit', '--config', str(config)])
    last = places / 'out/last.ckpt'
    torchgeo_main(['test', '--config', str(config), '--ckpt_path', str(last)])
    assert 'test_AverageJaccardIndex' in capsys.readouterr().out
    state = torch.load(last, weights_only=False)['state_dict']
    stem = {k.rpartition('stem.')[2]: v for k, v in state.items() if '.stem.' in k}
    own = from_pretrained('gfm-jepa-nano').embedder('s2_l2a').stem.state_dict()
    assert stem.keys() == own.keys()
    assert all(torch.equal(stem[k], own[k]) for k in own)
