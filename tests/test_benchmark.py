"""`gfm-jepa benchmark`: rows, intervals, baselines, resuming, heads."""

import csv
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_eurosat import make_jpegs
from test_probes import Chips, blobs

from gfm_jepa import from_pretrained, save_pretrained
from gfm_jepa.cli import main
from gfm_jepa.data.benchmarks import Benchmark
from gfm_jepa.data.few_labels import stratified
from gfm_jepa.data.identity import split_hash
from gfm_jepa.data.resized import resize
from gfm_jepa.errors import InputError
from gfm_jepa.evaluation.benchmark import Finetuning, Plan
from gfm_jepa.evaluation.benchmark_figures import few_label_table, labelled
from gfm_jepa.evaluation.classifiers import LinearMap, accuracy_of, knn_probe, linear_probe
from gfm_jepa.evaluation.features import Features
from gfm_jepa.evaluation.handmade import LEVELS, HandMade, _co_occurrence
from gfm_jepa.evaluation.heads import as_head
from gfm_jepa.evaluation.logistic import LogisticRegression
from gfm_jepa.evaluation.methods import Contest, timm_encoder
from gfm_jepa.evaluation.readouts import add_readout
from gfm_jepa.evaluation.result_table import COLUMNS, KEY, ResultTable
from gfm_jepa.evaluation.scores import interval, score
from gfm_jepa.modalities import MODALITIES
from gfm_jepa.models import Encoder
from gfm_jepa.models.heads import load_classifier
from gfm_jepa.models.weight_files import weights_hash
from gfm_jepa.tasks.classification import AveragePrecision


@pytest.fixture(scope='module')
def eurosat(tmp_path_factory):
    return make_jpegs(tmp_path_factory.mktemp('eurosat'))


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(7)
    encoder = Encoder(['rgb'], patch_size=8, embed_dim=16, depth=2, num_heads=2)
    return str(save_pretrained(encoder, tmp_path_factory.mktemp('weights')))


