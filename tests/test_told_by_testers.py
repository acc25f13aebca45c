"""What users ran into, and what they are told now."""

import numpy as np
import torch
from conftest import sensor
from torch.utils.data import Dataset

from gfm_jepa.data import RastersDataModule
from gfm_jepa.data.samplers import HUGE, GroupBatchSampler, ResumableLoader


def test_a_huge_value_is_told_with_its_modality_and_the_files_of_that_alone(tmp_path, write_raster):
    write_raster(tmp_path / 'place/optical.tif', 2, (16, 16))
    values = np.ones((1, 16, 16))
    values[0, 3, 3] = 10 * HUGE
    write_raster(tmp_path / 'place/radar.tif', dtype='float32', values=values)
    sensors = [sensor('optical', 2).to_dict(), sensor('radar', 1).to_dict()]
    data = RastersDataModule([str(tmp_path)], sensors, chip_size=16, batch_size=1, patch_size=8)
    data.setup('fit')
    names, huge = data.train_dataloader().sources(0)
    assert 'optical.tif' in names[0] and 'radar.tif' in names[0]
    assert huge == [f'radar of {tmp_path}/place/radar.tif']


class Pairs(Dataset):
    """Samples of two modalities, of which nobody knows the files."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {'a': torch.zeros(1, 2, 2), 'b': torch.full((1, 2, 2), 10 * HUGE * index)}


def test_a_huge_value_is_told_with_its_modality_where_no_files_are_known():
    loader = ResumableLoader(Pairs(), GroupBatchSampler([range(2)], 2))
    names, huge = loader.sources(0)
    assert sorted(names) == ['sample 0', 'sample 1'] and huge == ['b of sample 1']
