# %% [markdown]
# # Segmentation: a class for every pixel, from several modalities
#
# A head on a frozen encoder learns land cover on some places and maps another.

# %%
import os
from pathlib import Path

from gfm_jepa.cli import main as gfm_jepa
from gfm_jepa.data.synthetic import SyntheticLandscapes

WEIGHTS = os.environ.get('WEIGHTS', 'gfm-jepa-nano')
STEPS = int(os.environ.get('STEPS', '60'))
places = SyntheticLandscapes('example/rasters', num_places=4, size=240).write()
training, held_out = ','.join(map(str, places[:-1])), places[-1]

# %%
configs = next(p for p in (Path('configs'), Path('../configs')) if p.is_dir())
words = [
    '--config', str(configs / 'segment_lulc.yaml'), f'--data.paths=[{training}]',
    f'--data.val_paths=[{held_out}]', '--data.modalities=[s2_l2a,dem,lulc]',
    f'--model.encoder.weights={WEIGHTS}', f'--trainer.max_steps={STEPS}',
    f'--trainer.log_every_n_steps={min(STEPS, 10)}', '--trainer.default_root_dir=example/segment',
    f'--trainer.callbacks.every_n_train_steps={STEPS}',
]  # fmt: skip
assert gfm_jepa(['fit', *words]) == 0
head = str(max(Path('example/segment').rglob('last.ckpt'), key=lambda p: p.stat().st_mtime))

# %% [markdown]
# Mean intersection over union of the place that was held out, and its map.

# %%
assert gfm_jepa(['test', *words, f'--ckpt_path={head}']) == 0
assert gfm_jepa([
    'segment', head, str(held_out / 'S2L2A.tif'), str(held_out / 'DEM.tif'),
    '-o', 'example/classes.tif', '--window', '64', '--overwrite',
]) == 0  # fmt: skip
