"""Runs that go on from trained weights: new sensors, a trunk that stays."""

from dataclasses import replace

import pytest
import torch
from conftest import sensor
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from gfm_jepa import InputError, from_pretrained, save_pretrained
from gfm_jepa.evaluation.readouts import add_readout
from gfm_jepa.modalities import RGB
from gfm_jepa.models import Encoder, TimmEncoder
from gfm_jepa.tasks import IJEPA, EncoderConfig, VICReg

COLOURS = {'name': 'colours', 'bands': ['red', 'green', 'blue'], 'gsd': 10.0, 'unit': 'DN',
           'mean': [1.0, 2.0, 3.0], 'std': [1.0, 2.0, 1.0]}  # fmt: skip
WIDE = {'name': 'wide', 'bands': ['C1', 'C2', 'C3', 'C4'], 'gsd': 10.0, 'unit': 'DN',
        'common_names': ['blue', 'nir', 'red', 'green'], 'mean': [3.0, 9.0, 1.0, 2.0],
        'std': [1.0, 5.0, 1.0, 2.0]}  # fmt: skip
RELIEF = sensor('relief', 1)


@pytest.fixture(params=['linear', 'conv'])
def trained(request, tmp_path):
    """A folder of an encoder of three colours."""
    encoder = Encoder([COLOURS], 8, 32, 2, 2, stem=request.param).eval()
    return encoder, save_pretrained(encoder, tmp_path / 'trained'), request.param


