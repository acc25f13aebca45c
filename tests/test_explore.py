"""The page of `explore`: its numbers, its remarks, and what it refuses to overwrite."""

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from conftest import sensor

from gfm_jepa import InputError
from gfm_jepa.cli import main
from gfm_jepa.data import Rasters
from gfm_jepa.data.index import IndexSettings, write_index
from gfm_jepa.data.splits import SplitRule
from gfm_jepa.evaluation import explore_looks
from gfm_jepa.evaluation.explore import explore
from gfm_jepa.evaluation.explore_figures import MISSING, examples, footprints, histograms, picture
from gfm_jepa.evaluation.explore_looks import rgb
from gfm_jepa.evaluation.explore_scenes import SCENE_SIDE, scenes
from gfm_jepa.evaluation.explore_survey import SurveySettings, draw, survey
from gfm_jepa.modalities import S2_L2A, Modality

COLOUR = replace(sensor('colour', 4), common_names=('blue', 'green', 'red', 'nir'))
RELIEF = sensor('relief', 1, gsd=30.0)
SMALL = SurveySettings(chip_size=48, chips=8)


def normal(modality, size=(96, 96), seed=0):
    """Values spread as the modality states, (C, H, W)."""
    rng = np.random.default_rng(seed)
    mean, std = (np.array(v)[:, None, None] for v in (modality.mean, modality.std))
    return (mean + std * rng.normal(size=(len(mean), *size))).astype('float32')


@pytest.fixture
def archive(tmp_path, write_raster):
    """One place with two modalities, a corner without data, and a file that feeds nothing."""
    values = normal(COLOUR)
    values[:, :24, :24] = np.nan
    write_raster(tmp_path / 'in/p/colour_20200102.tif', values=values, dtype='float32')
    write_raster(tmp_path / 'in/p/relief.tif', values=normal(RELIEF, (32, 32)), dtype='float32',
                 gsd=30.0)  # fmt: skip
    write_raster(tmp_path / 'in/p/other.tif', 2)
    return tmp_path / 'in', values


def cells(page):
    """Rows of all tables, as plain text."""
    rows = re.findall(r'<tr>(.*?)</tr>', page, re.S)
    return [[unescape(c) for c in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row)] for row in rows]


def test_numbers_of_the_page_are_numpys(archive, tmp_path):
    folder, values = archive
    line = explore([folder], tmp_path / 'out', [COLOUR, RELIEF], SMALL)
    assert '4 chips from 1 places' in line and line.count('\n') == 0  # no remark
    page = (tmp_path / 'out/index.html').read_text()
    (colour,) = (r for r in cells(page) if r[:2] == ['colour', '1'])
    assert colour == ['colour', '1', '4', '4', '10', 'EPSG:32633 (1)', '2020-01-02', '94%',
                      'no mask']  # fmt: skip
    flat = values.reshape(4, -1)
    table = [r for r in cells(page) if r[0] in COLOUR.bands and len(r) == 10][:4]
    expected = [np.nanmean(flat, 1), np.nanstd(flat, 1), np.nanmin(flat, 1),
                *np.nanpercentile(flat, (1, 99), axis=1), np.nanmax(flat, 1)]  # fmt: skip
    for i, row in enumerate(table):
        assert row[0] == COLOUR.bands[i] and row[9] == ''
        assert np.allclose([float(x) for x in row[1:7]], [e[i] for e in expected], rtol=1e-3)
        assert [float(x) for x in row[7:9]] == [COLOUR.mean[i], COLOUR.std[i]]
    assert [r[0] for r in cells(page) if 'feeds no' in r[-1]] == [str(folder / 'p/other.tif')]


def test_the_page_stands_alone_and_is_beside_its_figures(archive, tmp_path):
    explore([archive[0]], tmp_path / 'out', [COLOUR, RELIEF], SMALL)
    page = (tmp_path / 'out/index.html').read_text()
    images = re.findall(r'<img ([^>]*)>', page)
    figures = sorted(p.name for p in (tmp_path / 'out').glob('*.png'))
    assert figures == ['examples.png', 'footprints.png', 'histogram_01_colour.png',
                       'histogram_02_relief.png', 'quicklooks.png', 'shares.png']  # fmt: skip
    assert len(images) == len(figures)
    assert all('alt="' in i and 'src="data:image/png;base64,' in i for i in images)
    assert 'http' not in page and '<script' not in page and '<link' not in page
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert anchors and all(f'id="{a}"' in page for a in anchors)
    assert {p.name for p in tmp_path.iterdir()} == {'in', 'out'}