def run(weights, root, *words, status=0):
    """Run the verb; returns the rows."""
    assert main(['benchmark', weights, '--dataset', 'eurosat-rgb-spatial', '--root', str(root),
                 '-o', 'rows.csv', *words]) == status  # fmt: skip
    with Path('rows.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def test_rows_say_all_that_repeats_them(weights, eurosat, capfd):
    rows = run(weights, eurosat, '--draws', '2', '--shares', '0.34', '--timm', 'resnet10t',
               '--image-size', '32')  # fmt: skip
    assert tuple(rows[0]) == COLUMNS
    methods = ['image statistics', 'RCF-512', 'hand-made', 'random init', 'resnet10t, random']
    names = list(dict.fromkeys(r['method'] for r in rows))
    assert names == [Path(weights).name, *methods]
    protocols = [r['protocol'] for r in rows if r['method'] == 'RCF-512']
    assert protocols == ['knn', 'linear', 'few', 'few']
    for row in rows:
        assert 0 <= float(row['low']) <= float(row['value']) <= float(row['high']) <= 1
        assert 0 <= float(row['calibration_error']) <= 1
        assert len(row['split_hash']) == 16 and row['bands'] == 'red green blue'
        assert (row['image_size'], row['gsd'], row['n_test']) == ('32x32', '20.0', '6')
        assert row['n_train'] == ('6' if row['protocol'] == 'few' else '18')
        assert 'torch=' in row['versions']
    own, twin = rows[0], next(r for r in rows if r['method'] == 'random init')
    assert len(own['weights_hash']) == 16 and own['weights_hash'] != twin['weights_hash']
    assert own['normalisation'].startswith('in the encoder: SSL4EO-S12')
    assert 'rows.csv' in capfd.readouterr().out
    with pytest.raises(AssertionError):
        run(weights, eurosat)  # it is there already
    assert 'add --resume' in capfd.readouterr().err


def test_a_run_that_was_broken_off_goes_on_and_gives_the_same(weights, eurosat, monkeypatch):
    words = ('--protocols', 'knn', 'linear', 'few', '--draws', '1', '--shares', '0.5')
    rows = run(weights, eurosat, *words)
    table = ResultTable(Path('rows.csv'), resume=True)
    kept = len(rows) - 3
    lines = Path('rows.csv').read_text().splitlines(keepends=True)
    Path('rows.csv').write_text(''.join(lines[: kept + 1]))
    again = run(weights, eurosat, *words, '--resume')
    strip = [{k: v for k, v in row.items() if k != 'seconds'} for row in rows]
    assert strip == [{k: v for k, v in row.items() if k != 'seconds'} for row in again]
    assert [r['seconds'] for r in rows[:kept]] == [r['seconds'] for r in again[:kept]]

    def fail(*_, **__):
        raise AssertionError('computed again')

    monkeypatch.setattr('gfm_jepa.evaluation.benchmark.extract_features', fail)
    assert run(weights, eurosat, *words, '--resume') == again
    scores, labels = table.read_predictions(rows[0])
    assert accuracy_of(scores, labels) == pytest.approx(float(rows[0]['value']), abs=1e-5)
    assert table.read_predictions(rows[2]) is None  # few labels


def test_fine_tuning_is_a_protocol_and_leaves_a_classifier(weights, eurosat, capfd):
    words = ('--protocols', 'finetune', '--epochs', '2', '--no-baselines')
    rows = run(weights, eurosat, *words)
    assert [r['protocol'] for r in rows] == ['finetune']
    assert 'epochs=2 lr=0.003 layer_decay=1 ' in rows[0]['settings']
    table = ResultTable(Path('rows.csv'), resume=True)
    scores, _ = table.read_predictions(rows[0])
    model = load_classifier(Path('rows.heads') / table.name(rows[0]) / 'last.ckpt')
    from gfm_jepa.data.benchmarks import load_benchmark

    test = load_benchmark('eurosat-rgb-spatial', eurosat).test
    x = torch.stack([test[i]['rgb'] for i in range(6)])
    assert torch.allclose(model({'rgb': x}), scores, atol=2e-3)  # kept as float16


def test_each_encoder_is_fine_tuned_once(weights, tmp_path):
    parts = [Chips(18, seed) for seed in range(3)]
    colours = Benchmark('colours', 'made up', 'rgb', 10.0, *parts, ('red', 'green', 'blue'))
    read = add_readout(from_pretrained(weights), [{'rgb': parts[0].images}], width=4)
    own = str(save_pretrained(read, tmp_path / 'read'))
    plan = Plan(('finetune',), finetuning=Finetuning(lambda *_: None, 'how'))
    for features in (('embedding',), ('depths',), ('embedding', 'depths')):
        contest = Contest([own], features, ['resnet10t'])
        tuned = [m.name for m in contest.methods(colours) if list(plan.results(m))]
        assert tuned == ['read', 'random init', 'resnet10t, random']


def test_a_fine_tuned_head_knows_how_its_chips_were_resized(weights, eurosat):
    row = run(weights, eurosat, '--protocols', 'finetune', '--epochs', '1', '--no-baselines',
              '--features', 'depths', '--image-size', '32')[0]  # fmt: skip
    table = ResultTable(Path('rows.csv'), resume=True)
    facts = load_classifier(Path('rows.heads') / table.name(row) / 'last.ckpt').facts
    assert (facts.image_sizes, facts.resized_from) == ({'rgb': [32, 32]}, {'rgb': [64, 64]})


class NoNetwork(HTMLParser):
    """Collects what a page would fetch, and its headings and images."""

    def __init__(self):
        super().__init__()
        self.fetched, self.images, self.alts = [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == 'img':
            self.images.append(found['src'])
            self.alts.append(found['alt'])
        if tag in ('script', 'link') or (tag == 'img' and not found['src'].startswith('data:')):
            self.fetched.append(found)


def test_the_report_stands_alone_and_agrees_with_the_rows(weights, eurosat):
    rows = run(weights, eurosat, '--draws', '2', '--shares', '0.34', '--features', 'embedding',
               'depths', '--report', 'report')  # fmt: skip
    folder, name = Path('report'), 'eurosat-rgb-spatial'
    page = NoNetwork()
    page.feed((folder / 'index.html').read_text())
    assert page.fetched == [] and len(page.images) == 4 and all(page.alts)
    pictures = {p.name for p in folder.glob('*.png')}
    assert pictures == {f'{name}_{kind}.png' for kind in
                        ('bars', 'few_labels', 'confusion_matrix', 'examples')}  # fmt: skip
    with (folder / f'{name}_few_labels.csv').open(newline='') as file:
        curves = list(csv.DictReader(file))
    mine = [r for r in curves if r['method'] == 'RCF-512']
    assert [(float(r['share']), r['draws']) for r in mine] == [(0.34, '2'), (1.0, '1')]
    values = [float(r['value']) for r in rows
              if r['method'] == 'RCF-512' and r['protocol'] == 'few']  # fmt: skip
    assert float(mine[0]['mean']) == pytest.approx(np.mean(values), abs=1e-5)
    assert f'{Path(weights).name}, depths' in {r['method'] for r in curves}
    text = (folder / 'index.html').read_text()
    knn = next(r for r in rows if r['protocol'] == 'knn')
    assert f'>{100 * float(knn["value"]):.2f}<' in text and knn['split_hash'] in text


def test_different_results_have_different_labels():
    same = {'method': 'w', 'features': 'depths', 'protocol': 'linear', 'weights': 'a/w',
            'weights_hash': '1', 'split_hash': '2', 'image_size': '64x64', 'settings': 'C on val',
            'label_share': '1', 'value': '0.5', 'seed': '0'}  # fmt: skip

    def labels(**changed):
        return [r['label'] for r in labelled([same, {**same, **changed}])]

    assert labels() == ['w, depths'] * 2
    assert labels(image_size='32x32') == ['w, depths, 64x64 px', 'w, depths, 32x32 px']
    assert labels(weights='b/w', weights_hash='3') == ['w, depths, a/w', 'w, depths, b/w']
    assert labels(weights_hash='3') == ['w, depths, hash 1', 'w, depths, hash 3']
    assert labels(settings='C on all', seed='7') == [
        'w, depths, seed 0, val', 'w, depths, seed 7, all',
    ]  # fmt: skip
    assert labels(settings='k=5', protocol='knn') == ['w, depths'] * 2
    rows = labelled([same, {**same, 'image_size': '32x32', 'value': '0.9'}])
    assert [r['mean'] for r in few_label_table(rows)] == [0.5, 0.9]


def test_the_linear_head_is_kept(weights, eurosat, capfd):
    rows = run(weights, eurosat, '--protocols', 'linear', '--features', 'depths', '--no-baselines',
               '--save-head', 'head.ckpt')  # fmt: skip
    scores, labels = ResultTable(Path('rows.csv'), True).read_predictions(rows[0])
    from gfm_jepa.data.benchmarks import load_benchmark

    test = load_benchmark('eurosat-rgb-spatial', eurosat).test
    model = load_classifier('head.ckpt')
    shares = model({'rgb': torch.stack([test[i]['rgb'] for i in range(6)])})
    assert torch.allclose(shares, scores, atol=2e-3)
    assert model.facts.features == 'depths' and len(labels) == 6
    words = ('--protocols', 'linear', '--features', 'depths', '--no-baselines', '--resume')
    run(weights, eurosat, *words, '--save-head', 'again.ckpt', status=2)
    assert 'again.ckpt is not written' in capfd.readouterr().err
    run(weights, eurosat, '--protocols', 'knn', '--save-head', 'again.ckpt', '--resume', status=2)
    assert 'by the protocol linear' in capfd.readouterr().err and not Path('again.ckpt').exists()


def test_bad_words_are_one_sentence(weights, eurosat, capfd):
    def fails(*words):
        base = ['benchmark', weights, '--dataset', 'eurosat-rgb-spatial', '-o', 'rows.csv']
        assert main([*base, *words]) == 2
        return capfd.readouterr().err.strip().splitlines()[-1]

    root = ('--root', str(eurosat))
    assert "Unknown protocol 'svm'" in fails(*root, '--protocols', 'svm')
    few = (*root, '--no-baselines', '--protocols', 'knn', '--resume')
    assert "timm has no model 'resnet1'" in fails(*few, '--timm', 'resnet1')
    assert 'There is no file w.pt' in fails(*few, '--timm', 'resnet10t=w.pt')
    assert 'Give one --root' in fails('--root', 'a', 'b')
    assert 'The share of labels is 2' in fails(*root, '--shares', '2', '--resume')
    Path('rows.csv').write_text('a,b\n1,2\n')
    assert 'has other columns' in fails(*root, '--resume')
    for content in (b'a,b\n', b'\xff'):
        Path('rows.csv').write_bytes(','.join(COLUMNS).encode() + b'\n' + content)
        assert 'rows.csv is' in fails(*root, '--resume')
    Path('head.txt').touch()
    assert 'ends in .csv' in fails(*root, '-o', 'head.txt')
    again = (*root, '-o', 'new.csv', '--no-baselines')
    assert 'batch_size is 0' in fails(*again, '--batch-size', '0')
    assert 'num_workers is -1' in fails(*again, '--num-workers', '-1')
    assert 'draws is -2' in fails(*again, '--draws', '-2')
    assert 'The seed is -1' in fails(*again, '--seed', '-1')
    assert 'epochs is 0' in fails(*again, '--protocols', 'finetune', '--epochs', '0')
    assert 'The image size is 0' in fails(*again, '--image-size', '0')
    kept = Path(weights) / 'config.json'
    assert 'is an input, which it would replace' in fails(*again, '--save-head', str(kept))
    Path('w.csv').touch()
    assert 'is an input' in fails(*root, '-o', 'w.csv', '--resume', '--timm', 'resnet10t=w.csv')
    assert not Path('new.csv').exists()


def test_intervals_are_those_of_the_bootstrap():
    labels = torch.arange(400) % 2
    scores = torch.eye(2)[labels.where(torch.arange(400) % 10 > 0, 1 - labels)]  # 90 % right
    low, high = interval(scores, labels)
    right = (scores.argmax(1) == labels).numpy()
    random = np.random.default_rng(1)
    drawn = [right[random.integers(400, size=400)].mean() for _ in range(2000)]
    assert (low, high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.006)
    assert low < 0.9 < high
    assert interval(scores, labels, seed=3) == interval(scores, labels, seed=3)


def test_calibration_error_is_confidence_less_accuracy():
    labels = torch.tensor([0, 0, 0, 1])
    scores = torch.tensor([[0.9, 0.1]] * 4)  # sure to 0.9, right in 0.75
    found = score(scores, labels)
    assert found.metric == 'accuracy' and found.value == 0.75
    assert found.calibration_error == pytest.approx(0.15, abs=1e-6)


def several(count, seed):
    """Features of two classes that do not exclude each other."""
    data = blobs(count, seed, classes=4, spread=0.8)
    return Features(data.embeddings, torch.stack([data.labels % 2, data.labels // 2], dim=1))


def test_several_labels_a_sample():
    from sklearn.linear_model import LogisticRegression as Reference
    from sklearn.metrics import average_precision_score

    train, val, test = (several(200, s) for s in range(3))
    probe = linear_probe(train, val, test)
    assert probe.accuracy > 0.9
    assert probe.accuracy == pytest.approx(
        average_precision_score(test.labels, probe.scores), abs=1e-4
    )
    weight, _ = LogisticRegression(train.embeddings, train.labels, 2000, 1e-9)(0.5)
    for i in range(2):
        theirs = Reference(C=0.5, tol=1e-8, max_iter=5000)
        theirs.fit(train.embeddings.double(), train.labels[:, i])
        assert np.allclose(weight[i], theirs.coef_[0], atol=1e-2)
    assert knn_probe(train, test).accuracy > 0.85
    found = score(probe.scores, test.labels)
    assert found.metric == 'mean_average_precision'
    assert found.low < found.value < found.high and found.calibration_error < 0.2
    assert set(probe.predictions.unique().tolist()) == {0, 1}


def test_a_class_that_no_sample_has_is_left_out_of_the_mean():
    labels = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5], [0.7, 0.6, 0.5]])
    assert accuracy_of(scores, labels) == accuracy_of(scores[:1], labels[:1]) == 1
    metric = AveragePrecision(3)
    metric.update(scores, labels)
    assert metric.compute() == 1
    head = as_head(LinearMap(torch.zeros(2), torch.ones(2), torch.eye(2), torch.zeros(2)), 3)
    assert head(torch.tensor([[1.0, 0.0]])).softmax(dim=1)[0, 2] == 0


def test_a_linear_map_as_a_module():
    parts = [blobs(150, s, spread=1.0) for s in range(3)]
    flat = [Features(torch.cat([p.embeddings * 1e-3, torch.ones(150, 1)], 1), p.labels)
            for p in parts]  # fmt: skip
    probe = linear_probe(*flat)
    logits = as_head(probe.linear)(flat[2].embeddings)
    assert torch.allclose(logits.softmax(1), probe.scores, atol=1e-4)
    tiny = LinearMap(torch.ones(2), torch.tensor([5e-7, 1.0]), torch.eye(2), torch.zeros(2))
    x = torch.tensor([[1.0 + 6e-7, 3.0]])
    assert torch.allclose(as_head(tiny)(x), tiny(x), rtol=1e-3)


def test_shares_are_stratified_and_repeatable():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 3)
    ids = stratified(labels, 0.1, draw=0)
    assert torch.bincount(labels[ids]).tolist() == [5, 2, 1]
    assert torch.equal(ids, stratified(labels, 0.1, draw=0))
    assert not torch.equal(ids, stratified(labels, 0.1, draw=1))
    both = torch.zeros(100, 2, dtype=torch.long)
    both[:40, 0], both[30:50, 1] = 1, 1
    chosen = both[stratified(both, 0.2, 0)].sum(dim=0)
    assert chosen[1] >= 4 and chosen[0] >= 8
    assert torch.equal(stratified(labels, 1.0, 0), torch.arange(73))


def test_co_occurrences_are_counted():
    grey = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(0))
    found = _co_occurrence(grey, 1)
    low, high = grey[0].min(), grey[0].max()
    levels = ((grey[0] - low) / (high - low) * (LEVELS - 1e-3)).long()
    counts = np.zeros((LEVELS, LEVELS))
    for row in range(9):
        for col in range(7):
            for d, r in ((0, 1), (1, 0), (1, 1), (1, -1)):
                if row + d < 9 and 0 <= col + r < 7:
                    counts[levels[row, col], levels[row + d, col + r]] += 1
    share = (counts + counts.T) / (2 * counts.sum())
    apart = np.subtract.outer(np.arange(LEVELS), np.arange(LEVELS))
    assert found[0, 0] == pytest.approx((share * apart**2).sum(), rel=1e-4)
    assert found[0, 1] == pytest.approx((share / (1 + apart**2)).sum(), rel=1e-4)
    assert found[0, 2] == pytest.approx(np.sqrt((share**2).sum()), rel=1e-4)
    mean = (share.sum(1) * np.arange(LEVELS)).sum()
    at = np.arange(LEVELS) - mean
    correlation = (share * np.outer(at, at)).sum() / (share.sum(1) * at**2).sum()
    assert found[0, 3] == pytest.approx(correlation, abs=1e-4)


