"""What users came upon: verbs that kept silent, or said what was not so."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import yaml
from conftest import sensor
from mapping import OPTICAL, save_encoder, smooth
from PIL import Image

from gfm_jepa import InputError, save_pretrained
from gfm_jepa.cli import main
from gfm_jepa.data import Rasters, RastersDataModule
from gfm_jepa.data.chips import summed_up
from gfm_jepa.data.recognition import UNRECOGNISED
from gfm_jepa.evaluation import report_map
from gfm_jepa.evaluation.embeddings import open_embeddings
from gfm_jepa.evaluation.methods import Contest
from gfm_jepa.models import Encoder
from gfm_jepa.tasks import IJEPA


@pytest.fixture
def write_map(tmp_path, write_raster):
    """Write a map of 8 x 8 cells as `gfm-jepa embed` would."""

    def write(name, seed=0):
        values = np.random.default_rng(seed).normal(size=(4, 8, 8))
        path = write_raster(tmp_path / name, values=values, gsd=80.0, dtype='float32')
        with rasterio.open(path, 'r+') as file:
            file.update_tags(weights='0123456789abcdef')
        return path

    return write


def test_a_scene_is_not_taken_for_embeddings_in_silence(tmp_path, write_map, write_raster):
    assert open_embeddings(write_map('map.tif')).count == 64
    scene = write_raster(tmp_path / 'scene.tif', 3)
    with pytest.warns(UserWarning, match=r'scene\.tif was not written by `gfm-jepa embed`'):
        assert open_embeddings(scene).count == 96 * 96


def test_a_place_beyond_a_map_is_told_what_the_map_spans(write_map):
    told = r'spans longitudes 15\.0000 to 15\.0\d+ and latitudes 45\.\d+ to 45.*longitude first'
    with pytest.raises(InputError, match=told):
        open_embeddings(write_map('map.tif')).place_at(45.15, 15.0)


def test_change_without_labels_sums_up_its_scores(write_map, capfd):
    assert main(['change', str(write_map('a.tif')), str(write_map('b.tif', 1)), '-o', 'c.tif']) == 0
    said = json.loads(capfd.readouterr().out.splitlines()[-1])
    with rasterio.open('c.tif') as file:
        scores = dict(zip(file.descriptions, file.read(), strict=True))
    for name, values in scores.items():
        assert said[name]['mean'] == pytest.approx(values.mean(), abs=1e-4), name
        assert said[name]['max'] == pytest.approx(values.max(), abs=1e-4), name


def test_a_layer_of_other_ground_is_told_before_the_slow_work(
    tmp_path, write_map, write_raster, monkeypatch
):
    known = open_embeddings(write_map('map.tif'))
    far = write_raster(tmp_path / 'far.tif', 3, origin=(9e5, 5e6))
    monkeypatch.setattr(report_map, '_vectors', lambda *_: pytest.fail('worked first'))
    with pytest.raises(InputError, match=r'far\.tif has no data where .*; give layers of it'):
        report_map.map_section(known, layers={'c': far})


def test_an_example_needs_no_place_on_the_ground(tmp_path, write_raster, capfd):
    save_encoder(tmp_path / 'weights')
    values = smooth(3, 64, 64).clip(0, 255).round()
    scene = write_raster(tmp_path / 'optical.tif', values=values, dtype='uint8')
    Image.fromarray(values.transpose(1, 2, 0).astype('uint8')).save('picture.png')
    assert main(['embed', 'weights', str(scene), '--window', '64', '-o', 'map.tif']) == 0
    words = ['search', 'map.tif', '--weights', 'weights', '-o', 'found.tif', '--image']
    found = []
    for image in ('optical=optical.tif', 'optical=picture.png'):
        assert main([*words, image]) == 0
        found.append(json.loads(capfd.readouterr().out.splitlines()[-1]))
    assert found[0] == found[1] and len(found[0]) == 10
    assert main([*words, 'picture.png']) == 2
    assert 'give it as NAME=PATH, by one of optical, radar' in capfd.readouterr().err
    assert main([*words, 'radar=picture.png']) == 2
    assert 'error: picture.png has' in capfd.readouterr().err  # and not its copy


def test_statistics_of_several_gsd_say_which_is_written(tmp_path, write_raster, capfd):
    write_raster(tmp_path / 'drone/a.tif', 2, gsd=10.0)
    write_raster(tmp_path / 'drone/b.tif', 2, gsd=0.5)
    with pytest.warns(UserWarning, match=r'pixels of 0\.5, 10 m, and the gsd of .*a\.tif, 10 m'):
        assert main(['stats', 'drone', '--name', 'drone', '-o', 'drone.yaml']) == 0
    assert yaml.safe_load((tmp_path / 'drone.yaml').read_text())['gsd'] == 10
    assert capfd.readouterr().out == 'written: drone.yaml\n'


def test_what_a_killed_save_or_a_new_repository_left_is_written_over(tmp_path):
    (tmp_path / 'own/.git').mkdir(parents=True)
    (tmp_path / 'own/tmp0abc_9xy').mkdir()
    (tmp_path / 'own/model.safetensors').touch()
    encoder = Encoder([OPTICAL], 8, 16, 1, 2)
    save_pretrained(encoder, tmp_path / 'own')
    (tmp_path / 'own/notes.txt').touch()
    save_pretrained(encoder, tmp_path / 'own')


def test_names_of_timm_are_looked_up_before_there_is_work():
    with pytest.raises(InputError, match="no model 'resnet1800'; it has resnet18, "):
        Contest(['weights'], timm=['resnet1800'])
    with pytest.raises(InputError, match='There is no file nosuch'):
        Contest(['weights'], timm=['resnet18=nosuch.safetensors'])


def test_without_other_places_all_chips_of_the_paths_are_predicted(tmp_path, write_raster):
    write_raster(tmp_path / 'sensor.tif', 3)
    data = RastersDataModule([str(tmp_path)], [sensor().to_dict()], chip_size=48, batch_size=3)
    data.setup('predict')
    loader = data.predict_dataloader()
    assert [len(batch['sensor']) for batch in loader] == [3, 1] and data.val_dataloader() == []
    corners = [loader.dataset.places[0].corners[i].tolist() for i in range(4)]
    assert corners == [[0, 0], [0, 48], [48, 0], [48, 48]]


def test_chips_larger_than_any_raster_are_named(tmp_path, write_raster):
    write_raster(tmp_path / 'sensor.tif', 3, (64, 72))
    with pytest.raises(InputError, match='chip_size is 1000, and the largest raster has 64 x 72'):
        Rasters([tmp_path], [sensor()], chip_size=1000)


def test_an_output_is_looked_at_before_the_inputs(tmp_path, capfd):
    (tmp_path / 'there.zarr').mkdir()
    for output, told in (('c.tif', 'name ends in .zarr'), ('there.zarr', 'is there already')):
        assert main(['cache', 'nowhere', '-o', output]) == 2
        assert told in capfd.readouterr().err


def test_a_single_file_is_left_out_by_its_path():
    left_out = [('a/x.tif', UNRECOGNISED), ('b/x.tif', UNRECOGNISED), ('c/scene.tif', UNRECOGNISED)]
    named = [path for path, _ in summed_up([*left_out, ('d.tif', 'is broken')])]
    assert named == ['d.tif', '2 x x.tif', 'c/scene.tif']


@pytest.mark.parametrize(('steps', 'lower'), [(50, False), (500, True)])
def test_a_short_run_gets_no_advice_of_no_use(steps, lower, caplog, monkeypatch):
    task = IJEPA([sensor()])
    strategy = SimpleNamespace(broadcast=lambda seed: seed)
    task._trainer = SimpleNamespace(strategy=strategy, precision='32-true')
    monkeypatch.setattr(IJEPA, 'total_steps', lambda self: steps)
    with caplog.at_level('INFO'):
        task.on_fit_start()
    assert 'take more steps' in caplog.text and ('a lower ema' in caplog.text) == lower


def test_one_path_needs_no_list(tmp_path, write_raster, capfd):
    write_raster(tmp_path / 'data/DEM.tif')
    words = ('predict', '--model=gfm_jepa.tasks.LeJEPA', '--data=gfm_jepa.data.RastersDataModule')
    found = set()
    for paths in (str(tmp_path / 'data'), f'[{tmp_path / "data"}]'):
        data = RastersDataModule(paths if paths[0] != '[' else [paths[1:-1]], ['dem'], chip_size=32)
        data.setup('fit')
        found.add(len(data.train_dataset))
        assert main([*words, f'--data.paths={paths}', '--data.modalities=[dem]']) == 2
        assert 'Nothing would write' in capfd.readouterr().err  # and nothing of the paths
    assert len(found) == 1
