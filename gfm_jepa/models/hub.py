"""How weights come and go: bundled, the Hub, folders of safetensors, checkpoints."""

import json
import os
import pickle
import re
import struct
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bundled import bundled_folder, bundled_sentence
from ..errors import InputError
from .band_matching import ModalitySpec, format_matches, match_bands, refuse_new
from .base import UNTRAINED, BaseEncoder
from .building import CLASSES, build
from .encoder import Encoder
from .weight_files import (
    CONFIG,
    WEIGHTS,
    Source,
    part_of,
    read_folder,
    refuse_foreign,
    replace_folder,
    write_safetensors,
)


def from_pretrained(
    source: str | os.PathLike[str],
    revision: str | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    modalities: Sequence[ModalitySpec] | ModalitySpec | None = None,
    strict_bands: bool = False,
    local_files_only: bool = False,
) -> BaseEncoder:
    """Load an encoder, ready to embed.

    Args:
        source: A bundled name such as ``gfm-jepa-nano``, a folder written by `save_pretrained`, a
            checkpoint of `gfm-jepa fit`, or a Hub id such as ``org/name``.
        revision: Branch, tag or commit on the Hub; of nothing else.
        bands: Per trained modality the bands that the input has, in its order. Filters and
            statistics follow the bands' names.
        modalities: Which modalities the encoder should have: names, `Modality` objects, mappings
            or YAML paths. A trained one may have other bands; a new sensor gets a new patch
            embedder before the trained trunk. What was copied and what is new is printed.
        strict_bands: Refuse filters that were not trained.
        local_files_only: Take only what the Hub's cache holds.

    Returns:
        The encoder in eval mode. It takes raw physical units: statistics are inside.

    Raises:
        InputError: If there is nothing there, or it is not what it should be. Weights load
            strictly, and nothing is unpickled but tensors and plain values.
    """
    found, commit = _find(source, revision, local_files_only)
    encoder = build(found)
    untrained = encoder.untrained
    if bands is not None or modalities is not None:
        if not isinstance(encoder, Encoder):
            raise InputError(
                f'{source} is a timm model of one modality, whose bands are fixed; leave out bands '
                f'and modalities.'
            )
        encoder, matches = match_bands(encoder, bands, modalities)
        if strict_bands:
            refuse_new(matches)
        _say(format_matches(matches))
    if unseen := sorted(untrained & encoder.modalities.keys()):
        _say(f'{source} never saw {", ".join(unseen)} in training: what it says of them is random.')
    encoder.revision = commit
    return encoder


def _find(
    source: str | os.PathLike[str], revision: str | None, local_files_only: bool
) -> tuple[Source, str | None]:
    """Read the weights where they are; the commit, if they are from the Hub."""
    path = Path(source)
    if len(str(source)) > 4096:  # longer than any path, of which the system would complain
        raise InputError(f'There are no weights at {str(source)[:80]!r}...; name where they are.')
    bundled = bundled_folder(str(source))
    if revision is not None and (bundled or path.exists()):
        raise InputError(
            f'{source} is {"bundled" if bundled else "on this machine"} and has no revision '
            f'{revision!r}; leave it out, or name a Hub id.'
        )
    if bundled:
        return read_folder(bundled), None
    if path.is_dir():
        return read_folder(path), None
    if path.is_file():
        return _read_checkpoint(path), None
    if re.fullmatch(r'[\w.-]+/[\w.-]+', str(source)) and path.suffix != '.ckpt':
        from .downloads import download  # huggingface_hub takes a while to import

        folder, commit = download(str(source), revision, local_files_only)
        return read_folder(folder), commit
    raise InputError(
        f'There are no weights at {str(source)!r}: expected a bundled name '
        f'({bundled_sentence()}), a folder with {CONFIG} and {WEIGHTS}, a checkpoint of '
        f'`gfm-jepa fit`, or a Hub id such as org/name.'
    )


