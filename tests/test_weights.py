"""Weights by name and by band; whatever does not add up is refused before it costs anything."""

import json
import os
import pickle
import struct
import tracemalloc
from dataclasses import replace

import pytest
import torch
from conftest import sensor
from safetensors.torch import load_file, save_file
from small_weights import OPTICAL, RADAR, bundle, chips  # noqa: F401

from gfm_jepa import InputError, from_pretrained, save_pretrained, verify_golden
from gfm_jepa.evaluation.band_correlations import BandCorrelations
from gfm_jepa.models import Encoder, TimmEncoder
from gfm_jepa.models.golden import write_golden
from gfm_jepa.models.weight_files import check_header, read_safetensors

NAN = float('nan')


@pytest.fixture(params=['linear', 'conv'])
def saved(request, tmp_path):
    """An encoder of two modalities, and the folder that it is saved in."""
    encoder = Encoder([OPTICAL, RADAR], 8, 32, 2, 2, stem=request.param).eval()
    return encoder, save_pretrained(encoder, tmp_path / 'saved')


@pytest.fixture
def folder(tmp_path):
    return save_pretrained(Encoder([OPTICAL], 8, 32, 2, 2), tmp_path / 'saved')


def test_bundled_name(bundle):  # noqa: F811
    encoder = from_pretrained('gfm-jepa-nano')
    assert list(encoder.modalities) == ['rgb', 's2_l2a', 's1'] and not encoder.training
    assert all(p.requires_grad for p in encoder.parameters())
    assert verify_golden(encoder, 'gfm-jepa-nano') < 1e-5
    with pytest.raises(InputError, match='bundled are gfm-jepa-nano'):
        from_pretrained('gfm-jepa-huge')


def test_loading_draws_no_random_number(folder):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    from_pretrained(folder)
    assert torch.equal(torch.rand(1), expected)


def test_a_timm_model_comes_back(tmp_path):
    encoder = TimmEncoder(['rgb'], 'resnet18').eval()
    save_pretrained(encoder, tmp_path / 'resnet')
    images = chips(encoder.modality, 64)
    assert torch.equal(
        from_pretrained(tmp_path / 'resnet')({'rgb': images}), encoder({'rgb': images})
    )
    with pytest.raises(InputError, match='whose bands are fixed'):
        from_pretrained(tmp_path / 'resnet', bands={'rgb': ['red']})


def test_reordered_bands_give_the_same_embedding(saved):
    encoder, folder = saved
    order = ['B3', 'B1', 'B4', 'B2']
    images = chips(OPTICAL)
    reordered = from_pretrained(folder, bands={'optical': order})
    moved = images[:, [OPTICAL.bands.index(b) for b in order]]
    expected = encoder({'optical': images})
    assert torch.allclose(reordered({'optical': moved}), expected, atol=1e-6)
    both = {'optical': images, 'radar': chips(RADAR)}
    assert torch.allclose(
        reordered({**both, 'optical': moved}), encoder(both), atol=1e-6
    ) and torch.equal(reordered.patch_embeds['radar'].mean, encoder.patch_embeds['radar'].mean)


def test_a_dropped_band_equals_nan_and_the_mean(saved):
    encoder, folder = saved
    images = chips(OPTICAL)
    picked = from_pretrained(folder, bands={'optical': ['B1', 'B2', 'B4']})
    gone = images.clone()
    gone[:, 2] = NAN
    expected = picked({'optical': images[:, [0, 1, 3]]})
    assert torch.allclose(encoder({'optical': gone}), expected, atol=1e-6)
    # With most bands gone NaN means that nothing is there; the mean still does what dropping does.
    one = from_pretrained(folder, bands={'optical': ['B2']})
    gone[:] = torch.tensor(OPTICAL.mean).view(-1, 1, 1)
    gone[:, 1] = images[:, 1]
    expected = one({'optical': images[:, 1:2]})
    assert torch.allclose(encoder({'optical': gone}), expected, atol=1e-6)
    gone[:, [0, 2, 3]] = NAN
    assert encoder({'optical': gone}).isnan().all()


