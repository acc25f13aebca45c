"""Frozen features, probes and baselines, on made-up data."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from gfm_jepa.data.benchmarks import Benchmark
from gfm_jepa.errors import InputError
from gfm_jepa.evaluation.baselines import ImageStatistics, RandomConvolutions, random_init
from gfm_jepa.evaluation.classifiers import knn_probe, linear_probe
from gfm_jepa.evaluation.features import EncoderFeatures, Features, extract_features
from gfm_jepa.evaluation.logistic import LogisticRegression
from gfm_jepa.evaluation.probes import (
    format_table,
    probe,
    report,
    write_rows,
)
from gfm_jepa.models import Encoder


class Chips(Dataset):
    """RGB chips whose class shows in their colour."""

    def __init__(self, count, seed, classes=3, size=16):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % classes
        noise = torch.rand(count, 3, size, size, generator=generator) * 40
        self.images = noise + F.one_hot(self.labels, 3)[:, :, None, None] * 120.0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {'rgb': self.images[index], 'label': self.labels[index]}


@pytest.fixture
def benchmark():
    parts = (Chips(30, 0), Chips(12, 1), Chips(12, 2))
    return Benchmark('colours', 'made up', 'rgb', 10.0, *parts, ('red', 'green', 'blue'))


@pytest.fixture
def encoder():
    torch.manual_seed(7)
    return Encoder(['rgb'], patch_size=8, embed_dim=16, depth=3, num_heads=2)


def blobs(count, seed, classes=4, width=20, spread=0.3, shuffled=False):
    """Features around one centre a class; the centres are the same for any seed."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, width, generator=generator)
    embeddings = centres[labels] + spread * noise
    if shuffled:
        labels = labels[torch.randperm(count, generator=generator)]
    return Features(embeddings, labels)


def test_separable_features_reach_one_and_shuffled_labels_chance():
    good = [blobs(200, s) for s in range(3)]
    assert knn_probe(good[0], good[2]).accuracy == 1
    assert linear_probe(*good).accuracy == 1
    chance = [blobs(600, s, shuffled=True) for s in range(3)]
    assert 0.15 < knn_probe(chance[0], chance[2]).accuracy < 0.35
    assert 0.15 < linear_probe(*chance).accuracy < 0.35


def test_knn_agrees_with_sklearn_where_no_vote_is_tied():
    from sklearn.neighbors import KNeighborsClassifier

    train, test = blobs(300, 0, spread=1.5), blobs(200, 1, spread=1.5)
    model = KNeighborsClassifier(5, metric='cosine').fit(train.embeddings, train.labels)
    votes = np.sort(model.predict_proba(test.embeddings), axis=1)
    clear = votes[:, -1] > votes[:, -2]
    assert 0.5 < clear.mean() < 1
    ours = knn_probe(train, test).predictions.numpy()
    assert (ours == model.predict(test.embeddings))[clear].all()


def test_knn_of_more_neighbours_than_samples():
    train, test = blobs(3, 0), blobs(10, 1)
    assert len(knn_probe(train, test, k=5).predictions) == 10


@pytest.mark.parametrize('C', [0.01, 1.0, 30.0])
def test_logistic_regression_solves_what_sklearn_solves(C):
    from sklearn.linear_model import LogisticRegression as Reference

    data = blobs(400, 0, spread=1.0)
    mixing = torch.randn(20, 20, generator=torch.Generator().manual_seed(5)) ** 3
    inputs = data.embeddings @ mixing  # correlated, badly scaled
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    theirs = Reference(C=C, max_iter=20000, tol=1e-8).fit(inputs.double(), data.labels)
    weight, bias = LogisticRegression(inputs, data.labels, max_iter=2000, tolerance=1e-9)(C)

    def objective(w, b):
        loss = F.cross_entropy(inputs.double() @ w.T + b, data.labels, reduction='sum')
        return C * loss + w.square().sum() / 2

    best = objective(torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_))
    assert objective(weight.double(), bias.double()) < 1.001 * best
    ours = (inputs @ weight.T + bias).argmax(1)
    assert (ours.numpy() == theirs.predict(inputs.double())).mean() > 0.99


