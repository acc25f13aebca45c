"""Each loss against an independent formula, and the methods built on them."""

import math

import numpy as np
import pytest
import torch
from conftest import sensor
from lightly.loss import NegativeCosineSimilarity, VICRegLoss
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gfm_jepa import InputError
from gfm_jepa.losses import VICReg as Criterion
from gfm_jepa.losses import info_nce, negative_cosine, patch_discrimination
from gfm_jepa.masks import RandomCells
from gfm_jepa.metrics import embedding_std
from gfm_jepa.models.projectors import projector
from gfm_jepa.tasks import EncoderConfig, LatentMIM, LeJEPA, OptimizerConfig, SimSiam, VICReg, views
from gfm_jepa.tasks.ijepa import sample_masks
from gfm_jepa.views import Views

SENSOR = sensor('optical', 3)
SMALL = EncoderConfig('nano', patch_size=16)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_vicreg_equals_lightly():
    x = torch.stack([random(64, 32) * 0.7 + 0.1, random(64, 32, seed=1) * 1.3])
    ours = sum(Criterion()(x))
    assert ours.item() == pytest.approx(VICRegLoss()(x[0], x[1]).item(), rel=1e-6)


def test_vicreg_equals_the_formula_written_out():
    x = random(3, 20, 5).double()
    invariance, variance, covariance = Criterion(2.0, 3.0, 5.0)(x)
    views = [v.numpy() for v in x]
    pairs = [((views[i] - views[j]) ** 2).mean() for i in range(3) for j in range(i)]
    assert invariance.item() == pytest.approx(2 * np.mean(pairs))
    matrices = [np.cov(v.T) for v in views]
    floors = [np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4)).mean() for c in matrices]
    assert variance.item() == pytest.approx(3 * np.mean(floors))
    off = [((c - np.diag(np.diag(c))) ** 2).sum() / 5 for c in matrices]
    assert covariance.item() == pytest.approx(5 * 2 * np.mean(off))


def test_simsiam_equals_lightly():
    p, z = random(2, 32, 16), random(2, 32, 16, seed=1)
    loss = NegativeCosineSimilarity()
    expected = 0.5 * (loss(p[0], z[1]) + loss(p[1], z[0]))
    assert negative_cosine(p, z).item() == pytest.approx(expected.item(), abs=1e-6)
    assert negative_cosine(p, p.flip(0)).item() == pytest.approx(-1, abs=1e-6)


def test_info_nce_equals_the_formula_written_out():
    a, b = (F.normalize(random(7, 4, seed=s), dim=1).numpy() for s in (0, 1))
    similar = a @ b.T / 0.2
    rows = [-similar[i, i] + math.log(np.exp(similar[i]).sum()) for i in range(7)]
    columns = [-similar[i, i] + math.log(np.exp(similar[:, i]).sum()) for i in range(7)]
    ours = info_nce(torch.from_numpy(a) * 3, torch.from_numpy(b), 0.2)
    assert ours.item() == pytest.approx((np.mean(rows) + np.mean(columns)) / 2, rel=1e-5)


def test_patch_discrimination_leaves_out_what_is_not_there_and_what_is_the_same():
    p, y = random(1, 4, 8), random(1, 4, 8, seed=1)
    y[0, 1] = 2 * y[0, 0]  # the same patch of sea twice
    there = torch.tensor([[True, True, True, False]])
    a, b = F.normalize(p[0], dim=1).numpy(), F.normalize(y[0], dim=1).numpy()
    total = 0.0
    for t, others in ((0, (0, 2)), (1, (1, 2)), (2, (0, 1, 2))):
        logits = {u: a[t] @ b[u] / 0.1 for u in others}
        total += -logits[t] + math.log(sum(math.exp(v) for v in logits.values()))
    assert patch_discrimination(p, y, there).item() == pytest.approx(total / 3, rel=1e-5)
    p.requires_grad_()
    nothing = patch_discrimination(p, y, torch.zeros(1, 4, dtype=torch.bool))
    nothing.backward()
    assert nothing == 0 and p.grad.isfinite().all()


def test_projector_has_the_layers_of_the_paper():
    layers = projector([8, 16, 16, 4], last_norm=True)
    assert [type(m) for m in layers] == [
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear,
        nn.BatchNorm1d,
    ]  # fmt: skip
    assert layers[-1].affine is False and layers(random(5, 8)).shape == (5, 4)


def test_random_cells_cover_everything_once():
    task = LatentMIM([SENSOR.to_dict()], SMALL)
    batch = {'optical': random(6, 3, 64, 64) * 50 + 100}
    batch['optical'][0, :, :16] = torch.nan
    masks = RandomCells((0.25, 0.25))
    context_ids, target_ids = sample_masks(
        masks, task.encoder, batch, torch.Generator().manual_seed(0)
    )
    assert context_ids.shape == (6, 4) and target_ids.shape == (6, 1, 12)
    for sample in range(6):
        seen = set(context_ids[sample].tolist()) - {-1}
        hidden = set(target_ids[sample].flatten().tolist()) - {-1}
        assert not seen & hidden
        assert seen | hidden == set(range(4 if sample == 0 else 0, 16))


