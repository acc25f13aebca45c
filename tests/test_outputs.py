"""What a verb writes takes the place of no input and of nothing foreign, and is checked first."""

import os
from pathlib import Path

import geopandas
import pytest
import yaml
from mapping import OPTICAL, MeanEncoder, read, save_encoder, smooth

from gfm_jepa import InputError
from gfm_jepa.cli import main
from gfm_jepa.inference import workspaces
from gfm_jepa.inference.embed import EmbedSettings, embed
from gfm_jepa.inference.workspaces import Workspace
from gfm_jepa.output_paths import require_apart, require_clear
from gfm_jepa.verbs.index import SPLIT_BY


@pytest.fixture
def scene(tmp_path, write_raster):
    """Weights, a raster in a folder, a map that could be embedded of it, and foreign files."""
    save_encoder(tmp_path / 'weights')
    write_raster(tmp_path / 'in/optical.tif', values=smooth(3, 64, 96), dtype='float32')
    write_raster(tmp_path / 'map.tif', values=smooth(4, 16, 24), dtype='float32')
    write_raster(tmp_path / 'other.tif', values=smooth(4, 16, 24, 1), dtype='float32')
    write_raster(tmp_path / 'labels.tif', values=smooth(1, 16, 24) > 100, dtype='uint8')
    (tmp_path / 'keep').mkdir()
    (tmp_path / 'keep/notes.txt').write_text('mine')
    return tmp_path


@pytest.fixture
def refused(scene, capfd):
    """Run a command that must be refused; nothing may change. Returns its sentence."""

    def refuse(line: str) -> str:
        before = content(scene)
        capfd.readouterr()
        assert run(line) == 2, line
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith('gfm-jepa: error: '), error
        assert content(scene) == before, line
        return error

    return refuse


def run(line):
    """Run a command; its status."""
    return main(line.split())


