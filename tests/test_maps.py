"""Search, clusters, anomalies and change on embeddings, through the command line."""

import json

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from conftest import sensor
from mapping import OPTICAL, RADAR, read, save_encoder, smooth, there

from gfm_jepa import InputError, from_pretrained, save_pretrained
from gfm_jepa.cli import main
from gfm_jepa.data.grids import to_degrees
from gfm_jepa.evaluation import pixel_change
from gfm_jepa.evaluation.anomalies import KnownEmbeddings, shrunk_covariance
from gfm_jepa.evaluation.change import otsu, ranking
from gfm_jepa.evaluation.clusters import agreement
from gfm_jepa.evaluation.embeddings import open_embeddings, open_map, sample
from gfm_jepa.evaluation.prediction_errors import PredictionErrors
from gfm_jepa.evaluation.readouts import add_readout
from gfm_jepa.evaluation.search import Search, load
from gfm_jepa.models import Encoder
from gfm_jepa.models.weight_files import weights_hash
from gfm_jepa.tasks import IJEPA, EncoderConfig


@pytest.fixture
def halves(tmp_path, write_raster):
    """A scene whose west and east halves differ, an odd spot in it, and what was embedded of it."""
    save_encoder(tmp_path / 'weights')
    values = 100 + 0.1 * (smooth(3, 192, 256) - 100)
    values[:, :, 128:] += np.array([60, -60, 40])[:, None, None]
    values[:, 96:112, 48:64] += np.array([-150, 200, 200])[:, None, None]
    values[:, :16, :16] = np.nan
    write_raster(tmp_path / 'optical.tif', values=values, dtype='float32', nodata=np.nan)
    classes = np.ones((1, 192, 256))
    classes[:, :, 128:] = 2
    write_raster(tmp_path / 'classes.tif', values=classes, dtype='uint8', nodata=0)
    words = ['embed', str(tmp_path / 'weights'), str(tmp_path / 'optical.tif'), '--window', '64']
    assert main([*words, '-o', str(tmp_path / 'map.tif')]) == 0
    assert main([*words, '--window', '32', '-o', str(tmp_path / 'chips.parquet')]) == 0
    return tmp_path


def verb(capfd, name, *words):
    """Run a verb; what its last line says."""
    capfd.readouterr()
    assert main([name, *map(str, words)]) == 0
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def test_clusters_find_the_halves(halves, capfd):
    out = halves / 'clusters.tif'
    said = verb(capfd, 'cluster', halves / 'map.tif', '-k', 3, '-o', out, '--labels',
                halves / 'classes.tif')  # fmt: skip
    assert said['purity'] > 0.97 and said['nmi'] > 0.7 and said['chance'] < 0.6
    values, transform, _ = read(out)
    assert values.shape == (1, 24, 32) and transform.a == 80
    assert (values[0, :2, :2] == 255).all() and set(np.unique(values)) == {0, 1, 2, 255}
    assert (halves / 'clusters.png').stat().st_size > 1000
    out = halves / 'clusters.parquet'
    said = verb(capfd, 'cluster', halves / 'chips.parquet', '-k', 2, '-o', out, '--labels', 'col')
    table = geopandas.read_parquet(out)
    assert said['places'] == len(table) == 48 and set(table['cluster']) == {0, 1}


def test_agreement_as_counted_by_hand():
    clusters = np.array([0, 0, 0, 1, 1, 255], np.uint8)
    labels = np.array([5, 5, 7, 7, -1, 7])
    found = agreement(clusters, labels)
    assert found['purity'] == 3 / 4 and found['chance'] == 2 / 4 and found['places'] == 4
    assert agreement(clusters[:5], np.array([1, 1, 1, 2, 2]))['nmi'] == pytest.approx(1)


