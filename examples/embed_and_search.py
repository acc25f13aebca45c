# %% [markdown]
# # Embed a scene, and search it
#
# From a raster to a map of features, to the places that look alike, to one page to click through.

# %%
import os
from pathlib import Path

from gfm_jepa.cli import main as gfm_jepa
from gfm_jepa.data.synthetic import SyntheticLandscapes
from gfm_jepa.evaluation.embeddings import open_embeddings
from gfm_jepa.evaluation.search import load

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
MAP = str(out / 'map.tif')
_, places = load(open_embeddings(out / 'map.tif'))  # cells that hold data
place = str(places[len(places) // 2])
assert gfm_jepa(['search', MAP, '--place', place, '-o', str(out / 'similar.tif')]) == 0
assert gfm_jepa(['cluster', MAP, '-k', '6', '-o', str(out / 'clusters.tif')]) == 0
assert gfm_jepa(['anomalies', MAP, '-o', str(out / 'odd.tif')]) == 0

# %% [markdown]
# All of it on one page, which needs no network: open it, and click.

# %%
assert gfm_jepa([
    'report', MAP, '--scene', SCENE, '--layer', f'clusters={out / "clusters.tif"}',
    f'anomalies={out / "odd.tif"}', '-o', str(out / 'page.html'),
]) == 0  # fmt: skip
