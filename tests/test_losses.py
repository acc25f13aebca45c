import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from gfm_jepa.losses import SIGReg, VICReg, info_nce, negative_cosine, view_invariance
from gfm_jepa.models import projectors


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('count', [32, 256, 2048])
def test_sigreg_of_a_standard_normal_is_about_one(count):
    values = [
        SIGReg(512)(torch.randn(count, 32, generator=generator(s)), generator(s + 100)).item()
        for s in range(8)
    ]
    expected = quad(lambda t: (1 - math.exp(-(t**2))) * math.exp(-(t**2) / 2), -3, 3)[0]
    assert expected == pytest.approx(1.05, abs=0.01)
    assert np.mean(values) == pytest.approx(expected, rel=0.1)


def test_losses_are_not_rounded_in_mixed_precision():
    x = torch.randn(2, 64, 32, generator=generator())
    for loss in (lambda v: SIGReg(64)(v, generator(1)), lambda v: sum(VICReg()(v)),
                 lambda v: info_nce(*v), lambda v: view_invariance(v, 1)):  # fmt: skip
        expected = loss(x.bfloat16().float())
        with torch.autocast('cpu', torch.bfloat16):
            found = loss(x.bfloat16())
        assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_losses_are_exact_by_whatever_way_they_are_given_their_tensors():
    x = torch.randn(2, 64, 32, generator=generator()).half()
    assert torch.equal(negative_cosine(predictions=x, projections=x), negative_cosine(x, x))
    assert negative_cosine(predictions=x, projections=x).dtype == torch.float32


def test_batch_norm_over_ranks_takes_16_bits(monkeypatch):
    monkeypatch.setattr(projectors.dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(projectors.dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(projectors, 'joined_mean', lambda x, dim: x.mean(dim, keepdim=True))
    monkeypatch.setattr(projectors, 'count_over_ranks', lambda count, device: 2 * count)
    norm = projectors.CrossRankBatchNorm(4)
    values = 400 * torch.randn(64, 4, generator=generator())  # squares beyond float16
    found = norm(values.half())
    assert found.dtype == torch.float16 and norm.running_mean.dtype == torch.float32
    assert torch.allclose(found.float().std(dim=0, correction=0), torch.ones(4), atol=1e-2)


def test_sigreg_golden_value():
    # FIELD: x ~ 0.3 N(0, 1), V = 2, N = 256, D = 64 gives 72.8 in the reference's convention.
    x = 0.3 * torch.randn(2, 256, 64, generator=generator())
    assert SIGReg(1024)(x, generator(1)).item() == pytest.approx(72.8, rel=0.02)


def test_sigreg_equals_the_formula_written_out():
    x = torch.randn(50, 4, generator=generator()).double() * 2 + 1
    slices = torch.randn(4, 3, generator=generator(7)).double()
    slices = slices / slices.norm(dim=0)
    total = 0.0
    for s in range(3):
        y = (x @ slices[:, s]).numpy()

        def integrand(t, y=y):
            phi = np.exp(1j * t * y).mean()
            return abs(phi - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2)

        total += 50 * quad(integrand, -3, 3, limit=200)[0] / 3
    assert SIGReg(3)(x, generator(7)).item() == pytest.approx(total, rel=0.01)


def test_sigreg_pulls_towards_the_normal():
    x = (0.1 * torch.randn(256, 8, generator=generator()) + 1).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.03)
    loss = SIGReg(64)
    for step in range(300):
        optimizer.zero_grad()
        loss(x, generator(step)).backward()
        optimizer.step()
    assert x.mean().abs() < 0.1 and x.std().item() == pytest.approx(1, abs=0.1)


def test_sigreg_of_a_constant_is_finite():
    x = torch.zeros(16, 8, requires_grad=True)
    loss = SIGReg()(x, generator())
    loss.backward()
    assert loss > 1.05 and x.grad.isfinite().all()


def test_invariance_is_the_distance_to_the_mean_of_the_global_views():
    x = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]], [[1.0, 6.0]]])
    # The centre of the two global views is (1, 0).
    assert view_invariance(x, 2).item() == pytest.approx((1 + 1 + 36) / 6)
    assert view_invariance(x[:1].repeat(3, 1, 1), 2) == 0