def save_pretrained(encoder: BaseEncoder, folder: str | os.PathLike[str]) -> Path:
    """Write an encoder as safetensors and JSON; a killed run leaves no half-written file.

    Args:
        encoder: What to write.
        folder: Where to; made if it is not there.

    Returns:
        The folder.

    Raises:
        InputError: If it is no encoder of ours, or the folder holds files of something else.
    """
    folder = Path(folder)
    refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write_encoder(encoder, Path(temporary))
        replace_folder(Path(temporary), folder)
    return folder


def write_encoder(encoder: BaseEncoder, folder: Path, half: bool = False) -> None:
    """Write config.json and model.safetensors into a folder that is there.

    Args:
        encoder: What to write.
        folder: Where to.
        half: Store matrices as float16, which halves the file. Loading gives float32 again.
    """
    encoder = getattr(encoder, '_orig_mod', encoder)  # what torch.compile wraps
    kind = next((name for name, k in CLASSES.items() if isinstance(encoder, k)), None)
    if kind is None:
        raise InputError(
            f'{type(encoder).__name__} cannot be written, since nothing could read it: expected '
            f'{" or ".join(CLASSES)}.'
        )
    state = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    if half:
        state = {k: v.half() if is_matrix(v) else v for k, v in state.items()}
    write_safetensors(state, folder / WEIGHTS)
    config = {'class': kind, **encoder.config}
    if encoder.untrained:
        config[UNTRAINED] = sorted(encoder.untrained)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + '\n')


def is_matrix(value: Tensor) -> bool:
    """Whether a tensor is one of the large ones; statistics, biases and norms are small."""
    values = value.ndim > 1 and value.is_floating_point() and value.numel() > 256
    return values and value.shape[1:] != (1, 1)  # those are statistics of many bands


def _say(text: str) -> None:
    """Print on stderr, once over all processes; Lightning's own way needs Lightning imported."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not together or torch.distributed.get_rank() == 0:
        print(text, file=sys.stderr)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that Lightning wrote for one of our tasks, without unpickling classes.

    Raises:
        InputError: If the file is no checkpoint, or not one of `gfm-jepa fit`.
    """
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except (
        pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, struct.error,
        LookupError, AttributeError, TypeError,
    ) as e:  # fmt: skip
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(
            f'{path} is not a checkpoint of `gfm-jepa fit` ({reason[:120]}); name its .ckpt file.'
        ) from e
    needed = ('encoder_config', 'encoder_prefix', 'state_dict')
    if lacking := [k for k in needed if not isinstance(checkpoint, dict) or k not in checkpoint]:
        raise InputError(
            f'{path} is a checkpoint, but not one of `gfm-jepa fit`: it holds no {lacking[0]}.'
        )
    prefix, state = checkpoint['encoder_prefix'], checkpoint['state_dict']
    if not isinstance(prefix, str) or not isinstance(state, dict):
        raise InputError(f'{path} is not a checkpoint of `gfm-jepa fit`: its tensors are nameless.')
    for name, value in state.items():
        # A tensor may claim more values than the file holds, which a copy would make real.
        if not (isinstance(name, str) and isinstance(value, Tensor) and _is_stored(value)):
            raise InputError(f'{path} holds {str(name)[:80]!r}, which is no plain tensor.')
    found: dict[str, Any] = checkpoint
    return found


def _is_stored(value: Tensor) -> bool:
    """Whether a tensor is dense, and each of its values lies in memory once."""
    if value.layout != torch.strided or value.is_nested or value.device.type != 'cpu':
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _read_checkpoint(path: Path) -> Source:
    """Take the encoder out of a checkpoint that Lightning wrote."""
    checkpoint = load_checkpoint(path)
    state = part_of(checkpoint['state_dict'], checkpoint['encoder_prefix'])
    return Source(config_of(checkpoint), state, str(path))


def config_of(checkpoint: Mapping[str, Any]) -> Any:
    """What the encoder of a checkpoint is built of, and what its training did not see."""
    config = checkpoint['encoder_config']
    if isinstance(config, dict) and UNTRAINED in checkpoint:
        config = {**config, UNTRAINED: checkpoint[UNTRAINED]}
    return config