def test_search_finds_places_like_the_one_that_is_named(halves, capfd):
    embedded = open_embeddings(halves / 'map.tif')
    lon, lat = embedded.positions(np.array([10 * 32 + 25]))[0]
    found = verb(capfd, 'search', halves / 'map.tif', '--at', lon, lat, '-k', 20, '-o',
                 halves / 'similar.tif')  # fmt: skip
    assert len(found) == 20 and all(f['place'] % 32 >= 16 for f in found)  # in the east
    assert [f['similarity'] for f in found] == sorted(
        (f['similarity'] for f in found), reverse=True
    )
    values, _, _ = read(halves / 'similar.tif')
    assert values[0].ravel()[10 * 32 + 25] == pytest.approx(1, abs=1e-5)
    assert values[0].ravel()[found[0]['place']] == pytest.approx(found[0]['similarity'], abs=1e-4)
    assert embedded.place_at(found[0]['lon'], found[0]['lat']) == found[0]['place']
    # Of chips, by row and by example.
    by_row = verb(capfd, 'search', halves / 'chips.parquet', '--place', 7, '-k', 3, '-o',
                  halves / 'rows.parquet')  # fmt: skip
    table = geopandas.read_parquet(halves / 'rows.parquet')
    assert len(table) == len(by_row) == 3 and (table['col'] >= 128).all()
    with rasterio.open(halves / 'optical.tif') as file:
        window = rasterio.windows.Window(192, 64, 32, 32)
        profile = {**file.profile, 'width': 32, 'height': 32,
                   'transform': file.window_transform(window)}  # fmt: skip
        with rasterio.open(halves / 'example.tif', 'w', **profile) as target:
            target.write(file.read(window=window))
    by_image = verb(capfd, 'search', halves / 'chips.parquet', '--image',
                    f'optical={halves}/example.tif', '--weights', halves / 'weights', '-k', 3, '-o',
                    halves / 'rows.parquet')  # fmt: skip
    assert all(geopandas.read_parquet(halves / 'chips.parquet')['col'][f['place']] >= 128
               for f in by_image)  # fmt: skip


def test_an_example_is_searched_in_a_map_of_an_encoder_with_a_readout(halves, capfd):
    encoder = from_pretrained(halves / 'weights', modalities=['optical'])
    chips = {'optical': torch.from_numpy(smooth(3, 64, 64))[None] + 5 * torch.rand(40, 1, 1, 1)}
    save_pretrained(add_readout(encoder, [chips], width=8), halves / 'read')
    words = ['embed', str(halves / 'read'), str(halves / 'optical.tif'), '--window', '64']
    assert main([*words, '-o', str(halves / 'read.tif')]) == 0
    found = verb(capfd, 'search', halves / 'read.tif', '--image', halves / 'optical.tif',
                 '--weights', halves / 'read', '-k', 2, '-o', halves / 'found.tif')  # fmt: skip
    assert len(found) == 2


def test_places_that_are_nowhere_and_outputs_that_are_inputs(halves, capfd):
    for words, sentence in (
        (['search', 'map.tif', '--at', '-33.9', '151.2', '-o', 'a.tif'], 'lies beyond'),
        (['cluster', 'map.tif', '-k', '2', '-o', 'map.tif'], 'is an input'),
        (['change', 'map.tif', 'other.tif', '-o', 'other.tif'], 'is an input'),
    ):
        (halves / 'other.tif').write_bytes((halves / 'map.tif').read_bytes())
        assert main(words) == 2
        assert sentence in capfd.readouterr().err
        assert open_embeddings(halves / 'map.tif').count == 24 * 32


def test_a_table_of_nothing_is_told(halves, write_raster, capfd):
    values = np.full((3, 64, 64), np.nan)
    write_raster(halves / 'void.tif', values=values, dtype='float32', nodata=np.nan)
    words = ['embed', 'weights', 'optical=void.tif', '--window', '32', '-o', 'void.parquet']
    assert main(words) == 0
    assert main(['search', 'void.parquet', '--place', '0', '-o', 'a.parquet']) == 2
    assert 'holds data' in capfd.readouterr().err


