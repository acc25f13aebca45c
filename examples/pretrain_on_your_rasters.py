# %% [markdown]
# # Pretrain on your rasters
#
# A folder of GeoTIFFs is enough: mixed coordinate systems, resolutions and gaps are normal.
# Without `DATA` this makes landscapes up, so that it runs as it stands.

# %%
import os
from pathlib import Path

from gfm_jepa import from_pretrained
from gfm_jepa.cli import main as gfm_jepa
from gfm_jepa.data.synthetic import SyntheticLandscapes

DATA = os.environ.get('DATA')  # a folder of your own
STEPS = int(os.environ.get('STEPS', '200'))  # a few thousand for weights worth having
if not DATA:
    SyntheticLandscapes('example/rasters', num_places=4, size=240).write()
    DATA = 'example/rasters'

# %% [markdown]
# What is there: a table of chips, and what every raster was taken for.

# %%
assert gfm_jepa(['index', DATA, '-o', 'example/chips.parquet', '--chip-size', '48']) == 0

# %% [markdown]
# The training run: I-JEPA over the modalities that are there. Any word of
# `configs/ijepa_rasters.yaml` can be changed on the command line; logs and checkpoints lie in
# `default_root_dir`.

# %%
CONFIG = next(p for p in (Path('configs'), Path('../configs')) if p.is_dir()) / 'ijepa_rasters.yaml'
assert gfm_jepa([
    'fit', '--config', str(CONFIG), f'--data.paths=[{DATA}]', '--data.chip_size=48',
    '--data.batch_size=16', f'--trainer.max_steps={STEPS}',
    f'--trainer.log_every_n_steps={min(STEPS, 10)}', '--trainer.default_root_dir=example/run',
]) == 0  # fmt: skip

# %% [markdown]
# The checkpoint is an encoder: raw units in, NaN for what is not there, any subset of modalities.

# %%
checkpoint = max(Path('example/run').rglob('last.ckpt'), key=lambda p: p.stat().st_mtime)
encoder = from_pretrained(checkpoint)
print(checkpoint, 'embeds', ', '.join(n for n in encoder.modalities if n not in encoder.untrained))
