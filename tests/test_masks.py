import pytest
import torch
from conftest import sensor

from gfm_jepa import InputError
from gfm_jepa.masks import (
    CrossModal,
    Ground,
    Mixture,
    MixtureSettings,
    MultiBlock,
    RandomCells,
    SignalBiased,
    Tube,
    keep_ids,
    multi_block,
    sample_block_size,
    token_cells,
    trim,
)
from gfm_jepa.models import build_encoder
from gfm_jepa.tasks.ijepa import sample_masks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ground(valid, cells, grid, modality_ids=None, signal=None):
    ids = torch.zeros(len(cells), dtype=torch.long) if modality_ids is None else modality_ids
    return Ground(valid, cells, grid, ids, signal)


@pytest.mark.parametrize('grid', [(14, 14), (8, 8), (6, 9), (3, 3), (2, 1)])
def test_context_and_targets_never_overlap(grid):
    for seed in range(20):
        context, targets = multi_block(64, grid, generator(seed))
        assert not (context & targets.any(1)).any()
        assert context.any(1).all() and targets.any(2).all()


@pytest.mark.parametrize(('grid', 'seed'), [((4, 4), 56), ((2, 1), 8), ((2, 2), 1)])
def test_large_targets_leave_a_context(grid, seed):
    context, targets = multi_block(3, grid, generator(seed), 1, (0.5, 0.9), (0.2, 5), (0.1, 0.3))
    assert context.any(1).all() and targets.any(2).all()


def test_a_block_is_the_whole_grid_only_if_its_scale_reaches_one():
    for ratio in (0.1, 1.0, 10.0):
        for grid in ((2, 1), (1, 2), (2, 2)):
            size = sample_block_size(grid, (0.95, 0.99), (ratio, ratio), generator())
            assert 1 <= size[0] * size[1] < grid[0] * grid[1]
    assert sample_block_size((2, 2), (1.0, 1.0), (1.0, 1.0), generator()) == (2, 2)
    assert sample_block_size((1, 1), (0.5, 0.5), (1.0, 1.0), generator()) == (1, 1)


def test_masks_hold_their_scales():
    shares, contexts = [], []
    for seed in range(200):
        context, targets = multi_block(4, (14, 14), generator(seed))
        assert targets.sum(2).unique().numel() == 1  # one size for the whole batch
        share = targets[0, 0].float().mean().item()
        # One cell is 1/196: rounding to whole cells moves the share by little.
        assert 0.15 - 0.02 <= share <= 0.2 + 0.02
        rows = targets[0, 0].view(14, 14).any(1).sum() / targets[0, 0].view(14, 14).any(0).sum()
        assert 0.6 <= rows <= 1.75
        shares.append(share)
        contexts.append((context | targets.any(1)).float().mean().item())
    assert min(shares) < 0.165 and max(shares) > 0.185
    assert min(contexts) >= 0.8


def test_blocks_are_rectangles_anywhere():
    _, targets = multi_block(512, (8, 8), generator())
    block = targets.view(-1, 8, 8)
    height, width = block.any(2).sum(1), block.any(1).sum(1)
    assert torch.equal(height * width, block.sum((1, 2)))
    assert block.any(0).all()  # every cell is hidden sooner or later


def test_same_generator_state_same_masks():
    first, second, other = (multi_block(8, (8, 8), generator(s)) for s in (1, 1, 2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])


def test_keep_ids_lists_and_pads():
    keep = torch.tensor([[True, False, True, True], [False, False, True, False]])
    assert keep_ids(keep).tolist() == [[0, 2, 3], [2, -1, -1]]
    assert keep_ids(keep, 1).tolist() == [[0], [2]]
    assert keep_ids(torch.zeros(2, 5, dtype=torch.bool)).tolist() == [[-1], [-1]]


def test_trim_drops_at_random():
    keep = torch.rand(200, 20, generator=generator()) < 0.7
    cut = trim(keep, 5, generator())
    assert (cut & ~keep).sum() == 0 and (cut.sum(1) == keep.sum(1).clamp_max(5)).all()
    assert cut.float().mean(0).std() < 0.1  # no corner is favoured


def test_one_block_hides_the_same_ground_in_all_modalities():
    # A 60 m chip: 10 m patches on 6 x 6, and 20 m patches on 3 x 3.
    fine = torch.cartesian_prod(torch.arange(6), torch.arange(6)) * 10.0 + 5
    coarse = torch.cartesian_prod(torch.arange(3), torch.arange(3)) * 20.0 + 10
    cells = token_cells(torch.cat([fine, coarse]), (60.0, 60.0), (6, 6))
    assert torch.equal(cells[:36], torch.arange(36))
    valid = torch.ones(16, 45, dtype=torch.bool)
    context_ids, target_ids = MultiBlock().sample(ground(valid, cells, (6, 6)), generator())
    for sample in range(16):
        context = set(cells[context_ids[sample]].tolist())
        for block in target_ids[sample]:
            hidden = {int(cells[i]) for i in block if i >= 0}
            assert not hidden & context
            # A coarse token is hidden exactly when the cell of its centre is.
            for token in range(36, 45):
                assert (token in block.tolist()) == (int(cells[token]) in hidden)