def test_what_would_not_count_is_refused_before_there_is_work(halves, write_raster, capfd):
    values = np.full((3, 64, 64), np.nan)
    write_raster(halves / 'void.tif', values=values, dtype='float32', nodata=np.nan)
    image = ['--image', 'optical=void.tif', '--weights', 'weights']
    predictor = ['anomalies', 'optical.tif', '-o', 'a.tif', '--predictor', 'x.ckpt']
    look = ['look', 'weights', 'optical.tif', '-o', 'a', '--window', '64']
    for words, sentence in (
        (['cluster', 'map.tif', '-o', 'a.tif', '--seed', '-1'], 'from 0 to 4294967295'),
        (['cluster', 'map.tif', '-o', 'a.tif', '--seed', str(2**32)], 'from 0 to 4294967295'),
        ([*look, '--figures', 'masks', '--seed', str(2**70)], 'from 0 to 4294967295'),
        ([*look, '--figures', 'masks', '--windows', '0'], '--windows is 0; give at least 1'),
        ([*predictor, '--train', 'map.tif'], 'leave out --train and --neighbours'),
        ([*predictor, '--neighbours', '5'], 'leave out --train and --neighbours'),
        (['change', 'map.tif', 'map.tif', '-o', 'a.tif', '--bands', 'B02'], 'or give --weights'),
        (['cluster', 'chips.parquet', '-o', 'a.parquet', '--labels', 'geometry'], 'no classes'),
        (['search', 'chips.parquet', '-o', 'a.parquet', *image], 'optical=void.tif holds no data'),
    ):
        assert main(words) == 2, words
        assert sentence in capfd.readouterr().err
    assert not list(halves.glob('a*'))


def test_an_ending_in_capitals_is_the_same(halves, capfd):
    (halves / 'map.tif').rename(halves / 'MAP.TIF')
    (halves / 'chips.parquet').rename(halves / 'CHIPS.PARQUET')
    assert verb(capfd, 'cluster', 'MAP.TIF', '-k', 2, '-o', 'CLUSTERS.TIF') == {'k': 2}
    assert len(verb(capfd, 'search', 'CHIPS.PARQUET', '--place', 0, '-o', 'A.PARQUET')) == 10
    assert main(['report', 'MAP.TIF', '--layer', 'clusters=CLUSTERS.TIF', '-o', 'a.html']) == 0


def test_classes_have_no_mean_in_overviews(halves):
    wide = halves / 'wide.tif'
    with rasterio.open(wide, 'w', driver='GTiff', width=1100, height=1100, count=1,
                       dtype='float32', crs='EPSG:32633',
                       transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)) as target:  # fmt: skip
        target.write(np.ones((1, 1100, 1100), 'float32'))
        target.update_tags(software='gfm-jepa')
    embedded = open_map(wide)
    classes = 4 * (np.indices((1100, 1100))[1] % 4 > 1).astype(np.uint8)
    embedded.write(halves / 'classes_.tif', {'cluster': classes.ravel()})
    with rasterio.open(halves / 'classes_.tif') as file:
        assert file.overviews(1)
        small = file.read(1, out_shape=(550, 550))
    assert set(np.unique(small)) <= {0, 4}


def test_exact_search_is_that_of_all_products(monkeypatch):
    from gfm_jepa.evaluation import search

    monkeypatch.setattr(search, 'CHUNK', 64)
    values = torch.randn(1000, 8).numpy()
    queries = torch.randn(5, 8).numpy()
    similar, numbers = Search(values)(queries, 7)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    products = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ unit.T
    assert (numbers == np.argsort(-products, axis=1)[:, :7]).all()
    assert np.allclose(similar, np.sort(products, axis=1)[:, :-8:-1], atol=1e-6)


