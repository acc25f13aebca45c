import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from conftest import sensor
from small_weights import chips
from timm.models.vision_transformer import VisionTransformer

from gfm_jepa import InputError, from_pretrained, save_pretrained
from gfm_jepa.models import PRESETS, Encoder, PatchEmbed, Predictor, build_encoder
from gfm_jepa.models.block import Block
from gfm_jepa.models.predictor import block_mask
from gfm_jepa.models.timm_models import to_timm

NAN = float('nan')
OPTICAL, RADAR, RELIEF = sensor('optical', 4), sensor('radar', 2), sensor('relief', 1, gsd=30.0)


@pytest.fixture
def encoder():
    return Encoder([OPTICAL, RADAR, RELIEF], 8, 32, depth=2, num_heads=2).eval()


@pytest.fixture
def batch():
    return {
        'optical': torch.rand(3, 4, 48, 72) * 200,
        'radar': torch.rand(3, 2, 48, 72) * 200,
        'relief': torch.rand(3, 1, 16, 24) * 200,
    }


def test_embeds_any_subset_of_modalities(encoder, batch):
    seen = []
    for names in (['optical'], ['radar'], ['relief'], ['optical', 'relief'], list(batch)):
        embedding = encoder({n: batch[n] for n in names})
        assert embedding.shape == (3, 32)
        assert embedding.isfinite().all() and (embedding.abs().sum(1) > 0).all()
        seen.append(embedding)
    assert all(not torch.allclose(a, b) for a, b in itertools.pairwise(seen))


@pytest.mark.parametrize('name', ['optical', 'radar', 'relief'])
@pytest.mark.parametrize('train', [False, True])
def test_absent_modality_equals_all_nan(encoder, batch, name, train):
    encoder.train(train)
    absent = {k: v for k, v in batch.items() if k != name}
    gone = {**batch, name: torch.full_like(batch[name], NAN)}
    assert torch.equal(encoder(gone), encoder(absent))


def test_keeping_all_ids_equals_no_masking(encoder, batch):
    total = len(encoder.layout(batch).positions)
    ids = torch.arange(total).expand(3, -1)
    assert torch.equal(encoder(batch, ids), encoder(batch))


def test_tokens_that_are_not_kept_change_nothing(encoder, batch):
    keep = torch.arange(10).expand(3, -1)  # tokens of the first rows of optical
    changed = {k: v.clone() for k, v in batch.items()}
    changed['optical'][:, :, 16:] += 50
    changed['radar'] += 50
    assert torch.allclose(encoder(batch, keep), encoder(changed, keep))
    assert not torch.allclose(encoder(batch), encoder(changed))


def test_padding_with_minus_one_changes_nothing(encoder, batch):
    keep = torch.tensor([[0, 5, 9]]).expand(3, -1)
    padded = torch.cat([keep, torch.full((3, 4), -1)], dim=1)
    assert torch.allclose(encoder(batch, keep), encoder(batch, padded), atol=1e-6)


def test_nodata_patches_make_no_token_and_samples_do_not_mix(encoder, batch):
    holed = {k: v.clone() for k, v in batch.items()}
    holed['optical'][0, :, :8, :8] = NAN
    tokens = encoder.forward_tokens(holed)
    assert tokens.valid.sum(1).tolist() == [113, 114, 114]
    assert torch.allclose(encoder(holed)[1:], encoder(batch)[1:], atol=1e-6)
    feature_map = encoder.forward_feature_map(holed, 'optical')
    assert feature_map.shape == (3, 32, 6, 9)
    assert feature_map[0, :, 0, 0].isnan().all()
    assert feature_map.isnan().sum() == 32


def test_a_sample_without_any_data_is_nan_and_poisons_nobody(encoder, batch):
    empty = {k: v.clone() for k, v in batch.items()}
    for raster in empty.values():
        raster[1] = NAN
    embedding = encoder(empty)
    assert embedding[1].isnan().all() and embedding[[0, 2]].isfinite().all()
    embedding[[0, 2]].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_missing_band_is_the_mean_not_zero(encoder, batch):
    missing, mean = batch['optical'].clone(), batch['optical'].clone()
    missing[:, 2] = NAN
    mean[:, 2] = OPTICAL.mean[2]
    assert torch.allclose(encoder({'optical': missing}), encoder({'optical': mean}), atol=1e-6)