def test_invalid_tokens_are_neither_context_nor_target():
    valid = torch.rand(32, 64, generator=generator()) < 0.6
    valid[0] = False
    context_ids, target_ids = MultiBlock().sample(
        ground(valid, torch.arange(64), (8, 8)), generator()
    )
    for ids in (context_ids, target_ids.flatten(1)):
        seen = ids >= 0
        assert valid.gather(1, ids.clamp_min(0))[seen].all()
    assert (context_ids[0] == -1).all() and (target_ids[0] == -1).all()
    assert (context_ids[1:, 0] >= 0).all()


@pytest.mark.parametrize('mask', [RandomCells((0.25, 0.25)), SignalBiased((0.25, 0.25))])
def test_samples_with_few_valid_cells_keep_context_and_targets(mask):
    valid = torch.zeros(200, 64, dtype=torch.bool)
    valid[:, 40:48] = True
    valid[0, 41:] = False  # one cell alone: nothing could be predicted from it
    here = ground(valid, torch.arange(64), (8, 8), signal=torch.ones(200, 64))
    context_ids, target_ids = mask.sample(here, generator())
    seen, hidden = context_ids >= 0, target_ids[:, 0] >= 0
    # A quarter of the eight that are there, not of all.
    assert (seen[1:].sum(dim=1) == 2).all() and (hidden[1:].sum(dim=1) == 6).all()
    assert not seen[0].any()


@pytest.mark.parametrize('signal', ['brightness', 'variance'])
def test_signal_biased_context_lies_on_the_signal(signal):
    # A sparse scene: 16 of 144 patches hold ships on a dark, slightly noisy sea.
    encoder = build_encoder('nano', [sensor('optical', 3).to_dict()])
    x = 100 + torch.randn(32, 3, 96, 96, generator=generator())
    lit = torch.rand(32, 144, generator=generator(1)).argsort(dim=1)[:, :16]
    holds = torch.zeros(32, 144, dtype=torch.bool).scatter_(1, lit, True)
    ships = holds.view(32, 1, 12, 12).repeat_interleave(8, 2).repeat_interleave(8, 3)
    x = x + ships * 800 * torch.rand(x.shape, generator=generator(2))
    share = {}
    for mask in (SignalBiased(signal=signal), RandomCells((0.1, 0.1))):
        context_ids, target_ids = sample_masks(mask, encoder, {'optical': x}, generator(3))
        seen, hidden = context_ids >= 0, target_ids[:, 0] >= 0
        assert (seen.sum(dim=1) + hidden.sum(dim=1) == 144).all()
        there = holds.gather(1, context_ids.clamp_min(0)) & seen
        share[type(mask)] = (there.sum() / seen.sum()).item()
        if isinstance(mask, SignalBiased):  # half of what holds a ship is left to be predicted
            assert (there.sum(dim=1) <= 8).all() and (seen.sum(dim=1) <= 8).all()
    assert share[SignalBiased] >= 0.9 and share[RandomCells] < 0.3


def test_signal_counts_above_the_background_and_by_its_power():
    signal = 1 + torch.rand(2000, 64, generator=generator())
    signal[:, 48:] = torch.arange(20.0, 36.0)  # 16 cells hold something
    valid = torch.ones(2000, 64, dtype=torch.bool)
    valid[:, 63] = False  # the strongest is not there
    here = ground(valid, torch.arange(64), (8, 8), signal=signal)
    means = []
    for power in (0.0, 8.0):
        ids, _ = SignalBiased((0.05, 0.05), power=power, background=0.0).sample(here, generator())
        assert ids.shape[1] == 3 and (ids >= 48).all() and (ids < 63).all()
        means.append(ids.float().mean().item())
    assert means[0] == pytest.approx(55, abs=0.3) and means[1] > 58
    ids, _ = SignalBiased((0.05, 0.05), background=0.3).sample(here, generator())
    assert (ids < 48).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_where_nothing_stands_out_the_mask_is_random():
    here = ground(torch.ones(2000, 64, dtype=torch.bool), torch.arange(64), (8, 8),
                  signal=torch.ones(2000, 64))  # fmt: skip
    ids, _ = SignalBiased((0.1, 0.1)).sample(here, generator())
    assert ids.shape[1] == 6 and ids.float().mean().item() == pytest.approx(31.5, abs=0.7)


