"""Make gfm-jepa-nano: lay the data out, pretrain, and write what ships in the package.

    python benchmarks/nano.py --data ../shared/data --output runs/nano

Lays links to the training parts out under OUTPUT/data and runs `gfm-jepa fit` there with
configs/gfm_jepa_nano.yaml, one process with one thread, from the last checkpoint if there is one.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
# Folders of rasters by what they are laid out as; Taizhou is for research only, and left out.
GROUPS = {
    'terramesh_*': 'places', 'eolearn_*': 'places',
    'sentinel2': 'scenes', 'naip': 'scenes', 'landsat8': 'scenes',
}  # fmt: skip


def link(target: Path, place: Path) -> None:
    """Make a symbolic link, once."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(target.resolve())


def lay_out(data: Path, output: Path) -> None:
    """Links to what may be pretrained on: of UC Merced only the images of its train list."""
    link(data / 'eurosat_rgb', output / 'data' / 'eurosat_rgb')
    names = (data / 'uc_merced' / 'uc_merced-train.txt').read_text().split()
    for name in names:
        label = re.sub(r'\d+\.tif$', '', name)
        image = data / 'uc_merced' / 'UCMerced_LandUse' / 'Images' / label / name
        if not image.is_file():
            raise SystemExit(f'{image} is not there, but the train list names it.')
        link(image, output / 'data' / 'uc_merced_train' / 'train' / label / name)
    link(data / 'eurosat_ms', output / 'data' / 'eurosat_ms')
    for pattern, group in GROUPS.items():
        for folder in sorted((data / 'rasters').glob(pattern)):
            link(folder, output / 'data' / group / folder.name)


def fit(config: str, output: Path) -> None:
    """Run `gfm-jepa fit` in the output folder; what it says goes to a log there."""
    folder = output / config
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable, '-m', 'gfm_jepa.cli', 'fit', '--config', str(CONFIGS / f'{config}.yaml'),
        '--trainer.default_root_dir', config, '--ckpt_path', 'auto',
    ]  # fmt: skip
    with (folder / 'log.txt').open('a') as log:
        subprocess.run(
            words, cwd=output, check=True, stdout=log, stderr=log,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--data', type=Path, required=True, help='folder with eurosat_rgb, ...')
    parser.add_argument('--output', type=Path, default=Path('runs/nano'))
    args = parser.parse_args()
    lay_out(args.data, args.output)
    fit('gfm_jepa_nano', args.output)


if __name__ == '__main__':
    main()