def test_bands_that_do_not_go_together_are_found(tmp_path, write_raster, capfd):
    rng = np.random.default_rng(0)
    ground = rng.normal(1500, 300, (1, 256, 320))
    values = np.concatenate([ground * (0.5 + 0.2 * i) for i in range(4)])
    values += rng.normal(0, 60, values.shape)  # each band's own
    values[2, 64:96, 128:160] = np.roll(values[2, 64:96, 128:160], 6, axis=1)
    values[:, :32, :48] = 0  # one cell is not there, and half of the next
    names = ['B02', 'B03', 'B04', 'B08']
    write_raster(tmp_path / 's2.tif', values=values, nodata=0, names=names)
    said = verb(capfd, 'anomalies', tmp_path / 's2.tif', '--bands', 's2_l2a', '--window', 64, '-o',
                tmp_path / 'odd.tif')  # fmt: skip
    with rasterio.open(tmp_path / 'odd.tif') as file:
        scores, x, y = file.read(1), *file.xy(2, 4)
    assert scores.shape == (8, 10) and np.isnan(scores).sum() == 1 and np.isnan(scores[0, 0])
    assert np.nanargmax(scores) == 2 * 10 + 4
    assert scores[2, 4] > 2 * np.nanpercentile(scores, 95)
    assert np.allclose(
        to_degrees('EPSG:32633').transform(x, y), said['mahalanobis'][0][1:], atol=1e-5
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ['odd.png', 'odd.tif', 's2.tif']
    base = ['anomalies', str(tmp_path / 's2.tif'), '--bands']
    assert main([*base, 'dem', '-o', str(tmp_path / 'a.tif')]) == 2
    assert 'dem has one band' in capfd.readouterr().err
    assert main([*base, 's2_l2a', '-o', str(tmp_path / 'a.parquet')]) == 2
    assert 'should end in .tif' in capfd.readouterr().err
    write_raster(tmp_path / 'void.tif', values=np.zeros_like(values), nodata=0, names=names)
    void = ['anomalies', str(tmp_path / 'void.tif'), '--bands', 's2_l2a']
    assert main([*void, '-o', str(tmp_path / 'b.tif')]) == 2
    assert 'void.tif has enough data' in capfd.readouterr().err
    assert not (tmp_path / 'b.tif').exists()


def test_anomalies_rank_the_odd_spot_first(halves, capfd):
    said = verb(capfd, 'anomalies', halves / 'map.tif', '-o', halves / 'odd.tif')
    values, _, _ = read(halves / 'odd.tif')
    assert values.shape[0] == 2 and set(said) == {'mahalanobis', 'nearest'}
    for score in values:
        inside = score[12:14, 6:8]
        assert inside.min() > np.nanpercentile(score, 95)
    assert np.isnan(values[:, :2, :2]).all()
    said = verb(capfd, 'anomalies', halves / 'chips.parquet', '--train', halves / 'chips.parquet',
                '-o', halves / 'odd.parquet')  # fmt: skip
    table = geopandas.read_parquet(halves / 'odd.parquet')
    assert table['nearest'].between(-1e-6, 2).all() and table['mahalanobis'].notna().all()
    assert main(['anomalies', str(halves / 'map.tif'), '-o', str(halves / 'odd.parquet')]) == 2


def test_embeddings_of_other_weights_are_not_compared(halves, capfd):
    optical = str(halves / 'optical.tif')
    other = save_encoder(halves / 'others', [OPTICAL])
    for kind in ('tif', 'parquet'):
        words = ['embed', str(halves / 'others'), optical, '-o', str(halves / f'other.{kind}')]
        assert main([*words, '--window', '64']) == 0
    with rasterio.open(halves / 'other.tif') as file:
        assert file.tags()['weights'] == weights_hash(other)
        assert file.tags()['modalities'] == 'optical'
    maps = [str(halves / 'map.tif'), str(halves / 'other.tif')]
    chips = [str(halves / 'chips.parquet'), '--train', str(halves / 'other.parquet')]
    for words in (['change', *maps, '-o', 'c.tif'], ['anomalies', *chips, '-o', 'a.parquet']):
        assert main(words) == 2
        assert 'were made with different weights' in capfd.readouterr().err


def test_what_is_not_among_the_known_keeps_its_nearest():
    values = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    known = KnownEmbeddings(values[:30], 5)
    unit = torch.nn.functional.normalize(torch.from_numpy(values), dim=1)
    similar = unit @ unit[:30].T
    similar[torch.arange(30), torch.arange(30)] = -2  # not itself
    expected = 1 - similar.topk(5, dim=1).values.mean(dim=1)
    assert np.allclose(known.nearest(values, among_known=True), expected, atol=1e-5)


def test_shrunk_covariance_is_that_of_scikit_learn():
    from sklearn.covariance import ledoit_wolf

    x = (torch.randn(40, 12) @ torch.randn(12, 12)).numpy().astype('f8')
    x -= x.mean(axis=0)
    assert np.allclose(shrunk_covariance(x), ledoit_wolf(x, assume_centered=True)[0])


def test_change_is_where_something_has_changed(halves, write_raster, capfd):
    with rasterio.open(halves / 'optical.tif') as file:
        values = file.read()
    values += 5  # another light
    values[:, 128:160, 192:224] += np.array([120, -90, 60])[:, None, None]
    write_raster(halves / 'later/optical.tif', values=values, dtype='float32', nodata=np.nan)
    assert main(['embed', str(halves / 'weights'), str(halves / 'later'), '--window', '64', '-o',
                 str(halves / 'later.tif')]) == 0  # fmt: skip
    mask = np.zeros((1, 192, 256))
    mask[:, 128:160, 192:224] = 1
    write_raster(halves / 'mask.tif', values=mask, dtype='uint8')
    said = verb(capfd, 'change', halves / 'map.tif', halves / 'later.tif', '-o',
                halves / 'change.tif', '--labels', halves / 'mask.tif', '--mask',
                halves / 'changed.tif', '--score', 'difference')  # fmt: skip
    assert all(said[k]['auc'] > 0.95 for k in ('cosine', 'difference', 'standardised'))
    assert 0.5 < said['difference']['f1'] <= said['difference']['best_f1'] <= 1
    values, _, _ = read(halves / 'change.tif')
    with rasterio.open(halves / 'changed.tif') as file:
        changed = file.read(1)
    assert np.array_equal(changed == 255, np.isnan(values[1])) and (changed == 255).any()
    assert np.array_equal(changed == 1, values[1] > np.float32(said['difference']['threshold']))
    assert np.isnan(values[:, :2, :2]).all() and there(values)[2:].all()
    capfd.readouterr()
    assert main(['change', str(halves / 'map.tif'), str(halves / 'chips.parquet'), '-o',
                 str(halves / 'change.tif')]) == 2  # fmt: skip
    assert 'two .tif' in capfd.readouterr().err


def test_change_refuses_before_it_writes(halves, tmp_path, capfd):
    folder = tmp_path / 'change'
    folder.mkdir()
    same, output = str(halves / 'map.tif'), folder / 'change.tif'
    output.write_bytes(b'of before')
    for words, told in (
        (['--mask', str(folder / 'changed.tif'), '--score', 'difference'], 'all alike'),
        (['--score', 'cosine'], 'give --mask'),
    ):
        assert main(['change', same, same, '-o', str(output), *words]) == 2
        assert told in capfd.readouterr().err
        assert [p.name for p in folder.iterdir()] == ['change.tif']
        assert output.read_bytes() == b'of before'


def test_pixels_of_two_scenes_are_compared_without_light_and_units(tmp_path, write_raster, capfd):
    torch.manual_seed(0)
    encoder = Encoder([sensor('optical', 3)], 8, 16, 1, 2, stem='conv').eval()
    save_pretrained(encoder, tmp_path / 'weights')
    before = smooth(3, 70, 90)
    after = 3 * before + 40  # another unit
    after[:, 20:40, 50:70] += 6 * before.std() * np.array([1, -1, 1], np.float32)[:, None, None]
    mask = np.zeros((1, 70, 90))
    mask[:, 20:40, 50:70] = 1
    before[:, :5, :5] = np.nan
    write_raster(tmp_path / 'before.tif', values=before, dtype='float32', nodata=np.nan)
    write_raster(tmp_path / 'after.tif', values=after, dtype='float32', nodata=np.nan)
    write_raster(tmp_path / 'mask.tif', values=mask, dtype='uint8')
    scenes = tmp_path / 'before.tif', tmp_path / 'after.tif'
    said = verb(capfd, 'change', *scenes, '--weights', tmp_path / 'weights', '-o',
                tmp_path / 'change.tif', '--labels', tmp_path / 'mask.tif')  # fmt: skip
    assert said['pixels']['auc'] > 0.99 and said['pixels']['f1'] > 0.9
    values, _, _ = read(tmp_path / 'change.tif')
    assert values.shape == (1, 70, 90)
    assert np.isnan(values[0, :5, :5]).all() and np.isfinite(values).sum() == 70 * 90 - 25
    assert main(['change', *map(str, scenes), '--weights', str(tmp_path / 'weights'), '-o',
                 str(tmp_path / 'c.tif'), '--bands', 'b1']) == 2  # fmt: skip
    assert '--modality' in capfd.readouterr().err


@pytest.mark.parametrize('dtype', ['float32', 'uint8'])
def test_beyond_a_scene_without_nodata_nothing_is_there(tmp_path, write_raster, capfd, dtype):
    torch.manual_seed(0)
    encoder = Encoder([sensor('optical', 3)], 8, 16, 1, 2, stem='conv').eval()
    save_pretrained(encoder, tmp_path / 'weights')
    values = 20 + np.abs(smooth(3, 64, 64)).clip(0, 200)
    write_raster(tmp_path / 'a.tif', values=values, dtype=dtype)
    for name, east in (('beside', 480), ('far', 9000)):
        origin = (500000.0 + east, 5000000.0)
        write_raster(tmp_path / f'{name}.tif', values=values, dtype=dtype, origin=origin)
    words = ['--weights', str(tmp_path / 'weights'), '-o', str(tmp_path / 'c.tif')]
    a = str(tmp_path / 'a.tif')
    assert main(['change', a, str(tmp_path / 'beside.tif'), *words]) == 0
    found, _, _ = read(tmp_path / 'c.tif')
    shared = 64 - 48
    assert np.isfinite(found[0]).sum() == 64 * shared and np.isfinite(found[0, :, -shared:]).all()
    capfd.readouterr()
    assert main(['change', a, str(tmp_path / 'far.tif'), *words]) == 2
    assert 'no place that has data at both dates' in capfd.readouterr().err
    write_raster(tmp_path / 'nowhere.tif', values=values, dtype=dtype, epsg=None)
    assert main(['change', a, str(tmp_path / 'nowhere.tif'), *words]) == 2
    assert 'states no coordinate reference system' in capfd.readouterr().err


def test_pixel_change_is_the_same_in_tiles_and_refuses_what_it_cannot(monkeypatch):
    torch.manual_seed(0)
    encoder = Encoder([sensor('optical', 3)], 8, 16, 1, 2, stem='conv').eval()
    before, after = smooth(3, 61, 75), smooth(3, 61, 75, seed=1)
    whole = pixel_change.pixel_change(encoder, 'optical', before, after)
    monkeypatch.setattr(pixel_change, 'TILE', 32)
    tiled = pixel_change.pixel_change(encoder, 'optical', before, after)
    assert np.allclose(whole, tiled, atol=1e-4)
    assert not np.allclose(whole, whole.mean(), atol=0.1)
    with pytest.raises(InputError, match='twice the same ground'):
        pixel_change.pixel_change(encoder, 'optical', before, after[:, 1:])
    with pytest.raises(InputError, match='no place that has data at both dates'):
        pixel_change.pixel_change(encoder, 'optical', before, np.full_like(after, np.nan))
    linear = Encoder([sensor('optical', 3)], 8, 16, 1, 2, stem='linear')
    with pytest.raises(InputError, match='has a linear stem'):
        pixel_change.pixel_change(linear, 'optical', before, after)


def test_ranking_counts_pairs_in_order():
    scores = np.array([0.1, 0.4, 0.4, 0.9, np.nan], np.float32)
    found = ranking(scores, np.array([0, 0, 1, 1, 1]))
    assert found['auc'] == (1 + 0.5 + 1 + 1) / 4
    # Otsu takes 0.9 alone: precision 1, recall 1/2. Best: above 0.1, precision 2/3, recall 1.
    assert found['f1'] == pytest.approx(2 / 3) and found['best_f1'] == pytest.approx(0.8)
    with pytest.raises(InputError, match='all alike'):
        otsu(np.ones(4))


def test_otsu_splits_where_the_variance_between_is_greatest():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(1, 0.3, 900), rng.normal(4, 0.8, 100), [np.nan]])
    there = scores[:-1]

    def between(t):
        low, high = there[there <= t], there[there > t]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(t) for t in np.sort(there)[:-1])
    assert between(otsu(scores)) > 0.998 * best and 1.7 < otsu(scores) < 3


