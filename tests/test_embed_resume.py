"""A call that was killed, and one of several processes, give the bytes of an unbroken one."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from forked import Forked
from mapping import OPTICAL, save_encoder, smooth

import gfm_jepa.inference.embed as embedding
from gfm_jepa.cli import main
from gfm_jepa.inference import workspaces
from gfm_jepa.inference.workspaces import Workspace


def killed(words):
    """Die while it flushes the fourth part, after the settings and three whole ones."""
    whole, calls = os.fsync, []

    def dying(file):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(file)

    os.fsync = dying
    return main(words)


class Killed(BaseException):
    """Stands for SIGKILL where nothing runs on the way out that would tidy up."""


@pytest.fixture
def words(tmp_path, write_raster):
    """A call whose scene has 8 strips, without its output."""
    save_encoder(tmp_path / 'weights')
    write_raster(tmp_path / 'in/optical.tif', values=smooth(3, 260, 130), dtype='float32')
    write_raster(tmp_path / 'in/radar.tif', values=smooth(2, 60, 65), gsd=20.0, dtype='float32')
    return ['embed', str(tmp_path / 'weights'), str(tmp_path / 'in'), '--window', '64',
            '--overlap', '32', '--batch-size', '2', '-o']  # fmt: skip


def content(path):
    """Bytes of a file, or of each file in a folder."""
    if path.is_file():
        return path.read_bytes()
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob('*')) if p.is_file()}


def broken_off(patch, owner, name, words, after=0):
    """Run until a function is called that often, and raise from it."""
    whole, calls = getattr(owner, name), []

    def dying(*args):
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return whole(*args)

    with patch.context() as context:
        context.setattr(owner, name, dying)
        with pytest.raises(Killed):
            main(words)


def test_a_killed_call_goes_on_to_the_same_bytes(words, tmp_path, monkeypatch):
    target, work = tmp_path / 'out.tif', tmp_path / 'out.tif.work'
    assert main([*words, str(tmp_path / 'whole.tif')]) == 0
    printed, status = Forked(lambda: killed([*words, str(target)])).communicate()
    assert status == -signal.SIGKILL, printed
    assert len(list(work.glob('*.npy'))) == 3 and not target.exists()
    assert list(work.glob('*.tmp'))  # what it was writing
    saved = []
    save = Workspace.save
    monkeypatch.setattr(Workspace, 'save', lambda self, part, values: (
        saved.append(part), save(self, part, values)))  # fmt: skip
    assert main([*words, str(target)]) == 0
    assert len(saved) == 5
    assert content(target) == content(tmp_path / 'whole.tif') and not work.exists()


@pytest.mark.parametrize('output', ['out.tif', 'out.zarr', 'out.parquet', 'out'])
def test_what_was_killed_at_the_end_is_finished(words, tmp_path, monkeypatch, output):
    target, work = tmp_path / output, tmp_path / f'{output}.work'
    assert main([*words, str(target)]) == 0
    whole = content(target)
    # Before the result is moved into place, where an older one is; then while tidying up.
    broken_off(monkeypatch, workspaces, '_move', [*words, str(target), '--overwrite'])
    assert content(target) == whole and (work / 'finished.json').is_file()
    broken_off(monkeypatch, Workspace, 'remove', [*words, str(target)])
    assert content(target) == whole and (work / 'finished.json').is_file()
    assert main([*words, str(target)]) == 0
    assert content(target) == whole and not work.exists()
    assert main([*words, str(target)]) == 2  # now it is there already


def test_parts_of_other_settings_are_not_taken(words, tmp_path, monkeypatch, capfd):
    target, work = tmp_path / 'out.tif', tmp_path / 'out.tif.work'
    broken_off(monkeypatch, Workspace, 'save', [*words, str(target)], after=4)
    capfd.readouterr()
    assert main([*words, str(target), '--overlap', '16']) == 2
    assert 'overlap was 32, is 16' in capfd.readouterr().err
    # Components are made of finished parts.
    saved = []
    save = Workspace.save
    with monkeypatch.context() as context:
        context.setattr(Workspace, 'save', lambda self, part, values: (
            saved.append(part), save(self, part, values)))  # fmt: skip
        assert main([*words, str(target), '--pca', '99']) == 2
        assert main([*words, str(target), '--pca', '2']) == 0
    assert len(saved) == 8 - 4
    target.unlink()
    broken_off(monkeypatch, Workspace, 'save', [*words, str(target)], after=4)
    with Workspace(target, {}) as other:
        other._hold()
        assert main([*words, str(target)]) == 2
        assert 'Another call is writing' in capfd.readouterr().err
    with (tmp_path / 'in/radar.tif').open('ab') as file:  # the input has changed
        file.write(b'\0')
    assert main([*words, str(target)]) == 2
    assert main([*words, str(target), '--overwrite']) == 0 and not work.exists()
    target.unlink()
    broken_off(monkeypatch, Workspace, 'save', [*words, str(target)], after=4)
    (tmp_path / 'in/radar.yaml').write_text('nodata: 7')  # what is said of it has changed
    assert main([*words, str(target)]) == 2
    assert main([*words, str(target), '--overwrite']) == 0
    target.unlink()
    work.mkdir()
    (work / 'thesis.txt').write_text('mine')
    assert main([*words, str(target), '--overwrite']) == 2
    assert (work / 'thesis.txt').read_text() == 'mine'


def test_parts_of_another_index_are_not_taken(words, tmp_path, monkeypatch, capfd):
    (tmp_path / 'm.yaml').write_text(yaml.safe_dump(OPTICAL.to_dict()))
    made = ['index', 'in/optical.tif', '--modalities', 'm.yaml', '-o', 'i.parquet', '--chip-size']
    call = ['embed', words[1], 'i.parquet', '--batch-size', '2', '-o', 'o.parquet']
    assert main([*made, '64']) == 0
    rows = pq.read_table('i.parquet')
    pq.write_table(rows.slice(0, 4), 'i.parquet')
    broken_off(monkeypatch, embedding, '_write', call)
    pq.write_table(rows.slice(4, 4), 'i.parquet')
    assert main(call) == 2
    assert 'chips was [' in capfd.readouterr().err
    Path('i.parquet').unlink()
    assert main([*made, '128']) == 0
    assert main(call) == 2
    assert 'window was 64, is 128' in capfd.readouterr().err
    assert main([*call, '--overwrite']) == 0


def test_two_processes_give_the_bytes_of_one(words, tmp_path):
    for output in ('one.tif', 'one.parquet'):
        assert main([*words, str(tmp_path / output)]) == 0
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2',
                '--master-addr', '127.0.0.1', '--master-port', port]  # fmt: skip
    script = tmp_path / 'twice.py'
    script.write_text(
        'import sys; from gfm_jepa.cli import main\n'
        'codes = [main([*sys.argv[2:], o]) for o in sys.argv[1].split(",")]\n'
        'sys.exit(max(codes))\n'
    )
    outputs = ','.join(str(tmp_path / o) for o in ('two.tif', 'two.parquet'))
    done = subprocess.run([*torchrun, str(script), outputs, *words], capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '2'})  # fmt: skip
    assert done.returncode == 0, done.stderr
    for suffix in ('tif', 'parquet'):
        assert content(tmp_path / f'two.{suffix}') == content(tmp_path / f'one.{suffix}')
    assert not list(tmp_path.glob('*.work'))
