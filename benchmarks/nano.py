"""Make gfm-jepa-nano: lay the data out, pretrain, fit filters and readout, probe, write what ships.

    python benchmarks/nano.py --data ../shared/data --output runs/nano

Lays links to the training parts out under OUTPUT/data, and runs `gfm-jepa fit` there twice, one
process with two threads each: configs/gfm_jepa_nano.yaml (RGB), then
configs/gfm_jepa_nano_sensors.yaml (the other sensors, before the trunk as it is). Cuts random
filters from training samples, fits the readout on all of them, probes, and writes
OUTPUT/gfm-jepa-nano, the folder that stands in gfm_jepa/weights. What is there is not made again,
so that a broken call goes on. `--quarters` prints the test accuracy of the checkpoint of each
quarter of an hour of the first run, each with a readout of its own. The last line is one JSON
object.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from gfm_jepa import data, from_pretrained, save_pretrained
from gfm_jepa.data.benchmarks import load_benchmark
from gfm_jepa.errors import InputError, told_in_one_sentence
from gfm_jepa.evaluation.probes import probe
from gfm_jepa.evaluation.readouts import add_random_filters, add_readout
from gfm_jepa.models import Encoder
from gfm_jepa.models.model_card import CardFacts, model_card
from gfm_jepa.models.publishing import describe_run, write_release

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
# Folders of rasters by what they are laid out as; Taizhou is for research only, and left out.
GROUPS = {
    'terramesh_*': 'places', 'eolearn_*': 'places',
    'sentinel2': 'scenes', 'naip': 'scenes', 'landsat8': 'scenes',
}  # fmt: skip
RUNS = ('gfm_jepa_nano', 'gfm_jepa_nano_sensors')
NAME = 'gfm-jepa-nano'  # as it is bundled
LOG = 'training_log.csv'
LICENCE = 'cc-by-sa-4.0'  # the share-alike of TerraMesh, without which there would be no S1
DATA = (
    'EuroSAT RGB, spatial train list, 16,200 images (MIT)',
    'UC Merced, 1,259 training images (imagery of the USGS, public domain)',
    'EuroSAT, 13 bands, 218 chips of the spatial train list (MIT)',
    'TerraMesh, five test places: S2 L1C and L2A, S1, NDVI, DEM (CC-BY-SA-4.0)',
    'eo-learn test patch, Slovenia, five dates: S2 L1C, NDVI, DEM (MIT)',
    'Three Sentinel-2 L2A scenes of Australia and Italy (Copernicus, open)',
    'Two NAIP images of North Dakota (public domain)',
    'One Landsat 8 scene of Madagascar (public domain)',
)
LIMITS = (
    'rgb is Sentinel-2 as EuroSAT shows it, and was trained most. Every other modality was trained '
    'on a few hundred chips of a few places: fine-tune it, or fit a probe on ground of your own; '
    'on 78 test chips all 13 bands gave 78.2 % linear, their colours 69.2 '
    '(benchmarks/modalities.py); on the land cover of four places DEM and NDVI beside Sentinel-2 '
    'gave 13.5, Sentinel-2 alone 9.3, S1 beside them 10.2, all low. The rows of random0 '
    'flatter: three in five of its test images lie in the spatial train list, and were pretrained '
    "on without labels. On EuroSAT RGB ImageNet's EfficientNet-Lite0 at 64 px is passed in the "
    'linear probe and level in nearest neighbours; upsampled to 128 px it is level in the one and '
    'ahead in the other. '
    'The embedding knows no date and no place but that within the chip. Made for research on land '
    'cover; not for decisions about people.'
)


def minutes(output: Path, config: str) -> float:
    """Wall time of a run: TensorBoard begins a file, named by its time, each time it goes on."""
    logs = last(output, config).parent.parent.glob('events.out.tfevents.*')
    return sum(log.stat().st_mtime - int(log.name.split('.')[3]) for log in logs) / 60


def facts(output: Path, rows: list[dict[str, Any]]) -> CardFacts:
    """What the card says beside the run."""
    taken = [minutes(output, run) for run in RUNS]
    compute = (
        f'two cores of an AMD EPYC, one process, {taken[0]:.0f} minutes for rgb and {taken[1]:.0f} '
        f'for the other sensors'
    )
    return CardFacts(LICENCE, DATA, compute=compute, limits=LIMITS, rows=rows)


def link(target: Path, place: Path) -> None:
    """Make a symbolic link, once."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(target.resolve())