def test_a_new_sensor_starts_from_the_colours_that_it_shares(trained, capsys):
    encoder, folder, _ = trained
    images = torch.rand(2, 3, 32, 32)
    wide = torch.stack([images[:, 2], 99 * torch.rand(2, 32, 32), images[:, 0], images[:, 1]], 1)
    new = from_pretrained(folder, modalities=['colours', WIDE, RELIEF])
    table = [' '.join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert table[2:] == ['wide (from colours) C1 C3 C4 C2', 'relief - B1']
    assert torch.allclose(new({'wide': wide}), encoder({'colours': images}), atol=1e-5)
    assert torch.equal(new({'colours': images}), encoder({'colours': images}))


@pytest.mark.filterwarnings('ignore:You defined a `validation_step`')
@pytest.mark.filterwarnings('ignore:Found .* in eval mode')  # and meant to be
def test_what_is_frozen_stays_and_the_new_learns(trained):
    _, folder, stem = trained
    config = EncoderConfig(stem=stem, weights=str(folder), freeze=True)
    task = VICReg([COLOURS, WIDE, RELIEF.to_dict()], config, expander_dims=(16,))
    before = {k: v.clone() for k, v in task.encoder.state_dict().items()}
    bands = {'colours': 3, 'wide': 4, 'relief': 1}
    samples = [{k: torch.rand(n, 32, 32) for k, n in bands.items()} for _ in range(8)]
    trainer = Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator='cpu', log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(task, DataLoader(samples, 4))
    changed = {k for k, v in task.encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split('.')[1] for k in changed} == {'wide', 'relief'}


def test_a_frozen_readout_stays(tmp_path):
    encoder = Encoder([sensor('colours', 3)], 8, 32, 1, 2)
    read = add_readout(encoder, [{'colours': torch.rand(40, 3, 32, 32)}], width=8)
    folder = save_pretrained(read, tmp_path / 'read')
    task = VICReg([COLOURS, RELIEF.to_dict()], EncoderConfig(weights=str(folder), freeze=True))
    learning = {n.split('.')[1] for n, p in task.encoder.named_parameters() if p.requires_grad}
    assert task.encoder.readout is not None and learning == {'relief'}


def test_without_freeze_all_of_it_learns(trained):
    _, folder, stem = trained
    task = VICReg([COLOURS], EncoderConfig(stem=stem, weights=str(folder)), expander_dims=(16,))
    assert all(p.requires_grad for p in task.encoder.parameters()) and task.encoder.training


def test_trained_modalities_that_the_data_lack_are_kept(trained):
    encoder, folder, stem = trained
    task = VICReg([WIDE], EncoderConfig(stem=stem, weights=str(folder)), expander_dims=(16,))
    assert list(task.encoder.modalities) == ['colours', 'wide']
    images = {'colours': torch.rand(2, 3, 32, 32)}
    assert torch.equal(task.encoder.eval()(images), encoder(images))


def test_starts_that_cannot_be(trained):
    _, folder, stem = trained
    with pytest.raises(InputError, match='keeps trained weights; name some'):
        VICReg([COLOURS], EncoderConfig(stem=stem, freeze=True))
    with pytest.raises(InputError, match='There are no weights at'):
        VICReg([COLOURS], EncoderConfig(weights=str(folder / 'nothing')))
    if stem == 'conv':  # what leaks is what was loaded, whatever the config calls it
        with pytest.raises(InputError, match=r'shows a token the margin.*weights whose stems are'):
            IJEPA([COLOURS], EncoderConfig(stem='linear', weights=str(folder)))


def test_what_weights_leave_open_holds_and_the_rest_is_refused(trained, tmp_path):
    _, folder, stem = trained
    config = EncoderConfig(stem=stem, weights=str(folder), drop_path_rate=0.2)
    encoder = VICReg([COLOURS], config, expander_dims=(16,)).encoder
    assert [block.drop_path for block in encoder.blocks] == [0.0, 0.2]
    assert encoder.config['drop_path_rate'] == 0.2
    for option, value in (('backbone', 'resnet18'), ('small_images', True), ('pretrained', True)):
        with pytest.raises(InputError, match=rf'encoder\.{option} is given beside'):
            VICReg([COLOURS], replace(config, **{option: value}))
    timm_model = save_pretrained(TimmEncoder([COLOURS], 'test_resnet'), tmp_path / 'timm')
    with pytest.raises(InputError, match=r'encoder\.drop_path_rate beside weights is for encoders'):
        VICReg([COLOURS], EncoderConfig(weights=str(timm_model), drop_path_rate=0.2))


def test_kinds_of_stem_by_modality(tmp_path):
    stems = {'colours': 'conv', 'relief': 'plain_conv'}
    encoder = Encoder([COLOURS, RELIEF], 8, 32, 2, 2, stem=stems).eval()
    sizes = {n: sum(p.numel() for p in encoder.embedder(n).parameters()) for n in stems}
    assert sizes['relief'] < sizes['colours'] / 2
    again = from_pretrained(save_pretrained(encoder, tmp_path / 'both'))
    batch = {'colours': torch.rand(2, 3, 32, 32), 'relief': torch.rand(2, 1, 32, 32)}
    assert torch.equal(again(batch), encoder(batch)) and again.stems == stems
    assert again.forward_depths(batch).isfinite().all()
    with pytest.raises(InputError, match='stem says nothing of relief'):
        Encoder([COLOURS, RELIEF], 8, 32, 2, 2, stem={'colours': 'conv'})


def test_statistics_of_the_data_give_way_to_the_trained_ones(tmp_path):
    """Folders of images compute their own; filters hold only under those they were trained with."""
    save_pretrained(Encoder(['rgb'], 8, 32, 1, 2, stem='conv'), tmp_path / 'trained')
    own = replace(RGB, mean=(9.0, 9.0, 9.0), std=(2.0, 2.0, 2.0))
    task = VICReg([own], EncoderConfig(weights=str(tmp_path / 'trained')))
    task.configure_model()
    assert task.encoder.modalities['rgb'].mean == RGB.mean
    other = replace(own, unit='reflectance')
    with pytest.raises(InputError, match=r'rgb was trained in the unit "8-bit.*"reflectance" is'):
        VICReg([other], EncoderConfig(weights=str(tmp_path / 'trained')))
