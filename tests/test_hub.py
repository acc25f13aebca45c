"""Publish and pull with the real client of the Hub, against a server on the loopback interface."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.file_download
import pytest
import torch
from fake_hub import FakeHub
from huggingface_hub import constants
from safetensors.torch import load_file
from small_weights import OPTICAL, RADAR, chips

from gfm_jepa import InputError, from_pretrained, save_pretrained, verify_golden
from gfm_jepa.cli import main
from gfm_jepa.modalities import Modality
from gfm_jepa.models import Encoder, publishing
from gfm_jepa.models.model_card import CardFacts, card_metadata

# The client sends files in a way that its own HTTP library will drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CONFIGS = Path(__file__).parent.parent / 'configs'
FILES = ['README.md', 'config.json', 'golden.safetensors', 'model.safetensors']


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = FakeHub()
    template = '/{repo_id}/resolve/{revision}/{filename}'
    for name, value in {
        'ENDPOINT': hub.url, 'HUGGINGFACE_CO_URL_TEMPLATE': hub.url + template,
        'HF_HUB_CACHE': str(tmp_path / 'cache'), 'HF_TOKEN_PATH': str(tmp_path / 'token'),
        'HF_HUB_DISABLE_XET': True, 'HF_HUB_DISABLE_PROGRESS_BARS': True,
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv('HF_TOKEN', 'hf_test')
    # The client waits between its attempts.
    monkeypatch.setattr(huggingface_hub.file_download.time, 'sleep', lambda seconds: None)
    yield hub
    hub.stop()


def encoder_of(seed=0):
    torch.manual_seed(seed)
    return Encoder([OPTICAL, RADAR], 8, 32, 2, 2, stem='conv').eval()


@pytest.fixture
def released(hub, tmp_path):
    """An encoder on the hub; returns it and its commit."""
    encoder = encoder_of()
    folder = save_pretrained(encoder, tmp_path / 'saved')
    assert main(['publish', str(folder), 'org/name', '--tag', 'v1']) == 0
    return encoder, hub.refs['main']


def test_push_then_pull_by_branch_tag_and_commit(hub, released, tmp_path, capfd):
    first = released[1]
    assert hub.commits[first].keys() == set(FILES) and hub.refs['v1'] == first
    other = save_pretrained(encoder_of(1), tmp_path / 'other')
    capfd.readouterr()
    assert main(['publish', str(other), 'org/name']) == 0
    second = hub.refs['main']
    assert capfd.readouterr().out == f'published: {hub.url}/org/name at commit {second}\n'
    images = chips(OPTICAL)
    for revision, commit, seed in (
        (None, second, 1), ('main', second, 1), ('v1', first, 0), (first, first, 0),
    ):  # fmt: skip
        loaded = from_pretrained('org/name', revision=revision)
        assert loaded.revision == commit
        assert torch.equal(loaded({'optical': images}), encoder_of(seed)({'optical': images}))
        assert verify_golden(loaded, 'org/name') < 1e-5
    with pytest.raises(InputError, match='differs by'):
        verify_golden(from_pretrained('org/name'), _snapshot(tmp_path, first))


def _snapshot(tmp_path, commit):
    return next((tmp_path / 'cache').glob(f'*/snapshots/{commit}'))


def test_the_cache_serves_when_the_server_is_gone(hub, released):
    encoder, commit = released
    images = {'optical': chips(OPTICAL)}
    with pytest.raises(InputError, match='The cache holds no org/name'):
        from_pretrained('org/name', local_files_only=True)
    from_pretrained('org/name')
    hub.requests.clear()
    assert from_pretrained('org/name', revision=commit).revision == commit
    assert from_pretrained('org/name', local_files_only=True).revision == commit
    assert not hub.requests
    hub.stop()
    assert torch.equal(from_pretrained('org/name')(images), encoder(images))


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
def test_content_that_is_not_what_its_hash_says(hub, released, name):
    hub.spoil = name
    with pytest.raises(InputError, match=r'has the hash .*, but the Hub says'):
        from_pretrained('org/name')


def test_a_file_of_the_cache_that_was_changed(hub, released, tmp_path):
    from_pretrained('org/name')
    blob = (_snapshot(tmp_path, released[1]) / 'model.safetensors').resolve()
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.write_bytes(content)
    with pytest.raises(InputError, match=f'delete {blob}'):
        from_pretrained('org/name', local_files_only=True)


def test_what_is_not_there_and_a_server_that_fails(hub, released):
    with pytest.raises(InputError, match=r'knows no org/other \(404\)'):
        from_pretrained('org/other')
    with pytest.raises(InputError, match=r"no branch, tag or commit 'v9' \(404\)"):
        from_pretrained('org/name', revision='v9')
    for name in ('model.safetensors', 'config.json'):
        del hub.commits[hub.refs['main']][name]
        with pytest.raises(InputError, match=r'lacks .* \(404\); it holds no encoder of ours'):
            from_pretrained('org/name')
    hub.fail_with = 503
    with pytest.raises(InputError, match='The Hub answered 503 for org/name'):
        from_pretrained('org/name')


@pytest.mark.parametrize(
    ('status', 'code', 'at', 'sentence'),
    [
        (403, 'GatedRepo', '', r'only to those who accept its terms \(403\)'),
        (403, None, '', 'answered 403 for org/name; see whether your account may read it'),
        (429, None, '', 'answered 429 for org/name; wait some minutes'),
        # The other file of weights is not there: that is not what went wrong.
        (503, None, 'model.safetensors', 'answered 503 for org/name; see whether it is up'),
    ],
)
@pytest.mark.usefixtures('released')
def test_each_refusal_has_its_own_advice(hub, status, code, at, sentence):
    hub.fail_with, hub.error_code, hub.fail_at = status, code, at
    with pytest.raises(InputError, match=sentence):
        from_pretrained('org/name')


@pytest.mark.usefixtures('released')
def test_offline_by_the_environment(hub, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(InputError, match='HF_HUB_OFFLINE forbids to ask the Hub'):
        from_pretrained('org/name')
    assert not [r for r in hub.requests if r[0] == 'GET']


def test_an_interrupted_download_goes_on(hub, released, monkeypatch):
    # What lies between two full pieces is fetched again; its pieces are larger than this file.
    monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 65536)
    encoder, commit = released
    size = len(hub.commits[commit]['model.safetensors'])
    hub.break_after = size // 2
    images = {'radar': chips(RADAR)}
    assert torch.equal(from_pretrained('org/name')(images), encoder(images))
    ranges = [r for method, path, r in hub.requests if method == 'GET' and r]
    assert len(ranges) == 1
    first = int(ranges[0].removeprefix('bytes=').partition('-')[0])
    assert 0 < first <= size // 2


def test_shards_on_the_hub(hub, released):
    files = hub.commits[hub.refs['main']]
    files['a.safetensors'] = files.pop('model.safetensors')
    index = {'weight_map': {'norm.weight': 'a.safetensors'}}
    files['model.safetensors.index.json'] = json.dumps(index).encode()
    images = {'radar': chips(RADAR)}
    assert torch.equal(from_pretrained('org/name')(images), released[0](images))
    index['weight_map']['norm.bias'] = '../../evil.safetensors'
    commit = hub.commit({'model.safetensors.index.json': json.dumps(index).encode()})
    with pytest.raises(InputError, match='do not use these weights'):
        from_pretrained('org/name', revision=commit)
    assert not any('evil' in path for _, path, _ in hub.requests)


def test_a_hub_that_refuses_the_push(hub, tmp_path, capfd):
    folder = save_pretrained(encoder_of(), tmp_path / 'saved')
    hub.fail_with = 403
    assert main(['publish', str(folder), 'org/name']) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert 'The Hub did not take org/name' in message and 'hf auth login' in message


def test_the_environment_names_the_hub(hub, released, tmp_path):
    code = "import gfm_jepa; print(gfm_jepa.from_pretrained('org/name', revision='v1').revision)"
    environment = {**os.environ, 'HF_ENDPOINT': hub.url, 'HF_HOME': str(tmp_path / 'home')}
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == released[1], done.stderr


def row(name, **fields):
    return {
        'name': name, 'dataset': 'eurosat-rgb', 'split': 'spatial', 'features': 'embedding',
        'knn5': 0.91234, 'linear': 0.95, 'n_train': 16200, 'n_val': 5400, 'n_test': 5400, **fields,
    }  # fmt: skip


def test_dry_run_writes_all_of_it_and_uploads_nothing(hub, tmp_path, capfd):
    folder = save_pretrained(encoder_of(), tmp_path / 'saved')
    rows = tmp_path / 'rows.json'
    rows.write_text(json.dumps([row('/home/me/runs/last.ckpt'), row('RCF-512')]))
    out = tmp_path / 'some/release'
    words = [
        'publish', str(folder), 'org/name', '--dry-run', str(out), '--rows', str(rows), '--data',
        'SSL4EO-S12 v1.1 (CC-BY-4.0)', '--datasets', 'embed2scale/SSL4EO-S12-v1.1', '--license',
        'cc-by-4.0', '--compute', '2 CPU cores, 1 h',
    ]  # fmt: skip
    assert main(words) == 0 and main(words) == 0  # again, over what is there
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert sorted(p.name for p in out.parent.iterdir()) == ['release']
    assert not hub.requests
    assert card_metadata(out) == {
        'license': 'cc-by-4.0', 'library_name': 'gfm_jepa',
        'pipeline_tag': 'image-feature-extraction',
        'tags': ['remote-sensing', 'earth-observation', 'self-supervised-learning', 'jepa',
                 'torchgeo', 'timm', 'optical', 'radar'],
        'datasets': ['embed2scale/SSL4EO-S12-v1.1'],
    }  # fmt: skip
    card = (out / 'README.md').read_text()
    for part in (
        '| optical | B1 B2 B3 B4 | 10 m | DN | made up |', '- SSL4EO-S12 v1.1 (CC-BY-4.0)',
        '| name | eurosat-rgb | spatial | embedding | 91.23 | 95.00 | 16200 / 5400 / 5400 |',
        '| RCF-512 |',
        'Compute: 2 CPU cores, 1 h.', "gfm_jepa.from_pretrained('org/name')",
    ):  # fmt: skip
        assert part in card, part
    assert '/home' not in card
    assert huggingface_hub.ModelCard(card).data.library_name == 'gfm_jepa'
    tensors = load_file(out / 'model.safetensors')
    assert tensors.keys() == encoder_of().state_dict().keys()


def test_half_the_size_holds_what_it_embeds(tmp_path):
    folder = save_pretrained(encoder_of(), tmp_path / 'saved')
    assert main(['publish', str(folder), 'org/name', '--dry-run', 'out', '--half']) == 0
    sizes = [(f / 'model.safetensors').stat().st_size for f in (folder, tmp_path / 'out')]
    assert sizes[1] < 0.6 * sizes[0]
    encoder = from_pretrained('out')
    assert {v.dtype for v in encoder.state_dict().values()} <= {torch.float32, torch.int64}
    assert verify_golden(encoder, 'out') < 1e-5
    images = {'radar': torch.rand(2, 2, 32, 32)}
    assert 0 < (encoder(images) - from_pretrained(folder)(images)).abs().max() < 1e-2


def test_a_checkpoint_tells_its_run_and_nothing_of_the_optimizer(tmp_path, write_raster, capfd):
    write_raster(tmp_path / 'drone/a.tif', 2, names=['red', 'nir'], gsd=2.0)
    stats = ['stats', str(tmp_path), '--name', 'drone', '--unit', 'DN', '-o', 'drone.yaml']
    assert main(stats) == 0
    assert main([
        'fit', '--config', str(CONFIGS / 'ijepa_rasters.yaml'), f'--data.paths=[{tmp_path}]',
        f'--data.modalities=[{tmp_path}/drone.yaml]', '--trainer.max_steps=1',
        '--data.batch_size=1', '--trainer.log_every_n_steps=1', '--trainer.accelerator=cpu',
        '--trainer.enable_progress_bar=false',
    ]) == 0  # fmt: skip
    (checkpoint,) = tmp_path.glob('runs/**/last.ckpt')
    assert main(['publish', str(checkpoint), 'org/drone', '--dry-run', 'out']) == 0
    card = (tmp_path / 'out/README.md').read_text()
    for part in ('| method | IJEPA |', '| optimizer steps | 1 |', '| weights of | target_encoder |',
                 '| encoder.preset | nano |', '| optimizer.lr | '):  # fmt: skip
        assert part in card, card
    written = b''.join(p.read_bytes() for p in (tmp_path / 'out').iterdir())
    assert str(tmp_path).encode() not in written
    assert load_file('out/model.safetensors').keys() == from_pretrained('out').state_dict().keys()


@pytest.mark.parametrize(
    ('source', 'kind'),
    [
        ('computed on /home/me/rasters', 'a path of a machine'),
        (r'computed on C:\Users\me', 'a path of a machine'),
        ('C:/Users/me/x', 'a path of a machine'),
        ('source:/home/me', 'a path of a machine'),
        ('see /workspace/x', 'a path of a machine'),
        ('/p/project/me', 'a path of a machine'),
        (r'\\server\share', 'a path of a machine'),
        ('//server/share/me', 'a path of a machine'),
        ('xoxb-1234567890-abc', 'a token'),
        ('hf_abcdefghijklmnopqrstuvwx', r'a token \(hf_abc\.\.\.\)'),
        ('https://me:secret@example.org/x', 'a token'),
    ],
)
def test_nothing_private_leaves_the_machine(hub, tmp_path, capfd, source, kind):
    modality = Modality('drone', ('red',), 0.1, 'DN', (1.0,), (2.0,), source)
    folder = save_pretrained(Encoder([modality], 8, 32, 1, 2), tmp_path / 'saved')
    assert main(['publish', str(folder), 'org/name', '--dry-run', 'out']) == 2
    message = capfd.readouterr().err
    assert re.search(kind, message), message
    assert 'secret' not in message and not (tmp_path / 'out').exists() and not hub.requests
    assert sorted(p.name for p in tmp_path.iterdir()) == ['saved']


def test_public_addresses_are_no_secret(hub, tmp_path):
    modality = Modality('drone', ('red',), 0.1, 'DN', (1.0,), (2.0,), 'https://a.org/data/x, m/s')
    folder = save_pretrained(Encoder([modality], 8, 32, 1, 2), tmp_path / 'saved')
    assert main(['publish', str(folder), 'org/name', '--dry-run', 'out']) == 0


def test_what_belongs_to_something_else_is_not_replaced(tmp_path, capfd):
    folder = save_pretrained(encoder_of(), tmp_path / 'saved')
    words = ['publish', str(folder), 'org/name', '--dry-run', 'site']
    for name, content in (('README.md', '# A site'), ('config.json', '{"model_type": "bert"}')):
        (tmp_path / 'site').mkdir()
        (tmp_path / 'site' / name).write_text(content)
        assert main(words) == 2
        assert f'holds a {name} that belongs to something else' in capfd.readouterr().err
        if name == 'config.json':
            with pytest.raises(InputError, match='belongs to something else'):
                save_pretrained(encoder_of(), tmp_path / 'site')
        assert [p.name for p in (tmp_path / 'site').iterdir()] == [name]
        shutil.rmtree(tmp_path / 'site')
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site/scene.tif').touch()
    assert main(words) == 2
    assert 'site holds scene.tif and no encoder; name a new or an empty' in capfd.readouterr().err
    with pytest.raises(InputError, match=r'holds scene\.tif and no encoder'):
        save_pretrained(encoder_of(), tmp_path / 'site')
    assert [p.name for p in (tmp_path / 'site').iterdir()] == ['scene.tif']
    shutil.rmtree(tmp_path / 'site')
    (tmp_path / 'site').write_text('a file')
    assert main(words) == 2 and 'is a file' in capfd.readouterr().err
    (tmp_path / 'site').unlink()
    assert main(words) == 0 and main(words) == 0  # its own it replaces
    (tmp_path / 'site/config.json').unlink()  # as if it had been killed at the end
    assert main(words) == 0
    (tmp_path / 'clone').mkdir()
    (tmp_path / 'clone/README.md').write_text('# A repository')
    save_pretrained(encoder_of(), tmp_path / 'clone')  # writes no card


def test_licence_and_data_go_with_the_weights(tmp_path):
    folder = save_pretrained(encoder_of(), tmp_path / 'saved')
    first = [
        '--dry-run',
        'one',
        '--license',
        'cc-by-sa-4.0',
        '--data',
        'A (MIT)',
        'B (CC-BY-SA-4.0)',
    ]
    assert main(['publish', str(folder), 'org/name', *first]) == 0
    assert main(['publish', 'one', 'me/copy', '--dry-run', 'two']) == 0
    card = (tmp_path / 'two/README.md').read_text()
    assert 'license: cc-by-sa-4.0' in card and '- A (MIT)\n- B (CC-BY-SA-4.0)\n' in card
    assert main(['publish', 'one', 'me/copy', '--dry-run', 'two', '--license', 'mit']) == 0
    assert 'license: mit' in (tmp_path / 'two/README.md').read_text()


def test_the_licence_of_weights_on_the_hub_goes_with_them(hub, tmp_path, capfd):
    folder = save_pretrained(encoder_of(), tmp_path / 'saved')
    words = ['publish', str(folder), 'org/name', '--license', 'cc-by-sa-4.0', '--data', 'A (MIT)']
    assert main(words) == 0 and main(['publish', 'org/name', 'me/copy', '--dry-run', 'two']) == 0
    card = (tmp_path / 'two/README.md').read_text()
    assert 'license: cc-by-sa-4.0' in card and '- A (MIT)\n' in card
    hub.commit({'other.txt': b'a new commit, of which the cache holds nothing'})
    del hub.commits[hub.refs['main']]['README.md']
    capfd.readouterr()
    words = ['publish', 'org/name', 'me/copy', '--dry-run', 'three']
    assert main(words) == 2
    sentence = 'The licence of org/name is not known (org/name at '
    assert sentence in (error := capfd.readouterr().err) and 'lacks README.md (404)' in error
    assert not (tmp_path / 'three').exists()
    assert main([*words, '--license', 'mit']) == 0


def test_a_card_that_is_broken(tmp_path, capfd):
    folder = save_pretrained(encoder_of(), tmp_path / 'saved')
    assert main(['publish', str(folder), 'org/name', '--dry-run', 'one']) == 0
    (tmp_path / 'one/README.md').write_bytes(b'---\nlicense: [\n---\n\xff')
    capfd.readouterr()
    assert main(['publish', 'one', 'org/name', '--dry-run', 'two']) == 2
    assert 'README.md is not YAML' in (error := capfd.readouterr().err) and '\n' not in error[:-1]


@pytest.mark.parametrize(
    'alias', ['a\n/home/alice/x', '\t/home/alice', '/дом/алиса/x', '~alice/data']
)
def test_a_path_behind_escapes_of_json_does_not_leave(tmp_path, capfd, alias):
    modality = Modality('optical', ('B1',), 10.0, 'DN', (1.0,), (1.0,), aliases=(alias,))
    folder = save_pretrained(Encoder([modality], 8, 32, 1, 2), tmp_path / 'saved')
    assert main(['publish', str(folder), 'org/name', '--dry-run', 'out']) == 2
    assert 'config.json would hold a path of a machine' in capfd.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('value', [None, '0.9'])
def test_rows_without_numbers(tmp_path, capfd, value):
    folder = save_pretrained(encoder_of(), tmp_path / 'saved')
    (tmp_path / 'rows.json').write_text(json.dumps([row('a', knn5=value)]))
    words = ['publish', str(folder), 'org/name', '--dry-run', 'out', '--rows', 'rows.json']
    assert main(words) == 2
    assert 'should hold the rows that' in capfd.readouterr().err


def test_statistics_of_many_bands_are_not_rounded(tmp_path):
    bands = tuple(f'B{i}' for i in range(300))
    modality = Modality('hyper', bands, 30.0, 'DN', (1234.5678,) * 300, (99.87654,) * 300)
    folder = save_pretrained(Encoder([modality], 8, 32, 1, 2), tmp_path / 'saved')
    assert main(['publish', str(folder), 'org/name', '--dry-run', 'out', '--half']) == 0
    assert from_pretrained('out').embedder('hyper').mean[7].item() == pytest.approx(1234.5678)


def test_a_tag_that_is_taken(tmp_path, monkeypatch):
    folder = save_pretrained(encoder_of(), tmp_path / 'saved')
    monkeypatch.setattr(publishing.HfApi, 'create_repo', lambda *_, **__: 'https://hub/org/name')
    commit = SimpleNamespace(oid='abc123')
    monkeypatch.setattr(publishing.HfApi, 'upload_folder', lambda *_, **__: commit)

    def taken(*_, **__):
        raise ValueError('tag v1 exists')

    monkeypatch.setattr(publishing.HfApi, 'create_tag', taken)
    with pytest.raises(InputError, match=r"is at .* commit abc123, .* tag 'v1' \(tag v1 exists\)"):
        publishing.publish(folder, 'org/name', CardFacts('mit'), tag='v1')


def test_bad_words(tmp_path, capfd):
    for words, sentence in (
        (['nothing', 'org/name'], 'There are no weights'),
        (['nothing', 'name'], "'name' should be a name on the Hub"),
    ):
        assert main(['publish', *words, '--dry-run', 'out']) == 2
        assert sentence in capfd.readouterr().err
    folder = str(save_pretrained(encoder_of(), tmp_path / 'saved'))
    for rows, sentence in (
        ('{}', 'should hold the rows'), ('[{"name": 1}]', 'should hold the rows'),
        ('name,knn5', 'is not JSON; give the rows that `gfm-jepa probe --output` writes'),
    ):  # fmt: skip
        (tmp_path / 'rows.json').write_text(rows)
        assert main(['publish', folder, 'org/name', '--dry-run', 'out', '--rows', 'rows.json']) == 2
        assert sentence in capfd.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_others_may_read_what_is_saved(tmp_path):
    folder = save_pretrained(encoder_of(), tmp_path / 'saved')
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert modes['model.safetensors'] == modes['config.json']