def test_infinite_values_are_not_there(encoder, batch):
    infinite, gone = batch['radar'].clone(), batch['radar'].clone()
    infinite[:, 0] = -math.inf
    gone[:, 0] = NAN
    assert torch.equal(encoder({'radar': infinite}), encoder({'radar': gone}))


def test_equals_a_plain_timm_vit():
    encoder = Encoder([OPTICAL], 8, 32, depth=3, num_heads=2).eval()
    chips = torch.rand(2, 4, 48, 48) * 200
    embed = encoder.patch_embeds['optical']
    plain = VisionTransformer(
        img_size=48, patch_size=8, in_chans=4, num_classes=0, embed_dim=32, depth=3, num_heads=2,
        class_token=False, global_pool='avg', fc_norm=False,
    ).eval()  # fmt: skip
    state = {k: v for k, v in encoder.state_dict().items() if not k.startswith('patch_embeds')}
    state['patch_embed.proj.weight'] = embed.stem.proj.weight
    state['patch_embed.proj.bias'] = embed.stem.proj.bias
    zeros = torch.zeros(1, 4, 48, 48)
    place = embed(zeros)[0] - embed.stem((zeros - embed.mean) / embed.std)
    state['pos_embed'] = place
    plain.load_state_dict(state)
    normalised = (chips - embed.mean) / embed.std
    assert torch.allclose(plain(normalised), encoder({'optical': chips}), atol=1e-5)


@pytest.mark.parametrize('stem', ['linear', 'conv'])
def test_to_timm_takes_raw_units(stem):
    encoder = Encoder([OPTICAL], 8, 32, depth=2, num_heads=2, stem=stem).train()
    encoder({'optical': torch.rand(16, 4, 48, 48) * 200})  # move the norms of the conv stem
    encoder.eval()
    chips = torch.rand(2, 4, 48, 48) * 200
    model = to_timm(encoder, 'optical', img_size=48).eval()
    assert isinstance(model, VisionTransformer)
    assert torch.allclose(model(chips), encoder({'optical': chips}), atol=1e-4)


def test_depths_hold_the_embedding(encoder, batch):
    assert encoder.forward_depths(batch, 2).shape == (3, 96)
    assert torch.allclose(encoder.forward_depths(batch, 2)[:, 32:64], encoder(batch))


def test_depths_hold_the_statistics_of_conv_stems(batch):
    encoder = Encoder([OPTICAL, RADAR], 8, 32, depth=2, num_heads=2, stem='conv').eval()
    both = {n: batch[n] for n in ('optical', 'radar')}
    depths = encoder.forward_depths(both, 2)
    assert depths.shape == (3, 96 + 2 * (16 + 16 + 32))
    stems = encoder.patch_embeds
    alone = [stems[n].describe(x)[2] for n, x in both.items()]
    assert torch.allclose(depths[:, 96:], torch.stack(alone).mean(dim=0), atol=1e-6)
    first = stems['optical'].stem.levels(stems['optical'].normalise(batch['optical'], True))[0]
    assert torch.allclose(alone[0][:, :16], first.mean(dim=(2, 3)), atol=1e-5)
    assert torch.allclose(alone[0][:, 16:32], first.std(dim=(2, 3), correction=0), atol=1e-4)
    # What is not there counts as little as what was never given.
    gone = {**both, 'radar': torch.full_like(both['radar'], NAN)}
    only = encoder.forward_depths({'optical': both['optical']}, 2)
    assert torch.allclose(encoder.forward_depths(gone, 2), only, atol=1e-5)


def test_gsd_of_what_is_not_there_is_refused(encoder, batch):
    with pytest.raises(InputError, match="gsd of the batch names 'optcal'"):
        encoder({'optical': batch['optical'], 'gsd': {'optcal': 5.0}})
    others = {'relief': 30.0, 'lulc': 10.0}  # known, and labels too
    encoder({'optical': batch['optical'], 'gsd': others, 'label': torch.zeros(3)})


