"""How long `from_pretrained` takes once torch is imported, and whether a wheel carries weights.

    python benchmarks/load_time.py [WEIGHTS] [--wheel]   # a bundled name, folder or checkpoint

Without WEIGHTS a random encoder of preset nano is saved and loaded. In a new process that has
imported torch alone: our modules and the first load, then a second load. --wheel builds a wheel (no
network) with a stand-in beside the bundled weights, and lists the weights in it. The last line is
one JSON object.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch  # noqa: F401  # whoever embeds has it imported

ROOT = Path(__file__).parent.parent


def time_here(source: str) -> dict[str, float]:
    """Wall times in seconds, in this process."""
    marks = [time.perf_counter()]
    import gfm_jepa

    for _ in range(2):
        gfm_jepa.from_pretrained(source)
        marks.append(time.perf_counter())
    names = ('first_load_s', 'second_load_s')
    return {n: b - a for n, a, b in zip(names, marks, marks[1:], strict=False)}


def time_in_a_new_process(source: str) -> dict[str, float]:
    """The same in a process that has imported nothing but torch."""
    command = [sys.executable, __file__, source, '--here']
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:  # it has said why
        raise SystemExit(done.returncode)
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def wheel_weights() -> list[str]:
    """Build a wheel of a copy of the package; the files of weights in it."""
    import gfm_jepa

    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / 'source'
        ignore = shutil.ignore_patterns('__pycache__', '*.egg-info')
        shutil.copytree(ROOT / 'gfm_jepa', copy / 'gfm_jepa', ignore=ignore)
        for name in ('pyproject.toml', 'README.md', 'LICENSE'):
            shutil.copy(ROOT / name, copy)
        encoder = gfm_jepa.build_encoder('nano', ['rgb'])
        gfm_jepa.save_pretrained(encoder, copy / 'gfm_jepa/weights/stand-in')
        command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
                   '--no-build-isolation', '--wheel-dir', temporary, str(copy)]  # fmt: skip
        subprocess.run(command, check=True)
        (wheel,) = Path(temporary).glob('*.whl')
        return sorted(n for n in zipfile.ZipFile(wheel).namelist() if '/weights/' in n)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('weights', nargs='?')
    parser.add_argument('--wheel', action='store_true')
    parser.add_argument('--here', action='store_true', help='in this process')
    args = parser.parse_args()
    if args.here:
        print(json.dumps(time_here(args.weights)))
        return
    import gfm_jepa

    with tempfile.TemporaryDirectory() as temporary:
        source = args.weights or temporary
        if not args.weights:
            gfm_jepa.save_pretrained(gfm_jepa.build_encoder('nano', ['rgb', 's2_l2a']), temporary)
        times = time_in_a_new_process(source)
    print('  '.join(f'{name} {seconds:.3f}' for name, seconds in times.items()))
    files = wheel_weights() if args.wheel else []
    print(*files, sep='\n')
    print(json.dumps({'weights': args.weights or 'random nano', **times, 'wheel': files}))


if __name__ == '__main__':
    from gfm_jepa.errors import told_in_one_sentence

    with told_in_one_sentence('load_time.py'):
        main()