def checkpoint(tmp_path):
    """A tiny I-JEPA as a checkpoint of `gfm-jepa fit` holds it."""
    task = IJEPA([OPTICAL.to_dict(), RADAR.to_dict()], EncoderConfig('nano', patch_size=8),
                 predictor_dim=24, predictor_depth=1)  # fmt: skip
    with torch.no_grad():
        for p in task.target_encoder.parameters():  # two encoders that are not the same
            p.mul_(1.01)
    saved = {'state_dict': task.state_dict()}
    task.on_save_checkpoint(saved)
    path = tmp_path / 'last.ckpt'
    torch.save(saved, path)
    return task.eval(), path


def test_prediction_errors_are_those_of_the_task(tmp_path):
    task, path = checkpoint(tmp_path)
    model = PredictionErrors.from_checkpoint(path)
    batch = {'optical': torch.from_numpy(smooth(3, 48, 48))[None].repeat(2, 1, 1, 1)}
    batch['optical'][1, :, :16] = torch.nan
    errors = model.forward_feature_map(batch)
    assert errors.shape == (2, 2, 6, 6)
    assert errors[1, :, :2].isnan().all() and errors[1, :, 2:].isfinite().all()
    # The block of the first three by three patches, hidden with those that share its turn.
    rows, cols = torch.meshgrid(torch.arange(6), torch.arange(6), indexing='ij')
    hidden = ((rows < 3) & (cols < 3)).flatten()
    target_ids, context_ids = hidden.nonzero().T, (~hidden).nonzero().T
    with torch.no_grad():
        task.log_health = lambda values: None
        one = {'optical': batch['optical'][:1]}
        targets = task.forward_targets(one, target_ids[None])[0, 0]
        guess = task.forward_context(one, context_ids, target_ids[None])[0, 0]
    expected = torch.nn.functional.smooth_l1_loss(guess, targets, reduction='none').mean(dim=1)
    assert torch.allclose(errors[0, 1, :3, :3].flatten(), expected, atol=1e-5)


