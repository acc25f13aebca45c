"""The made-up landscapes: same bytes from the same seed, one ground, and no easy answers."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gfm_jepa.data import synthetic
from gfm_jepa.data.landscapes import CLASSES
from gfm_jepa.data.synthetic import FILES, SyntheticLandscapes, synthesize
from gfm_jepa.errors import InputError

Arrays = dict[str, np.ndarray]
SIZE = 192


@pytest.fixture(scope='module')
def places() -> list[Arrays]:
    return [synthesize(SIZE, seed) for seed in range(12)]


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('landscapes') / 'root'
    SyntheticLandscapes(folder, num_places=2, size=SIZE, seed=3).write()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob('*') if f.is_file()}


def median(places: list[Arrays], key: str, name: str, band: int = 0) -> float:
    """Median of a 10 m band over the pixels of a class in all places."""
    return float(np.median(np.concatenate(
        [place[key][band][place['lulc'] == CLASSES.index(name)] for place in places]
    )))  # fmt: skip


def test_shapes_types_and_ranges(places: list[Arrays]):
    expected = {
        'rgb': ((3, SIZE, SIZE), 'uint8'), 's2_l2a': ((12, SIZE, SIZE), 'uint16'),
        's1': ((2, SIZE, SIZE), 'float32'), 'ndvi': ((1, SIZE, SIZE), 'float32'),
        'dem': ((1, SIZE // 3, SIZE // 3), 'float32'), 'lulc': ((SIZE, SIZE), 'uint8'),
    }  # fmt: skip
    for place in places:
        assert {key: (a.shape, str(a.dtype)) for key, a in place.items()} == expected
        assert all(np.isfinite(array).all() for array in place.values())
        assert place['s2_l2a'].min() > 0 and place['s2_l2a'].max() < 12000  # 0 is nodata
        assert place['s1'].min() > -45 and place['s1'].max() < 25
        assert place['lulc'].max() < len(CLASSES)
        assert place['dem'].min() > -5 and 10 < np.ptp(place['dem']) < 2000


def test_rgb_and_ndvi_come_from_s2(places: list[Arrays]):
    s2 = places[0]['s2_l2a'].astype(np.float64)
    stretched = np.clip(s2[[3, 2, 1]] / 2750 * 255, 0, 255)
    assert np.abs(places[0]['rgb'] - stretched).max() <= 0.5
    ndvi = (s2[7] - s2[3]) / (s2[7] + s2[3])
    np.testing.assert_allclose(places[0]['ndvi'][0], ndvi, atol=1e-6)


def test_the_land_makes_sense(places: list[Arrays]):
    for place in places:
        water = place['lulc'][1::3, 1::3] == CLASSES.index('water')
        assert place['dem'][0][water].mean() < place['dem'].mean()
    for forest in ('broadleaf forest', 'conifer forest'):
        assert median(places, 'ndvi', forest) > median(places, 'ndvi', 'bare') + 0.3
    vv = {name: median(places, 's1', name) for name in CLASSES}
    assert min(vv, key=vv.__getitem__) == 'water'
    assert median(places, 's1', 'broadleaf forest', 1) > median(places, 's1', 'grassland', 1) + 2
    # double bounce: the bright tail, not the streets between
    bright = {name: np.percentile(np.concatenate(
        [p['s1'][0][p['lulc'] == CLASSES.index(name)] for p in places]), 90)
        for name in CLASSES}  # fmt: skip
    assert min(bright['built-up'], bright['industry and roads']) > bright['broadleaf forest'] + 3


def test_every_class_is_there_and_the_mix_differs(places: list[Arrays]):
    shares = np.array([np.bincount(p['lulc'].ravel(), minlength=len(CLASSES)) for p in places])
    shares = shares / SIZE**2
    assert ((shares > 0).mean(0) > 0.6).all()
    assert shares.mean(0).max() < 0.5 and shares.mean(0).min() > 0.01
    assert shares.std(0)[CLASSES.index('cropland')] > 0.05


def test_clouds_cover_a_few_percent(places: list[Arrays]):
    cloudy = np.array([(place['s2_l2a'][0] > 3000).mean() for place in places])
    assert 0.002 < cloudy.mean() < 0.1
    assert cloudy.max() < 0.35


def test_same_seed_same_bytes_and_another_seed_differs(root: Path, tmp_path: Path):
    SyntheticLandscapes(tmp_path / 'same', num_places=2, size=SIZE, seed=3).write()
    assert contents(tmp_path / 'same') == contents(root)
    SyntheticLandscapes(tmp_path / 'other', num_places=1, size=96, seed=4).write()
    assert not np.array_equal(synthesize(96, 1)['lulc'], synthesize(96, 2)['lulc'])
    first, second = (rasterio.open(root / f'place_00{i}' / 'DEM.tif').read() for i in (0, 1))
    assert not np.array_equal(first, second)


def test_files_of_a_place_share_one_ground(root: Path):
    for place in ('place_000', 'place_001'):
        assert sorted(file.name for file in (root / place).iterdir()) == sorted(FILES)
        bounds = set()
        for name, (_, bands, nodata) in FILES.items():
            with rasterio.open(root / place / name) as file:
                bounds.add(tuple(file.bounds))
                assert file.crs.to_epsg() == 32632
                assert file.descriptions == bands
                assert file.res == ((30, 30) if name == 'DEM.tif' else (10, 10))
                assert file.profile['compress'] == 'deflate'
                np.testing.assert_equal(file.nodata, nodata)
        assert len(bounds) == 1


def test_places_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    once = synthesize(96, 0)
    monkeypatch.setattr(synthetic, 'synthesize', lambda size, seed: once)  # only origins matter
    monkeypatch.setattr(synthetic, 'FILES', {'LULC.tif': FILES['LULC.tif']})
    boxes = []
    for place in SyntheticLandscapes(tmp_path / 'many', num_places=200, size=96).write():
        with rasterio.open(place / 'LULC.tif') as file:
            boxes.append(tuple(file.bounds))
    left, bottom, right, top = np.array(boxes).T
    apart = (left[:, None] >= right) | (right[:, None] <= left)
    apart |= (bottom[:, None] >= top) | (top[:, None] <= bottom)
    assert (apart | np.eye(len(boxes), dtype=bool)).all()
    assert left.min() >= 166_000 and right.max() <= 834_000  # a UTM zone is not wider


def test_a_killed_run_leaves_no_half_place_and_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    landscapes = SyntheticLandscapes(tmp_path / 'run', num_places=2, size=SIZE, seed=3)
    first, second = (tmp_path / 'run' / name for name in ('place_000', 'place_001'))
    files = itertools.count()
    really_open = rasterio.open

    def open_until_killed(*args: object, **layout: object) -> object:
        if next(files) == len(FILES) + 2:
            raise KeyboardInterrupt
        return really_open(*args, **layout)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rasterio, 'open', open_until_killed)
        landscapes.write()
    assert first.is_dir() and not second.exists()
    drawn = (first / 'RGB.tif').stat().st_mtime_ns
    assert landscapes.write(progress=True) == [first, second]
    assert contents(tmp_path / 'run') == contents(root)
    assert (first / 'RGB.tif').stat().st_mtime_ns == drawn
    assert capsys.readouterr().out.count('place_') == 1


def test_a_place_that_lacks_a_file_is_drawn_again(root: Path, tmp_path: Path):
    shutil.copytree(root, tmp_path / 'copy')
    (tmp_path / 'copy' / 'place_001' / 'DEM.tif').unlink()
    SyntheticLandscapes(tmp_path / 'copy', num_places=2, size=SIZE, seed=3).write()
    assert contents(tmp_path / 'copy') == contents(root)


def test_more_places_leave_the_old_ones_alone(tmp_path: Path):
    SyntheticLandscapes(tmp_path / 'root', num_places=1, size=96).write()
    before = contents(tmp_path / 'root' / 'place_000')
    assert len(SyntheticLandscapes(tmp_path / 'root', num_places=2, size=96).write()) == 2
    assert contents(tmp_path / 'root' / 'place_000') == before


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'size': 100}, 'size is 100 pixels.*multiple of 3.*size=99'),
        ({'size': 48}, 'size is 48 pixels.*size=96'),
        ({'num_places': 0}, 'num_places is 0.*at least 1'),
        ({'seed': -1}, 'seed is -1.*0 or more'),
    ],
)
def test_bad_values_are_refused_at_once(tmp_path: Path, wrong: dict[str, int], message: str):
    with pytest.raises(InputError, match=message):
        SyntheticLandscapes(tmp_path / 'root', **wrong)
    assert not (tmp_path / 'root').exists()


def test_synthesize_refuses_bad_sizes():
    with pytest.raises(InputError, match='multiple of 3'):
        synthesize(97, 0)


def test_a_root_of_others_is_refused(root: Path, tmp_path: Path):
    with pytest.raises(InputError, match=f'size {SIZE} and seed 3, not of size {SIZE} and seed 5'):
        SyntheticLandscapes(root, size=SIZE, seed=5).write()
    (tmp_path / 'letters').mkdir()
    (tmp_path / 'letters' / 'landscapes.txt').write_text('dear all')
    with pytest.raises(InputError, match=r'no landscapes\.json: give a new folder'):
        SyntheticLandscapes(tmp_path / 'letters').write()
    with pytest.raises(InputError, match='give a new folder'):
        SyntheticLandscapes(tmp_path / 'letters' / 'landscapes.txt').write()


def test_statistics_of_a_chip_do_not_solve_it(places: list[Arrays]):
    """On held-out places the mean colour is better than chance and far from good."""

    def chips(array: np.ndarray, width: int) -> np.ndarray:
        count = array.shape[-1] // width
        cut = array.reshape(-1, count, width, count, width).transpose(1, 3, 0, 2, 4)
        return cut.reshape(count * count, -1, width * width).astype(np.float64)

    labels = np.concatenate([
        [np.bincount(chip.astype(int)).argmax() for chip in chips(place['lulc'], 32)[:, 0]]
        for place in places
    ])  # fmt: skip
    train = np.arange(len(labels)) < len(labels) * 2 // 3  # whole places
    chance = np.mean(labels[~train] == np.bincount(labels[train]).argmax())

    def score(features: np.ndarray) -> float:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1))
        return probe.fit(features[train], labels[train]).score(features[~train], labels[~train])

    colour = np.concatenate([chips(place['rgb'], 32).mean(2) for place in places])
    rich = np.concatenate([
        np.concatenate([f(chips(place[key], 32), 2)
                        for key in ('s2_l2a', 's1') for f in (np.mean, np.std)], 1)
        for place in places
    ])  # fmt: skip
    assert chance + 0.05 < score(colour) < 0.7
    assert score(colour) + 0.05 < score(rich) < 0.9


def test_a_broken_note_of_landscapes_is_told(tmp_path):
    (tmp_path / 'landscapes.json').write_text('{"size": 28')
    with pytest.raises(InputError, match=r'landscapes\.json is broken'):
        SyntheticLandscapes(tmp_path, num_places=1).write()