def test_hand_made_features_know_bands_and_do_not_care_for_turns():
    modality = MODALITIES['s2_l2a']
    x = torch.rand(3, 12, 24, 24, generator=torch.Generator().manual_seed(1)) * 3000
    embed = HandMade(modality)
    found = embed({'s2_l2a': x})
    assert found.isfinite().all() and len(embed.pairs) >= 7
    assert torch.allclose(found, embed({'s2_l2a': torch.rot90(x, 2, (2, 3))}), rtol=1e-3, atol=1e-4)
    red, nir = modality.bands.index('B04'), modality.bands.index('B08')
    assert (nir, red) in embed.pairs
    flat = torch.full((1, 12, 24, 24), 500.0)
    flat[:, nir] = 1500.0
    ndvi = embed({'s2_l2a': flat})[0, 12 * 7]  # the mean of the first index
    assert ndvi == pytest.approx(0.5)
    x[0, 4, :5] = torch.nan
    assert embed({'s2_l2a': x}).isfinite().all()


def test_split_hash_follows_the_samples(tmp_path, eurosat):
    from gfm_jepa.data.benchmarks import load_benchmark

    first = load_benchmark('eurosat-rgb-spatial', eurosat)
    other = make_jpegs(tmp_path / 'other', '2750')
    assert split_hash(first) == split_hash(load_benchmark('eurosat-rgb-spatial', other))
    lines = (other / 'eurosat-spatial-val.txt').read_text().splitlines()
    (other / 'eurosat-spatial-val.txt').write_text('\n'.join(lines[1:]))
    assert split_hash(first) != split_hash(load_benchmark('eurosat-rgb-spatial', other))