def test_prediction_errors_as_a_map(tmp_path, write_raster, capfd):
    _, path = checkpoint(tmp_path)
    write_raster(tmp_path / 'optical.tif', values=smooth(3, 100, 120), dtype='float32')
    said = verb(capfd, 'anomalies', tmp_path / 'optical.tif', '--predictor', path, '--window', 48,
                '-o', tmp_path / 'errors.tif')  # fmt: skip
    assert set(said) == {'cosine_error', 'l1_error'}
    values, transform, _ = read(tmp_path / 'errors.tif')
    assert values.shape == (2, 13, 15) and transform.a == 80 and there(values)[:12].all()
    assert (values[:, :12] > 0).all() and (tmp_path / 'errors.png').is_file()
    save_encoder(tmp_path / 'weights')
    assert (
        main(['anomalies', 'x.tif', '--predictor', str(tmp_path / 'no.ckpt'), '-o', 'a.tif']) == 2
    )


def test_a_sample_is_drawn_evenly(halves):
    embeddings = open_embeddings(halves / 'map.tif')
    everything, places = load(embeddings)
    assert len(places) == len(everything) == 24 * 32 - 4
    some = sample(embeddings, 100, seed=1)
    assert some.shape == (100, 16)
    assert np.array_equal(some, sample(embeddings, 100, seed=1))
    assert len(np.unique(some, axis=0)) == 100


def test_a_map_that_is_half_written_is_refused(halves, capfd):
    content = (halves / 'map.tif').read_bytes()
    (halves / 'half.tif').write_bytes(content[: len(content) // 2])
    status = main(['cluster', str(halves / 'half.tif'), '-k', '2', '-o', str(halves / 'c.tif')])
    message = capfd.readouterr().err.splitlines()[-1]
    assert status == 2 and message.startswith('gfm-jepa: error:') and 'half.tif' in message
    assert not (halves / 'c.tif').exists()
