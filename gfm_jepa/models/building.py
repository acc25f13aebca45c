"""Build an encoder from a config and tensors that nobody vouches for, strictly."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .base import UNTRAINED, BaseEncoder
from .encoder import Encoder
from .timm_encoder import TimmEncoder
from .weight_files import Source, first_line, require_finite

# All that a config can name; nothing is imported by name.
CLASSES: Mapping[str, type[BaseEncoder]] = {'Encoder': Encoder, 'TimmEncoder': TimmEncoder}


def build(source: Source) -> BaseEncoder:
    """Build the encoder and load its weights strictly.

    Returns:
        The encoder in eval mode, float32.

    Raises:
        InputError: If the config names a class or an argument that is unknown, or the tensors do
            not fit it.
    """
    kind, config = _checked_config(source)
    untrained = frozenset(config.pop(UNTRAINED, ()))
    # On the meta device nothing is allocated or drawn, whatever the config claims.
    encoder = _made(kind, config, 'meta', source.name)
    if encoder is not None:
        _check_state(encoder, source.state, source.name)
    if kind is not Encoder or encoder is None:  # timm's own models hold more than their state
        encoder = _made(kind, config, 'cpu', source.name)
        assert encoder is not None
        _check_state(encoder, source.state, source.name)
    # Copies, now that they fit: the file may change or vanish while the model lives.
    state = {
        k: v.to(torch.float32 if v.is_floating_point() else v.dtype, copy=True)
        for k, v in source.state.items()
    }
    require_finite(state, source.name)
    _check_statistics(encoder, state, source)
    # `assign` puts the tensors that were read in the place of those without memory.
    encoder.load_state_dict(state, assign=True)
    encoder.untrained = untrained & encoder.modalities.keys()
    return encoder.eval()


def _made(
    kind: type[BaseEncoder], config: Mapping[str, Any], device: str, name: str
) -> BaseEncoder | None:
    """An encoder of a config; None if it computes while it is built, and has no memory for that."""
    try:
        with torch.device(device):
            return kind.from_config(config)
    except InputError as error:
        raise InputError(f'The config of {name} is refused: {error}') from error
    except (
        TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, AssertionError,
        LookupError,
    ) as error:  # fmt: skip
        if device == 'meta' and kind is not Encoder and isinstance(error, RuntimeError):
            return None
        raise InputError(f'{name} does not describe an encoder ({first_line(error)}).') from error


def _checked_config(source: Source) -> tuple[type[BaseEncoder], dict[str, Any]]:
    """The class and its arguments, looked at before anything is built."""
    if not isinstance(source.config, dict):
        raise InputError(f'The config of {source.name} should be a mapping of arguments.')
    config = dict(source.config)
    name = config.pop('class', 'TimmEncoder' if 'backbone' in config else 'Encoder')
    if not isinstance(name, str) or name not in CLASSES:
        raise InputError(
            f'The config of {source.name} names the class {repr(name)[:80]}; known are '
            f'{", ".join(CLASSES)}: update gfm_jepa, or take other weights.'
        )
    kind = CLASSES[name]
    known = [*inspect.signature(kind).parameters, UNTRAINED]
    if unknown := [key for key in config if key not in known]:
        raise InputError(
            f'The config of {source.name} has the argument {unknown[0]!r}, but {name} knows '
            f'{", ".join(known)}: update gfm_jepa, or take other weights.'
        )
    if 'modalities' not in config:
        raise InputError(f'The config of {source.name} names no modalities.')
    # Nothing that somebody else wrote makes this machine read its files or ask the network.
    listed = config['modalities']
    if not isinstance(listed, list | tuple) or not all(isinstance(m, dict) for m in listed):
        raise InputError(
            f'The config of {source.name} has modalities {str(listed)[:80]}; expected a list of '
            f'mappings of their fields.'
        )
    named = config.get(UNTRAINED, [])
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InputError(
            f'The config of {source.name} has {UNTRAINED} {str(named)[:80]}; expected a list of '
            f'modalities.'
        )
    if kind is TimmEncoder and not isinstance(config.get('backbone'), str):
        raise InputError(
            f'The config of {source.name} has the backbone {config.get("backbone")!r}; expected '
            f"timm's name of a model."
        )
    if config.pop('pretrained', False):
        raise InputError(
            f'The config of {source.name} asks for weights of another source; it should hold its '
            f'own: do not use it.'
        )
    # Building a deep trunk takes time, even without memory: the tensors say how deep it is.
    blocks = len({m[1] for k in source.state if (m := re.match(r'blocks\.(\d+)\.', k))})
    if kind is Encoder and config.get('depth') != blocks:
        raise InputError(
            f'The weights of {source.name} do not fit its config: they hold {blocks} blocks, but '
            f'depth is {config.get("depth")!r}.'
        )
    return kind, config


def _check_state(encoder: BaseEncoder, state: Mapping[str, Tensor], name: str) -> None:
    """Compare names and shapes, before torch does it at length."""
    expected = encoder.state_dict()
    problem = ''
    if missing := [key for key in expected if key not in state]:
        problem = f'{missing[0]} is missing'
    elif extra := [key for key in state if key not in expected]:
        problem = f'{extra[0]} belongs to no module'
    elif wrong := [key for key in expected if expected[key].shape != state[key].shape]:
        came, wanted = (str(tuple(s[wrong[0]].shape))[:80] for s in (state, expected))
        problem = f'{wrong[0]} has the shape {came}, expected {wanted}'
    elif wrong := [k for k in expected
                   if expected[k].is_floating_point() != state[k].is_floating_point()]:  # fmt: skip
        problem = f'{wrong[0]} holds {state[wrong[0]].dtype}, expected {expected[wrong[0]].dtype}'
    if problem:
        raise InputError(
            f'The weights of {name} do not fit its config: {problem}; fetch both again.'
        )


def _check_statistics(encoder: BaseEncoder, state: dict[str, Tensor], source: Source) -> None:
    """Compare the statistics that the config states with those of the tensors, and take them.

    They are the same, but for rounding where the weights were stored in 16 bits.
    """
    if below := [k for k in state if k.endswith('running_var') and bool((state[k] < 0).any())]:
        raise InputError(
            f'{below[0]} of {source.name} is below 0, which no variance is; fetch it again.'
        )
    bounds = {torch.float16: 1e-3, torch.bfloat16: 1e-2}
    for modality in encoder.modalities.values():
        own = f'patch_embeds.{modality.name}.' if isinstance(encoder, Encoder) else ''
        for key, stated in (('mean', modality.mean), ('std', modality.std)):
            value, wanted = state[own + key], torch.tensor(stated)
            bound = bounds.get(source.state[own + key].dtype, 1e-5)
            if not torch.allclose(value.flatten(), wanted, rtol=bound):
                raise InputError(
                    f'The weights of {source.name} do not fit its config: {key} of '
                    f'{modality.name} differs; fetch both again.'
                )
            state[own + key] = wanted.view_as(value)