def test_new_bands_and_sensors_are_told_and_the_trunk_stays(saved, capsys):
    encoder, folder = saved
    wider = {'name': 'optical', 'bands': ['B4', 'B9'], 'mean': [1.0, 2.0], 'std': [1.0, 3.0]}
    new = from_pretrained(folder, modalities=[wider, 'dem', sensor('lidar', 2)])
    table = capsys.readouterr().err.splitlines()
    assert [line.split() for line in table] == [
        ['modality', 'copied', 'new'], ['optical', 'B4', 'B9'], ['dem', '-', 'elevation'],
        ['lidar', '-', 'B1', 'B2'],
    ]  # fmt: skip
    assert new.modalities['optical'].mean == (OPTICAL.mean[3], 2.0)
    trunk, before = new.blocks.state_dict(), encoder.blocks.state_dict()
    assert all(torch.equal(trunk[k], before[k]) for k in before)
    batch = {'optical': chips(new.modalities['optical']), 'lidar': chips(new.modalities['lidar'])}
    assert new(batch).isfinite().all()
    save_pretrained(new, folder.parent / 'again')
    assert torch.equal(from_pretrained(folder.parent / 'again')(batch), new(batch))
    subset = from_pretrained(folder, modalities=['radar'], strict_bands=True)
    images = chips(RADAR)
    assert torch.equal(subset({'radar': images}), encoder({'radar': images}))
    assert list(from_pretrained(folder, modalities='radar').modalities) == ['radar']


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (
            {'bands': {'optical': ['B9']}},
            'bands asks for B9 of optical, which was trained on B1',
        ),
        ({'bands': {'thermal': ['B9']}}, "bands names 'thermal', but the encoder has optical"),
        ({'modalities': [{'name': 'optical', 'bands': ['B9']}]}, 'no statistics of it are given'),
        ({'modalities': ['nothing']}, "Unknown modality 'nothing'"),
        ({'modalities': [{'name': 'optical', 'bnds': ['B9']}]}, "field 'bnds' is unknown"),
        ({'modalities': ['dem'], 'strict_bands': True}, 'those of elevation of dem would be new'),
        ({'modalities': []}, 'modalities names none; name one or more'),
        ({'modalities': ['optical', 'optical']}, 'modalities names optical, optical'),
        ({'bands': ['B1']}, r"bands is \['B1'\]; give the bands of a modality by its name"),
        ({'bands': {'optical': 'B1'}}, "bands gives optical 'B1'; give a list"),
        ({'bands': {'optical': []}}, r'bands gives optical \[\]; give a list'),
        ({'revision': 'v1'}, "is on this machine and has no revision 'v1'"),
        # Trained filters hold only under the statistics and the unit that they were trained with.
        (
            {'modalities': [{'name': 'optical', 'unit': 'reflectance'}]},
            'but "reflectance" is given',
        ),
        (
            {'modalities': [{'name': 'optical', 'mean': [9.0] * 4, 'std': [1.0] * 4}]},
            r'but \(9\.0, 1\.0\) is given; filters hold only under theirs',
        ),
    ],
)
def test_refused_bands(folder, options, sentence):
    with pytest.raises(InputError, match=sentence):
        from_pretrained(folder, **options)


def test_a_new_sensor_of_known_colours(tmp_path):
    encoder = Encoder(['naip'], 8, 32, 2, 2)
    folder = save_pretrained(encoder, tmp_path / 'saved')
    drone = replace(sensor('drone', 3), bands=('R', 'R2', 'N'), common_names=('red', 'red', 'nir'))
    new = from_pretrained(folder, modalities=[drone]).embedder('drone').stem.proj.weight
    old = encoder.embedder('naip').stem.proj.weight
    assert torch.equal(new[:, 0], old[:, 0]) and torch.equal(new[:, 2], old[:, 3])
    assert not new[:, 1].any()  # a colour that comes twice would count twice
    with pytest.raises(InputError, match='those of R of drone, R2 of drone, N of drone would be'):
        from_pretrained(folder, modalities=[drone], strict_bands=True)


def test_a_header_whose_length_looks_like_a_pickle(tmp_path):
    """0x0280, 0x0380, ...: as little-endian numbers they are how protocols 2 to 5 begin."""
    for length in (640, 896, 1152, 1408):
        value = torch.ones(2)
        for pad in range(length):
            save_file({'w': value}, tmp_path / 'a.safetensors', metadata={'x': '-' * pad})
            if int.from_bytes((tmp_path / 'a.safetensors').read_bytes()[:8], 'little') == length:
                break
        assert torch.equal(read_safetensors(tmp_path / 'a.safetensors')['w'], value)


def test_statistics_of_config_and_tensors_that_differ(folder):
    modality = OPTICAL.to_dict()
    change(folder, modalities=[{**modality, 'mean': [m + 1 for m in modality['mean']]}])
    with pytest.raises(InputError, match='do not fit its config: mean of optical differs'):
        from_pretrained(folder)


