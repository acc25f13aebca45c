import pytest
import torch
from conftest import sensor

from gfm_jepa import InputError
from gfm_jepa.tasks import EncoderConfig, LeJEPA
from gfm_jepa.views import (
    Views,
    add_noise,
    cut,
    drop_bands,
    drop_modalities,
    erase,
    jitter_bands,
    random_windows,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(size):
    """Two bands that hold the relative row and column of each pixel's centre, -1..1."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    return torch.stack(torch.meshgrid(line, line, indexing='ij')).expand(32, -1, -1, -1)


def test_one_window_shows_the_same_ground_at_every_gsd():
    windows = random_windows(32, (0.3, 0.9), generator())
    views = cut(
        {'fine': ramp(96), 'coarse': ramp(32)}, windows, {'fine': (48, 48), 'coarse': (16, 16)}
    )
    # The mean position of a view is the ground at its centre; a coarse pixel is 1/16 of the chip.
    gap = (views['fine'].mean((2, 3)) - views['coarse'].mean((2, 3))).abs().max()
    assert gap < 1 / 32
    assert views['fine'].mean((2, 3)).std() > 0.1  # windows do move


def test_windows_are_flipped_and_turned_all_eight_ways():
    windows = random_windows(512, (1.0, 1.0), generator())
    ways = {tuple(w.flatten().round().int().tolist()) for w in windows}
    assert len(ways) == 8
    x = torch.rand(512, 1, 4, 4)
    view = cut({'x': x}, windows, {'x': (4, 4)})['x']
    assert torch.allclose(view.flatten(1).sort(1).values, x.flatten(1).sort(1).values, atol=1e-5)


def test_crops_keep_nodata_missing():
    x = torch.ones(8, 1, 16, 16)
    x[:, :, :8] = float('nan')
    view = cut({'x': x}, random_windows(8, (1.0, 1.0), generator()), {'x': (16, 16)})['x']
    assert view.isnan().float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert (view[~view.isnan()] == 1).all()


def test_a_gap_grows_by_no_pixel_where_views_hit_the_pixels():
    x = torch.rand(512, 2, 20, 20, generator=generator()) + 1
    x[torch.rand(x.shape, generator=generator(1)) < 0.15] = torch.nan
    view = cut({'x': x}, random_windows(512, (1.0, 1.0), generator()), {'x': (20, 20)})['x']
    assert torch.equal(view.isnan().flatten(1).sum(1), x.isnan().flatten(1).sum(1))
    # Each pixel is one of its chip, but for the rounding of its place.
    found, given = (v.flatten(1).nan_to_num(9.0).sort(1).values for v in (view, x))
    assert torch.allclose(found, given, atol=1e-4)
    same = torch.eye(2, 3).expand(512, 2, 3)
    assert torch.equal(cut({'x': x}, same, {'x': (20, 20)})['x'].isnan(), x.isnan())


@pytest.mark.parametrize('kind', [torch.uint8, torch.int16])
def test_whole_numbers_become_floats(kind):
    x = torch.randint(200, (2, 2, 16, 16), generator=generator()).to(kind)
    found, same = (
        Views().make({'s': v}, {'s': sensor('s', 2)}, {'s': 8}, generator())[0]['s']
        for v in (x, x.float())
    )
    assert torch.equal(found, same)


def coordinates(height, width, gsd):
    """Two bands that hold the metres south and east of the chip's corner."""
    south, east = ((torch.arange(n) + 0.5) * gsd for n in (height, width))
    return torch.stack(torch.meshgrid(south, east, indexing='ij')).expand(16, -1, -1, -1)


@pytest.mark.parametrize('shape', [(48, 80), (80, 48)])
def test_views_of_chips_that_are_not_square_are_square_on_the_ground(shape):
    sensors = {'a': sensor('a', 2, 10.0), 'b': sensor('b', 2, 20.0)}
    batch = {
        'a': coordinates(*shape, 10.0), 'b': coordinates(shape[0] // 2, shape[1] // 2, 20.0)
    }  # fmt: skip
    made = Views(num_local=2, gain=0.0, offset=0.0).make(
        batch, sensors, {'a': 8, 'b': 8}, generator()
    )
    for view in made:
        sides = [view[k].shape[-1] * view['gsd'][k] for k in sensors]
        assert view['a'].shape[-1] == view['a'].shape[-2]
        assert sides[0] == pytest.approx(sides[1])
        # The same ground in both, and a step of a pixel is as long down as across.
        centres = [view[k].mean((2, 3)) for k in sensors]
        assert (centres[0] - centres[1]).abs().max() < 20
        middle = view['a'][:, :, 8:-8, 8:-8]
        down, across = (middle.diff(dim=d).abs().amax((1, 2, 3)) for d in (2, 3))
        assert torch.allclose(down, across, rtol=1e-2)
    spread = made[1]['a'].mean((2, 3)).std(0)
    assert (spread > 40).all()  # windows move both ways


def test_methods_take_chips_that_are_not_square():
    a, b = sensor('a', 1, 10.0).to_dict(), sensor('b', 1, 20.0).to_dict()
    encoder = EncoderConfig('nano', patch_size=8, stem='conv')
    task = LeJEPA([a, b], encoder, views=Views(num_local=2))
    task.log_dict = lambda *_, **__: None
    batch = {'a': torch.randn(2, 1, 48, 80), 'b': torch.randn(2, 1, 24, 40)}
    assert task.compute_loss(batch, 0).isfinite()


def test_jitter_is_as_large_as_stated():
    x = torch.randn(256, 2, 8, 8, generator=generator()) * 20 + 100
    std = {'x': torch.tensor([20.0, 20.0])}
    changed = jitter_bands({'x': x}, std, 0.2, 0.1, generator())['x']
    gain = changed.std((2, 3)) / x.std((2, 3))
    shift = changed.mean((2, 3)) - x.mean((2, 3))
    assert 0.8 <= gain.min() < 0.9 and 1.1 < gain.max() <= 1.2
    assert 1.0 < shift.abs().max() <= 2.0 + 1e-3
    same = jitter_bands({'x': x}, std, 0.0, 0.0, generator())['x']
    assert torch.allclose(same, x, atol=1e-4)


def test_dropping_never_takes_the_last():
    x = {'a': torch.ones(500, 3, 2, 2), 'b': torch.ones(500, 3, 2, 2)}
    x['b'][:100] = float('nan')
    bands = drop_bands(x, 0.9, generator())['a'].isnan()[:, :, 0, 0]
    assert bands.float().mean() > 0.3 and bands.sum(1).max() == 1
    gone = {k: v.isnan().flatten(1).all(1) for k, v in drop_modalities(x, 0.9, generator()).items()}
    assert not (gone['a'] & gone['b']).any()
    assert not gone['a'][:100].any() and gone['a'][100:].float().mean() > 0.3


@pytest.mark.parametrize(('bands', 'share'), [(1, 0.0), (3, (1 - 0.8**3) / 3), (12, 0.2)])
def test_bands_drop_as_often_as_stated_and_half_of_them_stay(bands, share):
    gone = drop_bands({'a': torch.ones(20000, bands, 1, 1)}, 0.2, generator())['a'].isnan()
    assert gone.float().mean().item() == pytest.approx(share, abs=0.005)
    assert gone.flatten(1).sum(1).max() <= bands // 2
    x = torch.ones(500, 4, 1, 1)
    x[:, 0] = float('nan')  # of four, two must stay: of the three that are there, one may go
    assert (drop_bands({'a': x}, 0.9, generator())['a'].isfinite().flatten(1).sum(1) >= 2).all()


@pytest.mark.parametrize('count', [2, 5])
def test_modalities_drop_as_often_as_stated(count):
    x = {str(i): torch.ones(20000, 1, 1, 1) for i in range(count)}
    gone = torch.stack([v.isnan().flatten() for v in drop_modalities(x, 0.2, generator()).values()])
    # Only where all would go does one stay.
    assert gone.float().mean().item() == pytest.approx(0.2 - 0.2**count / count, abs=0.005)
    assert not gone.all(0).any()


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'num_global': 0}, 'num_global 0 and num_local 0; give at least 1'),
        ({'num_local': -1}, 'num_local -1'),
        ({'global_scale': (0.0, 1.0)}, r'views.global_scale is \[0.0, 1.0\]; give a lowest and'),
        ({'global_scale': (0.5, 0.3)}, 'views.global_scale'),
        ({'local_scale': (0.1, 1.5)}, 'above 0 and up to 1'),
        ({'local_fraction': 0.0}, 'views.local_fraction is 0.0; give a share above 0'),
        ({'gain': -0.1}, 'views.gain is -0.1; give 0 or more'),
        ({'band_dropout': 1.5}, 'views.band_dropout is 1.5; give a probability from 0 to 1'),
        ({'modality_dropout': -0.1}, 'views.modality_dropout'),
        ({'erasing': float('nan')}, 'views.erasing'),
    ],
)
def test_views_that_cannot_be_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        Views(**options)