def content(folder):
    """Bytes of all files below a folder; None for folders."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob('*'))}


EMBED = 'embed weights in/optical.tif --window 32'


def test_embed_replaces_no_input(scene, refused):
    os.symlink(scene / 'in', scene / 'linked')
    os.link(scene / 'in/optical.tif', scene / 'hard.tif')
    os.symlink(scene / 'in/optical.tif', scene / 'soft.tif')
    for words in ('in/optical.tif -o in/optical.tif', 'in/optical.tif -o hard.tif',
                  'optical=in/optical.tif -o soft.tif'):  # fmt: skip
        assert 'is an input' in refused(f'embed weights {words} --window 32 --overwrite')
    assert 'is an input' in refused('embed weights in -o linked --overwrite')
    assert 'lies within in' in refused('embed weights in/optical.tif -o in --overwrite')
    assert 'lies within linked' in refused('embed weights in/optical.tif -o linked --overwrite')
    assert 'lies within' in refused('embed weights in/optical.tif -o . --overwrite')


def test_embed_replaces_no_raster_of_an_index(scene, refused):
    (scene / 'optical.yaml').write_text(yaml.safe_dump(OPTICAL.to_dict()))
    assert run('index in -o i.parquet --modalities optical.yaml --chip-size 32') == 0
    assert 'is an input' in refused('embed weights i.parquet -o i.parquet --overwrite')
    assert 'lies within in' in refused('embed weights i.parquet -o in --overwrite')


def test_a_folder_keeps_what_is_not_written(scene, refused):
    assert 'add --overwrite' in refused(f'{EMBED} -o keep')
    (scene / 'keep/optical.tif').write_text('an older map')
    assert run(f'{EMBED} -o keep --overwrite') == 0
    assert (scene / 'keep/notes.txt').read_text() == 'mine'
    assert read(scene / 'keep/optical.tif')[0].shape == (16, 8, 12)
    assert sorted(p.name for p in (scene / 'keep').iterdir()) == ['notes.txt', 'optical.tif']
    assert not (scene / 'keep.work').exists()


def test_an_empty_folder_is_written_to(scene):
    (scene / 'empty').mkdir()
    assert run(f'{EMBED} -o empty') == 0
    assert [p.name for p in (scene / 'empty').iterdir()] == ['optical.tif']


def test_a_folder_of_other_files_is_no_store_and_a_file_no_folder(scene, refused):
    for name in ('keep.zarr', 'keep.tif', 'keep.parquet'):
        (scene / name).mkdir()
        (scene / name / 'notes.txt').write_text('mine')
        assert 'a folder of other files' in refused(f'{EMBED} -o {name} --overwrite')
    (scene / 'file').write_text('mine')
    assert 'is a file' in refused(f'{EMBED} -o file --overwrite')
    for words in ('', '--overwrite'):
        assert run(f'{EMBED} -o new.zarr {words}') == 0


def test_a_folder_is_filled_in_the_end_by_a_call_that_was_killed(scene, monkeypatch):
    (scene / 'in/second.tif').write_bytes((scene / 'in/optical.tif').read_bytes())
    inputs = 'in/optical.tif optical=in/second.tif'
    line = f'embed weights {inputs} --window 32 -o keep --overwrite'

    class Killed(BaseException):
        pass

    moved, replace = [], workspaces._replace

    def dying(path, target):
        if moved:
            raise Killed
        moved.append(target)
        replace(path, target)

    with monkeypatch.context() as context:
        context.setattr(workspaces, '_replace', dying)
        with pytest.raises(Killed):
            run(line)
    assert moved and run(line) == 0
    assert sorted(p.name for p in (scene / 'keep').iterdir()) == [
        'notes.txt', 'optical.tif', 'second.tif']  # fmt: skip


def test_a_map_goes_into_a_folder_of_another_disk(scene, monkeypatch):
    replace = os.replace

    def of_two_disks(source, target):
        if Path(source).parent != Path(target).parent:
            raise OSError(18, 'Invalid cross-device link')
        replace(source, target)

    (scene / 'empty').mkdir()
    monkeypatch.setattr(workspaces.os, 'replace', of_two_disks)
    assert run(f'{EMBED} -o empty') == 0
    assert [p.name for p in (scene / 'empty').iterdir()] == ['optical.tif']


def test_the_folder_where_one_is_has_a_name(scene):
    assert Workspace(Path('.'), {}).folder == scene.with_name(f'{scene.name}.work')


def test_components_are_counted_before_any_work(scene, refused):
    for count in ('0', '-3'):
        assert 'give at least 1' in refused(f'{EMBED} -o x.tif --pca {count}')
    assert '16 features, of which 1000' in refused(f'{EMBED} -o x.tif --pca 1000')
    assert '16 features, of which 17' in refused(f'{EMBED} -o x.parquet --pca 17')
    deep = f'{EMBED} -o x.parquet --features depths --pca'
    assert '32 features, of which 33' in refused(f'{deep} 33')
    assert run(f'{deep} 17') == 0


def test_ground_that_nothing_shows_is_refused(scene, refused, write_raster):
    assert 'None of the rasters shows radar' in refused(f'{EMBED} -o x.tif --ground radar')
    write_raster(scene / 'far/radar.tif', values=smooth(2, 32, 32), gsd=20.0, dtype='float32',
                 origin=(900000.0, 5000000.0))  # fmt: skip
    assert run('embed weights in far -o maps --window 32 --ground radar') == 0
    assert [p.name for p in (scene / 'maps').iterdir()] == ['radar.tif']


INPUTS = [
    'cluster map.tif -k 2 -o labels.tif --labels labels.tif',
    'cluster map.tif -k 2 -o map.tif',
    'cluster map.tif -k 2 -o c.tif --labels c.png',
    'anomalies map.tif --train other.tif -o other.tif',
    'anomalies in/optical.tif --bands s2_l2a -o in/optical.tif',
    'anomalies other.tif --bands s2_l2a --train in -o in/optical.tif',
    'change map.tif other.tif --labels labels.tif -o labels.tif',
    'change map.tif other.tif -o c.tif --mask labels.tif --labels labels.tif',
    'search map.tif --image in/optical.tif --weights weights -o in/optical.tif',
    'search map.tif --image optical=in/optical.tif --weights weights -o in/optical.tif',
    'look weights in/masks.png -o in --figures masks',
    'report map.tif --layer page=page.html -o page.html',
    'dashboard run.png -o run.png',
    'index i.parquet -o i.parquet',
]


@pytest.mark.parametrize('line', INPUTS)
def test_no_verb_replaces_an_input(scene, refused, line):
    for name in ('c.png', 'in/masks.png', 'page.html', 'run.png', 'i.parquet'):
        (scene / name).write_text('mine')
    assert 'input' in refused(line)


ENDINGS = [
    'stats in/optical.tif --name x -o in/optical.tif',
    'stats in/optical.tif --name x -o keep',
    'probe weights --dataset eurosat-rgb-spatial --root in --output rows.csv',
    'probe weights --dataset eurosat-rgb-spatial --root in --output chips.parquet',
    'probe weights --dataset eurosat-rgb-spatial --root in --output keep',
    'dashboard run -o run.txt',
    'dashboard run -o keep',
    'cluster map.tif -k 2 -o c.tif --picture c.txt',
    'cluster map.tif -k 2 -o .',
    'anomalies map.tif -o c.tif --picture c.txt',
    'change map.tif other.tif -o c.tif --picture c.txt',
    'change map.tif other.tif -o c.tif --mask c.png',
    'search map.tif --place 0 -o c.tif --picture c.txt',
    'search map.tif --place 0 -o c.tif --picture keep',
    'report map.tif -o page.txt',
    'report map.tif -o keep',
    'index in -o .',
]


@pytest.mark.parametrize('line', ENDINGS)
def test_endings_are_checked_before_any_work(scene, refused, line):
    (scene / 'run').mkdir()
    (scene / 'run/metrics.csv').write_text('step,train/loss\n0,1.0\n1,0.5\n')
    for name in ('rows.csv', 'chips.parquet', 'c.txt', 'run.txt'):
        (scene / name).write_text('mine')
    assert 'should be a file that ends in .' in refused(line)


@pytest.mark.parametrize('line', [
    'change map.tif other.tif -o c.tif --mask c.tif',
    'change map.tif other.tif -o c.tif --mask ./keep/../c.tif',
])  # fmt: skip
def test_two_outputs_are_two_files(refused, line):
    assert 'written twice' in refused(line)


@pytest.mark.filterwarnings('ignore:.*not written by `gfm-jepa embed`')  # nor was it
def test_outputs_that_are_right_are_written(scene, capfd):
    assert run('cluster map.tif -k 2 -o c.tif --picture c.pdf --labels labels.tif') == 0
    assert (scene / 'c.pdf').read_bytes().startswith(b'%PDF')
    for _ in range(2):  # a verb may replace what it wrote
        assert run('stats in/optical.tif --name x -o x.yaml') == 0
        assert run('change map.tif other.tif -o d.tif --mask m.tif') == 0


def test_files_where_folders_are_written_are_refused(scene, refused):
    (scene / 'file').write_text('mine')
    assert 'is a file' in refused('look weights in/optical.tif -o file')
    words = 'probe weights --dataset eurosat-rgb-spatial --root in --figures file'
    assert 'is a file' in refused(words)


def test_probe_does_not_replace_the_config_of_the_weights(refused):
    words = 'probe weights --dataset eurosat-rgb-spatial --root in --output weights/config.json'
    assert 'is an input' in refused(words)


@pytest.mark.parametrize(('line', 'sentence'), [
    ('anomalies map.tif --neighbours 0 -o c.tif', '--neighbours is 0'),
    ('search map.tif --place 0 -k 0 -o c.tif', '-k is 0'),
    ('index in -o i.parquet --split foo', "no column 'foo' to split by"),
    ('index in -o i.parquet --area keep/notes.txt', 'not GeoJSON'),
    ('index in -o i.parquet --start 2019-13-01', 'give a day, such as 2019-06-01'),
    ('index in -o i.parquet --end May', 'give a day, such as 2019-06-01'),
    ('index in -o i.parquet --start 2019-06-02 --end 2019-06-01', 'is after'),
    ('explore in -o look --start 2019-13-01', 'give a day, such as 2019-06-01'),
    ('explore in -o look --area keep/notes.txt', 'not GeoJSON'),
])  # fmt: skip
def test_values_that_make_nothing_are_refused(refused, line, sentence):
    assert sentence in refused(line)


def test_an_index_may_be_split_by_its_columns(scene):
    (scene / 'optical.yaml').write_text(yaml.safe_dump(OPTICAL.to_dict()))
    words = 'index in -o i.parquet --modalities optical.yaml --chip-size 32 --split window_row'
    assert run(words) == 0
    columns = set(geopandas.read_parquet(scene / 'i.parquet').columns)
    assert set(SPLIT_BY) == columns - {'geometry', 'source', 'split'} | {'blocks', 'longitude'}


def test_figures_say_no_format_in_one_sentence(tmp_path):
    from matplotlib.figure import Figure

    from gfm_jepa.evaluation.plots import save

    save(Figure(), tmp_path / 'a.PNG')
    with pytest.raises(InputError, match=r'ends in \.png'):
        save(Figure(), tmp_path / 'a.txt')


def test_python_is_refused_as_the_command_line_is(scene):
    with pytest.raises(InputError, match='is an input'):
        embed(MeanEncoder().eval(), ['in/optical.tif'], Path('in/optical.tif'),
              EmbedSettings(32, overwrite=True))  # fmt: skip


def test_inputs_of_other_machines_are_no_files_of_this_one(scene):
    require_clear(Path('.').resolve(), ['https://host/a.tif', 's2=s3://bucket/b.tif'])
    require_apart([Path('a.tif'), None], ['https://host/a.tif', None, 'b=c=d'])
    with pytest.raises(InputError, match='is an input'):
        require_apart([Path('a.tif')], ['s2=a.tif'])
