"""A head on an encoder: frozen, fine-tuned, of several modalities, resumed, and by itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import sensor
from lightning.pytorch import Trainer
from test_eurosat import make_jpegs
from torch.utils.data import DataLoader, Dataset

from gfm_jepa import from_pretrained, save_pretrained
from gfm_jepa.cli import main
from gfm_jepa.data import BenchmarkDataModule
from gfm_jepa.data.benchmarks import Benchmark
from gfm_jepa.errors import InputError
from gfm_jepa.models import Encoder, TimmEncoder
from gfm_jepa.models.heads import load_classifier
from gfm_jepa.tasks import Classification, EncoderConfig, HeadConfig, OptimizerConfig
from gfm_jepa.tasks.classification import TURNED
from gfm_jepa.tasks.layer_decay import layer_ids, parameter_groups
from gfm_jepa.tasks.mixup import mix

CONFIG = Path(__file__).parent.parent / 'configs/finetune_eurosat_rgb.yaml'
OPTICAL, RADAR = sensor('optical', 3), sensor('radar', 2)
SPECS = [OPTICAL.to_dict(), RADAR.to_dict()]
CLASSES = ('low', 'high')
FINE = HeadConfig()


class Pairs(Dataset):
    """Two modalities whose level says the class; in every third sample one of them is missing."""

    def __init__(self, count, seed, multilabel=False):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 2
        self.several = torch.stack([self.labels, torch.arange(count) // 2 % 2], dim=1)
        self.noise = torch.randn(count, 5, 16, 16, generator=generator)
        self.multilabel = multilabel

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        level = 100 + 80.0 * (2 * self.labels[index] - 1)
        x = level + 20 * self.noise[index]
        if self.multilabel:
            x[2] = 100 + 80.0 * (2 * self.several[index, 1] - 1)
        optical, radar = x[:3].clone(), x[3:].clone()
        if index % 3 == 2:
            (optical if index % 2 else radar)[:] = torch.nan
        label = self.several[index] if self.multilabel else self.labels[index]
        return {'optical': optical, 'radar': radar, 'label': label}


def small(modalities=SPECS, depth=2):
    torch.manual_seed(3)
    return Encoder(modalities, patch_size=8, embed_dim=16, depth=depth, num_heads=2)


@pytest.fixture
def weights(tmp_path):
    return str(save_pretrained(small(), tmp_path / 'weights'))


def train(task, dataset=None, epochs=12, size=8, **options):
    """Fit a task on pairs."""
    loader = DataLoader(dataset or Pairs(24, 0), batch_size=size)
    trainer = Trainer(
        max_epochs=epochs, accelerator='cpu', logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        num_sanity_val_steps=0, check_val_every_n_epoch=epochs, **options,
    )  # fmt: skip
    trainer.fit(task, loader, loader)
    return trainer


def make(weights, head=FINE, classes=CLASSES, **options):
    fast = OptimizerConfig(lr=1e-2)
    encoder = EncoderConfig(weights=weights, stem='conv')
    return Classification(SPECS, classes, encoder, fast, head, **options)


@pytest.mark.parametrize('features', ['embedding', 'depths'])
def test_learns_two_modalities_with_gaps_and_tests_without_one(weights, features):
    task = make(weights, HeadConfig(features=features, layer_decay=0.7, label_smoothing=0.1))
    trainer = train(task)
    loader = DataLoader(Pairs(24, 1), batch_size=8)
    scores = trainer.test(task, loader, verbose=False)[0]
    assert scores['test_accuracy'] == scores['test_accuracy_by_class'] == 1.0
    assert 0 <= scores['test_calibration_error'] < 0.5
    # Radar alone, in samples that have it.
    task.leave_out = ['optical']
    having = [i for i in range(24) if i % 3 != 2]
    radar = DataLoader(torch.utils.data.Subset(Pairs(24, 1), having), batch_size=8)
    assert trainer.test(task, radar, verbose=False)[0]['test_accuracy'] > 0.9
    with pytest.raises(InputError, match='of 8 samples have no valid pixel'):
        trainer.test(task, loader, verbose=False)
    with pytest.raises(InputError, match=r'leave_out names optics; .*: optical, radar'):
        make(weights, leave_out=['optics'])


def test_a_frozen_encoder_has_no_gradient_and_does_not_change(weights):
    task = make(weights, HeadConfig(frozen=True, features='depths'))
    before = {k: v.clone() for k, v in task.encoder.state_dict().items()}
    with pytest.warns(UserWarning, match='in eval mode'):
        trainer = train(task)
    assert all(p.grad is None and not p.requires_grad for p in task.encoder.parameters())
    assert not any(m.training for m in task.encoder.modules()) and task.head.training
    for name, value in task.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert trainer.test(task, DataLoader(Pairs(24, 1), 8), verbose=False)[0]['test_accuracy'] > 0.9


def test_fine_tuning_changes_all_of_the_encoder(weights):
    task = make(weights)
    assert all(m.training for m in task.encoder.modules())
    before = {k: v.clone() for k, v in task.encoder.named_parameters()}
    train(task, epochs=1)
    same = [n for n, v in task.encoder.named_parameters() if torch.equal(v, before[n])]
    assert not same


def test_several_labels_a_sample(weights):
    task = make(weights, HeadConfig(multilabel=True), classes=('a', 'b'))
    trainer = train(task, Pairs(24, 0, multilabel=True), epochs=25)
    data = [i for i in range(24) if i % 3 != 2]
    loader = DataLoader(torch.utils.data.Subset(Pairs(24, 1, True), data), batch_size=8)
    scores = trainer.test(task, loader, verbose=False)[0]
    assert scores['test_average_precision'] > 0.95
    assert 'test_accuracy' not in scores and task.monitor == 'val_average_precision'
    shares = task.predict_step(next(iter(loader)), 0)
    assert shares.shape == (8, 2) and not torch.allclose(shares.sum(dim=1), torch.ones(8))


def test_several_labels_are_scored_in_float32_under_mixed_precision(weights, monkeypatch):
    task = make(weights, HeadConfig(multilabel=True), classes=('a', 'b')).eval()
    torch.nn.init.normal_(task.head.linear.weight, std=30)
    logged = {}
    monkeypatch.setattr(task, 'log', lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(task, 'log_dict', lambda *_, **__: None)
    batch = next(iter(DataLoader(torch.utils.data.Subset(Pairs(8, 1, True), [0, 1, 3, 4]), 4)))
    with torch.autocast('cpu', torch.bfloat16):
        task.evaluate('val', batch, 0)
        assert task.predict_step(batch, 0).dtype == torch.float32
    assert logged['val_loss'].isfinite()


def test_the_head_knows_all_modalities_of_all_batches(weights):
    task = make(weights)
    pairs = next(iter(DataLoader(Pairs(8, 0), 8)))
    batches = [
        {**{k: v[pairs[name].isfinite().flatten(1).all(1)] for k, v in pairs.items()
            if k in (name, 'label')}, 'gsd': {name: gsd}}
        for name, gsd in (('optical', 10.0), ('radar', 20.0))
    ]  # fmt: skip
    train(task, batches, epochs=1, size=None)
    facts = task._facts()
    assert facts.image_sizes == {'optical': [16, 16], 'radar': [16, 16]}
    assert facts.gsd == {'optical': 10.0, 'radar': 20.0}


def test_targets_are_smoothed_and_mixed_as_their_papers_say(weights):
    task = make(weights, HeadConfig(label_smoothing=0.2))
    assert torch.allclose(task._targets(torch.tensor([1])), torch.tensor([[0.1, 0.9]]))
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    targets = torch.eye(4)
    mixed, soft = mix({'optical': x, 'gsd': {'optical': 10.0}}, targets, 0.5,
                      torch.Generator().manual_seed(1))  # fmt: skip
    assert mixed['gsd'] == {'optical': 10.0}
    # The targets say exactly what was mixed.
    assert torch.allclose(mixed['optical'][:, 0, 0, 0], soft @ torch.arange(4.0))
    assert torch.allclose(soft.sum(dim=1), torch.ones(4)) and not torch.equal(soft, targets)
    again = mix({'optical': x}, targets, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(again[1], soft)


def test_mixup_trains(weights):
    task = make(weights, HeadConfig(mixup=0.4))
    trainer = train(task)
    assert trainer.test(task, DataLoader(Pairs(24, 1), 8), verbose=False)[0]['test_accuracy'] > 0.9


def test_turned_views_are_the_chip_flipped_and_turned():
    x = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 100
    generator = torch.Generator().manual_seed(5)
    view = TURNED.make({'optical': x}, {'optical': OPTICAL}, {'optical': 8}, generator)[0]
    turned = [torch.rot90(m, k, (2, 3)) for m in (x, x.flip(3)) for k in range(4)]
    near = torch.stack([(view['optical'] - t).abs().amax(dim=(1, 2, 3)) < 1e-2 for t in turned])
    assert near.any(dim=0).all() and near.any(dim=1).all()  # all eight occur


def test_rates_fall_from_the_head_to_the_pixels():
    encoder = small(depth=3)
    head = torch.nn.Linear(16, 2)
    groups = parameter_groups(encoder, head.parameters(), 1.0, 0.05, 0.5)
    rates = {id(p): (g['lr'], g['weight_decay']) for g in groups for p in g['params']}
    assert rates[id(head.weight)] == (1.0, 0.05) and rates[id(head.bias)] == (1.0, 0.0)
    assert rates[id(encoder.norm.weight)] == (0.5, 0.0)
    assert rates[id(encoder.blocks[2].mlp.fc1.weight)] == (0.25, 0.05)
    assert rates[id(encoder.blocks[0].mlp.fc1.weight)] == (0.0625, 0.05)
    assert rates[id(encoder.embedder('radar').stem.proj.weight)] == (0.03125, 0.05)
    assert len(rates) == len(list(encoder.parameters())) + 2
    assert groups[0]['params'][0] is head.weight  # whose rate is logged
    ids = layer_ids(TimmEncoder(['rgb'], 'resnet18'))
    assert ids['backbone.conv1.weight'] == 0
    assert ids['backbone.layer4.1.conv2.weight'] == max(ids.values())


def test_what_cannot_be_is_refused(weights):
    with pytest.raises(InputError, match='There are 1 classes'):
        make(weights, classes=('one',))
    with pytest.raises(InputError, match='one view of a sample'):
        make(weights, views={'num_global': 2})
    with pytest.raises(InputError, match='Unknown features'):
        make(weights, HeadConfig(features='tokens'))
    with pytest.raises(InputError, match='leave out final_weight_decay'):
        Classification(SPECS, CLASSES, optimizer={'final_weight_decay': 0.1})


@pytest.fixture
def eurosat(tmp_path):
    return make_jpegs(tmp_path / 'data')


def words(verb, root, *more):
    return [
        verb, '--config', str(CONFIG), f'--data.root={root}', '--data.batch_size=6',
        '--trainer.accelerator=cpu', '--trainer.enable_progress_bar=false',
        '--trainer.enable_model_summary=false', '--trainer.log_every_n_steps=1',
        '--trainer.check_val_every_n_epoch=1', *more,
    ]  # fmt: skip


def test_the_config_fits_resumes_bit_for_bit_and_tests(eurosat, capfd):
    torch.manual_seed(0)
    rgb = Encoder(['rgb', 's2_l2a'], patch_size=8, embed_dim=16, depth=2, num_heads=2)
    start = f'--model.encoder.weights={save_pretrained(rgb, "start")}'
    save = '--trainer.default_root_dir='
    keep = ('--trainer.callbacks.save_top_k=-1', '--trainer.callbacks.every_n_train_steps=4')
    assert main(words('fit', eurosat, start, '--trainer.max_steps=12', save + 'whole',
                      *keep)) == 0  # fmt: skip
    folder = next(Path('whole').rglob('checkpoints'))
    half = next(folder.glob('*step=4.ckpt'))
    whole = torch.load(folder / 'last.ckpt', weights_only=True)
    assert whole['encoder_config']['modalities'][0]['name'] == 'rgb'
    assert len(whole['encoder_config']['modalities']) == 1
    assert main(words('fit', eurosat, start, '--trainer.max_steps=12', save + 'again',
                      f'--ckpt_path={half}', *keep)) == 0  # fmt: skip
    resumed = torch.load(next(Path('again').rglob('last.ckpt')), weights_only=True)
    assert resumed['global_step'] == whole['global_step'] == 12
    for name, value in whole['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][name]), name
    assert resumed['head'] == whole['head']
    assert main(words('test', eurosat, start, save + 'whole', '--ckpt_path=auto',
                      *keep)) == 0  # fmt: skip
    assert 'test_accuracy' in capfd.readouterr().out
    other = ('--model.head.features=embedding', f'--ckpt_path={half}')
    assert main(words('test', eurosat, start, save + 'other', *other)) == 2
    assert 'made by a task of other parts (3 tensors differ, first head' in capfd.readouterr().err


def test_a_checkpoint_is_a_classifier_and_an_encoder(eurosat):
    assert (
        main(
            words(
                'fit', eurosat, '--trainer.max_steps=3', '--trainer.callbacks.every_n_train_steps=3'
            )
        )
        == 0
    )
    path = next(Path('runs').rglob('last.ckpt'))
    model = load_classifier(path)
    assert list(model.facts.classes) == ['Forest', 'PermanentCrop', 'SeaLake']
    assert model.facts.image_sizes == {'rgb': [64, 64]} and model.facts.gsd == {'rgb': 10.0}
    x = torch.rand(4, 3, 64, 64) * 255
    shares = model({'rgb': x})
    assert torch.allclose(shares, model({'rgb': torch.rot90(x.flip(-1), 1, (2, 3))}), atol=1e-5)
    assert torch.allclose(shares.sum(dim=1), torch.ones(4), atol=1e-5)
    embedding = from_pretrained(path).forward_depths({'rgb': x, 'gsd': {'rgb': 10.0}})
    assert model.facts.turns  # as the config says; without it, the chip as it is
    model.facts = replace(model.facts, turns=False)
    assert torch.allclose(model.head(embedding).softmax(dim=1), model({'rgb': x}), atol=1e-6)
    with pytest.raises(InputError, match='There is no file nowhere'):
        load_classifier('nowhere.ckpt')
    bare = torch.load(path, weights_only=True)
    del bare['head']
    torch.save(bare, 'bare.ckpt')
    with pytest.raises(InputError, match=r'an encoder, but no head.*--save-head FILE'):
        load_classifier('bare.ckpt')


def test_a_share_of_the_labels(eurosat):
    module = BenchmarkDataModule(
        'eurosat-rgb-spatial', str(eurosat), label_share=0.34, draw=1, batch_size=3
    )
    assert [int(module.train_dataset[i]['label']) for i in range(6)].count(0) == 2
    assert module.class_names == ['Forest', 'PermanentCrop', 'SeaLake']
    with pytest.raises(InputError, match='fewer than one batch of 64; lower batch_size'):
        BenchmarkDataModule('eurosat-rgb-spatial', str(eurosat))
    pixels = replace(module.benchmark, target='pixels')
    with pytest.raises(InputError, match='a class for every pixel, not for every chip'):
        BenchmarkDataModule(pixels, batch_size=3)


def test_a_task_with_labels_is_not_sharded():
    task = Classification(SPECS, CLASSES)
    task.configure_model()
    task._device_mesh = object()
    with pytest.raises(InputError, match=r'take trainer\.strategy=ddp'):
        task.configure_model()


def test_a_head_knows_from_what_size_its_chips_were_resampled():
    samples = [{'rgb': torch.rand(3, 16, 16) * 255, 'label': torch.tensor(i % 2)} for i in range(8)]
    known = Benchmark('fine', 'made up', 'rgb', 10.0, samples, samples, samples, ('a', 'b'))
    data = BenchmarkDataModule(known, batch_size=4, image_size=32)
    encoder = {'preset': 'nano', 'patch_size': 8, 'stem': 'linear'}
    task = Classification(data.modality_specs, data.class_names, EncoderConfig(**encoder))
    Trainer(max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, limit_val_batches=0, accelerator='cpu',
            use_distributed_sampler=False).fit(task, datamodule=data)  # fmt: skip
    facts = task._facts()
    assert (facts.image_sizes, facts.resized_from) == ({'rgb': [32, 32]}, {'rgb': [16, 16]})