def test_chips_of_another_size_cover_the_same_ground():
    parts = (Chips(6, 0), Chips(6, 1), Chips(6, 2))
    known = Benchmark('colours', 'made up', 'rgb', 10.0, *parts, ('red', 'green', 'blue'))
    small = resize(known, 8)
    assert small.gsd == 20.0 and small.test[0]['rgb'].shape == (3, 8, 8)
    assert (known.resized_from, small.resized_from) == (None, (16, 16))
    before, after = (float(b.test[0]['rgb'].mean()) for b in (known, small))
    assert after == pytest.approx(before, rel=0.05)
    with pytest.raises(InputError, match='image size is 0'):
        resize(known, 0)


def test_timm_weights_from_a_file(tmp_path):
    rgb = MODALITIES['rgb']
    source = timm_encoder('resnet10t', '', rgb, seed=1)
    assert weights_hash(source) == weights_hash(timm_encoder('resnet10t', '', rgb, seed=1))
    assert weights_hash(source) != weights_hash(timm_encoder('resnet10t', '', rgb, seed=2))
    state = {**source.backbone.state_dict(), 'fc.weight': torch.zeros(10, 512)}
    save_file(state, tmp_path / 'w.safetensors')
    loaded = timm_encoder('resnet10t', str(tmp_path / 'w.safetensors'), rgb, seed=2)
    assert torch.equal(loaded.backbone.conv1[0].weight, source.backbone.conv1[0].weight)
    assert loaded.modality.mean[0] == pytest.approx(255 * 0.485)
    del state['bn1.weight']
    save_file(state, tmp_path / 'less.safetensors')
    with pytest.raises(InputError, match='does not hold weights of resnet10t'):
        timm_encoder('resnet10t', str(tmp_path / 'less.safetensors'), rgb, seed=2)
    (tmp_path / 'junk.safetensors').write_bytes(b'\x10' + 7 * b'\0' + b'{nonsense')
    torch.save([1, 2], tmp_path / 'list.pth')
    for name in ('junk.safetensors', 'list.pth'):
        with pytest.raises(InputError, match=f'{name} does not hold weights of resnet10t'):
            timm_encoder('resnet10t', str(tmp_path / name), rgb, seed=2)


def test_a_plan_knows_its_protocols():
    with pytest.raises(InputError, match='needs to be told how'):
        Plan(('finetune',))
    assert set(KEY) < set(COLUMNS)