@pytest.mark.parametrize('method', [VICReg, SimSiam, LatentMIM])
def test_methods_learn_and_do_not_collapse(method):
    torch.manual_seed(0)
    task = method([SENSOR.to_dict()], SMALL, OptimizerConfig(lr=1e-3))
    task._seed, task.log_dict = 0, lambda values: None
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-3)
    # Eight kinds of ground with noise.
    kinds = 100 + 50 * random(8, 3, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    losses = []
    for step in range(25):
        batch = {'optical': kinds.repeat(2, 1, 1, 1) + 10 * random(16, 3, 64, 64, seed=step)}
        optimizer.zero_grad()
        loss = task.compute_loss(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    with torch.no_grad():
        assert embedding_std(task({'optical': kinds})) > 0.01


def test_targets_of_latent_mim_stay_as_they_were_and_know_no_place():
    task = LatentMIM([SENSOR.to_dict()], SMALL)
    chip = random(1, 3, 16, 16).repeat(1, 1, 4, 4) * 50 + 100
    ids = torch.arange(16)[None]
    targets = task.forward_targets({'optical': chip}, ids)
    assert torch.allclose(targets, targets[:, :1].expand_as(targets), atol=1e-5)
    assert not any(p.requires_grad for p in task.target_embeds.parameters())


def test_wrong_choices_are_explained():
    with pytest.raises(InputError, match='compares two views, but 4 are configured'):
        SimSiam([SENSOR.to_dict()], SMALL, views=Views(num_global=2, num_local=2))
    with pytest.raises(InputError, match=r'encoder\.stem=linear'):
        LatentMIM([SENSOR.to_dict()], EncoderConfig(stem='conv'))


@pytest.mark.filterwarnings('ignore:The .*dataloader.* does not have many workers')
@pytest.mark.parametrize('method', [LeJEPA, VICReg, SimSiam])
def test_batches_with_nothing_to_compare_are_left_out_of_validation(method):
    task = method([SENSOR.to_dict()], SMALL)
    chips = [{'optical': 100 + 50 * random(3, 32, 32, seed=i)} for i in range(5)]
    trainer = Trainer(accelerator='cpu', logger=False, enable_progress_bar=False,
                      enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    for count, logged in ((4, {'val_loss'}), (5, {'val_loss'}), (1, set())):
        (found,) = trainer.validate(task, DataLoader(chips[:count], 4), verbose=False)
        assert found.keys() == logged and all(np.isfinite(v) for v in found.values())


def test_a_batch_is_left_out_only_if_all_ranks_together_have_too_little(monkeypatch):
    task = LeJEPA([SENSOR.to_dict()], SMALL).eval()
    batch = {'optical': 100 + 50 * random(4, 3, 32, 32)}
    batch['optical'][1:] = torch.nan
    assert task.compute_loss(batch, 0) is None
    with pytest.raises(InputError, match='1 of 4 samples'):
        task.train().compute_loss(batch, 0)
    # Another rank has one more, of the four that it holds.
    others = iter((4, 1))
    monkeypatch.setattr(views, 'count_over_ranks', lambda count, device: count + next(others))
    assert task.eval().compute_loss(batch, 0) is not None


def test_health_is_measured_on_the_first_view_of_each_sample():
    task = LeJEPA([SENSOR.to_dict()], SMALL, views=Views(num_global=2, num_local=2))
    seen = []
    task.log_health = seen.append
    by_view = task.embed_views({'optical': 100 + 50 * random(6, 3, 32, 32)}, 0)
    assert by_view.shape[:2] == (4, 6) and torch.equal(seen[0], by_view[0])


@pytest.mark.parametrize('method', [LeJEPA, VICReg, SimSiam])
def test_one_view_has_nothing_to_be_compared_with(method):
    with pytest.raises(InputError, match=r'compares the views of a sample.*num_global'):
        method([SENSOR.to_dict()], SMALL, views=Views(num_global=1))


def train(task, steps):
    task._seed, task.log_dict = 0, lambda values: None
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    chips = {'optical': 100 + 50 * random(16, 3, 64, 64)}
    for step in range(steps):
        optimizer.zero_grad()
        task.compute_loss(chips, step).backward()
        optimizer.step()
    with torch.no_grad():
        return embedding_std(F.normalize(task(chips), dim=1)) * task.encoder.embed_dim**0.5


def test_without_their_guard_methods_collapse():
    torch.manual_seed(0)
    free = train(LeJEPA([SENSOR.to_dict()], SMALL, sigreg_weight=0.0), 60)
    torch.manual_seed(0)
    kept = train(LeJEPA([SENSOR.to_dict()], SMALL, sigreg_weight=0.1), 60)
    assert kept > 2 * free


def test_the_predictor_of_simsiam_learns_faster():
    task = SimSiam([SENSOR.to_dict()], SMALL, OptimizerConfig(lr=1e-3), predictor_rate=4.0)
    rates = {id(p): g['lr'] for g in task.parameter_groups() for p in g['params']}
    learning = [p for p in task.parameters() if p.requires_grad]
    assert rates.keys() == {id(p) for p in learning} and len(rates) == len(learning)
    assert {rates[id(p)] for p in task.predictor.parameters()} == {4e-3}
    assert {rates[id(p)] for p in task.projector.parameters()} == {1e-3}
    decays = [{p.ndim > 1 for p in g['params']} for g in task.parameter_groups()]
    assert decays == [{True}, {True}, {False}, {False}]
    with pytest.raises(InputError, match=r'predictor_rate is 0\.0; expected above 0'):
        SimSiam([SENSOR.to_dict()], SMALL, predictor_rate=0.0)