def test_image_key_and_gsd(encoder):
    single = Encoder([OPTICAL], 8, 32, 2, 2).eval()
    chips = torch.rand(2, 4, 16, 16) * 200
    assert torch.equal(single({'image': chips}), single({'optical': chips}))
    other = single({'optical': chips, 'gsd': {'optical': 30.0}})
    assert not torch.allclose(other, single({'optical': chips}))
    with pytest.raises(InputError, match='name at least one'):
        encoder({'image': chips})


@pytest.mark.parametrize(
    ('raster', 'message'),
    [
        (torch.zeros(1, 4, 50, 48), 'pad it with NaN to 56 x 48'),
        (torch.zeros(1, 3, 48, 48), 'came with 3 bands, but has 4: B1 B2 B3 B4'),
        (torch.zeros(1, 4, 0, 48), 'pad it'),
    ],
)
def test_wrong_shapes_are_explained(encoder, raster, message):
    with pytest.raises(InputError, match=message):
        encoder({'optical': raster})


def test_different_ground_is_refused(encoder, batch):
    with pytest.raises(InputError, match='same ground'):
        encoder({'optical': batch['optical'], 'relief': torch.zeros(3, 1, 48, 72)})


def test_wrong_unit_warns_once():
    embed = PatchEmbed(build_encoder('nano', ['s2_l2a']).modalities['s2_l2a'], 16, 8)
    with pytest.warns(UserWarning, match='reflectance x 10000'):
        embed(torch.rand(2, 12, 16, 16) * 0.4)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        embed(torch.rand(2, 12, 16, 16) * 0.4)
    fine = PatchEmbed(embed.modality, 16, 8)
    fine(torch.rand(2, 12, 16, 16) * 4000)


def test_predictor_blocks_do_not_see_each_other(encoder, batch):
    layout = encoder.layout(batch)
    predictor = Predictor(32, 3, 16, depth=2, num_heads=2).eval()
    context = torch.randn(3, 5, 32)
    context_ids = torch.arange(5).expand(3, -1)
    target_ids = torch.tensor([[[7, 8, 9], [60, 61, -1]]]).expand(3, -1, -1)
    together = predictor(context, context_ids, target_ids, layout)
    assert together.shape == (3, 2, 3, 32)
    for block in range(2):
        alone = predictor(context, context_ids, target_ids[:, block : block + 1], layout)
        there = target_ids[:, block] >= 0
        assert torch.allclose(alone[:, 0][there], together[:, block][there], atol=1e-5)


def test_block_mask_is_as_described():
    mask = block_mask(torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, 1, dtype=torch.bool))
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert mask[0, 0].int().tolist() == expected


def test_a_name_that_torch_keeps():
    with pytest.raises(InputError, match="torch keeps the name 'values'"):
        Encoder([sensor('values')], 8, 16, 1, 2)


def test_presets_grow():
    sizes = []
    for name in PRESETS:
        with torch.device('meta'):
            sizes.append(sum(p.numel() for p in build_encoder(name, ['rgb']).parameters()))
    assert sizes == sorted(sizes) and sizes[0] < 1e6 < 3e8 < sizes[-1] * 1.1
    with pytest.raises(InputError, match='expected one of nano'):
        build_encoder('huge', ['rgb'])


def test_folder_round_trip(encoder, batch, tmp_path):
    again = from_pretrained(save_pretrained(encoder, tmp_path / 'weights'))
    assert torch.equal(again(batch), encoder(batch))
    assert again.modalities == encoder.modalities


def test_what_is_no_weights_is_refused(tmp_path):
    (tmp_path / 'junk.ckpt').write_bytes(b'not a checkpoint')
    torch.save({'state_dict': {}}, tmp_path / 'other.ckpt')
    for path, message in [
        ('junk.ckpt', 'not a checkpoint'),
        ('other.ckpt', 'holds no encoder_config'),
        ('nothing', 'There are no weights'),
        ('.', 'holds no config.json'),
    ]:
        with pytest.raises(InputError, match=message):
            from_pretrained(tmp_path / path)


