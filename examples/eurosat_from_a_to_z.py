# %% [markdown]
# # EuroSAT from A to Z
#
# Pretrain on unlabelled images, probe what was learned, fine-tune, classify one image. `DATA` is a
# folder of `EuroSAT_RGB/<Class>/*.jpg` with the split lists; without it, a few images in its layout
# are made up, which teach nothing but run.

# %%
import os
from pathlib import Path

import numpy as np
from PIL import Image

from gfm_jepa.cli import main as gfm_jepa

DATA = os.environ.get('DATA')
STEPS = int(os.environ.get('STEPS', '20'))  # 4,000 take ten minutes on two cores
BATCH = 64 if DATA else 8
if not DATA:
    DATA = 'example/eurosat'
    random = np.random.default_rng(0)
    names = [f'{kind}_{i}.jpg' for kind in ('Forest', 'River', 'SeaLake') for i in range(1, 17)]
    for name in names:
        folder = Path(DATA, 'EuroSAT_RGB', name.partition('_')[0])
        folder.mkdir(parents=True, exist_ok=True)
        bright = 60 * ('Forest', 'River', 'SeaLake').index(folder.name) + 60
        pixels = bright + random.integers(-50, 50, (64, 64, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    for part, every in (('train', (0, 1)), ('val', (2,)), ('test', (3,))):
        chosen = [n for i, n in enumerate(names) if i % 4 in every]
        Path(DATA, f'eurosat-spatial-{part}.txt').write_text('\n'.join(chosen))

# %% [markdown]
# ## Pretrain, without labels

# %%
configs = next(p for p in (Path('configs'), Path('../configs')) if p.is_dir())
common = [
    f'--data.root={DATA}', f'--data.batch_size={BATCH}', f'--trainer.max_steps={STEPS}',
    f'--trainer.log_every_n_steps={min(STEPS, 10)}',
]  # fmt: skip
assert gfm_jepa([
    'fit', '--config', str(configs / 'vicreg_eurosat_rgb.yaml'), *common,
    '--trainer.default_root_dir=example/vicreg',
]) == 0  # fmt: skip
pretrained = str(max(Path('example/vicreg').rglob('last.ckpt'), key=lambda p: p.stat().st_mtime))

# %% [markdown]
# ## Probe: frozen features, with baselines beside them

# %%
assert gfm_jepa([
    'probe', pretrained, '--dataset', 'eurosat-rgb-spatial', '--root', DATA,
    '--output', 'example/probe.json',
]) == 0  # fmt: skip

# %% [markdown]
# ## Fine-tune, and classify one image

# %%
assert gfm_jepa([
    'fit', '--config', str(configs / 'finetune_eurosat_rgb.yaml'), *common,
    f'--model.encoder.weights={pretrained}', '--trainer.default_root_dir=example/finetune',
    f'--trainer.callbacks.every_n_train_steps={STEPS}',
]) == 0  # fmt: skip
head = str(max(Path('example/finetune').rglob('last.ckpt'), key=lambda p: p.stat().st_mtime))
image = next(Path(DATA).rglob('River_1.jpg'))
assert gfm_jepa(['classify', head, str(image), '--top', '3']) == 0
