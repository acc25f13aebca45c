"""Fit a trained encoder to other bands and sensors, by name: what is copied, what is new."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..modalities import MODALITIES, Modality, pick_bands, resolve
from .encoder import Encoder
from .patch_embed import LinearStem, PatchEmbed

ModalitySpec = Modality | str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Match:
    """Where the first layer of one modality comes from.

    Attributes:
        modality: As the new encoder has it.
        copied: Its bands whose filters are trained ones, with the trained bands they are of.
        new: Its bands whose filters are fresh.
        source: The trained modality that the patch embedder is of; another one for a new sensor
            that shares colours with it; None if all is fresh.
    """

    modality: Modality
    copied: Mapping[str, str]
    new: tuple[str, ...]
    source: str | None


def match_bands(
    encoder: Encoder,
    bands: Mapping[str, Sequence[str]] | None,
    modalities: Sequence[ModalitySpec] | ModalitySpec | None,
    stem: str | Mapping[str, str] | None = None,
    strict: bool = True,
) -> tuple[Encoder, list[Match]]:
    """Build an encoder of other bands or modalities around a trained trunk.

    A new sensor whose bands share common names (``red``) with a trained modality of the same kind
    of stem starts from that one's patch embedder: these bands with its filters, all others with 0.
    Any other new sensor starts from nothing.

    Args:
        encoder: The trained one.
        bands: Per trained modality, which of its bands to take, in the order of the input.
        modalities: Which modalities to take; all trained ones by default. A name is the trained
            modality; a mapping or `Modality` of a trained name may have other bands; any other
            name is a new sensor.
        stem: Of new sensors; as most of the trained ones have it by default.
        strict: Refuse statistics of a trained band that are not the trained ones, where they else
            are not looked at: data bring their own.

    Returns:
        The new encoder, in eval mode, and what was copied, per modality.

    Raises:
        InputError: If a band is not one of the trained ones, a new one has no statistics, or a
            trained modality comes in another unit.
    """
    trained = encoder.modalities
    if isinstance(modalities, str | os.PathLike | Modality | Mapping):
        modalities = [modalities]
    specs = list(trained.values()) if modalities is None else list(modalities)
    wanted = {m.name: m for m in (resolve_over(s, trained, strict) for s in specs)}
    if not specs or len(wanted) < len(specs):
        names = ', '.join(
            s if isinstance(s, str) else resolve_over(s, trained, strict).name for s in specs
        )
        raise InputError(
            f'modalities names {names or "none"}; name one or more, each once, or leave it out for '
            f'all that were trained.'
        )
    if bands is not None and not isinstance(bands, Mapping):
        raise InputError(
            f'bands is {bands!r}; give the bands of a modality by its name: '
            f'{{"{next(iter(trained))}": [...]}}.'
        )
    for name, picked in (bands or {}).items():
        if name not in trained or name not in wanted:
            raise InputError(
                f'bands names {name!r}, but the encoder has {", ".join(wanted)}; name one of them.'
            )
        if not isinstance(picked, list | tuple) or not picked:
            raise InputError(f'bands gives {name} {picked!r}; give a list of names of its bands.')
        if unknown := [b for b in picked if b not in wanted[name].bands]:
            raise InputError(
                f'bands asks for {unknown[0]} of {name}, which was trained on '
                f'{" ".join(trained[name].bands)}; pick among these, or describe the new band with '
                f'modalities=[...].'
            )
        wanted[name] = pick_bands(wanted[name], picked)
    stems = {m: _stem_of(encoder, m, stem) for m in wanted}
    matches = [_match(m, encoder, stems[m.name]) for m in wanted.values()]
    rebuilt = _rebuild(encoder, matches, stems).eval()
    rebuilt.untrained = frozenset(
        m.modality.name for m in matches if m.source is None or m.source in encoder.untrained
    )
    return rebuilt, matches


def format_matches(matches: Sequence[Match]) -> str:
    """A table of what was copied and what is new."""
    rows = [('modality', 'copied', 'new')]
    for m in matches:
        name = m.modality.name
        title = name if m.source in (name, None) else f'{name} (from {m.source})'
        rows.append((title, ' '.join(m.copied) or '-', ' '.join(m.new) or '-'))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return '\n'.join(f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c}'.rstrip() for a, b, c in rows)


def refuse_new(matches: Sequence[Match]) -> None:
    """Refuse whatever was not trained: bands, and sensors, even if their colours are known.

    Raises:
        InputError: Naming all new bands.
    """
    if new := [
        f'{band} of {m.modality.name}'
        for m in matches for band in (m.new if m.source == m.modality.name else m.modality.bands)
    ]:  # fmt: skip
        raise InputError(
            f'strict_bands forbids filters that were not trained, and those of {", ".join(new)} '
            f'would be new; leave these bands out, or set strict_bands=False and fine-tune.'
        )


def resolve_over(
    spec: ModalitySpec, trained: Mapping[str, Modality], strict: bool = True
) -> Modality:
    """What is asked for; under a trained name, the trained statistics of each known band.

    Args:
        spec: A name, a `Modality`, a YAML path, or a mapping of its fields.
        trained: Modalities by name, whose statistics hold.
        strict: As in `match_bands`.

    Raises:
        InputError: If there are no statistics, or another unit than the trained one, or, if
            `strict`, statistics of a trained band that are not those it was trained with.
    """
    if isinstance(spec, str) and spec in trained:
        return trained[spec]
    if isinstance(spec, Mapping) and spec.get('name') in list(trained):  # of any type
        modality = _with_bands(trained[spec['name']], spec)
    else:
        modality = resolve(spec)
    known = trained.get(modality.name)
    if known is None:
        return modality.require_statistics()
    if modality.unit != known.unit:
        raise InputError(
            f'{known.name} was trained in the unit "{known.unit}", but "{modality.unit}" is given; '
            f'convert the values, or give the sensor a name of its own.'
        )
    return _with_statistics(modality, known, strict)


def _with_bands(base: Modality, spec: Mapping[str, Any]) -> Modality:
    """A mapping's fields over the trained modality, whose statistics follow the bands' names."""
    if unknown := set(spec) - {f.name for f in fields(Modality)}:
        raise InputError(f'Modality field {sorted(unknown)[0]!r} is unknown.')
    given = dict(spec)
    if 'bands' in given:
        # Statistics of the trained bands are filled in afterwards, by name.
        given = {'mean': (), 'std': (), 'common_names': (), 'dark_band': None, **given}
    return replace(base, **given)


def _with_statistics(modality: Modality, trained: Modality, strict: bool) -> Modality:
    """Fill in statistics by band name: filters hold only under those they were trained with."""
    usual = MODALITIES.get(modality.name)
    for at, band in enumerate(modality.bands):
        # Beside a new band those of the trained ones have to be given, too, and are not looked at.
        if strict and modality.mean and set(modality.bands) <= set(trained.bands):
            given = (modality.mean[at], modality.std[at])
            if given not in [_statistics(m, band) for m in (trained, usual) if m]:
                raise InputError(
                    f'{band} of {modality.name} was trained with mean and std '
                    f'{_statistics(trained, band)}, but {given} is given; filters hold only under '
                    f'theirs: leave mean and std out, or give the sensor a name of its own.'
                )
    mean, std = [], []
    for band in modality.bands:
        found = (_statistics(m, band) for m in (trained, modality, usual) if m)
        if known := next(filter(None, found), None):
            mean.append(known[0])
            std.append(known[1])
        else:
            raise InputError(
                f'{modality.name} was not trained with {band}, and no statistics of it are given; '
                f'run `gfm-jepa stats PATH --name {modality.name}` and give its mean and std.'
            )
    return replace(modality, mean=tuple(mean), std=tuple(std))


def _statistics(modality: Modality, band: str) -> tuple[float, float] | None:
    """Mean and standard deviation of a band, if they are known."""
    if band not in modality.bands or not modality.mean:
        return None
    at = modality.bands.index(band)
    return modality.mean[at], modality.std[at]


def _match(modality: Modality, encoder: Encoder, stem: str) -> Match:
    """Find the trained filters of a modality's bands."""
    source, copied = None, {}
    if modality.name in encoder.modalities:
        source, known = modality.name, encoder.modalities[modality.name].bands
        copied = {b: b for b in modality.bands if b in known}
    else:
        kind = (stem, _new_patch_size(encoder))
        for name, trained in encoder.modalities.items():
            shared = _same_colours(modality, trained)
            own = (encoder.stems[name], encoder.patch_sizes[name])
            trains = name not in encoder.untrained
            if own == kind and trains and len(shared) > len(copied):
                source, copied = name, shared
    return Match(modality, copied, tuple(b for b in modality.bands if b not in copied), source)