def lay_out(source: Path, output: Path) -> None:
    """Links to what may be pretrained on: of UC Merced only the images of its train list.

    Raises:
        InputError: If a part of it is not there.
    """
    parts = ('eurosat_rgb', 'uc_merced/uc_merced-train.txt', 'eurosat_ms', 'rasters')
    if missing := [part for part in parts if not (source / part).exists()]:
        raise InputError(
            f'{source} holds no {", ".join(missing)}; give the folder of the data with --data.'
        )
    link(source / 'eurosat_rgb', output / 'data' / 'eurosat_rgb')
    names = (source / 'uc_merced' / 'uc_merced-train.txt').read_text().split()
    for name in names:
        label = re.sub(r'\d+\.tif$', '', name)
        image = source / 'uc_merced' / 'UCMerced_LandUse' / 'Images' / label / name
        if not image.is_file():
            raise SystemExit(f'{image} is not there, but the train list names it.')
        link(image, output / 'data' / 'uc_merced_train' / 'train' / label / name)
    link(source / 'eurosat_ms', output / 'data' / 'eurosat_ms')
    for pattern, group in GROUPS.items():
        for folder in sorted((source / 'rasters').glob(pattern)):
            link(folder, output / 'data' / group / folder.name)


def fit(config: str, output: Path) -> None:
    """Run `gfm-jepa fit` in the output folder, once; what it says goes to a log there."""
    folder = output / config
    if (folder / 'done').exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable, '-m', 'gfm_jepa.cli', 'fit', '--config', str(CONFIGS / f'{config}.yaml'),
        '--trainer.default_root_dir', config, '--ckpt_path', 'auto',
    ]  # fmt: skip
    with (folder / 'log.txt').open('a') as log:
        done = subprocess.run(
            words, cwd=output, stdout=log, stderr=log,
            env={**os.environ, 'OMP_NUM_THREADS': '2'},  # two processes of one thread are slower
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(
            f'The run {config} ended with status {done.returncode}, and {log.name} says why; the '
            f'same command goes on from its last checkpoint.'
        )
    (folder / 'done').touch()


def last(output: Path, config: str) -> Path:
    """The last checkpoint of a run."""
    found = list((output / config).glob('*/version_*/checkpoints/last.ckpt'))
    if not found:
        raise SystemExit(f'{output / config} holds no checkpoint; its log.txt says why.')
    return max(found, key=lambda p: p.stat().st_mtime)


def parts_of(config: str) -> list[Any]:
    """The data modules that a config joins; its paths are those of the output folder."""
    content = yaml.safe_load((CONFIGS / f'{config}.yaml').read_text())
    kinds = [(part['class_path'].rpartition('.')[2], part['init_args'])
             for part in content['data']['init_args']['parts']]  # fmt: skip
    return [getattr(data, kind)(**options) for kind, options in kinds]


def training_batches(output: Path, configs: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Training samples of some runs once, as they are, in whole batches of one part each."""
    with contextlib.chdir(output):
        joined = data.JoinedDataModule([p for c in configs for p in parts_of(c)], batch_size=64)
        joined.setup('fit')
        yield from joined.train_dataloader()


def read_out(encoder: Encoder, output: Path, configs: Sequence[str]) -> Encoder:
    """The encoder with random filters and a readout, both of training samples of some runs."""
    filtered = add_random_filters(encoder, training_batches(output, configs))
    return add_readout(filtered, training_batches(output, configs))


def rows_of(encoder: Encoder, source: Path) -> list[dict[str, Any]]:
    """Probe on the benchmarks that the card names; baselines where the split is a hard one."""
    rows = []
    for name, folder, baselines in (
        ('eurosat-rgb-spatial', 'eurosat_rgb', True), ('ucmerced', 'uc_merced', True),
        ('eurosat-rgb-random0', 'eurosat_rgb', False),
    ):  # fmt: skip
        benchmark = load_benchmark(name, source / folder)
        rows += probe(encoder, 'gfm-jepa-nano', benchmark, baselines=baselines)
    return rows


def quarters(output: Path, source: Path) -> list[dict[str, Any]]:
    """Spatial test accuracy of each quarter of an hour.

    Raises:
        InputError: If there is no checkpoint of one.
    """
    paths = list((output / 'gfm_jepa_nano').glob('*/version_*/checkpoints/quarter-*.ckpt'))
    if not paths:
        raise InputError(
            f'{output / "gfm_jepa_nano"} holds no checkpoint of a quarter of an hour; call this '
            f'without --quarters first.'
        )
    benchmark = load_benchmark('eurosat-rgb-spatial', source / 'eurosat_rgb')
    found = []
    for path in sorted(paths, key=lambda p: int(re.findall(r'\d+', p.stem)[-1])):
        encoder = from_pretrained(path)
        assert isinstance(encoder, Encoder)
        read = read_out(encoder, output, RUNS[:1])
        (row,) = probe(read, path.stem, benchmark, baselines=False)
        found.append({'checkpoint': path.stem, 'knn5': row['knn5'], 'linear': row['linear']})
        print(found[-1], flush=True)
    return found


def release(output: Path, source: Path) -> list[dict[str, Any]]:
    """Fit the readout, probe, and write the folder that ships; returns the rows."""
    place, rows_file = output / 'read', output / 'rows.json'
    if not place.is_dir():
        trained = from_pretrained(last(output, 'gfm_jepa_nano_sensors'))
        assert isinstance(trained, Encoder)
        save_pretrained(read_out(trained, output, RUNS), place)
    encoder = from_pretrained(place)
    assert isinstance(encoder, Encoder)
    if not rows_file.is_file():
        rows_file.write_text(json.dumps(rows_of(encoder, source), indent=1))
    rows: list[dict[str, Any]] = json.loads(rows_file.read_text())
    run = {**describe_run(last(output, 'gfm_jepa_nano')),
           'other sensors': 'trained afterwards, trunk and rgb frozen',
           'command': 'python benchmarks/nano.py --data ../shared/data --output runs/nano',
           'log': 'training_log.csv'}  # fmt: skip
    folder = output / 'gfm-jepa-nano'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_release(encoder, folder, model_card(encoder, NAME, facts(output, rows), run), half=True)
    shutil.copy(last(output, 'gfm_jepa_nano').parent.parent / 'metrics.csv', folder / LOG)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--data', type=Path, required=True, help='folder with eurosat_rgb, ...')
    parser.add_argument('--output', type=Path, default=Path('runs/nano'))
    parser.add_argument('--quarters', action='store_true', help='probe the checkpoints on the way')
    args = parser.parse_args()
    torch.manual_seed(0)
    lay_out(args.data, args.output)
    if args.quarters:
        print(json.dumps(quarters(args.output, args.data)))
        return
    fit('gfm_jepa_nano', args.output)
    link(last(args.output, 'gfm_jepa_nano'), args.output / 'rgb.ckpt')
    fit('gfm_jepa_nano_sensors', args.output)
    rows = release(args.output, args.data)
    print(json.dumps([{k: r[k] for k in ('name', 'dataset', 'knn5', 'linear')} for r in rows]))


if __name__ == '__main__':
    with told_in_one_sentence('nano.py'):
        main()
