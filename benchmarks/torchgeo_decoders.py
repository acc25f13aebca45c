"""torchgeo's own command line with each of its decoders on our encoder: land cover by place.

    python benchmarks/torchgeo_decoders.py --root DIR --epochs 5

DIR holds a folder a place, with LULC beside s2_l2a; the last place is held out. For each decoder,
`torchgeo fit` and `torchgeo test` run as a user would call them, with the encoder frozen, and what
the checkpoint holds of it is compared with the weights. The last line is one JSON object: by
decoder, the test metrics and whether the encoder's tensors are as they were.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

import gfm_jepa.timm_names  # noqa: F401  makes timm know our names
from gfm_jepa.errors import InputError, told_in_one_sentence

NAMES = {'dpt': 'gfm_jepa_nano'}  # the other decoders take maps of five scales
PYRAMID = 'gfm_jepa_nano_pyramid'
DECODERS = ('dpt', 'unet', 'upernet', 'segformer', 'deeplabv3+')


def config_of(
    decoder: str, train: list[str], held: str, epochs: int, folder: Path
) -> dict[str, Any]:
    """What `torchgeo fit --config` reads."""
    return {
        'seed_everything': 0,
        'model': {
            'class_path': 'torchgeo.tasks.SemanticSegmentation',
            'init_args': {
                'model': decoder, 'backbone': f'tu-{NAMES.get(decoder, PYRAMID)}',
                'weights': True, 'in_channels': 12, 'num_classes': 10, 'ignore_index': 255,
                'lr': 1e-3, 'freeze_backbone': True,
            },
        },
        'data': {
            'class_path': 'gfm_jepa.torchgeo.LabelledRastersDataModule',
            'init_args': {'train_paths': train, 'val_paths': [held]},
        },
        'trainer': {
            'max_epochs': epochs, 'accelerator': 'cpu', 'default_root_dir': str(folder),
            'logger': False, 'enable_progress_bar': False, 'log_every_n_steps': 1,
            'callbacks': [{
                'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint',
                'init_args': {'dirpath': str(folder), 'save_last': True},
            }],
        },
    }  # fmt: skip


def torchgeo(*words: str) -> str:
    """Run torchgeo's command; what it says on standard output."""
    command = [str(Path(sys.executable).with_name('torchgeo')), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{" ".join(command)} failed:\n{done.stderr[-2000:]}')
    return done.stdout


def metrics_of(said: str) -> dict[str, float]:
    """Mean IoU, accuracy and loss from Lightning's table of test metrics."""
    found = re.findall(r'(test_(?:AverageJaccardIndex|OverallAccuracy|loss))\W+([\d.e-]+)', said)
    if not found:
        raise SystemExit(f'torchgeo test printed no metric:\n{said[-2000:]}')
    return {name: round(float(value), 4) for name, value in found}


def unchanged(checkpoint: Path, decoder: str) -> bool:
    """Whether every tensor of the frozen backbone in a checkpoint is that of the weights."""
    name = NAMES.get(decoder, PYRAMID)
    options = {} if decoder == 'dpt' else {'features_only': True}
    own = timm.create_model(name, pretrained=True, in_chans=12, **options).state_dict()
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    prefix = 'model.encoder.model.'
    kept = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    known = bool(kept) and kept.keys() <= own.keys()
    return known and all(torch.equal(kept[k], own[k]) for k in kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--root', type=Path, required=True, help='a folder a place in it')
    parser.add_argument('--places', default='terramesh_*', help='pattern of their names')
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--decoders', nargs='+', default=DECODERS, choices=DECODERS)
    args = parser.parse_args()
    places = sorted(str(p) for p in args.root.glob(args.places) if p.is_dir())
    if len(places) < 2:
        raise InputError(
            f'{args.root} has {len(places)} folders {args.places}; expected two or more, of which '
            f'the last is held out.'
        )
    *train, held = places
    result = {}
    for decoder in args.decoders:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config = folder / 'torchgeo.yaml'
            config.write_text(yaml.safe_dump(config_of(decoder, train, held, args.epochs, folder)))
            torchgeo('fit', '--config', str(config))
            last = folder / 'last.ckpt'
            said = torchgeo('test', '--config', str(config), '--ckpt_path', str(last))
            result[decoder] = {**metrics_of(said), 'backbone_unchanged': unchanged(last, decoder)}
        print(decoder, json.dumps(result[decoder]), flush=True)
    print(json.dumps(result))


if __name__ == '__main__':
    with told_in_one_sentence('torchgeo_decoders.py'):
        main()