@pytest.mark.parametrize('kind', ['brightness', 'variance'])
def test_the_edge_of_a_gap_is_no_signal(kind):
    encoder = build_encoder('nano', [sensor('optical', 3).to_dict()])
    rows = 400 + 7.0 * torch.arange(48) ** 1.5  # far from the mean, which a gap was taken for
    x = rows.view(1, 1, 48, 1).repeat(2, 3, 1, 48)
    whole = encoder.patch_signal({'optical': x}, kind).view(2, 6, 6)
    x[:, :, :, 20:] = torch.nan  # half of the third column of patches, and all behind it
    x[0, 1, 16:24, :8] = torch.nan  # one of three bands, which say nearly the same
    found = encoder.patch_signal({'optical': x}, kind).view(2, 6, 6)
    assert (found[:, :, 3:] == 0).all()
    assert torch.allclose(found[:, :, :3], whole[:, :, :3], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize('weights', [{'random_cells': -1.0}, {'multi_block': 0.0}])
def test_weights_of_a_mixture_that_cannot_be(weights):
    with pytest.raises(InputError, match=r'Mixture has the weights .*; give 0 or more to each'):
        Mixture(**weights)


def test_signal_biased_refuses_what_it_cannot_use():
    with pytest.raises(InputError, match=r'power is -1\.0; give 0 or more'):
        SignalBiased(power=-1.0)
    with pytest.raises(InputError, match='expected brightness or variance'):
        SignalBiased(signal='texture')
    with pytest.raises(InputError, match=r'background is a share of 0 to 1, not 1\.5'):
        SignalBiased(background=1.5)


def test_cross_modal_hides_whole_modalities_and_leaves_one():
    ids = torch.tensor([0] * 4 + [1] * 4 + [2])
    valid = torch.ones(60, 9, dtype=torch.bool)
    valid[:20, 4:8] = False  # has the first and the last only
    valid[20:30, :8] = False  # the last alone
    here = ground(valid, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0]), (2, 2), ids)
    seen_kinds = set()
    for hidden in (1, 2, 5):
        context_ids, target_ids = CrossModal(hidden).sample(here, generator(hidden))
        for sample in range(60):
            seen = {int(ids[i]) for i in context_ids[sample] if i >= 0}
            gone = {int(ids[i]) for i in target_ids[sample].flatten() if i >= 0}
            has = {int(k) for k in ids[valid[sample]]}
            assert not seen & gone and seen | gone == has and seen
            assert len(gone) == min(hidden, len(has) - 1)
            seen_kinds |= gone
    assert seen_kinds == {0, 1, 2}


def test_mixture_draws_by_weight():
    here = ground(torch.ones(4, 36, dtype=torch.bool), torch.arange(36), (6, 6),
                  signal=torch.ones(4, 36))  # fmt: skip
    blocks = sum(
        Mixture(multi_block=1.0, random_cells=3.0).sample(here, g)[1].shape[1] == 4
        for g in map(generator, range(200))
    )
    assert 25 < blocks < 75
    whole, broken = (Mixture(w, w, 0, w, w).sample(here, generator()) for w in (1, 1.0))
    assert all(map(torch.equal, whole, broken))
    # One modality alone cannot be predicted from the others.
    assert Mixture(0.0, cross_modal=1.0).sample(here, generator())[1].shape[1] == 1
    assert Mixture(0.0, signal_biased=1.0).signal == 'variance' and Mixture().signal == ''


def test_mixture_takes_the_settings_of_its_masks():
    here = ground(torch.ones(4, 36, dtype=torch.bool), torch.arange(36), (6, 6))
    settings = MixtureSettings(random_cells=RandomCells((0.5, 0.5)))
    ids, _ = Mixture(0.0, random_cells=1.0, settings=settings).sample(here, generator())
    assert ids.shape == (4, 18)


def test_tube_hides_the_same_cells_at_all_dates():
    # Three dates on 6 x 6 cells, and a static modality of 3 x 3 patches beside them.
    dated = torch.arange(36).repeat(3)
    static = torch.tensor([0, 2, 4, 12, 14, 16, 24, 26, 28])
    cells = torch.cat([dated, static])
    valid = torch.ones(8, len(cells), dtype=torch.bool)
    valid[0, 36:72] = False  # a cloudy date
    kinds = torch.cat([torch.zeros(108, dtype=torch.long), torch.ones(9, dtype=torch.long)])
    context_ids, target_ids = Tube(tubes=2).sample(ground(valid, cells, (6, 6), kinds), generator())
    assert target_ids.shape[:2] == (8, 2)
    for sample in range(8):
        hidden = set()
        for block in target_ids[sample]:
            ids = block[block >= 0]
            assert valid[sample, ids].all()
            of_date = [set(cells[ids[(ids >= 36 * t) & (ids < 36 * t + 36)]].tolist())
                       for t in range(3)]  # fmt: skip
            assert of_date[0] and of_date[0] == of_date[2]
            assert of_date[1] == (set() if sample == 0 else of_date[0])
            hidden |= of_date[0]
        seen = context_ids[sample][context_ids[sample] >= 0]
        assert valid[sample, seen].all() and not set(cells[seen].tolist()) & hidden
        dates = {int(i) // 36 for i in seen if i < 108}
        assert dates == ({0, 2} if sample == 0 else {0, 1, 2})
    assert Tube().dates and Mixture(tube=1.0).dates
    assert not MultiBlock().dates and not Mixture().dates
