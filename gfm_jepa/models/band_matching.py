"""Fit a trained encoder to other bands and sensors, by name: what is copied, what is new."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modalities import MODALITIES, Modality, resolve
from .encoder import Encoder
from .patch_embed import LinearStem, PatchEmbed

ModalitySpec = Modality | str | Mapping[str, Any]


@dataclass(frozen=True)
class Match:
    """Where the first layer of one modality comes from.

    Attributes:
        modality: As the new encoder has it.
        copied: Its bands whose filters and statistics are the trained ones.
        new: Its bands whose filters are fresh.
    """

    modality: Modality
    copied: tuple[str, ...]
    new: tuple[str, ...]


def match_bands(
    encoder: Encoder,
    bands: Mapping[str, Sequence[str]] | None,
    modalities: Sequence[ModalitySpec] | None,
) -> tuple[Encoder, list[Match]]:
    """Build an encoder of other bands or modalities around a trained trunk.

    Args:
        encoder: The trained one.
        bands: Per trained modality, which of its bands to take, in the order of the input.
        modalities: Which modalities to take; all trained ones by default. A name is the trained
            modality; a mapping or `Modality` of a trained name may have other bands; any other
            name is a new sensor.

    Returns:
        The new encoder, in eval mode, and what was copied, per modality.

    Raises:
        InputError: If a band is not one of the trained ones, or a new one has no statistics.
    """
    trained = encoder.modalities
    wanted = {m.name: m for m in (_resolve(s, trained) for s in modalities or trained.values())}
    for name, picked in (bands or {}).items():
        if name not in trained or name not in wanted:
            raise InputError(
                f'bands names {name!r}, but the encoder has {", ".join(wanted)}; name one of them.'
            )
        if unknown := [b for b in picked if b not in wanted[name].bands]:
            raise InputError(
                f'bands asks for {unknown[0]} of {name}, which was trained on '
                f'{" ".join(trained[name].bands)}; pick among these, or describe the new band with '
                f'modalities=[...].'
            )
        wanted[name] = pick_bands(wanted[name], picked)
    matches = [_match(m, trained.get(m.name)) for m in wanted.values()]
    return _rebuild(encoder, matches).eval(), matches


def pick_bands(modality: Modality, bands: Sequence[str]) -> Modality:
    """The modality with only these of its bands, in this order, statistics included."""
    at = [modality.bands.index(b) for b in bands]

    def take(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[i] for i in at) if values else ()

    return replace(
        modality, bands=tuple(bands), mean=take(modality.mean), std=take(modality.std),
        common_names=take(modality.common_names),
        dark_band=modality.dark_band if modality.dark_band in bands else None,
    )  # fmt: skip


def format_matches(matches: Sequence[Match]) -> str:
    """A table of what was copied and what is new."""
    rows = [('modality', 'copied', 'new')]
    rows += [(m.modality.name, ' '.join(m.copied) or '-', ' '.join(m.new) or '-') for m in matches]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return '\n'.join(f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c}'.rstrip() for a, b, c in rows)


def refuse_new(matches: Sequence[Match]) -> None:
    """Refuse whatever was not trained.

    Raises:
        InputError: Naming all new bands.
    """
    if new := [f'{band} of {m.modality.name}' for m in matches for band in m.new]:
        raise InputError(
            f'strict_bands forbids filters that were not trained, and those of {", ".join(new)} '
            f'would be new; leave these bands out, or set strict_bands=False and fine-tune.'
        )


def _resolve(spec: ModalitySpec, trained: Mapping[str, Modality]) -> Modality:
    """What is asked for; under a trained name, the trained statistics of each known band."""
    if isinstance(spec, str) and spec in trained:
        return trained[spec]
    if isinstance(spec, Mapping) and spec.get('name') in trained:
        modality = _with_bands(trained[spec['name']], spec)
    else:
        modality = resolve(spec)
    known = trained.get(modality.name)
    return _with_statistics(modality, known) if known else modality.require_statistics()


def _with_bands(base: Modality, spec: Mapping[str, Any]) -> Modality:
    """A mapping's fields over the trained modality, whose statistics follow the bands' names."""
    if unknown := set(spec) - {f.name for f in fields(Modality)}:
        raise InputError(f'Modality field {sorted(unknown)[0]!r} is unknown.')
    given = dict(spec)
    if 'bands' in given:
        # Statistics of the trained bands are filled in afterwards, by name.
        given = {'mean': (), 'std': (), 'common_names': (), 'dark_band': None, **given}
    return replace(base, **given)


def _with_statistics(modality: Modality, trained: Modality) -> Modality:
    """Fill in statistics by band name: filters hold only under those they were trained with."""
    tables = [modality, MODALITIES.get(modality.name, modality)]
    mean, std = [], []
    for band in modality.bands:
        for table in [trained, *tables]:
            if band in table.bands and table.mean:
                at = table.bands.index(band)
                mean.append(table.mean[at])
                std.append(table.std[at])
                break
        else:
            raise InputError(
                f'{modality.name} was not trained with {band}, and no statistics of it are given; '
                f'run `gfm-jepa stats PATH --name {modality.name}` and give its mean and std.'
            )
    return replace(modality, mean=tuple(mean), std=tuple(std))


def _match(modality: Modality, trained: Modality | None) -> Match:
    known = trained.bands if trained else ()
    return Match(
        modality,
        tuple(b for b in modality.bands if b in known),
        tuple(b for b in modality.bands if b not in known),
    )


def _rebuild(encoder: Encoder, matches: Sequence[Match]) -> Encoder:
    """The same trunk with other patch embedders."""
    sizes = encoder.patch_sizes
    fresh = min(sizes.values())  # of a new sensor
    new = Encoder.from_config(
        {
            **encoder.config,
            'modalities': [m.modality for m in matches],
            'patch_size': {m.modality.name: sizes.get(m.modality.name, fresh) for m in matches},
        }
    )
    new.blocks.load_state_dict(encoder.blocks.state_dict())
    new.norm.load_state_dict(encoder.norm.state_dict())
    for match in matches:
        name = match.modality.name
        if name in encoder.modalities:
            _copy_embedder(encoder.embedder(name), new.embedder(name), match)
    return new


@torch.no_grad()
def _copy_embedder(old: PatchEmbed, new: PatchEmbed, match: Match) -> None:
    """Copy everything but the input filters as it is, and these band by band."""
    first = _first_layer(new)
    filters = first.weight.clone()
    source = _first_layer(old).weight
    for band in match.copied:
        to, at = new.modality.bands.index(band), old.modality.bands.index(band)
        filters[:, to] = source[:, at]
    state: dict[str, Tensor] = old.state_dict()
    key = next(k for k, v in new.named_parameters() if v is first.weight)
    new.load_state_dict({**state, key: filters, 'mean': new.mean, 'std': new.std})


def _first_layer(embed: PatchEmbed) -> nn.Conv2d:
    """The one layer that sees bands: (D, C, p, p), or of a conv stem (width, C, 3, 3)."""
    stem = embed.stem
    layer = stem.proj if isinstance(stem, LinearStem) else next(stem.stages[0].children())
    assert isinstance(layer, nn.Conv2d)
    return layer