def _same_colours(modality: Modality, trained: Modality) -> dict[str, str]:
    """Bands of a modality with those of a trained one that have the same common name."""
    known = {colour: band for band, colour in _colours(trained).items()}
    # Of several bands of one colour the first: all of them would add up to it several times.
    own = {colour: band for band, colour in reversed(_colours(modality).items())}
    return {b: known[c] for b, c in _colours(modality).items() if c in known and own[c] == b}


def _colours(modality: Modality) -> dict[str, str]:
    """Common name by band; where none are stated, a band may be called by one (``red``)."""
    if modality.common_names:
        pairs = zip(modality.bands, modality.common_names, strict=True)
        return {band: name for band, name in pairs if name}
    known = {name for m in MODALITIES.values() for name in m.common_names}
    return {band: band for band in modality.bands if band in known}


def _stem_of(encoder: Encoder, name: str, wanted: str | Mapping[str, str] | None) -> str:
    """The kind of stem of a trained modality, or of a new one."""
    stems = encoder.stems
    if name in stems:
        return stems[name]
    if isinstance(wanted, Mapping):
        wanted = wanted.get(name)
    return wanted or max(stems.values(), key=list(stems.values()).count)


def _new_patch_size(encoder: Encoder) -> int:
    """Of a new sensor."""
    return min(encoder.patch_sizes.values())


