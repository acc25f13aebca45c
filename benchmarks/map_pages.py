"""Every verb of maps on real rasters, and a page of each place.

    python benchmarks/map_pages.py gfm-jepa-nano --root DIR -o OUT

DIR holds sentinel2, naip and change_taizhou, and the TerraMesh places that a head for land cover
learns from. Embeds, searches, clusters, scores anomalies, maps change and land cover as a user
would call them, and writes OUT/<place>.html. Where a Chromium and its chromedriver are on the PATH,
opens each page and clicks its middle. The last line is one JSON object: for each page its size in
kB, its layers, and what the click said.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import rasterio

from gfm_jepa import from_pretrained, save_pretrained
from gfm_jepa.cli import main as gfm_jepa
from gfm_jepa.errors import told_in_one_sentence

# What Landsat 5 and 7 see, by Sentinel-2's names.
BANDS = ('B02', 'B03', 'B04', 'B08', 'B11', 'B12')


def call(*words: object) -> None:
    """Run a verb."""
    print('gfm-jepa', *words, flush=True)
    if gfm_jepa([str(w) for w in words]):
        raise SystemExit('It failed; what it said stands above.')


def maps_of(weights: str, modality: str, scene: Path, name: str, out: Path) -> list[str]:
    """Embed a scene, cluster it, score its places; words for the page."""
    call('embed', weights, f'{modality}={scene}', '-o', out / f'{name}.tif', '--overwrite')
    call('cluster', out / f'{name}.tif', '-k', 6, '-o', out / f'{name}_clusters.tif')
    call('anomalies', out / f'{name}.tif', '-o', out / f'{name}_odd.tif')
    call('anomalies', f'{modality}={scene}', '--bands', modality, '-o', out / f'{name}_bands.tif')
    with rasterio.open(scene) as source:
        lon, lat = source.lnglat()  # of its middle
    call('search', out / f'{name}.tif', '--at', lon, lat, '-o', out / f'{name}_similar.tif')
    return [f'clusters={out}/{name}_clusters.tif', f'anomalies={out}/{name}_odd.tif',
            f'bands={out}/{name}_bands.tif', f'similar={out}/{name}_similar.tif']  # fmt: skip


def page(name: str, scene: Path, layers: list[str], out: Path) -> None:
    """One page of a map."""
    call('report', out / f'{name}.tif', '--scene', scene, '--layer', *layers, '-o',
         out / f'{name}.html')  # fmt: skip


def land_cover(weights: str, root: Path, scene: Path, out: Path, steps: int) -> str:
    """A head for land cover from the labelled places, over a scene without labels."""
    places = [str(p) for p in sorted(root.glob('terramesh_*'))]
    call('fit', '--config', Path(__file__).parents[1] / 'configs' / 'segment_lulc.yaml',
         f'--data.paths=[{",".join(places)}]', '--data.modalities=[s2_l2a,lulc]',
         '--model.modalities=[s2_l2a]', f'--model.encoder.weights={weights}',
         f'--trainer.max_steps={steps}', '--trainer.logger=false',
         f'--trainer.default_root_dir={out}', '--trainer.enable_progress_bar=false',
         '--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint',
         f'--trainer.callbacks.dirpath={out}', '--trainer.callbacks.save_last=true',
         '--trainer.callbacks.enable_version_counter=false')  # fmt: skip
    target = out / 'aquileia_land_cover.tif'
    call('segment', out / 'last.ckpt', f's2_l2a={scene}', '-o', target, '--overwrite')
    return f'land_cover={target}'


def click(path: Path) -> str:
    """Click the middle of a page's map in a headless Chromium: what it says, and its neighbours."""
    browser_path = next(
        filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
    )
    driver = shutil.which('chromedriver')
    if browser_path is None or driver is None:
        return 'not looked at: no Chromium on the PATH'
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = browser_path
    for word in ('--headless=new', '--no-sandbox', '--disable-gpu', '--window-size=1200,1000'):
        options.add_argument(word)
    browser: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get(f'file://{path.resolve()}')
        browser.find_element(By.ID, 'map').click()
        said = browser.find_element(By.ID, 'said').text
        found = [i.get_attribute('data-cosine') for i in
                 browser.find_elements(By.CSS_SELECTOR, '#found li')]  # fmt: skip
        browser.save_screenshot(str(path.with_suffix('.screen.png')))
        if broken := [e for e in browser.get_log('browser') if e['level'] == 'SEVERE']:
            raise SystemExit(f'{path} has an error in the browser: {broken[0]}')
    finally:
        browser.quit()
    return f'{said}; cosines {", ".join(found)}'


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('weights')
    parser.add_argument('--root', type=Path, required=True)
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to write')
    parser.add_argument('--steps', type=int, default=150, help='of the head for land cover')
    args = parser.parse_args()
    out, weights, root = args.output.resolve(), args.weights, args.root.resolve()
    out.mkdir(parents=True, exist_ok=True)
    s2, naip, pair = root / 'sentinel2', root / 'naip', root / 'change_taizhou'
    cases: dict[str, tuple[str, Path, Path | None]] = {
        'fire': ('s2_l2a', s2 / 's2_l2a_australia_fire_20190105_post.tif',
                 s2 / 's2_l2a_australia_fire_20181201_pre.tif'),
        'naip': ('naip', naip / 'm_4709963_se_14_1_20200831.tif',
                 naip / 'm_4709963_se_14_1_20090818.tif'),
        'aquileia': ('s2_l2a', s2 / 's2_l2a_aquileia_20190416.tif', None),
    }  # fmt: skip
    for name, (modality, scene, before) in cases.items():
        layers = maps_of(weights, modality, scene, name, out)
        if before is not None:
            call('embed', weights, f'{modality}={before}', '-o', out / f'{name}_before.tif',
                 '--overwrite')  # fmt: skip
            change = out / f'{name}_change.tif'
            call('change', out / f'{name}_before.tif', out / f'{name}.tif', '-o', change)
            layers += [f'change={change}', f'before={before}']
        else:
            layers.append(land_cover(weights, root, scene, out, args.steps))
        page(name, scene, layers, out)
    # Landsat, by the names of Sentinel-2's bands: pixel by pixel, and its map for the page.
    change = out / 'taizhou_change.tif'
    call('change', pair / 'taizhou_t1.tif', pair / 'taizhou_t2.tif', '--weights', weights,
         '--modality', 's2_l2a', '--bands', *BANDS, '--labels', pair / 'taizhou_mask.tif',
         '-o', change)  # fmt: skip
    # Its 8 bits are no reflectance: filters of a sensor that the weights know start the new one's.
    landsat7 = save_pretrained(from_pretrained(weights, modalities=['landsat7']), out / 'landsat7')
    layers = maps_of(str(landsat7), 'landsat7', pair / 'taizhou_t2.tif', 'taizhou', out)
    page('taizhou', pair / 'taizhou_t2.tif', [*layers, f'change={change}'], out)
    result: dict[str, Any] = {}
    for name in (*cases, 'taizhou'):
        path = out / f'{name}.html'
        layers = [p.partition('value="')[2].partition('"')[0]
                  for p in path.read_text().split('name="layer" ')[1:]]  # fmt: skip
        result[name] = {'kB': path.stat().st_size // 1000, 'layers': layers, 'click': click(path)}
    print(json.dumps(result))


if __name__ == '__main__':
    with told_in_one_sentence('map_pages.py'):
        main()
