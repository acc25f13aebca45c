# %% [markdown]
# # Embed a scene, and search it
#
# From a raster to a map of features, to the places that look alike, to one page to click through.

# %%
import os
from pathlib import Path

from gfm_jepa.cli import main as gfm_jepa
from gfm_jepa.data.synthetic import SyntheticLandscapes

SCENE = os.environ.get('SCENE')  # a GeoTIFF of Sentinel-2, RGB, NAIP, ...
WEIGHTS = os.environ.get('WEIGHTS', 'gfm-jepa-nano')
if not SCENE:
    place = SyntheticLandscapes('example/rasters', num_places=4, size=240).write()[0]
    SCENE = str(place / 'S2L2A.tif')
out = Path('example/maps')

# %% [markdown]
# One feature vector for each patch of 8 x 8 pixels; memory does not grow with the scene, and a call
# that was killed goes on when it is repeated.

# %%
assert gfm_jepa(['embed', WEIGHTS, SCENE, '-o', str(out / 'map.tif'), '--overwrite']) == 0

# %% [markdown]
# The places most similar to one of them, what lies together, and what is unlike all others.

# %%
gfm_jepa(['search', str(out / 'map.tif'), '--place', '500', '-o', str(out / 'similar.tif')])
gfm_jepa(['cluster', str(out / 'map.tif'), '-k', '6', '-o', str(out / 'clusters.tif')])
gfm_jepa(['anomalies', str(out / 'map.tif'), '-o', str(out / 'odd.tif')])

# %% [markdown]
# All of it on one page, which needs no network: open it, and click.

# %%
gfm_jepa([
    'report', str(out / 'map.tif'), '--scene', SCENE, '--layer',
    f'clusters={out / "clusters.tif"}', f'anomalies={out / "odd.tif"}',
    '-o', str(out / 'page.html'),
])  # fmt: skip
assert (out / 'page.html').exists()
