"""Our SSL4EO-S12 v1.1 reader against the published loaders, on the same generated files.

Put your copies of `zarr_dataset.py` and `ssl4eos12_dataset.py` (DLR-MF-DAS/SSL4EO-S12-v1.1,
Apache-2.0) into a folder; none of them is kept here.

    python benchmarks/ssl4eo_reference.py --reference FOLDER

Last line: a JSON object that says for each form whether all arrays are equal, bit for bit.
"""

import argparse
import importlib
import json
import runpy
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from zarr.storage import ZipStore

from gfm_jepa import InputError
from gfm_jepa.data import SSL4EOS12
from gfm_jepa.errors import told_in_one_sentence
from gfm_jepa.modalities import resolve_all

GENERATOR = Path(__file__).parent.parent / 'tests' / 'ssl4eo_archive.py'
NEEDED = ('xarray', 'webdataset', 'braceexpand', 'albumentations', 'einops', 'fsspec')
CHUNK_NAMES = {'S2L1C': 's2_l1c', 'S2L2A': 's2_l2a', 'S1GRD': 's1', 'S2RGB': 'rgb'}
TAR_NAMES = {**CHUNK_NAMES, 'NDVI': 'ndvi', 'DEM': 'dem'}
Arrays = dict[str, np.ndarray[Any, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--reference', type=Path, required=True, help='folder of the two files')
    parser.add_argument('--places', type=int, default=6)
    parser.add_argument('--size', type=int, default=264, help='pixels of an image')
    arguments = parser.parse_args()
    try:
        chunk_loader, tar_loader = load_reference(arguments.reference)
    except InputError as error:
        sys.exit(str(error))
    archive = runpy.run_path(str(GENERATOR))
    truth = archive['make_truth'](arguments.places, arguments.size)
    for folder in ('S2L1C', 'S2L2A'):
        truth[folder][:, 1, :, :9, :7] = 0  # no data
    # Format 3 says nothing of consolidated metadata yet.
    warnings.filterwarnings('ignore', 'Failed to open Zarr store with consolidated')
    result = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        archive['write_chunk_files'](root / 'chunks', truth, 'val')
        names = archive['write_shards'](root / 'shards', truth, 'val')
        expected = published_chunks(chunk_loader, root / 'chunks')
        result['chunk_equal'] = equal(expected, ours(root / 'chunks', CHUNK_NAMES))
        expected = published_shards(tar_loader, root / 'shards', len(names))
        result['tar_equal'] = equal(expected, ours(root / 'shards', TAR_NAMES))
        archive['write_chunk_files'](root / 'v3', truth, 'val', zarr_format=3)
        again = published_chunks(chunk_loader, root / 'v3')
        result['chunk_v3_equal'] = equal(again, ours(root / 'v3', CHUNK_NAMES))
    print(json.dumps({**result, 'places': arguments.places, 'size': arguments.size}))


def load_reference(folder: Path) -> tuple[ModuleType, ModuleType]:
    """Import the user's copies of the published loaders."""
    names = ('zarr_dataset', 'ssl4eos12_dataset')
    if missing := [n for n in names if not (folder / f'{n}.py').is_file()]:
        raise InputError(f'{folder} lacks {missing[0]}.py; copy it there.')
    if absent := [n for n in NEEDED if find_spec(n) is None]:
        raise InputError(f'The published loaders need: pip install {" ".join(absent)}.')
    sys.path.insert(0, str(folder))
    return importlib.import_module(names[0]), importlib.import_module(names[1])


def published_chunks(loader: ModuleType, root: Path) -> Arrays:
    """All images of chunk files, (places, 4, C, H, W) by folder."""
    xarray = importlib.import_module('xarray')
    # The loader gives xarray a path, which zarr 2 opened as a zip; zarr 3 has to be told.
    zips = SimpleNamespace(open_zarr=lambda path: xarray.open_zarr(ZipStore(path, mode='r')))
    loader.xr = zips  # type: ignore[attr-defined]
    dataset = loader.ZarrDataset(
        root / 'val', root / 'splits' / 'ssl4eos12_val.txt', list(CHUNK_NAMES)
    )
    files = [dataset[i] for i in range(len(dataset))]
    return {name: torch.cat([f[name] for f in files]).numpy() for name in CHUNK_NAMES}


def published_shards(loader: ModuleType, root: Path, count: int) -> Arrays:
    """All images of tar shards, (places, 4, C, H, W) by folder; one date of what has one."""
    urls = f'{root}/val/[{",".join(TAR_NAMES)}]/ssl4eos12_shard_{{000001..{count:06d}}}.tar'
    dataset = loader.build_ssl4eos12_dataset(
        modalities=list(TAR_NAMES), split='val', urls=urls, batch_size=2
    )
    batches = list(dataset)
    return {name: torch.cat([b[name] for b in batches]).numpy() for name in TAR_NAMES}


def ours(root: Path, names: dict[str, str]) -> Arrays:
    """The same through our reader, with offset and nodata value put back."""
    modalities = resolve_all(list(names.values()))
    size = SSL4EOS12(root, 'val', modalities, chip_size=1).layers[0].shape[-1]
    dataset = SSL4EOS12(root, 'val', modalities, chip_size=size, num_dates=4)
    print(dataset.report())
    samples = [dataset[i] for i in range(len(dataset))]
    arrays = {}
    for layer, (folder, name) in zip(dataset.layers, names.items(), strict=True):
        values = torch.stack([s[name] for s in samples])
        values = values if layer.dates > 1 else values[:, None]
        arrays[folder] = torch.nan_to_num(values + layer.shift, nan=0.0).numpy()
    return arrays


def equal(expected: Arrays, got: Arrays) -> bool:
    """Whether the arrays agree in shape and value; prints where they do not."""
    same = {k: np.array_equal(v, got[k].astype(v.dtype)) for k, v in expected.items()}
    for name, is_same in same.items():
        print(
            f'{name}: {expected[name].shape} {expected[name].dtype}', 'equal' * is_same or 'DIFFER'
        )
    return expected.keys() == got.keys() and all(same.values())


if __name__ == '__main__':
    with told_in_one_sentence('ssl4eo_reference.py'):
        main()