def test_one_gsd_a_sample_is_that_of_the_batch():
    batch = {'s': torch.rand(4, 2, 32, 32), 'gsd': {'s': torch.full((4,), 20.0)}}
    make = Views().make
    assert make(batch, {'s': sensor('s', 2)}, {'s': 8}, generator())[0]['gsd'] == {'s': 20.0}
    batch['gsd'] = {'s': torch.tensor([10.0, 10.0, 20.0, 10.0])}
    with pytest.raises(InputError, match='s came with several gsd in one batch, from 10 to 20 m'):
        make(batch, {'s': sensor('s', 2)}, {'s': 8}, generator())


def test_views_are_joined_by_kind_and_cover_equal_ground():
    sensors = {'fine': sensor('fine', 2, 10.0), 'coarse': sensor('coarse', 2, 30.0)}
    batch = {'fine': torch.rand(4, 2, 96, 96), 'coarse': torch.rand(4, 2, 32, 32)}
    views = Views(num_global=2, num_local=3).make(
        batch, sensors, {'fine': 8, 'coarse': 8}, generator()
    )
    assert [v['fine'].shape[0] for v in views] == [8, 12]
    assert [v['fine'].shape[-1] for v in views] == [96, 48]
    for view in views:
        extents = [view[k].shape[-1] * view['gsd'][k] for k in sensors]
        assert extents[0] == pytest.approx(extents[1])
    again = Views(num_global=2, num_local=3).make(
        batch, sensors, {'fine': 8, 'coarse': 8}, generator()
    )
    assert torch.equal(views[0]['fine'], again[0]['fine'])
    # View after view: whose row is whose shows in samples of one value each.
    batch = {'fine': torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 96, 96)}
    rows = Views(2, 0, gain=0.0, offset=0.0).make(batch, sensors, {'fine': 8}, generator())[0]
    assert rows['fine'][:, 0, 0, 0].round().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_noise_is_as_strong_as_stated():
    x = {'a': torch.full((64, 2, 16, 16), 100.0)}
    noisy = add_noise(x, {'a': torch.tensor([10.0, 40.0])}, 0.1, generator())['a'] - x['a']
    assert noisy.std((0, 2, 3)).tolist() == pytest.approx([1.0, 4.0], rel=0.05)
    x['a'][0] = float('nan')
    assert add_noise(x, {'a': torch.ones(2)}, 0.1, generator())['a'][0].isnan().all()


def test_erased_squares_are_the_same_ground_at_every_gsd():
    x = {'fine': torch.ones(500, 2, 96, 96), 'coarse': torch.ones(500, 1, 32, 32)}
    gone = {k: v.isnan()[:, 0].float() for k, v in erase(x, 0.5, generator()).items()}
    share = gone['fine'].mean((1, 2))
    assert 0.4 < (share > 0).float().mean() < 0.6
    assert share[share > 0].min() > 0.015 and 0.19 < share.max() < 0.21
    # A coarse pixel is gone if its centre, the middle one of nine fine pixels, is.
    assert torch.equal(gone['coarse'], gone['fine'][:, 1::3, 1::3])


def test_infinite_pixels_are_gaps():
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    x[0, 0, 5, 7] = torch.inf
    whole = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]])
    view = cut({'s': x}, whole, {'s': (16, 16)})['s']
    expected = x.masked_fill(x.isinf(), torch.nan)
    assert torch.equal(view.isnan(), expected.isnan())
    assert torch.allclose(view, expected, atol=1e-5, equal_nan=True)
