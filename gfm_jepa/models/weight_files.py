"""Read a folder of config.json and safetensors that nobody vouches for.

Everything that can be refused is refused before memory is taken for it, and nothing is unpickled.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError

CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
CARD, GOLDEN = 'README.md', 'golden.safetensors'
_LARGEST_JSON = 10_000_000  # bytes; ours have some thousand
_ZIP, _PICKLE = b'PK\x03\x04', b'\x80'  # how what torch.save and pickle write begins
# Types of safetensors that an encoder's state can have, and bytes of one value.
_WIDTHS = {'F64': 8, 'F32': 4, 'F16': 2, 'BF16': 2, 'I64': 8, 'I32': 4, 'U8': 1, 'BOOL': 1}


@dataclass(frozen=True)
class Source:
    """Weights as they were given, not yet taken for true.

    Attributes:
        config: What `BaseEncoder.from_config` should get.
        state: Tensors by their name in the encoder's state.
        name: Where they come from, for messages.
        folder: With their golden embeddings and card, if it is one.
    """

    config: Any
    state: Mapping[str, Tensor]
    name: str
    folder: Path | None = None


def read_folder(folder: Path) -> Source:
    """Read config.json and the weights of a folder.

    Raises:
        InputError: If a file is missing, is not what its name says, or claims more than it holds.
    """
    weights = WEIGHTS if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file() else INDEX
    if missing := [n for n in (CONFIG, weights) if not (folder / n).is_file()]:
        raise InputError(
            f'{folder} holds no {" and no ".join(missing)}; name a folder written by '
            f'save_pretrained, or a checkpoint file.'
        )
    config = read_json(folder / CONFIG)
    state: dict[str, Tensor] = {}
    for name in shard_names(folder / INDEX) if weights == INDEX else [WEIGHTS]:
        if not (folder / name).is_file():
            raise InputError(f'{folder / INDEX} names {name}, which is not there; fetch it too.')
        shard = read_safetensors(folder / name)
        if twice := state.keys() & shard.keys():
            raise InputError(f'{folder} holds {min(twice)} in two files; fetch it again.')
        state.update(shard)
    return Source(config, state, str(folder), folder)


def read_json(path: Path) -> Any:
    """Read a JSON file of a sensible size.

    Raises:
        InputError: If it is too large, or not JSON.
    """
    size = path.stat().st_size
    if size > _LARGEST_JSON:
        raise InputError(f'{path} has {size} bytes, which no config of ours has; fetch it again.')
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON ({error}); fetch it again.') from error


def shard_names(index: Path) -> list[str]:
    """The files that an index names: plain names of files beside it, nothing else.

    Raises:
        InputError: If it is not an index, or names a path.
    """
    content = read_json(index)
    shards = content.get('weight_map') if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise InputError(f'{index} has no weight_map; it should map tensors to safetensors files.')
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if not re.fullmatch(r'\w[\w.-]*\.safetensors', name, re.ASCII) or '..' in name:
            raise InputError(
                f'{index} names {name!r}, which is not the plain name of a safetensors file beside '
                f'it; do not use these weights.'
            )
    return names


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read tensors, after its header was checked against the size of the file.

    They lie in the file until they are used: what lives longer than it copies them.

    Raises:
        InputError: If the file is a pickle, is cut off, or claims more than it holds.
    """
    check_header(path)
    try:
        with safe_open(path, framework='pt') as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        raise InputError(
            f'{path} is not a safetensors file that fits into memory ({first_line(error)}); fetch '
            f'it again.'
        ) from error


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors to a file that others may read, too.

    Raises:
        InputError: If they cannot be written.
    """
    try:
        save_file(tensors, path, metadata={'format': 'pt'})
    except SafetensorError as error:
        raise InputError(
            f'{path.name} could not be written ({first_line(error)}); give a folder with room.'
        ) from error
    let_others_read(path)


def first_line(error: Exception) -> str:
    """What an error of a library says, in short."""
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__


def check_header(path: Path) -> None:
    """Compare what a safetensors file claims with its size, and read nothing but its header.

    Raises:
        InputError: If it is no safetensors file, or claims more or less than it holds.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        start = file.read(9)
        # A header's length may begin with the same bytes; what follows it is a brace, or a space.
        if start.startswith((_ZIP, _PICKLE)) and start[8:] != b'{':
            raise InputError(
                f'{path} is a pickle under another name, and nothing of it was run; ask for '
                f'safetensors.'
            )
        length = int.from_bytes(start[:8], 'little')
        file.seek(8)
        if len(start) < 8 or length > size - 8:
            raise InputError(
                f'{path} has {size} bytes, but claims a header of {length}; it is cut off or no '
                f'safetensors file: fetch it again.'
            )
        if length > _LARGEST_JSON:
            raise InputError(f'{path} has a header of {length} bytes; ours have some thousand.')
        content = file.read(length)
    try:
        header = json.loads(content)
        header.pop('__metadata__', None)
        end = max((_checked_end(entry) for entry in header.values()), default=0)
    except (
        ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError
    ) as error:  # fmt: skip
        raise InputError(
            f'{path} has a header that is not one of safetensors ({error}); fetch it again.'
        ) from error
    if end != size - 8 - length:
        raise InputError(
            f'{path} should hold {end} bytes of tensors, but holds {size - 8 - length}; it is cut '
            f'off: fetch it again.'
        )


