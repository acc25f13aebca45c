"""What is written about a raster beside it: our YAML, a STAC Item, or its name."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

# 2020-04-08, 20200408, 2020-04-08T14:37:29, 20200408T143729, but no part of a longer number.
_DATE = re.compile(
    r'(?<!\d)((?:19|20)\d\d)([-_]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])'
    r'(?:[T_ ]([01]\d|2[0-3])[-_:]?([0-5]\d)[-_:]?([0-5]\d))?(?!\d)'
)


@dataclass(frozen=True)
class Facts:
    """What is known of a raster from outside of it; None is "not said".

    Attributes:
        modality: Name of what it feeds.
        bands: Names of its bands, in its order.
        nodata: Value of "not there".
        scale: Factor that turns stored values into physical ones, one or one per band.
        offset: Added after `scale`.
        time: Acquisition, ISO 8601, UTC.
        baseline: Sentinel-2 processing baseline, such as 4.0.
    """

    modality: str | None = None
    bands: tuple[str, ...] | None = None
    nodata: float | None = None
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None
    time: str | None = None
    baseline: float | None = None

    def over(self, other: 'Facts') -> 'Facts':
        """What self says, and where it says nothing, what `other` does."""
        mine = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(other, **mine)


def facts_of(path: Path) -> Facts:
    """Gather what YAML and STAC beside a file say; YAML first.

    ``<stem>.yaml``, or ``bands.yaml`` for all rasters of a folder, holds fields of `Facts`. A STAC
    Item (``*.json`` in the same folder) counts for the files that its assets name.

    Raises:
        InputError: If the YAML is none, or has an unknown field.
    """
    facts = Facts()
    for name in (f'{path.stem}.yaml', f'{path.stem}.yml', 'bands.yaml'):
        if (path.parent / name).is_file():
            facts = facts.over(_from_yaml(path.parent / name))
    return facts.over(_stac_items(path.parent).get(path.name, Facts()))


def sidecars(folder: Path) -> list[Path]:
    """Files of a folder that `facts_of` may read."""
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.suffix in ('.yaml', '.yml', '.json')]


def joined(parts: Sequence[Facts]) -> Facts:
    """Facts of one-band files that are one raster, in their order: names come from the files."""
    first, count = parts[0], len(parts)
    if count == 1:
        return first
    values: dict[str, tuple[float, ...] | None] = {}
    for key, nothing in (('scale', 1.0), ('offset', 0.0)):
        each: list[tuple[float, ...] | None] = [getattr(part, key) for part in parts]
        if any(value and len(value) > 1 for value in each):  # a YAML for all of them
            values[key] = each[0]
        elif any(each):
            values[key] = tuple(value[0] if value else nothing for value in each)
        else:
            values[key] = None
    named = first.bands is not None and len(first.bands) == count
    return replace(first, bands=first.bands if named else None, **values)  # type: ignore[arg-type]


def time_of(texts: Sequence[str]) -> str | None:
    """The first date in any of the texts, as ISO 8601; None without one."""
    for text in texts:
        if found := _DATE.search(text):
            year, _, month, day, *clock = found.groups()
            hour, minute, second = (int(c or 0) for c in clock)
            try:
                time = datetime(int(year), int(month), int(day), hour, minute, second, tzinfo=UTC)
            except ValueError:  # the 31st of February
                continue
            return time.strftime('%Y-%m-%dT%H:%M:%S')
    return None


def baseline_of(texts: Sequence[str]) -> float | None:
    """Sentinel-2 processing baseline out of a product name (``_N0400_`` is 4.0)."""
    for text in texts:
        if found := re.search(r'_N(\d\d)(\d\d)_R\d{3}', text):
            return float(f'{found[1]}.{found[2]}')
    return None


def _from_yaml(path: Path) -> Facts:
    """Read our own sidecar."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f'{path} is not YAML: {str(error).splitlines()[0]}.') from error
    # A modality file that `gfm-jepa stats` wrote may lie there too: it is no sidecar.
    if not isinstance(content, dict) or {'name', 'gsd', 'unit'} <= set(content):
        return Facts()
    known = {f.name for f in fields(Facts)}
    if unknown := {str(key) for key in content} - known:
        raise InputError(
            f'{path} has the field {sorted(unknown)[0]!r}; a sidecar has '
            f'{", ".join(sorted(known))}.'
        )
    return _as_facts(content, path)


def _as_facts(content: Mapping[str, Any], path: Path) -> Facts:
    """Bring values to their types, or say which one is none."""
    kinds: dict[str, Callable[[Any], Any]] = {
        'modality': str, 'nodata': float, 'baseline': float, 'bands': _tuple_of(str),
        'scale': _tuple_of(float), 'offset': _tuple_of(float),
        'time': lambda value: time_of([str(value)]),
    }  # fmt: skip
    values = {}
    for key, value in content.items():
        try:
            values[key] = None if value is None else kinds[key](value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f'{path} has {key}: {value!r}, which is not what it should be ({error}).'
            ) from error
    return Facts(**values)


def _tuple_of(kind: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: tuple(map(kind, value if isinstance(value, list) else [value]))


@lru_cache(maxsize=64)
def _stac_items(folder: Path) -> dict[str, Facts]:
    """What the STAC Items in a folder say, by name of the asset's file."""
    found: dict[str, Facts] = {}
    for path in sorted(folder.glob('*.json')):
        if path.stat().st_size > 10_000_000:  # an Item takes kilobytes
            continue
        try:
            item = json.loads(path.read_text())
        except ValueError:  # not JSON, or not text; nothing says that it should be an Item
            continue
        if not isinstance(item, dict) or item.get('type') != 'Feature':
            continue
        assets = item.get('assets')
        for asset in assets.values() if isinstance(assets, dict) else ():
            name = str(asset.get('href', '')) if isinstance(asset, dict) else ''
            try:
                found[name.rsplit('/', 1)[-1]] = _from_stac(item, asset)
            except (AttributeError, TypeError, ValueError):  # not as STAC has it: it says nothing
                continue
    return found


def _number(value: Any) -> float | None:
    """A number, if it is one; versions are not always."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _from_stac(item: Mapping[str, Any], asset: Mapping[str, Any]) -> Facts:
    """Facts of one asset: STAC 1.1 ``bands``, or ``eo:bands`` and ``raster:bands``."""
    properties = item.get('properties', {})
    bands = asset.get('bands') or asset.get('eo:bands') or []
    rasters = asset.get('raster:bands') or asset.get('bands') or [asset]
    names = [b.get('name') or b.get('eo:common_name') or b.get('common_name') for b in bands]

    def per_band(key: str) -> tuple[float, ...] | None:
        values = [r.get(key, r.get(f'raster:{key}', asset.get(f'raster:{key}'))) for r in rasters]
        return tuple(float(v) for v in values) if all(v is not None for v in values) else None

    scale, offset = per_band('scale'), per_band('offset')
    nodata = rasters[0].get('nodata', asset.get('nodata'))
    # Earth Search has already subtracted the offset, whatever the baseline.
    applied = properties.get('earthsearch:boa_offset_applied', False)
    baseline = properties.get('s2:processing_baseline') or properties.get('processing:version')
    time = properties.get('datetime') or properties.get('start_datetime')
    return Facts(
        bands=tuple(names) if names and all(names) else None,
        nodata=None if nodata is None else float(nodata),
        # Some tools always write 1 and 0, which say nothing.
        scale=scale if any(s != 1 for s in scale or ()) else None,
        offset=offset if any(offset or ()) and not applied else None,
        time=time_of([str(time)]) if time else None,
        baseline=1.0 if applied else _number(baseline),
    )
