"""The page of `gfm-jepa report`: what it holds, and what a browser makes of it."""

import json
import re
import shutil

import numpy as np
import pytest
from mapping import save_encoder, smooth

from gfm_jepa.cli import main
from gfm_jepa.data.grids import Grid
from gfm_jepa.evaluation import report_map
from gfm_jepa.evaluation.clusters import normalised
from gfm_jepa.evaluation.embeddings import open_map
from gfm_jepa.evaluation.report_map import _middles, _on, _thinned
from gfm_jepa.evaluation.search import load


@pytest.fixture
def scene(tmp_path, write_raster):
    """A scene, its map of embeddings, its clusters and its anomalies."""
    save_encoder(tmp_path / 'weights')
    values = smooth(3, 192, 256)
    values[:, :16, :16] = np.nan
    write_raster(tmp_path / 'optical.tif', values=values, dtype='float32', nodata=np.nan)
    words = ['embed', str(tmp_path / 'weights'), str(tmp_path / 'optical.tif'), '--window', '64']
    assert main([*words, '-o', str(tmp_path / 'map.tif')]) == 0
    assert main(['cluster', str(tmp_path / 'map.tif'), '-k', '3', '-o',
                 str(tmp_path / 'clusters.tif')]) == 0  # fmt: skip
    assert main(['anomalies', str(tmp_path / 'map.tif'), '-o', str(tmp_path / 'odd.tif')]) == 0
    return tmp_path


def report(folder, *words):
    """Write a page and return its text."""
    assert main(['report', *map(str, words), '-o', str(folder / 'page.html')]) == 0
    return (folder / 'page.html').read_text()


def whole_page(folder):
    return report(folder, folder / 'map.tif', 'gfm-jepa-nano', '--scene', folder / 'optical.tif',
                  '--layer', f'clusters={folder / "clusters.tif"}',
                  f'anomalies={folder / "odd.tif"}')  # fmt: skip


def test_the_page_stands_alone_and_shows_every_layer(scene):
    text = whole_page(scene)
    own = re.sub(r'<a href="https?://[^"]*"', '', text)  # links of the card are followed by people
    assert not re.search(r'(?:src|href)="(?!data:|#)', own)
    layers = re.findall(r'<input type="radio" name="layer" value="(\w+)"', text)
    assert layers == ['scene', 'features', 'clusters', 'anomalies']
    assert text.count('src="data:image/png;base64,') == 4
    assert text.count('class="swatch"') == 3 and text.count('class="bar"') == 1
    assert '<h2>Modalities</h2>' in text and 'license: ' not in text  # the card, less its metadata


def test_a_large_map_is_thinned(scene, monkeypatch):
    monkeypatch.setattr(report_map, 'MOST_CELLS', 200)
    text = report(scene, scene / 'map.tif')
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', text)[1])
    assert (data['rows'], data['columns'], data['step']) == (12, 16, 2)
    assert len(data['vectors']) * 3 // 4 <= 200 * data['width'] + 2
    assert 'every 2th row' not in text and 'every 2nd row and column' in text


def test_the_middle_of_a_block_stands_for_it():
    assert _middles(10, 4).tolist() == [2, 6, 9]
    assert _middles(5, 1).tolist() == [0, 1, 2, 3, 4]
    image = np.arange(70).reshape(7, 10)
    shown = _thinned(image, 4)
    assert shown.tolist() == [[22, 26, 29], [62, 66, 69]]
    grid = Grid(None, None, 10, 7)
    places = np.arange(70)
    assert places[_on(places, grid, 4)].tolist() == shown.flatten().tolist()


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (('no-such-thing',), 'no-such-thing is not a map'),
        (('gfm-jepa-nano', '--scene', 'optical.tif'), 'got 0'),
        (('map.tif', 'odd.tif'), 'got 2'),
        (('map.tif', '--layer', 'clusters'), 'should be NAME=FILE'),
        (('map.tif', '--layer', 'a=weights/config.json'), 'config.json cannot be read'),
    ],
)
def test_what_cannot_be_is_one_sentence(scene, monkeypatch, capfd, words, sentence):
    monkeypatch.chdir(scene)
    capfd.readouterr()
    assert main(['report', *words, '-o', 'page.html']) == 2
    said = capfd.readouterr().err
    assert sentence in said and said.count('\n') == 1
    assert not (scene / 'page.html').exists()