@pytest.mark.parametrize('moves', range(6))
def test_an_overwrite_that_is_broken_off_gives_back_what_was_there(bundle, monkeypatch, moves):  # noqa: F811
    (bundle / 'README.md').unlink()
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    done = []

    def broken_off(source, target):
        done.append(target)
        if len(done) == moves + 1:
            raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr('gfm_jepa.models.weight_files.os.replace', broken_off)
    if moves == 5:  # config, weights and golden embeddings away, weights and config there
        save_pretrained(Encoder([RADAR], 8, 32, 2, 2), bundle)
        assert len(done) == 5 and [*from_pretrained(bundle).modalities] == [RADAR.name]
        return
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(Encoder([RADAR], 8, 32, 2, 2), bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_a_file_that_claims_more_tensors_is_refused_unread(folder, monkeypatch):
    state = load_file(folder / 'model.safetensors')
    save_file({**state, 'extra': torch.zeros(1000)}, folder / 'model.safetensors')

    def read(*_):
        raise AssertionError('tensors were read')

    monkeypatch.setattr('gfm_jepa.models.building.require_finite', read)
    with pytest.raises(InputError, match='extra belongs to no module'):
        from_pretrained(folder)


def test_a_variance_below_0(bundle):  # noqa: F811
    state = load_file(bundle / 'model.safetensors')
    names = [name for name in state if name.endswith('running_var')]
    state[names[0]][0] = -1.0
    save_file(state, bundle / 'model.safetensors')
    with pytest.raises(InputError, match=r'running_var of .* is below 0'):
        from_pretrained(bundle)


def test_an_overwrite_takes_the_card_and_the_golden_embeddings_along(bundle):  # noqa: F811
    ours, other = bundle / 'README.md', bundle / 'notes.txt'
    ours.write_text('---\nlibrary_name: gfm_jepa\n---\n')
    other.write_text('mine')
    assert (bundle / 'golden.safetensors').is_file()
    save_pretrained(Encoder([RADAR], 8, 32, 2, 2), bundle)
    assert {p.name for p in bundle.iterdir()} == {'config.json', 'model.safetensors', 'notes.txt'}
    ours.write_text('# Of my project')
    save_pretrained(Encoder([RADAR], 8, 32, 2, 2), bundle)
    assert ours.is_file()


def test_what_is_compiled_is_written_and_what_nothing_could_read_is_not(folder, tmp_path):
    encoder = from_pretrained(folder)
    save_pretrained(torch.compile(encoder), tmp_path / 'compiled')
    images = {'optical': chips(OPTICAL)}
    assert torch.equal(from_pretrained(tmp_path / 'compiled')(images), encoder(images))

    class Mine(Encoder):
        pass

    save_pretrained(Mine([OPTICAL], 8, 32, 2, 2), tmp_path / 'mine')
    assert type(from_pretrained(tmp_path / 'mine')) is Encoder
    with pytest.raises(InputError, match='BandCorrelations cannot be written'):
        save_pretrained(BandCorrelations(OPTICAL), tmp_path / 'other')
    assert not list((tmp_path / 'other').iterdir())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_weights_in_16_bits_come_back(tmp_path, dtype):
    encoder = Encoder(['s2_l2a'], 8, 32, 1, 2).eval()
    save_pretrained(encoder.to(dtype), tmp_path / 'half')
    back = from_pretrained(tmp_path / 'half')
    assert back.embedder('s2_l2a').mean[3].item() == pytest.approx(1340.9)  # not rounded


@pytest.mark.filterwarnings('ignore:Validating sparse tensor')
@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'encoder_prefix': None}, 'tensors are nameless'),
        ({'state_dict': [torch.ones(1)]}, 'tensors are nameless'),
        ({'state_dict': {'encoder.w': 'text'}}, "holds 'encoder.w', which is no plain tensor"),
        ({'state_dict': {'encoder.w': torch.ones(2, 2).to_sparse()}}, 'is no plain tensor'),
        # 40 TB, if anybody copied them
        ({'state_dict': {'encoder.w': torch.zeros(1).expand(10**7, 10**6)}}, 'is no plain tensor'),
    ],
)
def test_a_checkpoint_of_what_is_no_plain_tensor(tmp_path, changes, sentence):
    content = {'encoder_config': {}, 'encoder_prefix': 'encoder.', 'state_dict': {}, **changes}
    torch.save(content, tmp_path / 'last.ckpt')
    with pytest.raises(InputError, match=sentence):
        from_pretrained(tmp_path / 'last.ckpt')


