"""Bad input: one sentence on stderr, exit status 2, nothing written."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import gfm_jepa
from gfm_jepa import InputError
from gfm_jepa.cli import main
from gfm_jepa.data.raster_files import RasterFile

CONFIGS = Path(__file__).parent.parent / 'configs'


@pytest.fixture
def fails(capfd, tmp_path):
    """Run a command that must fail; returns its one sentence."""

    def run(*words: str) -> str:
        before = sorted(tmp_path.rglob('*'))
        try:
            status = main(list(words))
        except SystemExit as stop:
            status = stop.code
        error = capfd.readouterr().err
        assert status == 2
        assert sorted(tmp_path.rglob('*')) == before, 'something was written'
        assert 'Traceback' not in error
        line = error.strip().splitlines()[-1]
        assert line.startswith('gfm-jepa: error: '), error
        return line

    return run


def fit(*words: str) -> tuple[str, ...]:
    return ('fit', '--config', str(CONFIGS / 'ijepa_rasters.yaml'), *words)


def test_no_raster_found(fails, tmp_path):
    assert 'No raster found' in fails(*fit(f'--data.paths=[{tmp_path}]'))
    assert 'There is no file' in fails(*fit('--data.paths=[nowhere]'))


def test_truncated_file_is_refused_when_strict(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'a/S2L2A.tif', 12)
    path = write_raster(tmp_path / 'b/S2L2A.tif', 12)
    path.write_bytes(path.read_bytes()[:60000])
    message = fails(*fit(f'--data.paths=[{tmp_path}]', '--strict'))
    assert str(path) in message and 'truncated' in message
    verb, *words = fit(f'--data.paths=[{tmp_path}]')
    assert 'truncated' in fails(verb, '--strict', *words)


def test_wrong_band_count(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'S2L2A.tif', 7)
    message = fails(*fit(f'--data.paths=[{tmp_path}]'))
    assert 'has 7 bands, but s2_l2a has 12' in message


def test_unknown_modality(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'S2L2A.tif', 12)
    message = fails(*fit(f'--data.paths=[{tmp_path}]', '--data.modalities=[s3_olci]'))
    assert "Unknown modality 's3_olci'" in message


def test_size_that_the_patch_does_not_divide(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'S2L2A.tif', 12)
    message = fails(*fit(f'--data.paths=[{tmp_path}]', '--data.chip_size=100'))
    assert 'take 96' in message
    message = fails(*fit(f'--data.paths=[{tmp_path}]', '--model.encoder.patch_size=7'))
    assert 'patch' in message


def test_nothing_but_nodata(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'S2L2A.tif', values=np.zeros((12, 96, 96)), nodata=0)
    assert 'nothing but nodata' in fails(*fit(f'--data.paths=[{tmp_path}]'))


def test_misspelt_key(fails, tmp_path):
    assert 'bach_size' in fails(*fit(f'--data.paths=[{tmp_path}]', '--data.bach_size=3'))
    content = yaml.safe_load((CONFIGS / 'ijepa_rasters.yaml').read_text())
    content['model']['init_args']['predictor_dimm'] = 3
    path = tmp_path / 'config.yaml'
    path.write_text(yaml.safe_dump(content))
    assert 'predictor_dimm' in fails('fit', '--config', str(path), '--data.paths=[x]')
    assert 'no.yaml' in fails('fit', '--config', 'no.yaml')


def test_a_checkpoint_that_is_not_one(fails, tmp_path, write_raster):
    (tmp_path / 'junk.ckpt').write_bytes(b'junk')
    message = fails('probe', 'junk.ckpt', '--dataset', 'eurosat-rgb-spatial', '--root', '.')
    assert 'junk.ckpt is not a checkpoint' in message
    write_raster(tmp_path / 'S2L2A.tif', 12)
    message = fails(*fit(f'--data.paths=[{tmp_path}]', '--ckpt_path=junk.ckpt'))
    assert 'junk.ckpt' in message
    torch.save({'state_dict': {}}, tmp_path / 'other.ckpt')
    message = fails('probe', 'other.ckpt', '--dataset', 'eurosat-rgb-spatial', '--root', '.')
    assert 'encoder_config' in message
    message = fails(*fit(f'--data.paths=[{tmp_path}]', '--ckpt_path=other.ckpt'))
    assert 'other.ckpt' in message


def test_weights_and_checkpoints_are_looked_for_before_data(fails):
    words = ('fit', '--config', str(CONFIGS / 'finetune_eurosat_rgb.yaml'), '--data.root=nowhere')
    assert "no weights at 'nosuch'" in fails(*words, '--model.encoder.weights=nosuch')
    assert 'There is no checkpoint nosuch.ckpt;' in fails(*words, '--ckpt_path=nosuch.ckpt')


SHORT = ('--trainer.max_steps=2', '--data.batch_size=2', '--trainer.accelerator=cpu',
         '--trainer.enable_progress_bar=false', '--trainer.log_every_n_steps=1')  # fmt: skip


def test_less_than_half_of_the_bands_want_naming(fails, tmp_path, write_raster):
    names = ['B02', 'B03', 'B04', 'B08']
    write_raster(tmp_path / 'S2L2A.tif', 4, names=names)
    message = fails(*fit(f'--data.paths=[{tmp_path}]', *SHORT))
    assert 's2_l2a has 12 bands' in message and 'holds 4 (B02, B03, B04, B08)' in message
    message = fails('embed', 'gfm-jepa-nano', str(tmp_path), '-o', 'map.tif')
    assert 'from_pretrained(..., bands={...})' in message
    named = '--data.modalities=[{name: s2_l2a, bands: [B02, B03, B04, B08]}]'
    assert main(list(fit(f'--data.paths=[{tmp_path}]', named, *SHORT))) == 0


def test_auto_begins_anew_only_where_something_is_learned(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'S2L2A.tif', 12)
    words = (f'--data.paths=[{tmp_path}]', f'--data.val_paths=[{tmp_path}]', '--ckpt_path=auto')
    message = fails('test', *fit(*words, *SHORT)[1:])
    assert 'There is no checkpoint in' in message and 'to test; name one' in message


def test_a_part_that_the_data_lack_is_told(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'S2L2A.tif', 12)
    joined = yaml.safe_load((CONFIGS / 'ijepa_rasters.yaml').read_text())
    paths = [str(tmp_path)]
    joined['data']['init_args'] |= {'paths': paths, 'val_paths': paths}
    parts = {'parts': [joined['data']]}
    joined['data'] = {'class_path': 'gfm_jepa.data.JoinedDataModule', 'init_args': parts}
    (tmp_path / 'joined.yaml').write_text(yaml.safe_dump(joined))
    for verb in ('validate', 'test'):  # it has an empty list of the one, and no loader of the other
        message = fails(verb, '--config', 'joined.yaml', *SHORT)
        assert f'JoinedDataModule has no part to {verb}; take another' in message


def test_predictions_of_random_weights_are_refused(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'S2L2A.tif', 12)
    writer = ('--trainer.callbacks=gfm_jepa.tasks.WriteEmbeddings',
              '--trainer.callbacks.output=out.zarr')  # fmt: skip
    paths = (f'--data.paths=[{tmp_path}]', f'--data.val_paths=[{tmp_path}]')
    message = fails('predict', *fit(*paths, *SHORT, *writer)[1:])
    assert 'would be those of random weights; name a checkpoint' in message
    message = fails('validate', *fit(paths[0], *SHORT)[1:])
    assert 'There is nothing to validate; set data.val_paths' in message


def test_only_training_writes_the_config_of_a_run(tmp_path, write_raster, capfd):
    write_raster(tmp_path / 'S2L2A.tif', 12)
    words = fit(f'--data.paths=[{tmp_path}]', f'--data.val_paths=[{tmp_path}]', *SHORT)
    assert main(list(words)) == 0
    (config,) = tmp_path.glob('runs/ijepa_rasters/version_0/config.yaml')
    before = config.read_text()
    again = [*words[1:], '--ckpt_path=auto', '--trainer.max_steps=7']
    assert main(['test', *again]) == 0 and config.read_text() == before
    # A run that cannot go on, for its encoder is another one, leaves its settings, too.
    assert main(['fit', *again, '--model.encoder.patch_size=16']) == 2
    assert config.read_text() == before and 'Traceback' not in capfd.readouterr().err
    # Its config is where the run is found again.
    assert main(['fit', '--config', str(config), '--ckpt_path=auto', '--trainer.max_steps=3']) == 0
    assert 'max_steps: 3' in config.read_text()
    assert not (tmp_path / 'runs/ijepa').exists()


def test_weights_without_a_run_and_a_machine_without_the_accelerator(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'S2L2A.tif', 12)
    paths = f'--data.paths=[{tmp_path}]'
    torch.save(
        {'encoder_config': {}, 'encoder_prefix': '', 'state_dict': {}}, tmp_path / 'head.ckpt'
    )
    message = fails(*fit(paths, *SHORT, '--ckpt_path=head.ckpt'))
    assert 'head.ckpt holds weights, but no state of a run' in message
    if not torch.backends.mps.is_available():
        message = fails(*fit(paths, *SHORT, '--trainer.accelerator=mps'))
        assert 'Change the options of trainer.' in message


def test_unknown_verb_and_dataset(fails, tmp_path):
    assert "Unknown verb 'fitt'" in fails('fitt')
    said = fails('fit', '--model=SimCLR', '--data=RastersDataModule')
    assert 'model=SimCLR names no class; take one of gfm_jepa.tasks' in said
    assert 'Warning' not in said
    assert 'weights' in fails('probe', 'nothing', '--dataset', 'x', '--root', '.')


def test_run_without_end_is_refused(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'S2L2A.tif', 12)
    message = fails(*fit(f'--data.paths=[{tmp_path}]', '--trainer.max_steps=-1',
                         '--trainer.logger=false', '--trainer.callbacks=[]'))  # fmt: skip
    assert 'max_steps' in message


def test_stats_to_config_and_back(tmp_path, write_raster, capfd):
    write_raster(tmp_path / 'drone/a.tif', 2, names=['red', 'nir'], gsd=2.0)
    assert (
        main(['stats', str(tmp_path), '--name', 'drone', '--unit', 'DN', '-o', 'drone.yaml']) == 0
    )
    assert capfd.readouterr().out == 'written: drone.yaml\n'
    assert main(['stats', str(tmp_path), '--name', 'drone', '--unit', 'DN']) == 0
    assert yaml.safe_load(capfd.readouterr().out) == yaml.safe_load(Path('drone.yaml').read_text())
    words = fit(
        f'--data.paths=[{tmp_path}]', '--data.modalities=[drone.yaml]', '--trainer.max_steps=1',
        '--data.batch_size=1', '--trainer.log_every_n_steps=1', '--trainer.accelerator=cpu',
        '--trainer.enable_progress_bar=false',
    )  # fmt: skip
    assert main(list(words)) == 0
    assert list(tmp_path.glob('runs/**/last.ckpt'))


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.yaml')), ids=lambda p: p.stem)
def test_every_config_parses_and_says_what_it_is_for(path, capfd):
    assert path.read_text().startswith('# ')
    content = yaml.safe_load(path.read_text())
    assert content['seed_everything'] == 0
    required = {
        'EuroSATRGBDataModule': '--data.root=x', 'SSL4EOS12DataModule': '--data.root=x',
        'RastersDataModule': '--data.paths=[x]', 'ImageFolderDataModule': '--data.root=x',
        'CIFAR10DataModule': '--data.root=x', 'BenchmarkDataModule': '--data.root=x',
        'JoinedDataModule': '--data.num_workers=0',
    }  # fmt: skip
    name = content['data']['class_path'].rpartition('.')[2]
    with pytest.raises(SystemExit, match=r'^0$'):
        main(['fit', '--config', str(path), required[name], '--print_config'])
    data = yaml.safe_load(capfd.readouterr().out)['data']['init_args']
    assert any(data.get(key) for key in ('modalities', 'dataset', 'parts'))


def test_what_cannot_be_written_is_one_sentence(fails, tmp_path, write_raster):
    write_raster(tmp_path / 'in/drone.tif')
    (tmp_path / 'file').touch()
    words = ['stats', str(tmp_path / 'in'), '--name', 'drone', '-o', str(tmp_path / 'file/x.yaml')]
    assert 'file cannot be read or written' in fails(*words)


def test_help_and_version(capfd):
    assert main([]) == 0 and main(['--version']) == 0
    assert 'gfm-jepa fit' in capfd.readouterr().out


def test_an_error_in_a_reading_process_is_one_sentence(capfd, tmp_path, write_raster, monkeypatch):
    write_raster(tmp_path / 'S2L2A.tif', 12, (96, 192))
    read = RasterFile.read

    def broken(self, source, window=None, shape=None):
        if torch.utils.data.get_worker_info() is not None:
            raise InputError(f'{self.path} cannot be read (it broke).')
        return read(self, source, window, shape)

    monkeypatch.setattr(RasterFile, 'read', broken)
    words = fit(f'--data.paths=[{tmp_path}]', '--data.num_workers=1', '--data.batch_size=1',
                '--trainer.max_steps=1', '--trainer.accelerator=cpu',
                '--trainer.log_every_n_steps=1')  # fmt: skip
    assert main(list(words)) == 2
    error = capfd.readouterr().err
    assert 'Traceback' not in error and 'S2L2A.tif cannot be read' in error.splitlines()[-1]


def test_demo_refuses_too_few_places(fails):
    assert '6 places' in fails('demo', '--places', '2')


def test_json_rows_are_plain(tmp_path):
    from gfm_jepa.evaluation.probes import write_rows

    write_rows([{'name': 'x', 'knn5': 0.5}], tmp_path / 'rows.json')
    assert json.loads((tmp_path / 'rows.json').read_text()) == [{'name': 'x', 'knn5': 0.5}]


def test_our_warnings_are_one_sentence_and_others_as_python_has_them(tmp_path):
    with pytest.raises(SystemExit):
        main(['index', '--help'])
    own, other = Path(gfm_jepa.__file__).parent / 'data/statistics.py', tmp_path / 'other.py'
    assert warnings.formatwarning('so it is', UserWarning, str(own), 3) == (
        'gfm-jepa: warning: so it is\n'
    )
    assert 'other.py:3: UserWarning: so it is' in warnings.formatwarning(
        'so it is', UserWarning, str(other), 3
    )