def test_a_map_of_a_single_cell(tmp_path, write_raster):
    save_encoder(tmp_path / 'weights')
    write_raster(tmp_path / 'optical.tif', values=smooth(3, 8, 8), dtype='float32')
    words = ['embed', str(tmp_path / 'weights'), str(tmp_path / 'optical.tif'), '--window', '64']
    assert main([*words, '-o', str(tmp_path / 'map.tif')]) == 0
    assert '1 x 1 cells' in report(tmp_path, tmp_path / 'map.tif')


def test_eight_bits_tell_places_apart_that_are_all_alike():
    random = np.random.default_rng(0)
    values = normalised(np.r_[1, np.zeros(15)] + 0.01 * random.normal(size=(500, 16)))
    stored, scale, offset = report_map._eight_bits(values)
    assert stored.dtype == np.int8
    again = normalised(stored * scale + offset)
    exact, ours = ((-(v @ v.T)).argsort(axis=1)[:, 1:9] for v in (values, again))
    shared = [len(set(a) & set(b)) for a, b in zip(exact, ours, strict=True)]
    assert np.mean(shared) > 7


def test_layers_of_three_bands_are_shown_in_colour(scene):
    text = report(scene, scene / 'map.tif', '--layer', f'before={scene / "optical.tif"}')
    assert 'before: optical.tif' in text and 'class="bar"' not in text


@pytest.fixture
def browser():
    """A headless Chromium."""
    paths = [shutil.which(n) for n in ('chromium', 'chromium-browser', 'google-chrome')]
    driver = shutil.which('chromedriver')
    if not any(paths) or not driver:
        pytest.skip('There is no Chromium with its chromedriver on the PATH.')
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(p for p in paths if p)
    for word in ('--headless=new', '--no-sandbox', '--disable-gpu', '--window-size=1200,900'):
        options.add_argument(word)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


def test_a_click_finds_the_nearest_neighbours(scene, browser):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    whole_page(scene)
    browser.get(f'file://{scene}/page.html')
    place = browser.find_element(By.ID, 'map')
    height, width = open_map(scene / 'map.tif').target.height, 32
    row, col = 9, 20
    browser.execute_script('arguments[0].scrollIntoView()', place)
    x = (col + 0.5) / width * place.size['width'] - place.size['width'] / 2
    y = (row + 0.5) / height * place.size['height'] - place.size['height'] / 2
    ActionChains(browser).move_to_element_with_offset(place, round(x), round(y)).click().perform()

    def answers():
        items = browser.find_elements(By.CSS_SELECTOR, '#found li')
        return [
            (int(i.get_attribute('data-cell')), float(i.get_attribute('data-cosine')))
            for i in items
        ]

    assert f'row {row}, column {col}' in browser.find_element(By.ID, 'said').text
    values, places = load(open_map(scene / 'map.tif'))
    unit = normalised(values)
    at = np.stack(np.divmod(places, width), axis=1)
    cosine = unit @ unit[list(places).index(row * width + col)]
    best, taken = [], [(row, col)]
    for i in np.argsort(-cosine):
        if all(np.abs(at[i] - other).max() >= report_map.APART for other in taken):
            best.append(cosine[i])
            taken.append(at[i])
    found = answers()
    assert len(found) == 8
    assert np.allclose([score for _, score in found], best[:8], atol=0.002)  # 8 bits a component
    for cell, score in found:
        assert cosine[list(places).index(cell)] == pytest.approx(score, abs=0.002)

    # By keyboard alone: another place, another layer.
    ActionChains(browser).send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER).perform()
    assert f'row {row + 1}, column {col + 1}' in browser.find_element(By.ID, 'said').text
    shown = browser.find_elements(By.CSS_SELECTOR, '#map img:not([hidden])')
    assert [i.get_attribute('data-layer') for i in shown] == ['scene']
    browser.find_element(By.CSS_SELECTOR, 'input[value=clusters]').send_keys(Keys.SPACE)
    shown = browser.find_elements(By.CSS_SELECTOR, '#map img:not([hidden])')
    assert [i.get_attribute('data-layer') for i in shown] == ['clusters']
    browser.execute_script('arguments[0].scrollIntoView()', place)
    ActionChains(browser).move_to_element_with_offset(
        place, 2 - place.size['width'] // 2, 2 - place.size['height'] // 2
    ).click().perform()
    assert 'no data' in browser.find_element(By.ID, 'said').text
    assert not [e for e in browser.get_log('browser') if e['level'] == 'SEVERE']
