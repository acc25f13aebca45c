import json

import numpy as np
import pytest
import yaml

from gfm_jepa import MODALITIES, InputError, Modality
from gfm_jepa.modalities import resolve, resolve_all


def test_constants_are_complete():
    assert set(MODALITIES) == {'s2_l1c', 's2_l2a', 's1', 'rgb', 'landsat8', 'landsat7',
                               'naip', 'ndvi', 'dem'}  # fmt: skip
    for modality in MODALITIES.values():
        assert modality.require_statistics() is modality
        assert modality.source and modality.unit and modality.valid_range
    assert MODALITIES['s2_l1c'].bands[8] == 'B8A' and len(MODALITIES['s2_l1c'].bands) == 13
    assert 'B10' not in MODALITIES['s2_l2a'].bands


def test_a_sensor_of_ones_own(tmp_path):
    fields = {'name': 'drone', 'bands': ['red', 'nir'], 'gsd': 0.1, 'unit': 'DN'}
    assert resolve(fields) == Modality('drone', ('red', 'nir'), 0.1, 'DN')
    path = tmp_path / 'drone.yaml'
    path.write_text(yaml.safe_dump(fields))
    assert resolve(str(path)) == resolve(fields)
    assert resolve(resolve(fields).to_dict()) == resolve(fields)


def test_a_known_name_with_changes():
    naip = resolve({'name': 'naip', 'gsd': 5.0})
    assert naip.gsd == 5.0 and naip.bands == MODALITIES['naip'].bands


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('s3', 'Unknown modality .s3.: expected one of s2_l2a'),
        ('nothing.yaml', 'There is no modality file'),
        ({'name': 'x', 'bands': ['a'], 'gsd': 1}, 'lacks unit'),
        ({'name': 'x', 'band': ['a']}, "field 'band' is unknown"),
        ({'bands': ['a']}, 'needs a name'),
        ({'name': 'x', 'bands': ['a', 'a'], 'gsd': 1, 'unit': 'm'}, 'a name of its own'),
        ({'name': 'x', 'bands': ['a'], 'gsd': 0, 'unit': 'm'}, 'gsd 0.0; give metres'),
        ({'name': 'x.v1', 'bands': ['a'], 'gsd': 1, 'unit': 'm'}, 'a name without dots'),
        ({'name': 'x', 'bands': ['a'], 'gsd': 1, 'unit': 'm', 'mean': [1]}, '1 means and 0'),
        (
            {'name': 'x', 'bands': ['a'], 'gsd': 1, 'unit': 'm', 'mean': [1], 'std': [0]},
            'not above 0',
        ),
    ],
)
def test_bad_descriptions_are_explained(spec, message):
    with pytest.raises(InputError, match=message):
        resolve(spec)


def test_no_statistics_are_invented():
    with pytest.raises(InputError, match='gfm-jepa stats PATH --name drone'):
        Modality('drone', ('red',), 0.1, 'DN').require_statistics()


def test_names_must_differ():
    with pytest.raises(InputError, match='different names'):
        resolve_all(['rgb', 'rgb'])


@pytest.mark.parametrize(
    ('fields', 'sentence'),
    [
        ({'bands': [1, 2]}, r'has bands \(1, 2\); give a list of names'),
        ({'bands': 'RGB'}, "has bands 'RGB'; give a list of names"),
        ({'gsd': float('inf')}, 'has gsd inf; give a number'),
        ({'gsd': 'ten'}, "has gsd 'ten'; give a number"),
        ({'valid_range': 5}, 'has valid_range 5; give two numbers'),
        ({'valid_range': ['a', 'b']}, 'give two numbers'),
        ({'mean': ['x'], 'std': [1.0]}, 'give numbers'),
        ({'unit': 3}, 'has unit 3; give a text'),
        ({'source': {}}, 'give a text'),
        ({'dark_band': 1}, 'give a text'),
        ({'nodata': 'x'}, "has nodata 'x'; give a number"),
        ({'quantification': None}, 'give a number'),
        ({'name': 5}, 'is called 5; give it a name'),
        ({'name': ['a']}, 'give it a name'),
        ({'gsd': 1e308}, 'give metres per pixel, from'),
    ],
)
def test_fields_of_the_wrong_kind(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        resolve({'name': 'drone', 'bands': ['red'], 'gsd': 1.0, 'unit': 'DN', **fields})


def test_some_bands_of_a_known_sensor_keep_their_statistics():
    four = resolve({'name': 's2_l2a', 'bands': ['B08', 'B02']})
    assert four.mean == (2563.2, 924.9) and four.common_names == ('nir', 'blue')
    other = resolve({'name': 's2_l2a', 'bands': ['B02', 'HAZE']})
    assert other.mean == () and other.common_names == ()


def test_numbers_of_numpy_become_plain():
    made = Modality('q', ('a',), np.float32(10), 'DN', tuple(np.ones(1, np.float32)), (1,))
    assert json.loads(json.dumps(made.to_dict()))['mean'] == [1.0] and made.gsd == 10.0
    with pytest.raises(InputError, match='bands of rgb is None'):
        resolve({'name': 'rgb', 'bands': None})