def _checked_end(entry: Mapping[str, Any]) -> int:
    """Where a tensor ends, bytes after the header; ValueError if its shape says otherwise."""
    start, end = (int(offset) for offset in entry['data_offsets'])
    need = _WIDTHS[entry['dtype']]
    for side in entry['shape']:
        need *= int(side)
    if start < 0 or end - start != need:
        raise ValueError(f'shape {entry["shape"]} in {end - start} bytes')
    return end


def require_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors with NaN or infinite values.

    Raises:
        InputError: Naming the first of them.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f'{name} of {source} holds NaN or infinite values; the run diverged or the file is '
                f'damaged: take an earlier checkpoint, or fetch it again.'
            )


def replace_folder(temporary: Path, folder: Path) -> None:
    """Move the files of a finished folder into place, config.json last: without it none is read.

    A card and golden embeddings that are not replaced spoke of the weights of before, and go.
    Where a move fails, or is broken off, what was there before comes back.

    Args:
        temporary: Of the same file system.
        folder: Where to; made if it is not there.

    Raises:
        InputError: If there are files of those names that something else wrote.
    """
    names = sorted((path.name for path in temporary.iterdir()), key=lambda n: n == CONFIG)
    refuse_foreign(folder, names)
    folder.mkdir(parents=True, exist_ok=True)
    # A config that is left would speak of other weights than those that lie beside it.
    gone = [CONFIG, *(n for n in names if n != CONFIG), GOLDEN]
    if CARD not in names and (folder / CARD).is_file() and _is_ours(folder / CARD):
        gone.append(CARD)
    before = Path(tempfile.mkdtemp(dir=temporary.parent))
    try:
        for name in filter(lambda n: (folder / n).is_file(), dict.fromkeys(gone)):
            os.replace(folder / name, before / name)
        for name in names:
            os.replace(temporary / name, folder / name)
    except BaseException:
        for name in names:
            if not (temporary / name).exists():
                (folder / name).unlink(missing_ok=True)
        for path in sorted(before.iterdir(), key=lambda p: p.name == CONFIG):
            os.replace(path, folder / path.name)
        raise
    finally:
        shutil.rmtree(before, ignore_errors=True)


def let_others_read(path: Path) -> None:
    """Give a file the rights of any new one; safetensors gives them to its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def refuse_foreign(folder: Path, names: Sequence[str] = (CONFIG,)) -> None:
    """Refuse a folder whose config.json or model card is not one of ours, or of other files alone.

    Args:
        folder: That is written into.
        names: Of the files that are.

    Raises:
        InputError: If something would be replaced, or end among files of something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f'{folder} is a file; name a folder to write the encoder into.')
    if folder.is_dir() and not ((folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()):
        # A new repository has hidden files and a licence; what a killed call left is ours.
        ours = re.compile(rf'\..*|tmp\w{{8}}|LICEN[CS]E.*|{re.escape(CARD)}|{re.escape(GOLDEN)}')
        others = sorted(p.name for p in folder.iterdir() if not ours.fullmatch(p.name))
        if others:
            raise InputError(
                f'{folder} holds {others[0]} and no encoder; name a new or an empty folder.'
            )
    for name in (CONFIG, CARD):
        if name in names and (folder / name).is_file() and not _is_ours(folder / name):
            raise InputError(
                f'{folder} holds a {name} that belongs to something else, and was left as it is; '
                f'name another folder.'
            )


def _is_ours(path: Path) -> bool:
    """Whether a config.json or a model card is one that we wrote."""
    if path.name == CARD:
        return 'library_name: gfm_jepa' in path.read_text(errors='replace')
    content = read_json(path)
    return isinstance(content, dict) and 'modalities' in content


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def weights_hash(module: nn.Module) -> str:
    """Hash its tensors with their names: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f'{name} {tuple(value.shape)}\n'.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