def test_a_config_of_a_timm_model_fetches_and_allocates_nothing(tmp_path):
    folder = save_pretrained(TimmEncoder(['rgb'], 'resnet18'), tmp_path / 'saved')
    for fields, sentence in (
        ({'pretrained': True}, 'asks for weights of another source'),
        ({'backbone': 5}, 'has the backbone 5'),
        ({'backbone': 'vit_giant_patch14_clip_224'}, 'do not fit its config'),
    ):
        before = json.loads((folder / 'config.json').read_text())
        change(folder, **fields)
        tracemalloc.start()
        with pytest.raises(InputError, match=sentence):
            from_pretrained(folder)
        assert tracemalloc.get_traced_memory()[1] < 100e6
        tracemalloc.stop()
        (folder / 'config.json').write_text(json.dumps(before))


def test_shards(folder):
    state = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    names = list(state)
    parts = {'model-1.safetensors': names[::2], 'model-2.safetensors': names[1::2]}
    for file, keys in parts.items():
        save_file({k: state[k] for k in keys}, folder / file)
    index = folder / 'model.safetensors.index.json'
    weight_map = {k: file for file, keys in parts.items() for k in keys}
    index.write_text(json.dumps({'weight_map': weight_map}))
    loaded = from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in state)
    for path in ('../model-1.safetensors', '/etc/model.safetensors', 'a/b.safetensors', 'm.bin',
                 'a..safetensors', 'a\\b.safetensors', ''):  # fmt: skip
        index.write_text(json.dumps({'weight_map': {names[0]: path}}))
        with pytest.raises(InputError, match='not the plain name of a safetensors file'):
            from_pretrained(folder)
    index.write_text(json.dumps({'weight_map': {names[0]: 'gone.safetensors'}}))
    with pytest.raises(InputError, match='which is not there'):
        from_pretrained(folder)


class Malicious:
    def __reduce__(self):
        return open, ('was_run', 'w')


def test_a_pickle_is_refused_and_not_run(folder, tmp_path):
    for data in (pickle.dumps({'w': Malicious()}), pickle.dumps(Malicious(), protocol=2)):
        (folder / 'model.safetensors').write_bytes(data)
        with pytest.raises(InputError, match='a pickle under another name'):
            from_pretrained(folder)
    torch.save({'w': Malicious()}, folder / 'model.safetensors')
    with pytest.raises(InputError, match='a pickle under another name'):
        from_pretrained(folder)
    torch.save({'w': Malicious()}, tmp_path / 'last.ckpt')
    with pytest.raises(InputError, match='is not a checkpoint'):
        from_pretrained(tmp_path / 'last.ckpt')
    assert not (tmp_path / 'was_run').exists()
    pickle.loads(pickle.dumps(Malicious())).close()  # it would have been
    assert (tmp_path / 'was_run').exists()


def test_a_checkpoint_that_lacks_its_tensors(tmp_path):
    torch.save({'encoder_config': {}}, tmp_path / 'last.ckpt')
    with pytest.raises(InputError, match='it holds no encoder_prefix'):
        from_pretrained(tmp_path / 'last.ckpt')


def huge_header() -> bytes:
    return struct.pack('<Q', 10_000_000_000) + b'{"w":'


def huge_tensor() -> bytes:
    header = {'w': {'dtype': 'F32', 'shape': [2_500_000_000], 'data_offsets': [0, 10_000_000_000]}}
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text


def endless_tensor() -> bytes:
    text = b'{"w": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}'
    return struct.pack('<Q', len(text)) + text + b'\0' * 4


@pytest.mark.parametrize(
    'content', [huge_header(), huge_tensor(), endless_tensor(), b'', b'junk', b'\0' * 40]
)
def test_nothing_is_allocated_for_what_is_not_there(folder, content):
    (folder / 'model.safetensors').write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=r'model\.safetensors'):
        from_pretrained(folder)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize('keep', [3, 100, -1, -1000])
def test_a_truncated_file(folder, keep):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match='cut off'):
        check_header(path)
    with pytest.raises(InputError, match='cut off'):
        from_pretrained(folder)


