"""A mixed archive: one pass, a line for each problem, and every pixel where it says it lies."""

import os
import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from conftest import sensor
from pyproj import Geod, Transformer
from rasterio.crs import CRS

from gfm_jepa import InputError
from gfm_jepa.cli import main
from gfm_jepa.data import Rasters
from gfm_jepa.data import index as indexing
from gfm_jepa.data.chips import ChipFilter
from gfm_jepa.data.index import IndexSettings, write_index
from gfm_jepa.data.splits import SplitRule
from gfm_jepa.modalities import CLOUD_MASK, DEM, MODALITIES, S2_L2A, Modality

CONFIG = Path(__file__).parent.parent / 'configs' / 'ijepa_rasters.yaml'
FEET = '+proj=utm +zone={} +datum=WGS84 +units=us-ft +no_defs'
CLASSES = (3, 7, 50)


def write(path, values, transform, crs='EPSG:32633', dtype='float32', nodata=None):
    """Write a GeoTIFF of any transform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, 'w', driver='GTiff', count=len(values), height=values.shape[1],
        width=values.shape[2], dtype=dtype, nodata=nodata, crs=crs, transform=transform,
    ) as target:  # fmt: skip
        target.write(np.asarray(values).astype(dtype))
    return path


def s2(seed=0, size=(96, 96), bands=12):
    return np.random.default_rng(seed).integers(300, 3000, (bands, *size))


def utm(x=500000.0, y=5000000.0, step=10.0):
    return Affine(step, 0, x, 0, -step, y)


# ------------------------------------------------------------------------------------------------
# Ground position. Values are eastings and northings of pixel centres in one reference CRS.


def transform_of(kind, centre, size, reference, gsd):
    """CRS and transform of a raster of a kind, its centre at a point of the reference CRS."""
    zone = reference[-2:]
    crs, steps, angle = {
        'utm': (reference, (gsd, -gsd), 0),
        'southup': (reference, (gsd, gsd), 0),
        'turned': (reference, (gsd, -gsd), 25),
        'upside down': (reference, (-gsd, gsd), 0),
        'mirrored': (reference, (-gsd, -gsd), 0),
        'zone': (f'{reference[:-2]}{int(zone) - 1}', (gsd, -gsd), 0),
        'degrees': ('EPSG:4326', (1.3e-5 * gsd, -0.9e-5 * gsd), 0),
        'degrees turned': ('EPSG:4326', (1.3e-5 * gsd, -0.9e-5 * gsd), 40),
        'degrees southup': ('EPSG:4326', (1.3e-5 * gsd, 0.9e-5 * gsd), 0),
        'feet': (FEET.format(zone), (gsd / 0.3048006, -gsd / 0.3048006), 0),
        'feet southup': (FEET.format(zone), (gsd / 0.3048006, gsd / 0.3048006), 0),
        'feet turned': (FEET.format(zone), (gsd / 0.3048006, -gsd / 0.3048006), 70),
    }[kind]
    x, y = Transformer.from_crs(reference, crs, always_xy=True).transform(*centre)
    height, width = size
    return crs, (
        Affine.translation(x, y)
        @ Affine.rotation(angle)
        @ Affine.scale(*steps)
        @ Affine.translation(-width / 2, -height / 2)
    )


def positions(crs, transform, size, reference):
    """(2, H, W) easting and northing of each pixel centre, by pyproj alone."""
    rows, cols = np.indices(size) + 0.5
    x, y = transform @ (cols.ravel(), rows.ravel())
    to_reference = Transformer.from_crs(crs, reference, always_xy=True)
    return np.stack(to_reference.transform(x, y)).reshape(2, *size)


def write_positions(path, kind, centre, size, reference, origin, gsd=10.0):
    crs, transform = transform_of(kind, centre, size, reference, gsd)
    values = positions(crs, transform, size, reference) - np.array(origin)[:, None, None]
    return write(path, values, transform, crs, dtype='float64')


def on_ground(footprint, size, reference):
    """(2, size, size) where the pixels of a chip lie, by its footprint in the index alone."""
    lon, lat = np.array(footprint.exterior.coords)[:4].T
    corners = np.stack(
        Transformer.from_crs('OGC:CRS84', reference, always_xy=True).transform(lon, lat)
    )
    v, u = (np.indices((size, size)) + 0.5) / size
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v])
    return np.einsum('cn,nij->cij', corners, weights)


def index_of(paths, output, modalities, size=48, **settings):
    report = write_index(
        [str(p) for p in paths], output, IndexSettings(tuple(modalities), size, **settings)
    )
    return geopandas.read_parquet(output), report


def check_positions(folder, anchor, partner, reference, origin, share):
    """Chips from the index and from the files are the same, and lie where the index says."""
    table, _ = index_of([folder], folder / 'chips.parquet', (anchor, partner))
    data = Rasters([folder / 'chips.parquet'], (anchor, partner))
    straight = Rasters([folder], (anchor, partner), chip_size=48)
    assert len(data) == len(straight) and len(data.groups()) >= 1
    worst = {anchor.name: 0.0, partner.name: 0.0}
    seen = []
    for number in range(len(data)):
        sample, other = data[number], straight[number]
        for name in (anchor.name, partner.name):
            if name in sample:
                assert torch.equal(sample[name].nan_to_num(-1), other[name].nan_to_num(-1))
        if partner.name not in sample or anchor.name not in sample:
            continue
        rows = table[table.file == data.files(number)[0]]
        gaps = np.abs(rows.bounds.to_numpy() - data.box(number)).max(1)
        assert gaps.min() < 1e-9, 'the box is that of no chip of the index'
        footprint = rows.geometry.iloc[int(gaps.argmin())]
        coarser = max(sample['gsd'].values())
        for name in worst:
            values = sample[name].numpy()
            wanted = on_ground(footprint, values.shape[-1], reference)
            gap = np.abs(values + np.array(origin)[:, None, None] - wanted)
            if np.isfinite(gap).any():
                worst[name] = max(worst[name], float(np.nanmax(gap)) / coarser)
        seen.append(float(sample[partner.name].isfinite().float().mean()))
    assert max(seen) > share, 'the modalities do not meet'
    assert max(worst.values()) < 0.5, worst


REFERENCES = {
    'north': ('EPSG:32633', (503000.0, 5003000.0), (500000.0, 5000000.0)),
    'south': ('EPSG:32733', (503000.0, 7003000.0), (500000.0, 7000000.0)),
}
KINDS = ('utm', 'degrees', 'turned', 'southup', 'feet', 'zone')
ODD_KINDS = (
    'upside down', 'mirrored', 'degrees turned', 'degrees southup', 'feet southup', 'feet turned',
)  # fmt: skip


@pytest.mark.parametrize(
    ('kind', 'steps'),
    [(k, (10.0, 30.0)) for k in KINDS + ODD_KINDS] + [(k, (30.0, 10.0)) for k in KINDS],
)
@pytest.mark.parametrize('side', ['anchor', 'partner'])
def test_any_grid_lies_where_it_says(tmp_path, kind, steps, side):
    reference, centre, origin = REFERENCES['north']
    kinds = (kind, 'utm') if side == 'anchor' else ('utm', kind)
    fine, coarse = sensor('fine', 2, gsd=steps[0]), sensor('coarse', 2, gsd=steps[1])
    # Shapes that are off by one, and the partner half a pixel and some aside.
    for modality, own, shape, shift in (
        (fine, kinds[0], {10.0: (111, 110), 30.0: (61, 60)}, 0.0),
        (coarse, kinds[1], {10.0: (159, 161), 30.0: (64, 63)}, 37.0),
    ):
        write_positions(
            tmp_path / f'{modality.name}/a.tif', own, (centre[0] + shift, centre[1] - shift / 2),
            shape[modality.gsd], reference, origin, modality.gsd,
        )  # fmt: skip
    check_positions(tmp_path, fine, coarse, reference, origin, 0.4)


@pytest.mark.parametrize(
    'kinds',
    [('degrees', 'turned'), ('turned', 'degrees'), ('southup', 'feet'), ('feet', 'zone'),
     ('zone', 'southup'), ('turned', 'turned'), ('degrees', 'degrees')],
    ids='-'.join,
)  # fmt: skip
@pytest.mark.parametrize('side', list(REFERENCES))
def test_any_two_grids_that_overlap_in_part_agree(tmp_path, kinds, side):
    reference, centre, origin = REFERENCES[side]
    fine, coarse = sensor('fine', 2), sensor('coarse', 2, gsd=30.0)
    write_positions(tmp_path / 'a/fine.tif', kinds[0], centre, (97, 96), reference, origin)
    aside = (centre[0] + 610.0, centre[1] - 333.0)
    write_positions(tmp_path / 'b/coarse.tif', kinds[1], aside, (64, 65), reference, origin, 30.0)
    check_positions(tmp_path, fine, coarse, reference, origin, 0.25)


@pytest.mark.parametrize('kind', KINDS)
def test_labels_come_out_as_they_are(tmp_path, kind):
    reference, centre, origin = REFERENCES['north']
    fine = sensor('fine', 2)
    classes = Modality('classes', ('class',), 10.0, 'class number', categorical=True)
    write_positions(tmp_path / 'fine/a.tif', 'utm', centre, (96, 96), reference, origin)
    crs, transform = transform_of(kind, centre, (120, 121), reference, 10.0)
    values = np.random.default_rng(0).choice(CLASSES, (1, 120, 121))
    write(tmp_path / 'classes/b.tif', values, transform, crs, dtype='uint8')
    index_of([tmp_path], tmp_path / 'chips.parquet', (fine, classes))
    data = Rasters([tmp_path / 'chips.parquet'], (fine, classes))
    seen = [data[i]['classes'] for i in range(len(data)) if 'classes' in data[i]]
    assert len(seen) >= 4
    there = torch.cat([s[s.isfinite()] for s in seen])
    assert set(there.tolist()) == set(CLASSES) and len(there) > 0.9 * 48 * 48 * 4


def test_a_box_is_where_its_chip_lies_with_any_stride(tmp_path):
    reference, centre, origin = REFERENCES['north']
    fine, other = sensor('fine', 2), sensor('other', 2, gsd=25.0)
    write_positions(tmp_path / 'a/fine.tif', 'utm', centre, (150, 150), reference, origin)
    write_positions(tmp_path / 'a/other.tif', 'utm', centre, (64, 64), reference, origin, 25.0)
    data = Rasters([tmp_path], (fine, other), chip_size=96, stride=25)
    to_reference = Transformer.from_crs('OGC:CRS84', reference, always_xy=True)
    for number in range(len(data)):
        west, south, east, north = data.box(number)
        middle = to_reference.transform((west + east) / 2, (south + north) / 2)
        for name in ('fine', 'other'):
            own = data[number][name].mean((1, 2)).numpy() + np.array(origin)
            assert np.abs(own - middle).max() < 12


# ------------------------------------------------------------------------------------------------
# The archive.


@pytest.fixture
def archive(tmp_path):
    """Good and bad files; the folder, the good ones, and the reasons why others are left out."""
    root = tmp_path / 'archive'
    rng = np.random.default_rng(1)
    good, bad = [], {}
    at = [500000.0 + 4000 * i for i in range(8)]

    def add(name, values, transform, **options):
        good.append(write(root / name, values, transform, **options))
        return good[-1]

    add('a/S2L2A.tif', s2(), utm(at[0]), dtype='int16')
    relief = rng.normal(300, 50, (1, 33, 33))
    relief[0, :11] = -9999
    add('a/DEM.tif', relief, utm(at[0], step=30.0), nodata=-9999)
    add('b/S2L2A.tif', s2(), Affine(0.00013, 0, 15.0, 0, -0.00009, 45.152), crs='EPSG:4326',
        dtype='float64')  # fmt: skip
    turned = Affine.translation(at[1], 5e6) @ Affine.rotation(30) @ Affine.scale(10, -10)
    add('c/S2L2A.tif', s2(2), turned, dtype='uint16', nodata=0)
    add('d/Größe & Höhe 1 S2L2A.tif', s2(3), utm(at[2]), dtype='uint16')
    add('e/S2L2A.tif', s2(4, (97, 95)), utm(at[3], 7e6), crs='EPSG:32733', dtype='int16')
    radar = rng.normal(-14, 3, (2, 96, 97))
    radar[:, 40:60] = np.nan
    add('e/S1.tif', radar, utm(at[3], 7e6), crs='EPSG:32733')
    add('f/S2L2A.tif', s2(5), Affine(10, 0, at[4], 0, 10, 4999040), dtype='uint16')
    add('f/LULC.tif', rng.choice(CLASSES, (1, 96, 96)), Affine(10, 0, at[4], 0, 10, 4999040),
        dtype='uint8')  # fmt: skip
    add('g/S2L2A.tif', s2(6), Affine(32.8, 0, 980000, 0, -32.8, 200000), crs='EPSG:2263',
        dtype='uint16')  # fmt: skip
    heights = rng.integers(10, 90, (1, 60, 60))
    heights[0, :, :20] = -32768
    add('h/DEM.tif', heights, Affine(0.0003, 0, -70.0, 0, -0.0003, -33.0), crs='EPSG:4326',
        dtype='int16', nodata=-32768)  # fmt: skip
    add('i/S2L2A.tif', s2(7), utm(at[5] + 503, 5e6 - 207), dtype='float64')
    add('i/S1.tif', rng.normal(-14, 3, (2, 96, 96)), utm(at[5]))
    cut = write(root / 'bad cut/S2L2A.tif', s2(), utm(), dtype='uint16')
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    bad[cut] = 'truncated'
    short = write(root / 'bad head/S2L2A.tif', s2(), utm(), dtype='uint16')
    short.write_bytes(short.read_bytes()[:100])
    bad[short] = 'cannot be opened'
    nothing = root / 'bad empty/S2L2A.tif'
    nothing.parent.mkdir()
    nothing.touch()
    bad[nothing] = 'cannot be opened'
    void = write(root / 'bad void/S2L2A.tif', np.zeros((12, 96, 96)), utm(), dtype='int16')
    bad[void] = 'nothing but nodata'
    blank = np.full((2, 96, 96), np.nan)
    bad[write(root / 'bad nan/S1.tif', blank, utm())] = 'nothing but nodata'
    bad[write(root / 'bad place/S2L2A.tif', s2(), utm(), crs=None, dtype='int16')] = 'no CRS'
    bad[write(root / 'bad kind/thing.tif', s2()[:5], utm(), dtype='int16')] = 'feeds no configured'
    bad[write(root / 'bad count/S2L2A.tif', s2()[:5], utm(), dtype='int16')] = 'has 5 bands'
    return root, good, bad


def test_a_mixed_archive_is_indexed_in_one_pass_and_trains(archive, tmp_path, capfd):
    root, good, bad = archive
    words = ('index', str(root), '-o', 'chips.parquet', '--chip-size', '48')
    assert main(words) == 0
    report = capfd.readouterr().out
    lines = report.splitlines()
    for path, reason in bad.items():
        named = [line for line in lines if str(path) in line]
        assert len(named) == 1 and reason in named[0], (path, named)
    assert f'{len(bad)} files left out' in report
    table = geopandas.read_parquet('chips.parquet')
    assert set(table.file) == set(map(str, good))
    check_against_rasterio(table)
    samples = Rasters(['chips.parquet'], list(MODALITIES.values()))
    assert any('s1' in samples[i] for i in range(len(samples)))
    assert any({'s2_l2a', 'dem'} <= set(samples[i]) for i in range(len(samples)))
    fit = (
        'fit', '--config', str(CONFIG), '--data.paths=[chips.parquet]', '--data.batch_size=2',
        '--trainer.max_steps=2', '--trainer.accelerator=cpu', '--trainer.log_every_n_steps=1',
        '--trainer.enable_progress_bar=false',
    )  # fmt: skip
    assert main(fit) == 0
    assert list(tmp_path.glob('runs/**/last.ckpt'))


def check_against_rasterio(table):
    """Bands, gsd, CRS, valid share, footprint of each file, by rasterio and pyproj."""
    geod = Geod(ellps='WGS84')
    for path, rows in table.groupby('file'):
        with rasterio.open(path) as source:
            values = source.read()
            there = np.isfinite(values).any(0)
            nodata = 0 if 'S2L2A' in path else source.nodata
            if nodata is not None:
                there &= (values != nodata).any(0)
            to_degrees = Transformer.from_crs(source.crs, 'OGC:CRS84', always_xy=True)
            middle = source.width / 2, source.height / 2
            points = [
                to_degrees.transform(*(source.transform @ (middle[0] + i, middle[1] + j)))
                for i, j in ((0, 0), (1, 0), (0, 1))
            ]
            ring = [
                to_degrees.transform(*(source.transform @ corner))
                for corner in ((0, 0), (source.width, 0), (source.width, source.height),
                               (0, source.height))
            ]  # fmt: skip
            crs = source.crs
        steps = [geod.inv(*points[0], *p)[2] for p in points[1:]]
        assert np.allclose(rows.gsd, np.sqrt(steps[0] * steps[1]), rtol=0.05), path
        first = rows.iloc[0]
        assert first.warped or CRS.from_user_input(first.crs) == crs
        assert len(first.bands.split()) == len(values)
        lon, lat = np.array(ring).T
        west, south, east, north = rows.total_bounds
        # Chips lie side by side from the top left, within the raster or one chip beyond it.
        assert abs(west - lon.min()) < 1e-3 and abs(north - lat.max()) < 1e-3, path
        assert east < lon.max() + 0.02 and south > lat.min() - 0.02
        if not first.warped:
            assert abs(first.file_valid_share - there.mean()) < 1e-6, path
            for row in rows.itertuples():
                part = there[row.window_row :, row.window_col :][:48, :48]
                assert abs(row.valid_share - part.sum() / 48**2) < 1e-6, path
        else:
            outline = first.file_valid_share * len(there) * len(there[0])
            assert outline > 0.4 * there.sum(), path


def test_fit_on_the_folder_itself_names_the_file_that_cannot_be_right(archive, capfd):
    root, _, _ = archive
    fit = ('fit', '--config', str(CONFIG), f"--data.paths=['{root}']", '--data.chip_size=48')
    assert main(fit) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert 'has 5 bands, but s2_l2a has 12' in last and 'bad count' in last


# ------------------------------------------------------------------------------------------------
# What a user would do wrong: one sentence and status 2, or the right result.


@pytest.fixture
def good(tmp_path):
    """A folder with one good raster."""
    write(tmp_path / 'in/good/S2L2A.tif', s2(), utm(), dtype='uint16')
    return tmp_path / 'in'


@pytest.fixture
def index(capfd):
    """Run `gfm-jepa index`; returns status and what it says."""

    def run(*words):
        try:
            status = main(['index', *map(str, words)])
        except SystemExit as stop:
            status = stop.code
        said = capfd.readouterr()
        assert 'Traceback' not in said.err
        return status, said.out + said.err

    return run


def test_an_index_comes_alone_and_has_its_own_modalities_and_size(good, index, tmp_path):
    assert index(good, '-o', 'chips.parquet', '--chip-size', 44)[0] == 0
    with pytest.raises(InputError, match='is an index; give it alone'):
        Rasters(['chips.parquet', good], [S2_L2A])
    with pytest.raises(InputError, match='holds the modalities s2_l2a, and none of dem'):
        Rasters(['chips.parquet'], [DEM])
    with pytest.raises(InputError, match='44 pixels, which patches of 8 do not divide'):
        Rasters(['chips.parquet'], [S2_L2A])


def test_wrong_options_of_the_index_are_explained(good, index, tmp_path):
    status, said = index(good, '-o', 'new/folder/chips.parquet')
    assert status == 0 and (tmp_path / 'new/folder/chips.parquet').exists(), said
    status, said = index(good, '-o', 'x.parquet', '--split', 'nothing')
    assert status == 2 and "no column 'nothing'" in said
    (tmp_path / 'area.txt').write_text('here')
    status, said = index(good, '-o', 'x.parquet', '--area', 'area.txt')
    assert status == 2 and 'is not GeoJSON' in said
    status, said = index(good, '-o', 'x.csv')
    assert status == 2 and 'ends in .parquet' in said


def test_a_sidecar_with_a_wrong_key_is_named(good, index):
    write(good / 'b/S2L2A.tif', s2(), utm(510000.0), dtype='uint16')
    (good / 'b/S2L2A.yaml').write_text('band: [B01]\n')
    status, said = index(good, '-o', 'x.parquet')
    assert status == 0 and "has the field 'band'" in said and '1 chips from 1 files' in said
    with pytest.raises(InputError, match="has the field 'band'"):
        Rasters([good], [S2_L2A])


def test_names_links_folders_and_zips(good, index, tmp_path):
    write(good / 'other/S2L2A.tif', s2(), utm(510000.0), dtype='uint16')
    write(good / 'x.tif/S2L2A.tif', s2(), utm(520000.0), dtype='uint16')
    for i, band in enumerate(('B02', 'B03', 'B04')):
        write(good / f'S2L2A/T33_{band}.tif', s2()[i : i + 1], utm(530000.0), dtype='uint16')
    inside = write(tmp_path / 'S2L2A.tif', s2(), utm(540000.0), dtype='uint16')
    with zipfile.ZipFile(good / 'Ä 1.zip', 'w') as target:
        target.write(inside, 'a b/S2L2A.tif')
    (good / 'dead.tif').symlink_to('/nowhere/S2L2A.tif')
    (good / 'linked').symlink_to(inside.parent / 'in/other')
    status, said = index(good, '-o', 'x.parquet')
    assert status == 0 and '1 files left out' in said and 'dead.tif: cannot be opened' in said
    table = geopandas.read_parquet('x.parquet')
    assert table.file.nunique() == 6
    assert table[table.file.str.contains('T33')].bands.tolist() == ['B02 B03 B04']


BAD_SIDECARS = {
    'scale': 'scale: ten', 'empty': 'scale: [null]', 'nodata': 'nodata: none',
    'baseline': 'baseline: four', 'keys': '1: 2\nband: 3',
}  # fmt: skip


@pytest.mark.parametrize('name', BAD_SIDECARS)
def test_sidecars_of_wrong_types_are_one_sentence(good, index, name):
    write(good / 'b/S2L2A.tif', s2(), utm(510000.0), dtype='uint16')
    (good / 'b/S2L2A.yaml').write_text(BAD_SIDECARS[name] + '\n')
    status, said = index(good, '-o', 'x.parquet')
    assert status in (0, 2) and 'S2L2A' in said


BAD_FILES = {
    'latin-1 sidecar': lambda f: f.with_suffix('.yaml').write_bytes('time: März'.encode('latin-1')),
    'odd json': lambda f: f.with_suffix('.json').write_text('{"type": "Feature", "assets": [1]}'),
    'zarr zip': lambda f: (f.parent / 'x.zarr.zip').write_bytes(b'PK no zip'),
    'local crs': lambda f: write(
        f, s2(), utm(), CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'), 'uint16'
    ),
    'metres as degrees': lambda f: write(f, s2(), utm(), 'EPSG:4326', 'uint16'),
    'transform of nan': lambda f: write(f, s2(), Affine(np.nan, 0, 0, 0, -1, 0), dtype='uint16'),
    'name of no text': lambda f: f.rename(os.fsdecode(os.fsencode(f.parent) + b'/\xff_S2L2A.tif')),
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_one_odd_file_does_not_end_the_index(good, index, name):
    path = write(good / 'b/S2L2A.tif', s2(1), utm(510000.0), dtype='uint16')
    BAD_FILES[name](path)
    status, _ = index(good, '-o', 'x.parquet')
    assert status == 0
    assert str(good / 'good/S2L2A.tif') in set(geopandas.read_parquet('x.parquet').file)


@pytest.mark.parametrize(
    'words',
    [('-o', 'file/x.parquet'), ('-o', '/proc/x.parquet'),
     ('-o', 'x.parquet', '--area', 'null.json'),
     ('-o', 'x.parquet', '--split', 'longitude', '--map', '/proc/x.png'),
     ('-o', 'x.parquet', '--split', 'longitude', '--map', 'x.xyz')],
    ids=['below a file', 'not writable', 'features null', 'map not writable', 'map of no format'],
)  # fmt: skip
def test_outputs_and_areas_that_cannot_be_are_one_sentence(good, index, tmp_path, words):
    (tmp_path / 'file').touch()
    (tmp_path / 'null.json').write_text('{"type": "FeatureCollection", "features": null}')
    assert index(good, *words)[0] == 2


# ------------------------------------------------------------------------------------------------
# What goes wrong without a word.


def test_a_coarse_partner_of_the_same_ground_is_kept(tmp_path):
    write(tmp_path / 'p/S2L2A.tif', s2(), utm(), dtype='uint16')
    write(tmp_path / 'p/DEM.tif', np.full((1, 32, 32), 200.0), utm(step=30.0))
    sample = Rasters([tmp_path], [S2_L2A, DEM], chip_size=96)[0]
    assert set(sample) == {'s2_l2a', 'dem', 'gsd'}


def test_a_file_across_a_border_is_in_no_split(tmp_path):
    for i in range(12):
        write(tmp_path / f'p{i}/S2L2A.tif', s2(i), utm(500000.0 + 1500 * i), dtype='uint16')
    table, _ = index_of([tmp_path], tmp_path / 'x.parquet', [S2_L2A], size=96,
                        split=SplitRule('blocks', 2000.0))  # fmt: skip
    assert (table.split == '').any(), 'the test needs chips across borders'
    files = {}
    for name in ('train', 'val', 'test'):
        expected = set(table.file[table.split == name])
        if not expected:
            with pytest.raises(InputError, match=f"There is no split '{name}'; the index has"):
                Rasters([tmp_path / 'x.parquet'], [S2_L2A], keep=ChipFilter(split=name))
            continue
        data = Rasters([tmp_path / 'x.parquet'], [S2_L2A], keep=ChipFilter(split=name))
        files[name] = {data.files(i)[0] for i in range(len(data))}
        assert files[name] == expected
    assert files


@pytest.mark.parametrize(
    'block',
    [
        1000.0,
        2500.0,
    ],
)
def test_a_split_keeps_the_partners_of_its_chips(tmp_path, block):
    write(tmp_path / 'p/S2L2A.tif', s2(0, (480, 480)), utm(), dtype='uint16')
    write(tmp_path / 'p/DEM.tif', np.full((1, 160, 160), 200.0), utm(step=30.0))
    rule = SplitRule('blocks', block)
    index_of([tmp_path], tmp_path / 'x.parquet', [S2_L2A, DEM], size=48, split=rule)
    for name in ('train', 'val', 'test'):
        data = Rasters([tmp_path / 'x.parquet'], [S2_L2A, DEM], keep=ChipFilter(split=name))
        assert all('dem' in data[i] for i in range(len(data)) if 's2_l2a' in data[i]), name
        assert all('s2_l2a' in data[i] for i in range(len(data))), name


def test_one_band_files_of_unlike_ground_are_not_laid_on_each_other(tmp_path):
    values = np.stack([np.tile(np.arange(96.0) * 10 + shift, (96, 1)) for shift in (0, 480)])
    write(tmp_path / 's1/a_VV.tif', values[:1], utm())
    write(tmp_path / 's1/a_VH.tif', values[1:], utm(500480.0))
    try:
        sample = Rasters([tmp_path], [MODALITIES['s1']], chip_size=96)[0]['s1']
    except InputError as error:
        assert 'a_V' in str(error)
        return
    both = sample.isfinite().all(0)
    assert (sample[0] - sample[1])[both].abs().max() < 5


def test_masks_count_on_warped_rasters_too(tmp_path):
    _, transform = transform_of('turned', (503000.0, 5003000.0), (96, 96), 'EPSG:32633', 10.0)
    path = tmp_path / 's2/a.tif'
    write(path, np.full((3, 96, 96), 700.0), transform, dtype='uint16')
    with rasterio.open(path, 'r+') as target:
        mask = np.full((96, 96), 255, np.uint8)
        mask[:48] = 0
        target.write(np.where(mask, 700, 5).astype('uint16')[None].repeat(3, 0))
        target.write_mask(mask)
    data = Rasters([tmp_path], [sensor('s2', 3)], chip_size=48, keep=ChipFilter(0.0))
    values = torch.cat([data[i]['s2'].flatten() for i in range(len(data))])
    assert values[values.isfinite()].min() > 600


def test_the_cloud_share_does_not_hang_on_where_a_part_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, 'FILES_PER_PART', 1)
    write(tmp_path / 'p/CLOUDMASK.tif', np.ones((1, 96, 96)), utm(), dtype='uint8')
    write(tmp_path / 'p/S2L2A.tif', s2(), utm(), dtype='uint16')
    table, _ = index_of([tmp_path], tmp_path / 'x.parquet', [S2_L2A], size=96)
    assert table[table.modality == 's2_l2a'].cloud_share.tolist() == [1.0]


def test_a_bad_cloud_mask_does_not_cost_the_image_beside_it(tmp_path):
    write(tmp_path / 'p/CLOUDMASK.tif', np.ones((2, 96, 96)), utm(), dtype='uint8')
    write(tmp_path / 'p/S2L2A.tif', s2(), utm(), dtype='uint16')
    table, _ = index_of([tmp_path], tmp_path / 'x.parquet', [S2_L2A, CLOUD_MASK], size=96)
    assert set(table.modality) == {'s2_l2a'}


def test_an_index_read_with_other_bands_gives_those_or_says_why_not(tmp_path):
    write(tmp_path / 'S2L2A.tif', s2(), utm(), dtype='uint16')
    index_of([tmp_path], tmp_path / 'x.parquet', [S2_L2A], size=96)
    part = Modality('s2_l2a', ('B04', 'B03'), 10.0, 'DN')
    try:
        data = Rasters([tmp_path / 'x.parquet'], [part])
        assert data.report() and data[0]['s2_l2a'].shape[0] == 2
    except InputError as error:
        assert 'band' in str(error)


def test_a_link_to_its_own_folder_is_followed_once(good, index):
    (good / 'loop').symlink_to(good)
    status, said = index(good, '-o', 'x.parquet')
    assert status == 0 and '1 chips from 1 files' in said


def test_a_zarr_folder_without_metadata_is_named(good, index):
    (good / 'S2L2A.zarr/c/0').mkdir(parents=True)
    (good / 'S2L2A.zarr/c/0/0').write_bytes(b'1')
    status, said = index(good, '-o', 'x.parquet')
    assert status == 0 and 'S2L2A.zarr' in said


def test_a_zip_of_one_band_files_is_one_raster(tmp_path, index):
    with zipfile.ZipFile(tmp_path / 'bands.ZIP', 'w') as target:
        for i, band in enumerate(('B02', 'B03', 'B04')):
            path = write(tmp_path / f'T_{band}.tif', s2()[i : i + 1], utm(), dtype='uint16')
            target.write(path, f'S2L2A/T_{band}.tif')
    status, said = index(tmp_path / 'bands.ZIP', '-o', 'x.parquet')
    assert status == 0 and '1 chips from 1 files' in said


@pytest.mark.parametrize('latitude', [60.0, 70.0])
def test_equal_degrees_far_north_keep_their_gsd(tmp_path, latitude):
    step = 0.0003
    transform = Affine(step, 0, 15, 0, -step, latitude)
    write(tmp_path / 'DEM.tif', np.ones((1, 99, 99)), transform, 'EPSG:4326')
    geod = Geod(ellps='WGS84')
    wide = geod.inv(15, latitude, 15 + step, latitude)[2]
    high = geod.inv(15, latitude, 15, latitude - step)[2]
    table, _ = index_of([tmp_path], tmp_path / 'x.parquet', [DEM])
    assert np.allclose(table.gsd, np.sqrt(wide * high), rtol=0.05)


def test_a_time_filter_leaves_undated_relief_beside_dated_images(tmp_path):
    write(tmp_path / 'p/S2L2A_20200101.tif', s2(), utm(), dtype='uint16')
    write(tmp_path / 'p/DEM.tif', np.ones((1, 96, 96)), utm())
    data = Rasters([tmp_path], [S2_L2A, DEM], keep=ChipFilter(start='2019-01-01'))
    assert 'dem' in data[0] or 'DEM.tif' in data.report()


def test_modalities_meet_across_180_degrees(tmp_path):
    write(tmp_path / 'S2L2A.tif', s2(), utm(166021.0 - 480, 1000.0), 'EPSG:32601', 'uint16')
    relief = Affine(1e-4, 0, 179.99, 0, -1e-4, 0.0095)
    write(tmp_path / 'DEM.tif', np.ones((1, 192, 192)), relief, 'EPSG:4326')
    data = Rasters([tmp_path], [S2_L2A, DEM], chip_size=48)
    assert all({'s2_l2a', 'dem'} <= set(data[i]) for i in range(4))
