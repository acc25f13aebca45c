# %% [markdown]
# # Add your own sensor
#
# Any raster with named bands becomes a modality: statistics in one YAML file, an embedder before
# the trained trunk. Bands that have a colour name start from trained filters.

# %%
import os
from pathlib import Path

import numpy as np
import rasterio
import torch
from lightning.pytorch import Trainer
from rasterio.transform import from_origin

from gfm_jepa import from_pretrained, save_pretrained
from gfm_jepa.cli import main as gfm_jepa
from gfm_jepa.data import RastersDataModule
from gfm_jepa.tasks import EncoderConfig, VICReg

STEPS = int(os.environ.get('STEPS', '20'))
folder = Path('example/drone')
folder.mkdir(parents=True, exist_ok=True)
random = np.random.default_rng(0)
for i in range(3):
    ground = random.normal(size=(16, 16)).repeat(16, 0).repeat(16, 1)
    values = 500 + 100 * ground + random.normal(0, 20, (4, 256, 256))
    with rasterio.open(
        folder / f'flight_{i}.tif', 'w', driver='GTiff', width=256, height=256, count=4,
        dtype='uint16', nodata=0, crs='EPSG:32633',
        transform=from_origin(500000 + 1000 * i, 5000000, 0.5, 0.5),
    ) as file:  # fmt: skip
        file.write(values.clip(1).astype('uint16'))
        file.descriptions = ('red', 'green', 'blue', 'thermal')

# %% [markdown]
# Mean and standard deviation of each band, in one pass, and all that the package has to know.

# %%
sensor = 'example/drone.yaml'
assert gfm_jepa(['stats', str(folder), '--name', 'drone', '--unit', 'DN', '-o', sensor]) == 0
print(Path(sensor).read_text())

# %% [markdown]
# At once: red, green and blue are trained filters, thermal is new.

# %%
encoder = from_pretrained('gfm-jepa-nano', modalities=['rgb', sensor])
chips = torch.rand(2, 4, 64, 64) * 400 + 300
print(encoder({'drone': chips}).shape)

# %% [markdown]
# Better: pretrain the new embedder before the trunk as it is. The tasks are Lightning modules.

# %%
trainer = Trainer(
    max_steps=STEPS, max_epochs=-1, log_every_n_steps=min(STEPS, 10), limit_val_batches=0,
    use_distributed_sampler=False, default_root_dir='example/drone_run',
)  # fmt: skip
task = VICReg([sensor], EncoderConfig(weights='gfm-jepa-nano', freeze=True, stem='conv'))
data = RastersDataModule([f'drone={folder}'], [sensor], chip_size=64, batch_size=16)
trainer.fit(task, data)
save_pretrained(task.encoder, 'example/nano_with_drone')
print(from_pretrained('example/nano_with_drone')({'drone': chips}).shape)
