import math

import pytest
import torch
from conftest import sensor
from kornia.color import rgb_to_hsv

from gfm_jepa import InputError
from gfm_jepa.modalities import RGB
from gfm_jepa.photo_views import PhotoViews, jitter_colours, photo_windows
from gfm_jepa.views import cut

SIZES = {'rgb': 1}
STILL = {'jitter_probability': 0.0, 'grayscale': 0.0, 'blur': 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=64, size=(32, 32)):
    return 255 * torch.rand(count, 3, *size, generator=generator(9))


def make(views, x, seed=0):
    return views.make({'rgb': x}, {'rgb': RGB}, SIZES, generator(seed))


def test_windows_are_upright_mirrored_and_of_the_stated_shape():
    shape = (40, 80)
    windows = photo_windows(4000, shape, (0.2, 0.6), (0.75, 4 / 3), 0.5, generator())
    assert (windows[:, 0, 1] == 0).all() and (windows[:, 1, 0] == 0).all()
    assert (windows[:, 1, 1] > 0).all()  # never upside down
    assert 0.45 < (windows[:, 0, 0] < 0).float().mean() < 0.55
    width, height = windows[:, 0, 0].abs(), windows[:, 1, 1]
    inside = height < 1  # what was cut at the border is smaller
    area, ratio = (width * height)[inside], (width * 80 / (height * 40))[inside]
    assert 0.2 - 1e-4 <= area.min() < 0.22 and 0.55 < area.max() <= 0.6 + 1e-4
    assert 0.75 - 1e-3 <= ratio.min() < 0.8 and 1.25 < ratio.max() <= 4 / 3 + 1e-3
    assert ((windows[:, 0, 2].abs() + width) <= 1 + 1e-5).all()
    whole = photo_windows(8, (32, 32), (1.0, 1.0), (1.0, 1.0), 0.0, generator())
    x = images(8)
    assert torch.allclose(cut({'x': x}, whole, {'x': (32, 32)})['x'], x, atol=1e-2)


def test_views_are_joined_by_kind_and_drawn_from_the_generator():
    x = images(4, (32, 48))
    views = PhotoViews(num_global=2, num_local=3, global_fraction=0.75)
    first, again, other = (make(views, x, s) for s in (1, 1, 2))
    assert [v['rgb'].shape for v in first] == [(8, 3, 24, 24), (12, 3, 16, 16)]
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a['rgb'], b['rgb']) and not torch.equal(a['rgb'], c['rgb'])
        assert a['rgb'].min() >= 0 and a['rgb'].max() <= 255 and a['rgb'].max() > 150
        assert 'gsd' not in a  # nothing says how large a pixel is
    state = torch.get_rng_state()
    make(views, x)
    assert torch.equal(state, torch.get_rng_state())
    told = views.make({'rgb': x, 'gsd': {'rgb': 2.0}}, {'rgb': RGB}, SIZES, generator())
    assert [v['gsd'] for v in told] == [{'rgb': 2.0}] * 2
    each = {'rgb': x, 'gsd': {'rgb': torch.full((4,), 2.0)}}
    assert views.make(each, {'rgb': RGB}, SIZES, generator())[0]['gsd'] == {'rgb': 2.0}


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'num_global': 0}, 'num_global 0'),
        ({'grayscale': 2.0}, 'views.grayscale is 2.0; give a probability'),
        ({'aspect_ratio': (2.0, 1.0)}, 'views.aspect_ratio'),
        ({'blur_sigma': (0.0, 2.0)}, 'views.blur_sigma'),
        ({'jitter': (0.4, 0.4, 0.4, -0.1)}, 'views.jitter is .*; give four changes of 0 to 1'),
    ],
)
def test_views_that_cannot_be_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        PhotoViews(**options)


def test_gaps_stay_gaps_and_touch_nothing_else():
    x = images(16)
    hole = x.clone()
    hole[:, :, :16] = torch.nan
    hole[0] = torch.nan
    views = PhotoViews(1, 0, (1.0, 1.0), aspect_ratio=(1.0, 1.0), jitter_probability=1.0, blur=1.0)
    view = make(views, hole)[0]['rgb']
    assert torch.equal(view.isnan(), hole.isnan())
    hole[1:, 1, 20, 20] = torch.nan  # one band of one pixel
    view = make(views, hole)[0]['rgb']
    # Resampling takes along the pixels beside it, in its band alone.
    count = view.isnan().flatten(1).sum(1)[1:]
    assert (count > 3 * 16 * 32).all() and (count <= 3 * 16 * 32 + 4).all()