@pytest.mark.parametrize(
    ('change', 'remark'),
    [(lambda v: v + 1000, 'std away from the stated mean'),
     (lambda v: 100 + (v - 100) * 4, 'times the stated one'),
     (lambda v: 100 + (v - 100) / 10, 'of the stated one')],
)  # fmt: skip
def test_values_far_from_the_stated_ones_get_a_remark(tmp_path, write_raster, change, remark):
    write_raster(tmp_path / 'in/relief.tif', values=change(normal(RELIEF)), dtype='float32')
    line = explore([tmp_path / 'in'], tmp_path / 'out', [RELIEF], SMALL)
    assert 'relief B1: ' in line and remark in line
    page = (tmp_path / 'out/index.html').read_text()
    assert page.count('class="text remark"') == 1 and page.count('<li class="remark">') == 1
    assert remark in page


def test_only_a_folder_of_its_own_is_replaced(archive, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    with pytest.raises(InputError, match='is there already'):
        explore([archive[0]], out, [RELIEF], SMALL)
    out.rmdir()
    explore([archive[0]], out, [COLOUR, RELIEF], SMALL)
    explore([archive[0]], out, [RELIEF], SMALL)
    assert not (out / 'histogram_01_colour.png').exists()  # nothing stale
    (out / 'mine.txt').write_text('precious')
    with pytest.raises(InputError, match='is there already'):
        explore([archive[0]], out, [RELIEF], SMALL)
    assert (out / 'mine.txt').read_text() == 'precious'


def test_bad_input_leaves_nothing_behind(tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    assert main(['explore', str(tmp_path / 'empty'), '-o', str(tmp_path / 'out')]) == 2
    assert 'No raster found' in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ['empty']
    assert main(['explore', 'x', '-o', 'out', '--chips', '0']) == 2
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='cannot be written'):
        explore([tmp_path], tmp_path / 'file/out', [RELIEF], SMALL)


def test_names_are_escaped(tmp_path, write_raster):
    odd = replace(sensor('<b>&'), bands=('<i>', '$x$', '北京'), common_names=())
    folder = tmp_path / 'in' / '<script>$a$ 北'
    path = write_raster(folder / 'a.tif', values=normal(odd), dtype='float32')
    write_raster(folder / '<u>$a$.tif', 2)
    explore([f'<b>&={path}', folder / '<u>$a$.tif'], tmp_path / 'out', [odd], SMALL)
    page = (tmp_path / 'out/index.html').read_text()
    for text in ('<b>', '<i>', '<script>', '<u>'):
        assert text not in page
    assert '&lt;i&gt;' in page and '&lt;script&gt;$a$ 北' in page and '/&lt;u&gt;$a$.tif' in page
    assert (tmp_path / 'out/histogram_01__b__.png').exists()


def test_classes_have_no_mean(tmp_path, write_raster):
    classes = Modality('classes', ('cover',), 10.0, 'class number', categorical=True)
    values = np.repeat([[[1, 1, 1, 7]]], 96, axis=1).repeat(24, axis=2)
    write_raster(tmp_path / 'in/classes.tif', values=values, dtype='uint8')
    explore([tmp_path / 'in'], tmp_path / 'out', [classes], SMALL)
    page = (tmp_path / 'out/index.html').read_text()
    row = ['cover', '-', '-', '1', '1', '7', '7', '-', '-', '']
    assert row in cells(page) and 'are classes' in page
    look = survey([tmp_path / 'in'], [classes], SMALL).looks['classes']
    assert [bar.get_height() for bar in histograms(look).axes[0].patches] == [75, 25]


def test_an_index_brings_its_splits_and_what_it_left_out(archive, tmp_path):
    settings = IndexSettings((COLOUR, RELIEF), 48, split=SplitRule('longitude'))
    write_index([str(archive[0])], tmp_path / 'chips.parquet', settings)
    seen = survey([tmp_path / 'chips.parquet'], [COLOUR, RELIEF], SMALL)
    assert [why for path, why in seen.left_out if path.endswith('other.tif')]
    figure = footprints({name: look.chips for name, look in seen.looks.items()})
    titles = [axes.get_title() for axes in figure.axes]
    assert 'modality' in titles[0] and 'split' in titles[1]
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert labels == ['colour (4 chips)', 'relief (1 chips)']


def test_the_draw_is_bounded_even_and_repeats(tmp_path, write_raster):
    write_raster(tmp_path / 'colour.tif', 4, (480, 480))
    write_raster(tmp_path / 'relief.tif', 1, (48, 48), 30.0)
    data = Rasters([tmp_path], [COLOUR, RELIEF], chip_size=48)
    drawn = draw(data, 7, 0)
    assert {k: len(v) for k, v in drawn.items()} == {'colour': 7, 'relief': 7}
    assert all('relief' in data[int(i)] for i in drawn['relief'])
    assert np.array_equal(drawn['colour'], draw(data, 7, 0)['colour'])
    assert not np.array_equal(drawn['colour'], draw(data, 7, 1)['colour'])
    seen = survey([tmp_path], [COLOUR, RELIEF], replace(SMALL, chips=7))
    assert seen.looks['colour'].statistics.count.tolist() == [7 * 48 * 48] * 4


def test_what_is_kept_of_pixels_is_bounded(monkeypatch, archive):
    monkeypatch.setattr(explore_looks, 'MOST_PIXELS', 400)
    look = survey([archive[0]], [COLOUR], SMALL).looks['colour']
    assert 300 < len(look.pixels(0)) <= 400 and look.statistics.count[0] == 96 * 96 - 24 * 24
    widths = [b.get_height() for b in histograms(look).axes[0].patches if b.get_height() < 100]
    assert sum(widths[:60]) == pytest.approx(100, abs=2)


def test_pictures_take_colours_by_name_and_mark_what_is_missing():
    assert rgb(S2_L2A) == (3, 2, 1) and rgb(COLOUR) == (2, 1, 0) and rgb(RELIEF) == ()
    values = normal(COLOUR, (20, 20))
    values[:, 3, 4] = np.nan
    image = picture(values, COLOUR)
    assert image.shape == (20, 20, 3) and image.min() >= 0 and image.max() <= 1
    assert np.allclose(image[3, 4], MISSING)
    assert np.corrcoef(image[5:, :, 0].ravel(), values[2, 5:].ravel())[0, 1] > 0.95
    values[2] = np.nan  # no red: the first band, grey
    grey = picture(values, COLOUR)
    assert (grey[5:, :, 0] == grey[5:, :, 2]).all()
    assert np.allclose(picture(np.full_like(values, np.nan), COLOUR), MISSING)
    assert np.isfinite(picture(np.ones((1, 8, 8), np.float32), RELIEF)).all()


def test_scenes_are_reduced_and_examples_show_every_modality(tmp_path, write_raster):
    write_raster(tmp_path / 'colour_20200102.tif', 4, (1100, 600))
    write_raster(tmp_path / 'relief.tif', 1, (96, 96), 10.0, (900000.0, 5000000.0))
    seen = survey([tmp_path], [COLOUR, RELIEF], SMALL)
    (scene,) = scenes(seen.looks, rgb_only=True)
    assert scene.values.shape == (4, 367, 200) and max(scene.values.shape) <= SCENE_SIDE
    assert np.isnan(scene.values[3]).all() and np.isfinite(scene.values[:3]).all()
    assert scene.title.endswith('colour_20200102.tif\n2020-01-02')
    assert len(list(scenes(seen.looks, rgb_only=False))) == 2
    assert {name for e in seen.examples for name in e.values} == {'colour', 'relief'}
    figure = examples(seen.examples, [COLOUR, RELIEF])
    assert sum(bool(axes.images) for axes in figure.axes) == len(seen.examples)
