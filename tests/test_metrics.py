import pytest
import torch

from gfm_jepa.metrics import effective_rank, embedding_std, knn_predict, mean_cosine


def test_isotropic_embeddings_are_alive():
    x = torch.randn(4096, 16)
    assert embedding_std(x).item() == pytest.approx(1, abs=0.02)
    assert abs(mean_cosine(x)) < 0.01
    assert effective_rank(x).item() == pytest.approx(16, rel=0.02)


def test_collapsed_embeddings_are_dead():
    x = torch.ones(64, 16)
    assert embedding_std(x) < 1e-5
    assert mean_cosine(x).item() == pytest.approx(1, abs=1e-5)
    assert effective_rank(x) < 1.01


def test_effective_rank_counts_directions():
    x = torch.randn(512, 3) @ torch.linalg.qr(torch.randn(16, 3))[0].T
    assert effective_rank(x).item() == pytest.approx(3, rel=0.02)
    x[7, 1] = torch.inf
    assert effective_rank(x).isnan()


def test_mean_cosine_equals_all_pairs():
    x = torch.nn.functional.normalize(torch.randn(10, 4), dim=1)
    pairs = (x @ x.T)[~torch.eye(10, dtype=torch.bool)]
    assert mean_cosine(x).item() == pytest.approx(pairs.mean().item(), abs=1e-6)


def test_knn_votes_and_breaks_ties_by_the_nearest():
    train = torch.tensor([[1.0, 0], [0.99, 0.1], [0, 1], [0.1, 0.99]])
    labels = torch.tensor([0, 1, 2, 2])
    assert knn_predict(train, labels, torch.tensor([[1.0, 0.0]]), k=2).tolist() == [0]
    assert knn_predict(train, labels, torch.tensor([[0.0, 1.0]]), k=3).tolist() == [2]
    assert knn_predict(train, labels, torch.tensor([[1.0, 0.0]]), k=9).tolist() == [2]