def test_nothing_of_a_gap_is_blurred_into_the_pixels_beside_it():
    x = torch.full((2, 3, 32, 32), 200.0)
    x[..., :8] = 0.0
    x[:, :, 20:24] = 100.0
    whole = {'global_scale': (1.0, 1.0), 'aspect_ratio': (1.0, 1.0), 'mirror': 0.0}
    views = PhotoViews(1, 0, **whole, **{**STILL, 'blur': 1.0}, blur_sigma=(2.0, 2.0))
    same = make(views, x)[0]['rgb'][1]
    gappy = x.clone()
    gappy[0, :, :, 8:16] = torch.nan  # the mean of what is left is neither 0 nor 200
    gappy[0, :, 20:24] = torch.nan
    view = make(views, gappy)[0]['rgb']
    assert view[0, :, :20, :8].abs().max() < 1e-3
    assert (view[0, :, 24:, 16:] - 200).abs().max() < 1e-2
    assert torch.equal(view.isnan(), gappy.isnan())
    assert torch.allclose(view[1], same, atol=1e-3)


def test_views_of_images_that_are_not_square_have_one_scale():
    batch = {'rgb': images(2, (37, 51)), 'gsd': {'rgb': 2.0}}
    (view,) = PhotoViews(1).make(batch, {'rgb': RGB}, {'rgb': 8}, generator())
    assert view['rgb'].shape == (2, 3, 40, 40) and view['gsd'] == {'rgb': 2.0 * 37 / 40}


def test_each_change_comes_as_often_as_stated():
    x = images(1000, (16, 16))
    same = {'global_scale': (1.0, 1.0), 'aspect_ratio': (1.0, 1.0), 'mirror': 0.0}
    still = make(PhotoViews(1, 0, **same, **STILL), x)[0]['rgb']
    assert torch.allclose(still, x, atol=1e-2)
    for change in (
        {'jitter_probability': 0.8}, {'grayscale': 0.2}, {'blur': 0.5, 'blur_sigma': (1.0, 2.0)},
    ):  # fmt: skip
        view = make(PhotoViews(1, 0, **same, **{**STILL, **change}), x)[0]['rgb']
        changed = ((view - x).abs().flatten(1).amax(1) > 1).float().mean().item()
        assert changed == pytest.approx(next(iter(change.values())), abs=0.05)
        if 'grayscale' in change:
            gray = view.std(dim=1).flatten(1).amax(1) < 0.1
            assert gray.float().mean().item() == pytest.approx(changed)
        if 'blur' in change:
            rough = view.diff(dim=3).abs().mean((1, 2, 3)) / x.diff(dim=3).abs().mean((1, 2, 3))
            assert rough.min() < 0.3 and rough.max() > 0.99


def test_colours_change_by_as_much_as_stated():
    x = 0.3 + 0.2 * torch.rand(500, 3, 4, 4, generator=generator())

    def changed(*strength):
        return jitter_colours(x, strength, 1.0, generator(1))

    ratio = (changed(0.4, 0, 0, 0) / x).flatten(1)
    assert torch.allclose(ratio.amin(1), ratio.amax(1), atol=1e-4)
    assert 0.6 <= ratio.min() < 0.65 and 1.35 < ratio.max() <= 1.4 + 1e-4
    contrast = changed(0, 0.4, 0, 0).std((2, 3)) / x.std((2, 3))
    assert 0.6 - 1e-3 <= contrast.min() < 0.65 and 1.35 < contrast.max() <= 1.4 + 1e-3
    spread = changed(0, 0, 0.4, 0).std(1) / x.std(1)
    assert 0.6 - 1e-3 <= spread.min() < 0.65 and 1.35 < spread.max() <= 1.4 + 1e-3
    turn = (rgb_to_hsv(changed(0, 0, 0, 0.1)) - rgb_to_hsv(x))[:, 0]
    turn = (turn + math.pi).remainder(2 * math.pi) - math.pi
    assert 0.19 * math.pi < turn.abs().max() <= 0.2 * math.pi + 1e-2


def test_other_than_rgb_is_refused():
    views = PhotoViews()
    for modalities in (
        {'rgb': RGB, 's': sensor('s')}, {'s': sensor('s', 4)}, {'s': sensor('s', 3)},
    ):  # fmt: skip
        with pytest.raises(InputError, match='PhotoViews are of RGB images'):
            views.make({}, modalities, SIZES, generator())
