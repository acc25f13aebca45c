"""Rasters behind HTTP: the same chips, only the needed bytes, and a server that dies."""

import re
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from conftest import sensor
from loopback import Loopback

from gfm_jepa import InputError
from gfm_jepa.cli import main
from gfm_jepa.data import Rasters, open_files

S2 = sensor('s2', 3)


class Server(Loopback):
    """Serves a folder with range requests on the loopback interface, and counts the bytes."""

    def __init__(self, folder):
        self.folder, self.sent, self.dead_for = folder, 0, 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                path = owner.folder / self.path.lstrip('/')
                if owner.dead_for:
                    owner.dead_for -= 1
                    self.send_error(503)
                    return
                if not path.is_file():
                    self.send_error(404)
                    return
                content = path.read_bytes()
                wanted = re.match(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
                if wanted:
                    first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
                    part = content[first : last + 1]
                    self.send_response(206)
                    end = first + len(part) - 1
                    self.send_header('Content-Range', f'bytes {first}-{end}/{len(content)}')
                else:
                    part = content
                    self.send_response(200)
                self.send_header('Accept-Ranges', 'bytes')
                self.send_header('Content-Length', str(len(part)))
                self.end_headers()
                if body:
                    owner.sent += len(part)
                    self.wfile.write(part)

            def log_message(self, *_):
                pass

        super().__init__(Handler)


@pytest.fixture
def server(tmp_path, write_raster, monkeypatch):
    """A server of one cloud-optimised GeoTIFF of 3 MB."""
    monkeypatch.setattr(open_files, 'RETRY_AFTER', (0.0, 0.0))
    values = np.random.default_rng(0).integers(1, 60000, (3, 768, 768))
    plain = write_raster(tmp_path / 'plain.tif', values=values)
    (tmp_path / 'www').mkdir()
    with rasterio.open(plain) as source:
        rasterio.shutil.copy(
            source, tmp_path / 'www/s2.tif', driver='COG', blocksize=128, compress='deflate',
            overviews='none',
        )  # fmt: skip
    server = Server(tmp_path / 'www')
    yield server
    server.stop()


def test_the_same_chips_and_only_the_needed_bytes(server, tmp_path):
    local = Rasters([tmp_path / 'www'], [S2], chip_size=128)
    remote = Rasters([f'{server.url}/s2.tif'], [S2], chip_size=128)
    assert len(local) == len(remote) == 36
    size = (tmp_path / 'www/s2.tif').stat().st_size
    server.sent = 0
    assert torch.equal(remote[14]['s2'], local[14]['s2'])
    # One block in 36, with the requests' rounding.
    assert 0 < server.sent < size / 6
    assert torch.equal(remote[20]['s2'], local[20]['s2'])


def test_a_short_failure_costs_a_retry(server, tmp_path):
    remote = Rasters([f'{server.url}/s2.tif'], [S2], chip_size=128)
    remote[0]
    server.dead_for = 1
    local = Rasters([tmp_path / 'www'], [S2], chip_size=128)
    assert torch.equal(remote[35]['s2'], local[35]['s2'])
    assert server.dead_for == 0


def test_a_dead_server_is_named_and_comes_back(server):
    remote = Rasters([f'{server.url}/s2.tif'], [S2], chip_size=128)
    remote[0]
    server.dead_for = 1000
    with pytest.raises(InputError, match=r'/s2.tif cannot be .*see whether its server answers'):
        remote[35]
    server.dead_for = 0
    assert remote[35]['s2'].isfinite().all()


def test_what_is_not_there_is_left_out(server):
    with pytest.raises(InputError, match=r'No usable chip in http.*cannot be opened'):
        Rasters([f'{server.url}/nothing.tif'], [S2])


CONFIG = """
model: {class_path: gfm_jepa.tasks.LeJEPA, init_args: {hidden_dim: 16, num_slices: 8,
        encoder: {preset: nano, stem: linear, patch_size: 32}}}
data:
  class_path: gfm_jepa.data.RastersDataModule
  init_args:
    modalities: [{name: s2, bands: [B1, B2, B3], gsd: 10, unit: DN, mean: [9, 9, 9],
                  std: [1, 1, 1]}]
    batch_size: 4
    chip_size: 128
    patch_size: 32
    stride: 128
trainer:
  max_steps: 9
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  limit_val_batches: 0
  log_every_n_steps: 1
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: FOLDER}}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: 2, save_last: true}
"""


def test_a_run_resumes_where_the_server_died(server, tmp_path, monkeypatch, capfd):
    def fit(folder, *words):
        path = tmp_path / f'{folder}.yaml'
        path.write_text(CONFIG.replace('FOLDER', str(tmp_path / folder)))
        return main(['fit', '--config', str(path), f'--data.paths=[{server.url}/s2.tif]', *words])

    def weights(folder):
        (path,) = (tmp_path / folder).rglob('last.ckpt')
        return torch.load(path, weights_only=True)

    assert fit('whole') == 0
    read, calls = Rasters._read, []

    def dying(self, layer, date, row, col):
        calls.append(1)
        if len(calls) == 23:  # in the sixth batch, after one look at the data
            server.dead_for = 10**6
        return read(self, layer, date, row, col)

    monkeypatch.setattr(Rasters, '_read', dying)
    # Nothing of an earlier read is left, so that each chip asks the server.
    monkeypatch.setattr(open_files.OpenFiles, '_handle', lambda self, file, grid: file.open(grid))
    capfd.readouterr()
    assert fit('broken') == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert 's2.tif cannot be' in last and 'see whether its server answers' in last
    assert weights('broken')['global_step'] < 9
    server.dead_for = 0
    monkeypatch.undo()
    checkpoint = next((tmp_path / 'broken').rglob('last.ckpt'))
    assert fit('resumed', f'--ckpt_path={checkpoint}') == 0
    a, b = weights('whole')['state_dict'], weights('resumed')['state_dict']
    assert all(torch.equal(a[k], b[k]) for k in a)
