"""Memory and speed of `gfm-jepa embed` on a made scene, beside the encoder's own speed.

    python benchmarks/embed_scene.py --size 10980

Makes scenes of 12 x uint16 of 1/4, 1 and 2 times size x size pixels, embeds each in a process of
its own and reads its peak memory; around the middle one, the encoder alone embeds windows that are
in memory already. Then kills an embedding of the smallest scene at a random moment, starts it
again, and compares the bytes. The last line is one JSON object: the highest peak (MB), the share of
the encoder's own pixels per second that embedding reaches, counting pixels as the encoder sees them
(overlaps twice), and the scene's pixels per second. The line before it holds more.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window

from gfm_jepa.errors import told_in_one_sentence
from gfm_jepa.inference.embed import EmbedSettings, embed
from gfm_jepa.inference.tiling import Tiling
from gfm_jepa.models.hub import from_pretrained, save_pretrained
from gfm_jepa.models.presets import build_encoder

BLOCK = 512
WINDOW, OVERLAP = 128, 32
BATCH = 16  # of the encoder alone, which is fastest with it; `embed` takes its own


def make_scene(path: Path, size: int, compress: str = 'deflate', seed: int = 0) -> None:
    """Write a tiled GeoTIFF: texture and noise, shifted from block to block."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (12, BLOCK // 16, BLOCK // 16)).repeat(16, 1).repeat(16, 2)
    base = (1500 + 400 * coarse + rng.normal(0, 60, (12, BLOCK, BLOCK))).clip(1, 9999)
    base = base.astype(np.uint16)
    with rasterio.open(
        path, 'w', driver='GTiff', count=12, height=size, width=size, dtype='uint16', nodata=0,
        crs='EPSG:32633', transform=from_origin(500000, 5000000, 10, 10), tiled=True,
        blockxsize=BLOCK, blockysize=BLOCK, compress=compress, BIGTIFF='IF_SAFER',
    ) as target:  # fmt: skip
        for top in range(0, size, BLOCK):
            for left in range(0, size, BLOCK):
                height, width = min(BLOCK, size - top), min(BLOCK, size - left)
                shifted = np.roll(base, (top // 7, left // 11), axis=(1, 2))[:, :height, :width]
                target.write(shifted, window=Window(left, top, width, height))


def run_embed(weights: Path, scene: Path, output: Path) -> None:
    """Embed, and print the seconds that it took, without imports."""
    encoder = from_pretrained(weights)
    start = time.perf_counter()
    settings = EmbedSettings(WINDOW, OVERLAP, overwrite=True)
    embed(encoder, [f's2_l2a={scene}'], output, settings, say=lambda text: None)
    print(time.perf_counter() - start)


def run_encoder(weights: Path, seconds: float) -> None:
    """Embed windows that are in memory for a while, and print the megapixels per second."""
    encoder = from_pretrained(weights)
    windows = {'s2_l2a': torch.rand(BATCH, 12, WINDOW, WINDOW) * 3000}
    with torch.inference_mode():
        encoder.forward_feature_map(windows)
        start, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            encoder.forward_feature_map(windows)
            count += 1
    print(count * BATCH * WINDOW**2 / passed / 1e6)


def child(*words: object) -> tuple[float, float]:
    """Run a part of this script in a process: the number that it prints, and its peak in MB."""
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f'{words} failed; what it said stands above.')
    return float(text.splitlines()[-1]), usage.ru_maxrss / 1024


def killed_at_random(weights: Path, scene: Path, output: Path, seconds: float) -> int:
    """Start embedding, kill it at a random moment; how many parts were finished."""
    process = subprocess.Popen(
        [sys.executable, __file__, 'embed', str(weights), str(scene), str(output)],
        stdout=subprocess.DEVNULL,
    )
    work = output.with_name(output.name + '.work')
    while process.poll() is None and not work.exists():  # imports are nothing to break off
        time.sleep(0.05)
    time.sleep(random.uniform(0.1, 0.9) * seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(list(work.glob('*.npy')))


def seen_pixels(size: int) -> int:
    """Pixels of all windows, those that windows share counted each time."""
    tiling = Tiling(size, size, WINDOW, WINDOW - OVERLAP, 8, 8)
    return len(tiling.starts(size)) ** 2 * WINDOW**2


def measure(folder: Path, size: int, weights: Path, encoder_seconds: float, compress: str) -> None:
    """Everything, line by line."""
    peaks, speeds = {}, {}
    own: list[float] = []
    for name, side in (('1/4', size // 2), ('1', size), ('2', round(size * 2**0.5))):
        scene = folder / f'scene{side}.tif'
        make_scene(scene, side, compress)
        if name == '1':
            own.append(child('encoder', weights, encoder_seconds)[0])
        seconds, peaks[name] = child('embed', weights, scene, folder / f'{side}.tif')
        if name == '1':
            own.append(child('encoder', weights, encoder_seconds)[0])
            share = seen_pixels(side) / 1e6 / seconds / (sum(own) / 2)
        speeds[name] = side * side / 1e6 / seconds
        print(f'{side} x {side}: {seconds:.1f} s, {speeds[name]:.3f} Mpx/s, peak '
              f'{peaks[name]:.0f} MB', flush=True)  # fmt: skip
        if name == '1/4':
            parts = killed_at_random(weights, scene, folder / 'again.tif', seconds)
            child('embed', weights, scene, folder / 'again.tif')
            digests = {hashlib.sha256((folder / f).read_bytes()).hexdigest()
                       for f in ('again.tif', f'{side}.tif')}  # fmt: skip
            verdict = 'the same bytes' if len(digests) == 1 else 'OTHER BYTES'
            print(f'killed with {parts} parts finished, and again: {verdict}', flush=True)
        scene.unlink()
    more = {'size': size, 'compress': compress, 'peaks_mb': {k: round(v) for k, v in peaks.items()},
            'mpx_per_s': {k: round(v, 4) for k, v in speeds.items()},
            'encoder_mpx_per_s': [round(v, 4) for v in own],
            'scene_share': round(speeds['1'] / (sum(own) / 2), 3), 'same_bytes': len(digests) == 1,
            'threads': torch.get_num_threads()}  # fmt: skip
    print(json.dumps(more))
    print(json.dumps({'peak_mb': round(max(peaks.values())), 'share': round(share, 3),
                      'mpx_per_s': round(speeds['1'], 4)}))  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ['embed']:
        return run_embed(*map(Path, sys.argv[2:]))
    if sys.argv[1:2] == ['encoder']:
        return run_encoder(Path(sys.argv[2]), float(sys.argv[3]))
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--size', type=int, default=10980, help='side of the scene, pixels')
    parser.add_argument('--weights', default='gfm-jepa-nano', help='that embed s2_l2a, or "new"')
    parser.add_argument('--folder', type=Path, help='for scenes and maps, some GB; a temporary one')
    parser.add_argument('--seconds', type=float, default=20.0, help='of the encoder alone')
    parser.add_argument('--compress', default='deflate', choices=('none', 'zstd', 'lzw', 'deflate'))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        torch.manual_seed(0)
        # A new one has a linear stem and is faster, so that reading and writing weigh more.
        encoder = build_encoder('nano', ['s2_l2a']).eval() if args.weights == 'new' else (
            from_pretrained(args.weights, modalities=['s2_l2a']))  # fmt: skip
        weights = save_pretrained(encoder, Path(folder) / 'weights')
        measure(Path(folder), args.size, weights, args.seconds, args.compress)


if __name__ == '__main__':
    with told_in_one_sentence('embed_scene.py'):
        main()
