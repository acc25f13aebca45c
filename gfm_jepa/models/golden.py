"""A fixed input per modality and its embedding, shipped with the weights to prove a copy right."""

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..bundled import bundled_folder
from ..errors import InputError
from ..modalities import Modality
from .base import BaseEncoder, evaluating
from .weight_files import GOLDEN, read_safetensors, write_safetensors


def write_golden(encoder: BaseEncoder, folder: Path) -> None:
    """Write golden.safetensors: ``input.<modality>`` and ``embedding.<modality>``."""
    tensors = {}
    for name, modality in encoder.modalities.items():
        chips = golden_input(modality, encoder.example_size(name))
        tensors[f'input.{name}'] = chips
        tensors[f'embedding.{name}'] = _embed(encoder, name, chips)
    write_safetensors(tensors, folder / GOLDEN)


def golden_input(modality: Modality, size: int) -> Tensor:
    """Seeded noise (2, C, size, size) of the modality's statistics, in its unit and range.

    It is smooth, as rasters are: white noise is far from all that a readout was fitted to.
    """
    coarse = torch.randn(
        2, len(modality.bands), max(size // 8, 1), max(size // 8, 1),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    noise = functional.interpolate(coarse, size=(size, size), mode='bilinear')
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (modality.mean, modality.std))
    values: Tensor = noise * std + mean
    return values.clamp(*modality.valid_range) if modality.valid_range else values


def verify_golden(
    encoder: BaseEncoder, source: str | os.PathLike[str], tolerance: float = 1e-4
) -> float:
    """Compare an encoder with the embeddings that were written beside its weights.

    Args:
        encoder: As `from_pretrained` gave it, all bands and modalities included.
        source: What it was loaded from: a bundled name, a folder, or a Hub id.
        tolerance: Highest difference, over the standard deviation of the golden embedding.

    Returns:
        The highest difference found.

    Raises:
        InputError: If an embedding differs, or there is no golden.safetensors.
    """
    folder = bundled_folder(str(source)) or Path(source)
    path = folder / GOLDEN
    if encoder.revision and not path.is_file():
        from .downloads import download_file

        path = download_file(str(source), GOLDEN, encoder.revision)
    if not path.is_file():
        raise InputError(
            f'{source} holds no {GOLDEN}; `gfm-jepa publish` writes it beside the weights.'
        )
    tensors, worst = read_safetensors(path), 0.0
    for name in encoder.modalities:
        if not {f'input.{name}', f'embedding.{name}'} <= tensors.keys():
            raise InputError(f'{path} says nothing of {name}; give the encoder that was published.')
        chips, expected = tensors[f'input.{name}'], tensors[f'embedding.{name}']
        width = encoder.num_features
        if not chips.is_floating_point() or not chips.numel() or (
            expected.shape != (len(chips), width) or not expected.is_floating_point()
        ):  # fmt: skip
            raise InputError(
                f'{path} holds an embedding of {name} of shape {str(tuple(expected.shape))[:80]} '
                f'and {expected.dtype}, expected floats, {width} for each of its chips; fetch it '
                f'again.'
            )
        difference = (_embed(encoder, name, chips) - expected).abs().max()
        relative = float(difference / expected.std())
        if not relative <= tolerance:
            raise InputError(
                f'The embedding of {name} differs by {relative:.2g} standard deviations from the '
                f'one in {path}, more than {tolerance:g}; the weights or the code are not those '
                f'that were published: fetch them again, or install that version of gfm_jepa.'
            )
        worst = max(worst, relative)
    return worst


@torch.no_grad()
def _embed(encoder: BaseEncoder, name: str, chips: Tensor) -> Tensor:
    device = next(encoder.parameters()).device
    with evaluating(encoder):  # or batch norms would learn the noise
        embedding: Tensor = encoder({name: chips.to(device)})
    return embedding.cpu().contiguous()
