"""Learning rates that fall from the head down to the first layer."""

import re
from collections.abc import Iterable
from typing import Any

from timm.models import group_parameters
from torch import nn

from ..models import BaseEncoder, TimmEncoder


def layer_ids(encoder: BaseEncoder) -> dict[str, int]:
    """Number each parameter's layer: 0 for what sees pixels, then block by block.

    Args:
        encoder: Ours, whose blocks are its layers; or a timm model, which groups its own.
    """
    names = [name for name, _ in encoder.named_parameters()]
    if isinstance(encoder, TimmEncoder):
        model = encoder.backbone
        ids = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        return {name: ids[name.removeprefix('backbone.')] for name in names}
    numbers = {n: int(m[1]) + 1 for n in names if (m := re.match(r'blocks\.(\d+)\.', n))}
    last = max(numbers.values(), default=0)
    return {n: numbers.get(n, 0 if n.startswith('patch_embeds.') else last + 1) for n in names}


def parameter_groups(
    encoder: BaseEncoder,
    others: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    layer_decay: float,
) -> list[dict[str, Any]]:
    """Group all that learns by layer and by weight decay, which vectors have none of.

    Args:
        encoder: Whose layers get ``lr * layer_decay ** (distance to the head)``.
        others: Parameters of the head, with the full rate.
        lr: Highest learning rate.
        weight_decay: Of matrices.
        layer_decay: Factor from one layer to the one below; 1 gives all the same rate.

    Source: Bao et al., "BEiT" (2022), section 3.1, after ELECTRA.
    """
    ids = layer_ids(encoder)
    top = max(ids.values()) + 1
    layers = [(top, p) for p in others]
    layers += [(ids[n], p) for n, p in encoder.named_parameters()]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for layer, parameter in layers:
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim > 1
        group = groups.setdefault(
            (layer, matrix),
            {'params': [], 'lr': lr * layer_decay ** (top - layer),
             'weight_decay': weight_decay if matrix else 0.0},
        )  # fmt: skip
        group['params'].append(parameter)
    return list(groups.values())