def _rebuild(encoder: Encoder, matches: Sequence[Match], stems: Mapping[str, str]) -> Encoder:
    """The same trunk with other patch embedders."""
    sizes, fresh = encoder.patch_sizes, _new_patch_size(encoder)
    config = {
        **encoder.config,
        'modalities': [m.modality for m in matches],
        'patch_size': {m.modality.name: sizes.get(m.modality.name, fresh) for m in matches},
        'stem': stems if len(set(stems.values())) > 1 else next(iter(stems.values())),
    }
    new = Encoder.from_config(config)
    if encoder.readout is not None and new.depths_dim != encoder.depths_dim:
        warnings.warn(
            f'The readout of the weights reads {encoder.depths_dim} pooled features, of which '
            f'stems of several kinds leave {new.depths_dim}; the embedding is the mean over tokens '
            f'now, until a readout is fitted (gfm_jepa.evaluation.readouts).',
            stacklevel=3,
        )
        new = Encoder.from_config({**config, 'readout': None})
    new.blocks.load_state_dict(encoder.blocks.state_dict())
    new.norm.load_state_dict(encoder.norm.state_dict())
    if encoder.readout is not None and new.readout is not None:
        new.readout.load_state_dict(encoder.readout.state_dict())
    for match in matches:
        if match.source is not None:
            _copy_embedder(encoder.embedder(match.source), new.embedder(match.modality.name), match)
    return new


@torch.no_grad()
def _copy_embedder(old: PatchEmbed, new: PatchEmbed, match: Match) -> None:
    """Copy everything but the input filters as it is, and these band by band."""
    state: dict[str, Tensor] = old.state_dict()
    state.update({'mean': new.mean, 'std': new.std})
    for key in _input_filters(new):
        filters = new.state_dict()[key].clone()
        if match.source != match.modality.name:
            filters.zero_()  # what the trained layers have never seen should not disturb them
        for band, trained in match.copied.items():
            to, at = new.modality.bands.index(band), old.modality.bands.index(trained)
            filters[:, to] = old.state_dict()[key][:, at]
        state[key] = filters
    new.load_state_dict(state)


def _input_filters(embed: PatchEmbed) -> list[str]:
    """Names of the tensors (filters, C, p, p) that see bands."""
    first = 'stem.proj.weight' if isinstance(embed.stem, LinearStem) else 'stem.stages.0.0.weight'
    return [first] if embed.filters is None else [first, 'filters.weight']
