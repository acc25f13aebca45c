"""Training through the real command line, on made-up rasters."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from conftest import sensor

from gfm_jepa import InputError, from_pretrained, save_pretrained
from gfm_jepa.cli import main
from gfm_jepa.losses import info_nce, patch_discrimination
from gfm_jepa.masks import CrossModal, Ground, Mixture, MultiBlock, SignalBiased, Tube, as_mask
from gfm_jepa.tasks import (
    IJEPA,
    EncoderConfig,
    HeadConfig,
    LatentMIM,
    LeJEPA,
    OptimizerConfig,
    PixelHeadConfig,
    VICReg,
)
from gfm_jepa.tasks.base import warmup_cosine
from gfm_jepa.tasks.cli import spans_processes
from gfm_jepa.tasks.ijepa import masked_smooth_l1, sample_masks, update_ema

# A small sensor: trains in seconds.
SENSORS = [
    {'name': 'optical', 'bands': ['B1', 'B2', 'B3'], 'gsd': 10.0, 'unit': 'DN',
     'mean': [1750.0] * 3, 'std': [720.0] * 3},
    {'name': 'relief', 'bands': ['elevation'], 'gsd': 30.0, 'unit': 'm', 'mean': [1750.0],
     'std': [720.0]},
]  # fmt: skip


@pytest.fixture
def config(tmp_path, write_raster):
    """Write rasters and a config; returns a function that runs `fit` with more words."""
    for i in range(2):
        origin = (500000.0 + 5000 * i, 5000000.0)
        write_raster(tmp_path / f'data/p{i}/optical.tif', 3, (96, 96), origin=origin)
        if i:
            write_raster(tmp_path / f'data/p{i}/relief.tif', 1, (32, 32), 30.0, origin)

    def run(method: str, folder: str, *words: str) -> Path:
        stem = 'conv' if method == 'LeJEPA' else 'linear'
        content = {
            'seed_everything': 1,
            'model': {
                'class_path': f'gfm_jepa.tasks.{method}',
                'init_args': {'encoder': {'preset': 'nano', 'patch_size': 8, 'stem': stem}},
            },
            'data': {
                'class_path': 'gfm_jepa.data.RastersDataModule',
                'init_args': {
                    'paths': [str(tmp_path / 'data')], 'modalities': SENSORS, 'chip_size': 48,
                    'batch_size': 4, 'stride': 24,
                },
            },
            'trainer': {
                'max_steps': 6, 'max_epochs': -1, 'log_every_n_steps': 1, 'logger': False,
                'enable_progress_bar': False, 'enable_model_summary': False,
                'num_sanity_val_steps': 0, 'accelerator': 'cpu', 'limit_val_batches': 0,
                'callbacks': [
                    {
                        'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint',
                        'init_args': {
                            'dirpath': str(tmp_path / folder), 'every_n_train_steps': 1,
                            'save_top_k': -1, 'filename': '{step}', 'save_last': True,
                        },
                    }
                ],
            },
        }  # fmt: skip
        path = tmp_path / f'{method}.yaml'
        path.write_text(yaml.safe_dump(content))
        assert main(['fit', '--config', str(path), *words]) == 0
        return tmp_path / folder

    return run


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.parametrize(
    ('method', 'end'),
    [
        ('IJEPA', ()),
        ('LeJEPA', ()),
        ('LeJEPA', ('--trainer.max_steps=-1', '--trainer.max_epochs=2')),
    ],
)
def test_resumed_run_equals_unbroken_run_bit_for_bit(config, method, end):
    whole = config(method, 'whole', *end)
    first = config(method, 'again', *end)
    # An epoch has 4 batches: step 3 lies in the middle of one, step 4 at its end.
    for step in (3, 4):
        resumed = config(method, f'from{step}', f'--ckpt_path={first}/step={step}.ckpt', *end)
        expected, got = weights(whole / 'last.ckpt'), weights(resumed / 'last.ckpt')
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            assert torch.equal(value, got[name]), name
    changed = weights(whole / 'step=3.ckpt')
    assert any(not torch.equal(v, expected[k]) for k, v in changed.items())
    encoder = from_pretrained(whole / 'last.ckpt')
    assert encoder({'optical': torch.rand(2, 3, 48, 48) * 3000}).isfinite().all()


@pytest.mark.parametrize('end', ['--trainer.max_epochs=-1', '--trainer.max_epochs=3'])
def test_resumed_at_the_end_of_an_epoch_equals_unbroken(config, tmp_path, end):
    def run(folder, *words):
        options = {'dirpath': str(tmp_path / folder), 'every_n_epochs': 1, 'filename': '{step}',
                   'every_n_train_steps': None, 'save_top_k': -1, 'save_last': True}  # fmt: skip
        checkpoint = {'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint',
                      'init_args': options}  # fmt: skip
        return config('LeJEPA', folder, f'--trainer.callbacks={json.dumps([checkpoint])}', end,
                      '--trainer.max_steps=10', *words)  # fmt: skip

    whole = run('whole')
    resumed = run('from4', f'--ckpt_path={whole}/step=4.ckpt')
    assert torch.load(resumed / 'last.ckpt', weights_only=True)['global_step'] == 10
    expected, got = weights(whole / 'last.ckpt'), weights(resumed / 'last.ckpt')
    assert all(torch.equal(value, got[name]) for name, value in expected.items())


def test_weights_know_which_modalities_training_never_saw(config, tmp_path, capsys):
    radar = sensor('radar', 2).to_dict()
    run = config('LeJEPA', 'run', f'--data.modalities={json.dumps([*SENSORS, radar])}',
                 '--trainer.max_steps=4')  # fmt: skip
    encoder = from_pretrained(run / 'last.ckpt')
    assert 'never saw radar in training' in capsys.readouterr().err
    assert encoder.untrained == {'radar'} and set(encoder.modalities) > {'optical', 'radar'}
    folder = save_pretrained(encoder, tmp_path / 'saved')
    again = from_pretrained(folder)
    assert again.untrained == {'radar'} and 'never saw radar' in capsys.readouterr().err
    from_pretrained(folder, modalities=['optical'])
    fewer = from_pretrained(folder, modalities=['optical', sensor('new', 1, gsd=5.0)])
    assert fewer.untrained == {'new'}
    old = torch.load(run / 'last.ckpt', weights_only=True)
    del old['untrained']  # as they were before
    task = LeJEPA([*SENSORS, radar], EncoderConfig('nano', patch_size=8, stem='conv'))
    task.on_load_checkpoint(old)
    assert not task.encoder.untrained
    on = config('LeJEPA', 'on', f'--model.encoder.weights={folder}', '--trainer.max_steps=1')
    assert from_pretrained(on / 'last.ckpt').untrained == {'radar'}


def test_what_users_get_of_ijepa_knows_what_was_seen():
    task = IJEPA(SENSORS)
    task._trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=0)
    task.on_train_batch_start({'optical': torch.rand(2, 3, 48, 48)}, 0)
    for encoder in (task.encoder, task.evaluated_encoder):
        assert encoder.untrained == {'relief'}
    frozen = task.encoder.embedder('relief').requires_grad_(False)
    task.on_train_batch_start({'relief': torch.rand(2, 1, 16, 16)}, 1)
    assert task.encoder.untrained == {'relief'}
    frozen.requires_grad_(True)
    task.on_train_batch_start({'relief': torch.full((2, 1, 16, 16), torch.nan)}, 2)
    assert task.encoder.untrained == {'relief'}
    task.on_train_batch_start({'relief': torch.rand(2, 1, 16, 16)}, 3)
    assert not task.encoder.untrained and not task.evaluated_encoder.untrained


@pytest.mark.parametrize('method', ['IJEPA', 'LeJEPA', 'VICReg', 'SimSiam', 'LatentMIM'])
def test_mixed_precision_trains_with_clipping(config, method):
    run = config(method, 'run', '--trainer.precision=bf16-mixed', '--trainer.max_steps=2',
                 '--trainer.gradient_clip_val=1.0')  # fmt: skip
    first, second = weights(run / 'step=1.ckpt'), weights(run / 'step=2.ckpt')
    assert all(v.isfinite().all() for v in second.values())
    assert any(not torch.equal(v, second[k]) for k, v in first.items())


def test_ema_follows_optimizer_steps_not_micro_batches(config, tmp_path):
    run = config('IJEPA', 'run', '--trainer.accumulate_grad_batches=2', '--trainer.max_steps=2',
                 '--model.ema=[0.5,0.5]')  # fmt: skip
    first, second = weights(run / 'step=1.ckpt'), weights(run / 'step=2.ckpt')
    for name, target in second.items():
        if name.startswith('target_encoder.') and name.endswith('weight'):
            source = second[name.replace('target_encoder.', 'encoder.')]
            expected = 0.5 * first[name] + 0.5 * source
            assert torch.allclose(target, expected, atol=1e-6), name


def test_loss_falls_and_health_is_logged(config, tmp_path):
    config(
        'LeJEPA', 'run', '--trainer.max_steps=20', '--trainer.logger=CSVLogger',
        '--trainer.logger.save_dir=logs',
    )  # fmt: skip
    logged = pd.read_csv(next(tmp_path.glob('logs/**/metrics.csv')))
    assert logged['train_loss'].dropna()[-5:].mean() < logged['train_loss'].dropna()[:5].mean()
    for name in ('embedding_std', 'mean_cosine', 'effective_rank', 'sigreg', 'invariance'):
        assert logged[name].notna().sum() > 5


def test_targets_of_any_modality_come_from_context_of_any():
    task = IJEPA(SENSORS)
    task._seed = 0
    batch = {'optical': torch.rand(8, 3, 96, 96) * 3000, 'relief': torch.rand(8, 1, 32, 32) * 3000}
    context_ids, target_ids = (x.flatten(1) for x in _masks(task, batch))
    split = 144  # tokens of optical, then 16 of relief
    for ids in (context_ids, target_ids):
        assert ((ids >= 0) & (ids < split)).any() and (ids >= split).any()
    for sample in range(8):
        assert not set(context_ids[sample].tolist()) & set(target_ids[sample].tolist()) - {-1}


def test_context_never_sees_targets():
    task = IJEPA(SENSORS)
    batch = {'optical': torch.rand(4, 3, 48, 48) * 3000}
    context_ids, target_ids = _masks(task, batch)
    changed = {'optical': batch['optical'].clone()}
    for sample in range(4):
        for token in target_ids[sample].flatten().tolist():
            row, col = divmod(token, 6)
            changed['optical'][sample, :, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8] = 0.0
    before = task.forward_context(batch, context_ids, target_ids)
    after = task.forward_context(changed, context_ids, target_ids)
    assert torch.allclose(before, after, atol=1e-6)
    targets = task.forward_targets(batch, target_ids)
    assert not torch.allclose(targets, task.forward_targets(changed, target_ids))
    assert not targets.requires_grad and before.requires_grad


def _masks(task, batch):
    layout, valid = task.encoder.layout(batch), task.encoder.valid_patches(batch)
    from gfm_jepa.masks import token_cells

    cells = token_cells(layout.positions, layout.extent, layout.finest)
    ground = Ground(valid, cells, layout.finest, layout.modality_ids)
    return MultiBlock().sample(ground, torch.Generator().manual_seed(0))


def test_a_batch_without_targets_costs_nothing():
    nothing = {'optical': torch.full((4, 3, 48, 48), torch.nan)}
    for kind in (IJEPA, LatentMIM):
        task = kind(SENSORS).eval()  # which logs nothing without a trainer
        assert task.compute_loss(nothing, 0) == 0


def test_one_modality_is_predicted_from_itself_where_whole_ones_should_be_hidden():
    one = {'optical': torch.rand(4, 3, 48, 48) * 3000}
    assert IJEPA(SENSORS, masks=CrossModal()).eval().compute_loss(one, 0) > 0


@pytest.mark.parametrize('kind', [IJEPA, LatentMIM])
def test_a_chip_of_one_patch_leaves_nothing_to_learn(kind):
    with pytest.raises(InputError, match='leaves a chip of 1 patches nothing to see or nothing'):
        kind(SENSORS).eval().compute_loss({'optical': torch.rand(4, 3, 8, 8) * 3000}, 0)


def test_gaps_count_for_what_they_leave_in_infonce_and_among_modalities():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 6, 8, generator=generator)
    whole = info_nce(first[:4], second[:4])
    first[4:], second[5:] = torch.nan, torch.nan
    assert info_nce(first, second).item() == pytest.approx(whole.item(), rel=1e-6)
    predicted, actual = torch.randn(2, 1, 6, 8, generator=generator)
    there, kinds = torch.ones(1, 6, dtype=torch.bool), torch.tensor([[0, 0, 0, 1, 1, 1]])
    halves = [patch_discrimination(predicted[:, h], actual[:, h], there[:, h])
              for h in (slice(3), slice(3, 6))]  # fmt: skip
    both = patch_discrimination(predicted, actual, there, kinds=kinds)
    assert both.item() == pytest.approx(float(sum(halves)) / 2, rel=1e-6)


@pytest.mark.parametrize(('build', 'said'), [
    (lambda: MultiBlock(num_targets=0), '0 target blocks'),
    (lambda: MultiBlock(target_scale=(-0.1, 0.2)), 'target scale is'),
    (lambda: MultiBlock(target_scale=(1.0, 1.0)), 'target scale is'),
    (lambda: MultiBlock(target_aspect_ratio=(0.0, 1.5)), 'Aspect ratios are'),
    (lambda: CrossModal(hidden=0), 'hidden is 0'),
    (lambda: OptimizerConfig(lr=-1), 'optimizer.lr is -1'),
    (lambda: OptimizerConfig(betas=(0.9, 1.5)), 'betas'),
    (lambda: OptimizerConfig(warmup=-1), 'warmup -1'),
    (lambda: IJEPA(SENSORS, ema=(1.5, 2.0)), 'ema is'),
    (lambda: IJEPA(SENSORS, predictor_dim=128), 'predictor_dim is 128'),
    (lambda: LatentMIM(SENSORS, temperature=0.0), 'temperature is 0.0'),
    (lambda: LatentMIM(SENSORS, instance_weight=-1.0), 'instance_weight is -1.0'),
    (lambda: LeJEPA(SENSORS, num_slices=0), 'num_slices is 0'),
    (lambda: LeJEPA(SENSORS, sigreg_weight=2.0), 'sigreg_weight is 2.0'),
    (lambda: VICReg(SENSORS, weights=(25.0, -1.0, 1.0)), 'weights is'),
    (lambda: IJEPA(SENSORS, EncoderConfig(drop_path_rate=1.0)), 'drop_path_rate is 1.0'),
    (lambda: HeadConfig(mixup=-1.0), 'head.mixup is -1.0'),
    (lambda: HeadConfig(label_smoothing=1.0), 'label_smoothing 1.0'),
    (lambda: PixelHeadConfig(width=0), 'width 0'),
])  # fmt: skip
def test_numbers_that_cannot_be_are_refused(build, said):
    with pytest.raises(InputError, match=said):
        build()


@pytest.mark.parametrize(('steps', 'told'), [(500, True), (5000, False)])
def test_a_target_that_cannot_follow_is_told(steps, told, caplog):
    task = IJEPA(SENSORS)
    strategy = SimpleNamespace(broadcast=lambda seed: seed)
    trainer = SimpleNamespace(
        strategy=strategy,
        precision='32-true',
        estimated_stepping_batches=steps,
        fit_loop=None,
        train_dataloader=None,
    )
    task._trainer = trainer
    with caplog.at_level('INFO'):
        task.on_fit_start()
    # 1 - momentum is 0.002 on average: exp(-1) of the start is left after 500 steps.
    assert ('37 % of the target encoder' in caplog.text) == told
    assert ('are still its random start' in caplog.text) == told
    task.encoder_config = EncoderConfig(weights='trained/')
    with caplog.at_level('INFO'):
        task.on_fit_start()
    assert ('are still as in trained/' in caplog.text) == told
    trainer.precision = 'bf16-true'
    with pytest.raises(InputError, match='take bf16-mixed'):
        task.on_fit_start()


def test_masks_come_back_from_what_a_checkpoint_holds():
    for mask in (MultiBlock(), Tube(tubes=2), CrossModal(2), SignalBiased(power=0.5), Mixture()):
        assert as_mask(asdict(mask)) == mask
    with pytest.raises(InputError, match='of no kind that is known'):
        as_mask({'blocks': 3})


def test_what_drops_does_not_follow_what_views_draw():
    task = IJEPA(SENSORS, EncoderConfig(drop_path_rate=0.5))
    task._seed = 0
    task.on_train_batch_start(None, 3)
    assert not torch.equal(torch.rand(8), torch.rand(8, generator=task.generator(3)))


def test_stochastic_depth_follows_the_batch():
    task = IJEPA(SENSORS, EncoderConfig(drop_path_rate=0.5))
    task._seed = 0
    drawn = []
    for batch_idx in (3, 3, 4):
        task.on_train_batch_start(None, batch_idx)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1] != drawn[2]
    assert task.encoder.blocks[-1].drop_path == 0.5
    assert all(block.drop_path == 0 for block in task.target_encoder.blocks)


def test_one_sample_has_nothing_to_be_compared_with():
    with pytest.raises(InputError, match='A batch has one sample, and VICReg compares samples'):
        VICReg(SENSORS).compute_loss({'optical': torch.rand(1, 3, 48, 48) * 3000}, 0)


@pytest.mark.parametrize(
    ('devices', 'strategy', 'nodes', 'expected'),
    [(1, 'auto', 1, False), (2, 'auto', 1, True), ('2', 'auto', 1, True), ([0, 1], 'auto', 1, True),
     ('0,1', 'auto', 1, True), ('auto', 'auto', 1, False), (1, 'auto', 2, True),
     (1, 'ddp', 1, True), (2, 'fsdp', 1, False)],
)  # fmt: skip
def test_when_lightning_starts_processes(devices, strategy, nodes, expected):
    settings = {'devices': devices, 'strategy': strategy, 'num_nodes': nodes, 'accelerator': 'cpu'}
    assert spans_processes(settings) == expected


def test_gaps_train_without_nan():
    task = IJEPA(SENSORS)
    batch = {'optical': torch.rand(6, 3, 48, 48) * 3000, 'relief': torch.rand(6, 1, 16, 16) * 3000}
    batch['optical'][0] = float('nan')
    batch['optical'][1, :, :30] = float('nan')
    batch['relief'][2] = float('nan')
    for raster in batch.values():
        raster[3] = float('nan')
    context_ids, target_ids = _masks(task, batch)
    targets = task.forward_targets(batch, target_ids)
    loss = masked_smooth_l1(
        task.forward_context(batch, context_ids, target_ids), targets, target_ids, context_ids
    )
    loss.backward()
    grads = [p.grad for p in task.parameters() if p.grad is not None]
    assert loss.isfinite() and grads and all(g.isfinite().all() for g in grads)


def test_leaking_stem_is_refused():
    with pytest.raises(InputError, match=r'encoder\.stem=linear'):
        IJEPA(SENSORS, EncoderConfig(stem='conv'))
    assert LeJEPA(SENSORS, EncoderConfig(stem='conv')).encoder.config['stem'] == 'conv'


def test_update_ema_moves_by_the_momentum():
    source, target = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    torch.nn.init.constant_(source.weight, 3.0)
    source.running_mean += 5
    update_ema(target, source, 0.75)
    assert target.weight.tolist() == [1.5, 1.5] and target.running_mean.tolist() == [5.0, 5.0]


def test_warmup_then_cosine():
    rates = [warmup_cosine(s, 100, 0.1, 0.01) for s in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.01)
    assert warmup_cosine(55, 100, 0.1, 0.0) == pytest.approx(0.5)


def dated_batch(dates=3):
    batch = {'optical': torch.rand(4, dates, 3, 48, 48) * 3000, 'relief': torch.rand(4, 1, 16, 16)}
    batch['relief'] *= 3000
    batch['optical'][0, 1] = float('nan')  # a cloudy date
    return batch


def test_dates_are_one_sequence_whose_first_looks_as_ever():
    encoder = IJEPA(SENSORS).encoder
    batch = dated_batch()
    layout = encoder.layout(batch)
    assert len(layout.positions) == 3 * 36 + 4 and layout.finest == (6, 6)
    assert layout.date_ids.tolist() == [0] * 36 + [1] * 36 + [2] * 36 + [0] * 4
    assert torch.equal(layout.positions[:36], layout.positions[72:108])
    tokens, valid, _ = encoder.embed_patches(batch)
    assert not valid[0, 36:72].any() and valid.sum() == 4 * 112 - 36
    first, _, _ = encoder.embed_patches({**batch, 'optical': batch['optical'][:, 0]})
    assert torch.equal(tokens[:, :36], first[:, :36])
    same = {'optical': batch['optical'][1:, :1].expand(-1, 3, -1, -1, -1)}
    again = encoder.embed_patches(same)[0].unflatten(1, (3, 36))
    assert not torch.allclose(again[:, 0], again[:, 1])  # the order is told
    # A date that is not there costs and changes nothing.
    gone = {'optical': batch['optical'].clone()}
    gone['optical'][:, 1:] = float('nan')
    alone = encoder({'optical': gone['optical'][:, 0]})
    assert torch.allclose(encoder(gone), alone, atol=1e-5)
    with pytest.raises(InputError, match='A feature map is of one date'):
        encoder.forward_feature_map(batch)


def test_ground_that_a_tube_hides_does_not_leak_through_other_dates():
    task = IJEPA(SENSORS, masks=Tube())
    batch = dated_batch()
    generator = torch.Generator().manual_seed(0)
    context_ids, target_ids = sample_masks(task.masks, task.encoder, batch, generator)
    changed = {'optical': batch['optical'].clone(), 'relief': batch['relief']}
    for sample in range(4):
        for token in target_ids[sample].flatten().tolist():
            if 0 <= token < 108:
                row, col = divmod(token % 36, 6)
                here = (slice(row * 8, row * 8 + 8), slice(col * 8, col * 8 + 8))
                changed['optical'][(sample, slice(None), slice(None), *here)] *= 0.1
    before = task.forward_context(batch, context_ids, target_ids)
    after = task.forward_context(changed, context_ids, target_ids)
    assert torch.allclose(before, after, atol=1e-6)
    assert not torch.allclose(
        task.forward_targets(batch, target_ids), task.forward_targets(changed, target_ids)
    )


@pytest.mark.parametrize('method', [IJEPA, LatentMIM])
def test_masks_that_span_dates_get_all_of_them(method):
    for masks, ndim in ((Tube(), 5), (MultiBlock(), 4)):
        task = method(SENSORS, masks=masks)
        task._seed, task.log_dict = 0, lambda values: None
        batch = dated_batch()
        assert task.dates_of(masks, batch, 0)['optical'].ndim == ndim
        loss = task.compute_loss(batch, 0)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


def test_tubes_train_on_dated_rasters(tmp_path, config, write_raster):
    for date in ('20200101', '20200401', '20200701'):
        write_raster(tmp_path / f'data/p0/optical_{date}.tif', 3, (96, 96))
    run = config('IJEPA', 'run', '--trainer.max_steps=2', '--data.num_dates=0',
                 '--model.masks.tubes=2', '--data.batch_size=1')  # fmt: skip
    assert (run / 'step=2.ckpt').is_file()
    saved = torch.load(run / 'step=2.ckpt', weights_only=True)['hyper_parameters']
    assert saved['masks']['tubes'] == 2
