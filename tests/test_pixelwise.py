"""Answers for every pixel, from several modalities, through the command line."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from gfm_jepa import from_pretrained, save_pretrained
from gfm_jepa.cli import main
from gfm_jepa.data.class_tags import class_names, colour_of
from gfm_jepa.errors import InputError
from gfm_jepa.modalities import DEM, LULC, S1, S2_L2A
from gfm_jepa.models import Encoder
from gfm_jepa.models.pixel_heads import LinearPixels, UPerNetPixels
from gfm_jepa.models.segmenter import load_segmenter
from gfm_jepa.tasks import EncoderConfig, PixelHeadConfig, PixelwiseRegression, SemanticSegmentation
from gfm_jepa.tasks.pixelwise import turn

# A frozen encoder is in evaluation mode on purpose.
pytestmark = pytest.mark.filterwarnings('ignore:Found .* in eval mode')
CONFIG = Path(__file__).parent.parent / 'configs/segment_lulc.yaml'
SPECS = [m.to_dict() for m in (S2_L2A, S1, LULC)]


def small(modalities=('s2_l2a', 's1'), stem='conv'):
    torch.manual_seed(5)
    return Encoder(list(modalities), patch_size=8, embed_dim=16, depth=1, num_heads=2, stem=stem)


def test_a_target_with_dates_is_of_the_same_date():
    specs = [{**m.to_dict(), 'gsd': 10.0} for m in (S2_L2A, DEM)]
    task = PixelwiseRegression(specs, target='dem', encoder=EncoderConfig(stem='conv'))
    task._seed = 0
    dates = torch.arange(3.0).view(1, 3, 1, 1, 1)
    batch = {'s2_l2a': dates.expand(2, 3, 12, 32, 32), 'dem': dates.expand(2, 3, 1, 32, 32)}
    for batch_idx in range(4):
        one = task.one_date(batch, batch_idx)
        assert one['dem'].shape == (2, 1, 32, 32)
        assert torch.equal(one['dem'][:, 0, 0, 0], one['s2_l2a'][:, 0, 0, 0])


@pytest.fixture
def weights(tmp_path):
    return str(save_pretrained(small(), tmp_path / 'weights'))


@pytest.fixture
def places(tmp_path, write_raster):
    """Three places whose land cover shows in their brightness; the last has no radar."""
    random = np.random.default_rng(0)
    for i in range(3):
        folder = tmp_path / f'places/{i}'
        classes = random.integers(0, 2, (8, 8)).repeat(12, 0).repeat(12, 1)[None]
        optical = 1000 + 2000 * classes + random.integers(0, 200, (12, 96, 96))
        origin = (500000.0 + 5000 * i, 5000000.0)
        write_raster(folder / 'S2L2A.tif', values=optical, origin=origin)
        write_raster(folder / 'LULC.tif', values=classes, origin=origin, dtype='uint8')
        dem = 100 + 700 * classes.astype(float)
        write_raster(folder / 'DEM.tif', values=dem, origin=origin, dtype='float32')
        if i < 2:
            radar = random.normal(-15, 2, (2, 96, 96))
            write_raster(folder / 'S1RTC.tif', values=radar, origin=origin, dtype='float32')
    return tmp_path / 'places'


def words(verb, places, *more):
    return [
        verb, '--config', str(CONFIG), f'--data.paths=[{places}/0,{places}/1]',
        f'--data.val_paths=[{places}/2]', '--data.batch_size=2',
        '--data.modalities=[s2_l2a,s1,lulc]',
        '--model.num_classes=2', '--trainer.max_steps=12', '--trainer.accelerator=cpu',
        '--trainer.callbacks.every_n_train_steps=4', '--trainer.enable_progress_bar=false',
        '--trainer.enable_model_summary=false', '--trainer.log_every_n_steps=1', *more,
    ]  # fmt: skip


@pytest.mark.parametrize('head', ['{kind: linear}', '{kind: upernet, width: 8}'])
def test_segments_held_out_places_that_lack_a_modality(places, weights, head, capfd):
    more = (
        f'--model.encoder.weights={weights}',
        f'--model.head={head}',
        '--model.optimizer.lr=0.03',
        '--model.class_names=[bare, "bright, paved"]',
    )
    assert main(words('fit', places, *more, '--trainer.max_steps=24')) == 0
    path = next(Path('runs').rglob('last.ckpt'))
    started, ended = from_pretrained(weights), from_pretrained(path)
    for name, value in started.state_dict().items():
        assert torch.equal(value, ended.state_dict()[name]), name  # frozen, batch norms too
    capfd.readouterr()
    assert main(words('test', places, *more, f'--ckpt_path={path}')) == 0
    shown = capfd.readouterr().out
    line = next(line for line in shown.splitlines() if 'test_mean_iou' in line)
    assert float(line.replace('│', ' ').split()[-1]) > 0.8
    segments_a_scene(path, places / '2')
    assert 'classes.tif: 96 x 96 pixels of 2 classes' in capfd.readouterr().out
    assert main(['segment', str(path), str(places / '2/S2L2A.tif'), '-o', 'c.png']) == 2
    assert main(['segment', weights + '/model.safetensors', str(places / '2'), '-o', 'c.tif']) == 2
    said = capfd.readouterr().err.splitlines()[-2:]
    assert 'should end in .tif' in said[0] and 'model.safetensors' in said[1]
    (places / '1/S2L2A.tif').unlink()  # its radar alone shows nothing to answer on
    assert main(['segment', str(path), str(places / '1'), '-o', 'c.tif']) == 2
    assert 'None of the rasters shows s2_l2a' in capfd.readouterr().err


def test_places_without_labels_are_left_out(places, weights, capfd, caplog):
    (places / '1/LULC.tif').unlink()
    more = (f'--model.encoder.weights={weights}', '--model.head={kind: linear}')
    caplog.set_level('INFO')
    assert main(words('fit', places, *more, '--trainer.max_steps=3')) == 0
    assert 'chips left out that do not show lulc' in caplog.text
    (places / '0/LULC.tif').unlink()
    assert main(words('fit', places, *more, '--trainer.max_steps=3')) == 2
    assert 'No chip shows lulc, which is to be learned' in capfd.readouterr().err


def segments_a_scene(path, place):
    """The map of a scene: its classes on its grid, no data where there is none."""
    with rasterio.open(place / 'S2L2A.tif') as file:
        values, profile = file.read().astype('f4'), file.profile
    values[:, :10, :20] = np.nan
    profile.update(dtype='float32', nodata=np.nan)
    with rasterio.open('scene.tif', 'w', **profile) as file:
        file.write(values)
        file.descriptions = list(S2_L2A.bands)
    words = ['segment', str(path), 's2_l2a=scene.tif', '--window', '64']
    assert main([*words, '-o', 'classes.tif']) == 0
    assert main([*words, '-o', 'shares.tif', '--probabilities']) == 0
    with (
        rasterio.open('classes.tif') as file,
        rasterio.open('shares.tif') as shares,
        rasterio.open(place / 'LULC.tif') as truth,
    ):
        classes, real = file.read(1), truth.read(1)
        assert file.dtypes == ('uint8',) and file.nodata == 255 and file.descriptions == ('lulc',)
        assert class_names(file.tags()) == {0: 'bare', 1: 'bright, paved'}
        assert [file.colormap(1)[i] for i in (0, 1)] == [colour_of(0), colour_of(1)]
        assert shares.descriptions == ('bare', 'bright, paved')
        assert (file.shape, file.transform) == (truth.shape, truth.transform)
        assert (classes[:10, :20] == 255).all() and (classes == 255).sum() == 200
        known = classes < 255
        assert (classes[known] == real[known]).mean() > 0.85
        share = shares.read()
        assert np.allclose(share.sum(axis=0)[known], 1, atol=1e-4)
        assert (share.argmax(axis=0)[known] == classes[known]).all()
        assert np.isnan(share[:, ~known]).all()


def test_a_quantity_is_mapped_in_its_unit(weights):
    task = PixelwiseRegression(
        [S2_L2A.to_dict(), DEM.to_dict()], 'dem', EncoderConfig(weights=weights)
    )  # fmt: skip
    saved = {'state_dict': task.state_dict()}
    task.on_save_checkpoint(saved)
    torch.save(saved, 'dem.ckpt')
    model = load_segmenter('dem.ckpt')
    batch = {'s2_l2a': torch.rand(2, 12, 32, 32) * 3000}
    batch['s2_l2a'][0, :, :4, :4] = torch.nan
    found = model.forward_feature_map(batch)
    expected = task.eval().predict_step(batch, 0)
    there = found.isfinite()
    assert int((~there).sum()) == 16
    assert torch.allclose(found[there], expected[there], rtol=1e-4, atol=1e-2)
    assert model(batch).shape == (2, 1)
    whole = saved['pixel_head']
    for facts in ([], {k: v for k, v in whole.items() if k != 'kind'},
                  {k: v for k, v in whole.items() if k != 'std'}):  # fmt: skip
        torch.save({**saved, 'pixel_head': facts}, 'odd.ckpt')
        with pytest.raises(InputError, match='says of its head is not understood'):
            load_segmenter('odd.ckpt')
    del saved['pixel_head']
    torch.save(saved, 'bare.ckpt')
    with pytest.raises(InputError, match='holds no head for pixels'):
        load_segmenter('bare.ckpt')


def test_more_classes_than_8_bits_hold(weights, capfd):
    task = SemanticSegmentation(SPECS, 256, encoder=EncoderConfig(weights=weights))
    saved = {'state_dict': task.state_dict()}
    task.on_save_checkpoint(saved)
    torch.save(saved, 'many.ckpt')
    assert main(['segment', 'many.ckpt', 'x.tif', '-o', 'c.TIF']) == 2
    assert 'tells 256 classes apart, and 8 bits hold 255' in capfd.readouterr().err


def test_names_are_of_all_classes_or_none(weights):
    with pytest.raises(InputError, match='1 class_names of 2 classes'):
        SemanticSegmentation(SPECS, 2, encoder=EncoderConfig(weights=weights), class_names=['a'])


def test_regression_in_the_targets_unit(places, weights):
    task = PixelwiseRegression(
        [S2_L2A.to_dict(), DEM.to_dict()], 'dem', EncoderConfig(weights=weights),
        head=PixelHeadConfig(turn=False),
    )  # fmt: skip
    assert [m['name'] for m in task.inputs] == ['s2_l2a'] and list(task.encoder.modalities) == [
        's2_l2a'
    ]
    level = torch.linspace(500, 3000, 8).view(8, 1, 1, 1)
    batch = {'s2_l2a': level.expand(8, 12, 16, 16), 'dem': 2 * level.expand(8, 1, 16, 16) - 100}
    batch['dem'] = batch['dem'].clone()
    batch['dem'][:, :, :4] = torch.nan
    optimizer = torch.optim.AdamW(task.head.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = task.criterion(task.answer(batch), batch['dem'][:, 0])
        loss.backward()
        optimizer.step()
    found = task.predict_step(batch, 0)
    assert found.shape == (8, 1, 16, 16)
    error = (found - batch['dem']).abs().nanmean()
    assert error < 250  # metres, of a range of 5,000
    with pytest.raises(InputError, match='has no mean and std'):
        PixelwiseRegression([S2_L2A.to_dict(), {**DEM.to_dict(), 'mean': [], 'std': []}], 'dem')


@pytest.mark.parametrize('stem', ['conv', 'linear'])
@pytest.mark.parametrize('kind', [LinearPixels, UPerNetPixels])
def test_heads_answer_on_the_first_grid_and_live_with_gaps(kind, stem):
    encoder = small(stem=stem).eval()
    head = kind(encoder, 's2_l2a', 3).eval()
    batch = {'s2_l2a': torch.rand(2, 12, 64, 32) * 3000, 's1': torch.rand(2, 2, 64, 32) - 15}
    whole = head(encoder, batch)
    assert whole.shape == (2, 3, 64, 32)
    batch['s2_l2a'][0, :, :16] = torch.nan
    batch['s1'][1] = torch.nan
    assert head(encoder, batch).isfinite().all()
    with pytest.raises(InputError, match='No s2_l2a in the batch'):
        head(encoder, {'s1': batch['s1']})
    if kind is UPerNetPixels:
        with pytest.raises(InputError, match='multiples of 32'):
            head(encoder, {'s2_l2a': 3000 * torch.rand(1, 12, 40, 40)})


def test_unlabelled_pixels_teach_nothing(weights):
    task = SemanticSegmentation(SPECS, 2, encoder=EncoderConfig(weights=weights))
    answers = torch.randn(1, 2, 4, 4)
    truth = torch.zeros(1, 4, 4)
    expected = task.criterion(answers[..., :2], truth[..., :2])
    truth[..., 2:] = torch.nan
    assert torch.allclose(task.criterion(answers, truth), expected)
    assert task.criterion(answers, truth * torch.nan) == 0
    for nothing in (-1.0, -5.0, torch.inf):
        truth[..., 2:] = nothing
        assert torch.allclose(task.criterion(answers, truth), expected)
        assert task.known(truth).sum() == 8
    truth[..., 2:] = torch.nan
    with pytest.raises(InputError, match='holds the class 3, but num_classes is 2'):
        task.criterion(answers, truth + 3)


@pytest.fixture
def half_shown(weights):
    """A task and a batch whose first input lacks its right columns."""
    still = PixelHeadConfig(turn=False)
    task = SemanticSegmentation(SPECS, 2, encoder=EncoderConfig(weights=weights), head=still)
    task._seed = 0
    batch = {'s2_l2a': torch.rand(2, 12, 32, 32) * 3000, 's1': torch.rand(2, 2, 32, 32) - 15}
    batch['s2_l2a'][:, :, :, 25:] = torch.nan  # within a patch of the input
    batch['lulc'] = torch.zeros(2, 1, 16, 16)  # two pixels of the input wide
    return task, batch


def test_pixels_without_an_input_teach_and_count_nothing(half_shown):
    task, batch = half_shown
    loss = task.compute_loss(batch, 0)
    other = {**batch, 'lulc': batch['lulc'].clone()}
    other['lulc'][..., 13:] = 1
    assert torch.equal(task.compute_loss(other, 0), loss)
    counted = []
    task.log = task.log_dict = lambda *_, **__: None
    task.count = lambda metrics, shown, truth: counted.append(len(truth))
    task.eval().evaluate('val', batch, 0)
    assert counted == [2 * 32 * 25]


def test_the_guard_gets_features_pooled_over_the_ground(half_shown):
    task, batch = half_shown
    seen = []
    task.log_health = seen.append
    task.compute_loss(batch, 0)
    features = task.encoder.forward_feature_map(batch, 's2_l2a')
    assert torch.allclose(seen[0], features.flatten(2).nanmean(dim=2))


def test_rasters_turn_together():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    seen = set()
    for seed in range(40):
        batch = {'a': x, 'b': 10 * x, 'gsd': {'a': 10.0}}
        turned = turn(batch, torch.Generator().manual_seed(seed))
        assert torch.equal(turned['b'], 10 * turned['a']) and turned['gsd'] == {'a': 10.0}
        seen.add(tuple(turned['a'].flatten().tolist()))
    assert len(seen) == 8
    long = turn({'a': x[..., :2]}, torch.Generator().manual_seed(1))
    assert long['a'].shape == (1, 1, 4, 2)


def test_what_cannot_be_is_refused(weights):
    with pytest.raises(InputError, match='to predict lulc it has to hold that'):
        SemanticSegmentation(SPECS[:2], 2)
    with pytest.raises(InputError, match=r"Unknown head\.kind 'unet'"):
        SemanticSegmentation(
            SPECS, 2, encoder=EncoderConfig(weights=weights), head=PixelHeadConfig(kind='unet')
        )