def test_c_is_chosen_on_val_alone():
    train, val = blobs(60, 0, spread=1.5), blobs(300, 1, spread=1.5)
    grid = (1e-4, 1e-2, 1.0, 100.0)
    scores = [linear_probe(train, val, val, grid=(c,)).accuracy for c in grid]
    assert len(set(scores)) > 1
    honest = linear_probe(train, val, blobs(300, 2, spread=1.5), grid=grid)
    spoilt = linear_probe(train, val, blobs(300, 2, shuffled=True), grid=grid)
    assert honest.C == spoilt.C == grid[int(np.argmax(scores))]


def test_linear_probe_does_not_care_for_units_or_constant_features():
    parts = [blobs(150, s, spread=1.0) for s in range(3)]
    scale, shift = torch.logspace(-3, 3, 20), torch.linspace(-50, 50, 20)
    moved = [
        Features(torch.cat([p.embeddings * scale + shift, torch.ones(150, 1)], 1), p.labels)
        for p in parts
    ]
    plain, other = linear_probe(*parts), linear_probe(*moved)
    assert plain.C == other.C
    assert (plain.predictions == other.predictions).float().mean() > 0.98


def test_features_keep_order_and_leave_the_module_as_it_was(benchmark):
    module = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3)).train()
    module[1].eval()

    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, batch):
            return self.inner(batch['rgb'].mean(dim=(2, 3)).double().float())

    features = extract_features(Means(), benchmark.train, batch_size=7)
    assert features.embeddings.dtype == torch.float32
    assert torch.equal(features.labels, benchmark.train.labels)
    expected = benchmark.train.images.mean(dim=(2, 3)) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(features.embeddings, expected)
    assert module[0].training and not module[1].training
    assert not features.embeddings.requires_grad and not features.embeddings.is_inference()


def test_features_refuse_nan_and_nothing(benchmark):
    benchmark.test.images[[1, 5]] = torch.nan
    with pytest.raises(InputError, match='2 of 12 embeddings are NaN'):
        extract_features(ImageStatistics('rgb'), benchmark.test)
    with pytest.raises(InputError, match='no samples'):
        extract_features(ImageStatistics('rgb'), Chips(0, 0))


def test_image_statistics_skip_missing_pixels():
    image = torch.tensor([[1.0, 2.0], [3.0, torch.nan]]).repeat(1, 2, 1, 1)
    image[0, 1] *= 10
    statistics = ImageStatistics('rgb')({'rgb': image})
    std = (2 / 3) ** 0.5
    expected = [2, 20, std, 10 * std, 1, 10, 3, 30]
    torch.testing.assert_close(statistics, torch.tensor([expected]).float())


def test_random_convolutions_are_torchgeos(benchmark):
    from torchgeo.models import RCF

    state = torch.get_rng_state()
    ours = RandomConvolutions(benchmark.train, 'rgb', num_features=32)
    again = RandomConvolutions(benchmark.train, 'rgb', num_features=32)
    batch = {'rgb': benchmark.test.images.clone()}
    reference = RCF(3, 32, 5, bias=-0.3, seed=1)
    reference.weights = ours.weights
    scaled = batch['rgb'] / np.percentile(benchmark.train.images.numpy(), 99.9)
    torch.testing.assert_close(ours(batch), reference(scaled.float()), atol=1e-5, rtol=1e-4)
    assert torch.equal(ours(batch), again(batch))
    assert torch.equal(state, torch.get_rng_state())
    batch['rgb'][:, :, :3] = torch.nan
    assert ours(batch).isfinite().all()


def test_baselines_do_without_a_band_that_is_never_there(benchmark, encoder):
    for part in (benchmark.train, benchmark.val, benchmark.test):
        part.images[:, 2] = torch.nan
    rows = probe(encoder, 'own', replace(benchmark, bands=('red', 'green')), progress=False)
    assert [r['name'] for r in rows] == ['own', 'image statistics', 'RCF-512', 'random init']
    assert rows[1]['embed_dim'] == 4 * 2