def test_block_equals_timms():
    """Tensors under the same names, and the same output, with a mask and without one."""
    from timm.models.vision_transformer import Block as TimmBlock

    torch.manual_seed(0)
    ours, theirs = Block(24, 3, mlp_ratio=2.0), TimmBlock(24, 3, 2.0, qkv_bias=True)
    theirs.load_state_dict(ours.state_dict())
    tokens, mask = torch.randn(2, 7, 24), torch.rand(2, 1, 7, 7) > 0.5
    mask |= torch.eye(7, dtype=torch.bool)
    for attn_mask in (None, mask):
        torch.testing.assert_close(ours(tokens, attn_mask), theirs(tokens, attn_mask=attn_mask))
    assert not torch.equal(ours(tokens), ours(tokens, mask))


def test_stochastic_depth_skips_a_branch_or_scales_it():
    torch.manual_seed(0)
    block, tokens = Block(8, 2, drop_path=0.75), torch.randn(1, 3, 8).expand(400, -1, -1)
    for tensor in block.mlp.fc2.parameters():
        torch.nn.init.zeros_(tensor)  # what is left is the attention
    change = block(tokens) - tokens
    kept = change.abs().sum(dim=(1, 2)) > 0
    assert 60 < int(kept.sum()) < 140  # a quarter
    whole = block.attn(block.norm1(tokens[kept]))
    torch.testing.assert_close(change[kept], 4 * whole)
    torch.testing.assert_close(block.eval()(tokens[kept]), tokens[kept] + whole)


@pytest.mark.parametrize(
    ('batch', 'sentence'),
    [
        ({'optical': torch.ones(4, 32, 32)}, r'came as Tensor \(4, 32, 32\); give a tensor \(B,'),
        ({'optical': np.ones((1, 4, 32, 32))}, 'optical came as ndarray'),
        (
            {'optical': torch.ones(2, 4, 32, 32), 'radar': torch.ones(1, 2, 32, 32)},
            'holds 2 of optical, 1 of radar samples',
        ),
        ({'optical': torch.ones(1, 4, 32, 32), 'gsd': 0.6}, 'The batch has gsd 0.6; give metres'),
        ({'optical': torch.ones(1, 4, 32, 32), 'gsd': {'optical': 0.0}}, 'above 0'),
        ({'optical': torch.ones(1, 4, 32, 32), 'gsd': {'optical': -1.0}}, 'above 0'),
    ],
)
def test_batches_that_are_none(batch, sentence):
    encoder = Encoder([sensor('optical', 4), sensor('radar', 2)], 8, 32, 1, 2)
    with pytest.raises(InputError, match=sentence):
        encoder(batch)


def test_what_rasters_are_stored_in():
    encoder, images = Encoder([sensor('optical', 4)], 8, 32, 1, 2), torch.full((1, 4, 32, 32), 90.0)
    expected = encoder({'optical': images})
    for dtype in (torch.uint8, torch.int16, torch.uint16, torch.float64):
        assert torch.allclose(encoder({'optical': images.to(dtype)}), expected, atol=1e-6)
    with pytest.raises(InputError, match='A batch came as Tensor; give rasters by modality'):
        encoder(images)


def test_no_gsd_is_the_nominal_one():
    encoder, images = Encoder([sensor('optical', 4)], 8, 32, 1, 2), torch.ones(1, 4, 32, 32)
    with_none = encoder({'optical': images, 'gsd': None})
    assert torch.equal(with_none, encoder({'optical': images}))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_an_encoder_in_16_bits(dtype):
    modalities = [sensor('optical', 4), sensor('radar', 2)]
    encoder = Encoder(modalities, 8, 32, 2, 2, stem='conv', readout=16, random_filters=4).eval()
    batch = {'optical': chips(modalities[0]), 'radar': chips(modalities[1])}
    batch['optical'][0, :, :8] = float('nan')
    expected = encoder(batch).detach()
    found = encoder.to(dtype)(batch)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, atol=0.1 * float(expected.std()))
    # As LatentMIM trains under bf16-true: positions are computed in float32.
    predictor = Predictor(32, 2, 16, depth=1, num_heads=2).to(dtype)
    ids = torch.arange(4).expand(2, -1)
    layout = encoder.layout(batch)
    predicted = predictor(torch.rand(2, 4, 32, dtype=dtype), ids, ids[:, None] + 4, layout)
    assert predicted.dtype == dtype and predicted.isfinite().all()