def change(folder, **fields):
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ('fields', 'sentence'),
    [
        ({'class': 'os.system'}, "names the class 'os.system'; known are Encoder, TimmEncoder"),
        ({'class': []}, r'names the class \[\]'),
        ({'command': 'rm'}, "has the argument 'command', but Encoder knows modalities"),
        ({'embed_dim': 64}, r'has the shape \(32,\), expected \(64,\)'),
        ({'embed_dim': 2**16}, 'has the shape'),
        ({'embed_dim': 2**40}, 'give a whole number from 1 to 65536'),
        ({'depth': 10**9}, 'they hold 2 blocks, but depth is 1000000000'),
        ({'embed_dim': 'wide'}, "embed_dim is 'wide'; give a whole number"),
        ({'num_heads': 0}, 'num_heads is 0; give a whole number'),
        ({'patch_size': 8.0}, 'give a whole number'),
        ({'patch_size': 2**1000}, 'give a whole number'),
        ({'mlp_ratio': 'x'}, 'does not describe an encoder'),
        ({'num_heads': 5}, 'refused: embed_dim 32 should be a multiple'),
        ({'modalities': 3}, 'modalities 3; expected a list'),
        ({'modalities': ['/etc/sensor.yaml']}, 'expected a list of mappings'),
        ({'stem': 'conv'}, 'is missing'),
        ({'class': 'TimmEncoder', 'backbone': 'hf-hub:a/b'}, 'has the argument'),
        ({'class': 'TimmEncoder', 'backbone': 5}, 'has the argument'),
    ],
)
def test_a_config_that_is_not_one(folder, fields, sentence):
    change(folder, **fields)
    with pytest.raises(InputError, match=sentence):
        from_pretrained(folder)


@pytest.mark.parametrize('text', ['[1]', '{', '[' * 100_000, ' ' * 10_000_001])
def test_a_config_that_is_no_mapping(folder, text):
    (folder / 'config.json').write_text(text)
    with pytest.raises(InputError, match=r'config|mapping'):
        from_pretrained(folder)


@pytest.mark.parametrize('value', [NAN, float('inf')])
def test_weights_that_are_not_finite(folder, value):
    state = load_file(folder / 'model.safetensors')
    state['norm.weight'][3] = value
    save_file(state, folder / 'model.safetensors')
    with pytest.raises(InputError, match=r'norm\.weight of .* holds NaN or infinite'):
        from_pretrained(folder)


def test_tensors_that_do_not_fit(folder):
    state = load_file(folder / 'model.safetensors')
    for changed, sentence in (
        ({'norm.weight': torch.ones(31)}, r'norm\.weight has the shape \(31,\), expected \(32,\)'),
        ({'norm.weight': torch.ones(32, dtype=torch.int32)}, r'norm\.weight holds torch\.int32'),
        ({'extra': torch.ones(1)}, 'extra belongs to no module'),
    ):
        save_file({**state, **changed}, folder / 'model.safetensors')
        with pytest.raises(InputError, match=sentence):
            from_pretrained(folder)


def test_golden_changes_nothing_of_an_encoder_that_trains(bundle):  # noqa: F811
    encoder = from_pretrained(bundle).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert verify_golden(encoder, bundle) < 1e-5 and encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_golden_of_a_model_of_one_size(tmp_path):
    encoder = TimmEncoder(['rgb'], 'resmlp_12_224').eval()
    write_golden(encoder, tmp_path)
    assert verify_golden(encoder, tmp_path) < 1e-5


def test_golden_embeddings_that_are_none(bundle):  # noqa: F811
    encoder, golden = from_pretrained(bundle), load_file(bundle / 'golden.safetensors')
    for changed in (
        {'embedding.rgb': torch.ones(3, 7)}, {'embedding.rgb': golden['embedding.rgb'].long()},
        {'input.rgb': torch.ones(0, 3, 32, 32), 'embedding.rgb': torch.ones(0, 128)},
    ):  # fmt: skip
        save_file({**golden, **changed}, bundle / 'golden.safetensors')
        with pytest.raises(InputError, match='holds an embedding of rgb of shape'):
            verify_golden(encoder, bundle)


def test_golden_tells_other_weights(bundle):  # noqa: F811
    state = load_file(bundle / 'model.safetensors')
    state['norm.weight'] *= 1.01
    save_file(state, bundle / 'model.safetensors')
    with pytest.raises(InputError, match='The embedding of rgb differs by'):
        verify_golden(from_pretrained('gfm-jepa-nano'), 'gfm-jepa-nano')
    (bundle / 'golden.safetensors').unlink()
    with pytest.raises(InputError, match=r'holds no golden\.safetensors'):
        verify_golden(from_pretrained(bundle), bundle)