def test_random_init_differs_and_disturbs_nothing(encoder):
    state = torch.get_rng_state()
    first, second, other = random_init(encoder, 0), random_init(encoder, 0), random_init(encoder, 1)
    assert torch.equal(state, torch.get_rng_state())
    assert not first.training
    key = 'blocks.0.attn.qkv.weight'
    weights = [e.state_dict()[key] for e in (encoder, first, second, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[0]) and not torch.equal(weights[1], weights[3])
    with torch.no_grad():
        for p in encoder.parameters():
            p.zero_()
    assert first.state_dict()[key].abs().max() > 0


@pytest.mark.parametrize('features', ['embedding', 'depths'])
def test_probe_rows(benchmark, encoder, features):
    seen = []
    encoder.train()
    rows = probe(encoder, 'mine', benchmark, features, batch_size=8, on_outcome=seen.append)
    assert encoder.training
    assert [r['name'] for r in rows] == ['mine', 'image statistics', 'RCF-512', 'random init']
    for row in rows:
        assert (row['dataset'], row['split']) == ('colours', 'made up')
        assert (row['n_train'], row['n_val'], row['n_test']) == (30, 12, 12)
        assert 0 <= row['knn5'] <= 1 and 0 <= row['linear'] <= 1 and row['seconds'] >= 0
    assert rows[1]['knn5'] == rows[1]['linear'] == rows[2]['linear'] == 1
    assert [r['embed_dim'] for r in rows[1:3]] == [12, 512]
    assert rows[0]['embed_dim'] == rows[3]['embed_dim'] == (16 if features == 'embedding' else 64)
    assert [o.row for o in seen] == rows
    accuracy = (seen[0].predictions == seen[0].labels).double().mean()
    assert rows[0]['linear'] == pytest.approx(float(accuracy))


def test_encoder_is_told_the_ground_sampling_distance(benchmark, encoder):
    batch = {'rgb': benchmark.test.images}
    encoder.eval()
    near, far, unknown = (
        EncoderFeatures(encoder, 'mine', replace(benchmark, gsd=gsd))(batch)
        for gsd in (10.0, 0.3, None)
    )
    assert torch.equal(near, unknown)
    assert not torch.allclose(near, far)


def test_probe_refuses_classes_of_pixels(benchmark, encoder):
    with pytest.raises(InputError, match='a class for every pixel'):
        probe(encoder, 'mine', replace(benchmark, target='mask'))


def test_probe_refuses_what_cannot_be(benchmark, encoder):
    with pytest.raises(InputError, match='mine embeds rgb, but colours holds s2_l1c'):
        probe(encoder, 'mine', replace(benchmark, modality='s2_l1c'))
    with pytest.raises(InputError, match='Unknown features'):
        probe(encoder, 'mine', benchmark, features='all')
    swapped = Encoder([{'name': 'rgb', 'bands': ['blue', 'green', 'red']}], 8, 16, 1, 2)
    with pytest.raises(InputError, match='blue, green, red in rgb, but colours red, green, blue'):
        probe(swapped, 'mine', benchmark)
    with pytest.raises(InputError, match="Class 'blue' of colours has no image in the train part"):
        probe(encoder, 'mine', replace(benchmark, train=Chips(30, 0, classes=2)))
    one = Chips(9, 0, classes=1)
    with pytest.raises(InputError, match='one class only'):
        probe(encoder, 'mine', replace(benchmark, train=one, val=one, test=one))


def test_report_prints_and_writes(benchmark, encoder, tmp_path, capsys):
    rows = report(encoder, 'mine', benchmark, output=tmp_path / 'new/rows.json', figures=tmp_path)
    assert json.loads((tmp_path / 'new/rows.json').read_text()) == rows
    lines = capsys.readouterr().out.splitlines()
    assert lines == format_table(rows).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert f'{100 * rows[0]["linear"]:.2f}' in lines[1] and '100.00' in lines[2]
    for name in ('probe.png', 'confusion_matrix.png'):
        assert (tmp_path / name).read_bytes().startswith(b'\x89PNG')


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'rows.json'
    write_rows([{'name': 'a'}], path)
    with pytest.raises(ValueError, match='JSON'):
        write_rows([{'name': 'b', 'knn5': float('nan')}], path)
    assert json.loads(path.read_text()) == [{'name': 'a'}]
    assert [p.name for p in tmp_path.iterdir()] == ['rows.json']
