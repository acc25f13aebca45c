"""How weights come and go: folders of safetensors and config.json, checkpoints, the Hub."""

import json
import os
import pickle
import re
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError
from .base import BaseEncoder
from .encoder import Encoder
from .timm_encoder import TimmEncoder

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'


def from_pretrained(
    source: str | os.PathLike[str], revision: str | None = None, local_files_only: bool = False
) -> BaseEncoder:
    """Load an encoder, ready to embed.

    Args:
        source: A folder written by `save_pretrained`, a checkpoint of a pretraining task, or a Hub
            id such as ``org/name``.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Take only what the Hub's cache holds.

    Returns:
        The encoder in eval mode. It takes raw physical units: statistics are inside.

    Raises:
        InputError: If there is nothing there, or it is not what it should be. Weights load
            strictly, and nothing is unpickled but tensors and plain values.
    """
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_checkpoint(path)
    if re.fullmatch(r'[\w.-]+/[\w.-]+', str(source)) and path.suffix != '.ckpt':
        return _from_hub(str(source), revision, local_files_only)
    raise InputError(
        f'There are no weights at {str(source)!r}: expected a folder with {CONFIG} and {WEIGHTS}, '
        f'a checkpoint of `gfm-jepa fit`, or a Hub id such as org/name.'
    )


def save_pretrained(encoder: BaseEncoder, folder: str | os.PathLike[str]) -> Path:
    """Write an encoder as safetensors and JSON; a killed run leaves no half-written file.

    Args:
        encoder: What to write.
        folder: Where to; made if it is not there.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        state = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
        save_file(state, Path(temporary) / WEIGHTS, metadata={'format': 'pt'})
        (Path(temporary) / CONFIG).write_text(json.dumps(encoder.config, indent=2) + '\n')
        for name in (WEIGHTS, CONFIG):
            os.replace(Path(temporary) / name, folder / name)
    return folder


def _from_folder(folder: Path) -> BaseEncoder:
    """Load what `save_pretrained` wrote."""
    if missing := [n for n in (CONFIG, WEIGHTS) if not (folder / n).is_file()]:
        raise InputError(
            f'{folder} holds no {" and no ".join(missing)}; name a folder written by '
            f'save_pretrained, or a checkpoint file.'
        )
    try:
        config = json.loads((folder / CONFIG).read_text())
        state = load_file(folder / WEIGHTS)
    except json.JSONDecodeError as error:
        raise InputError(f'{folder / CONFIG} is not JSON ({error}); fetch it again.') from error
    except SafetensorError as error:
        raise InputError(
            f'{folder / WEIGHTS} is not a safetensors file ({error}); fetch it again.'
        ) from error
    return _build(config, state, folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that Lightning wrote for one of our tasks, without unpickling classes.

    Raises:
        InputError: If the file is no checkpoint, or not one of `gfm-jepa fit`.
    """
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, struct.error) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(
            f'{path} is not a checkpoint of `gfm-jepa fit` ({reason[:120]}); name its .ckpt file.'
        ) from e
    if not isinstance(checkpoint, dict) or 'encoder_config' not in checkpoint:
        raise InputError(
            f'{path} is a checkpoint, but not one of `gfm-jepa fit`: it holds no encoder_config.'
        )
    return checkpoint


def _from_checkpoint(path: Path) -> BaseEncoder:
    """Load the encoder out of a checkpoint that Lightning wrote."""
    checkpoint = load_checkpoint(path)
    prefix = checkpoint['encoder_prefix']
    state = {
        key.removeprefix(prefix): value
        for key, value in checkpoint['state_dict'].items()
        if key.startswith(prefix)
    }
    return _build(checkpoint['encoder_config'], state, path)


def _from_hub(repo_id: str, revision: str | None, local_files_only: bool) -> BaseEncoder:
    """Fetch the two files of a Hub repository, or take them from the cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        paths = [
            hf_hub_download(repo_id, name, revision=revision, local_files_only=local_files_only)
            for name in (CONFIG, WEIGHTS)
        ]
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f'There is no folder or file {repo_id!r}, and the Hub gave no such weights '
            f'({type(error).__name__}); check the name, the revision and the network.'
        ) from error
    return _from_folder(Path(paths[0]).parent)


def _build(config: Mapping[str, Any], state: Mapping[str, Tensor], source: Path) -> BaseEncoder:
    """Build the encoder and load its weights strictly."""
    kind: type[BaseEncoder] = TimmEncoder if 'backbone' in config else Encoder
    try:
        encoder = kind.from_config(config)
    except TypeError as error:
        raise InputError(f'{source} does not describe an encoder ({error}).') from error
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise InputError(
            f'The weights of {source} do not fit its config: {" ".join(lines[1:2]).strip()[:200]}.'
        ) from error
    return encoder.eval()
