"""What a sensor product is: bands by name, ground sampling distance, unit, statistics.

The only file that knows a sensor. A modality of your own needs no change here: write it as YAML
(``gfm-jepa stats PATH --name my_sensor -o my_sensor.yaml`` does) or build a `Modality` in Python,
and name it in the config.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError

_SMALLEST_GSD, _LARGEST_GSD = 1e-9, 1e9  # metres; beyond, positions overflow


@dataclass(frozen=True)
class Modality:
    """A sensor product: what one raster of it holds and in which unit.

    Args:
        name: Key of its tensors in a batch, such as ``s2_l2a``.
        bands: The sensor's own band names, in the order of the tensor's channels.
        gsd: Nominal ground sampling distance, metres per pixel. A batch may say otherwise.
        unit: Physical unit of the values, such as ``DN = reflectance x 10000`` or ``dB``.
        mean: Mean per band, in `unit`; empty when no statistics are known yet.
        std: Standard deviation per band, in `unit`.
        source: Where `mean` and `std` come from.
        valid_range: Lowest and highest plausible value in `unit`; input outside it warns.
        nodata: Value that means "not there" in all bands of files that carry no nodata tag.
        aliases: File or folder names by which archives call it (``S2L2A.tif``).
        common_names: STAC's common name of each band (``blue``), by which files may call it.
        quantification: Values in `unit` for one unit of a file that states scale and offset, such
            as 10000 where the file's scale makes reflectances of 0..1.
        added_offset: What some archives add to the values and `unit` leaves out (Sentinel-2
            processing baseline 04.00: 1000).
        dark_band: Band that is near 0 without `added_offset`, so that data shows whether it is in.
        categorical: Whether values are class numbers, which are never averaged.

    Raises:
        InputError: If there is no band, a band comes twice, gsd is not positive, or statistics
            do not match the bands.
    """

    name: str
    bands: tuple[str, ...]
    gsd: float
    unit: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    source: str = ''
    valid_range: tuple[float, float] | None = None
    nodata: float | None = None
    aliases: tuple[str, ...] = ()
    common_names: tuple[str, ...] = ()
    quantification: float = 1.0
    added_offset: float = 0.0
    dark_band: str | None = None
    categorical: bool = False

    def __post_init__(self) -> None:
        """Bring YAML lists to tuples and refuse what cannot be right."""
        for key in ('bands', 'mean', 'std', 'valid_range', 'aliases', 'common_names'):
            value = getattr(self, key)
            if isinstance(value, list):
                object.__setattr__(self, key, tuple(value))
        # Tensors are called after it, with dots between.
        if not isinstance(self.name, str) or not self.name or '.' in self.name:
            raise InputError(
                f'A modality is called {self.name!r}; give it a name without dots, such as s2_v1.'
            )
        for key in ('unit', 'source', 'dark_band'):
            value = getattr(self, key)
            if not isinstance(value, str) and not (key == 'dark_band' and value is None):
                raise InputError(f'Modality {self.name!r} has {key} {value!r}; give a text.')
        for key in ('nodata', 'quantification', 'added_offset'):
            value = getattr(self, key)
            if not isinstance(value, Real) and not (key == 'nodata' and value is None):
                raise InputError(f'Modality {self.name!r} has {key} {value!r}; give a number.')
        for key in ('bands', 'aliases', 'common_names'):
            value = getattr(self, key)
            if not isinstance(value, tuple) or not all(isinstance(v, str) for v in value):
                raise InputError(
                    f'Modality {self.name!r} has {key} {value!r}; give a list of names.'
                )
        for key, count in (('mean', None), ('std', None), ('valid_range', 2), ('gsd', 0)):
            if not _are_numbers(getattr(self, key), count):
                raise InputError(
                    f'Modality {self.name!r} has {key} {getattr(self, key)!r}; give '
                    f'{"a number" if count == 0 else "two numbers" if count else "numbers"}.'
                )
        for key in ('mean', 'std', 'valid_range'):  # numpy's numbers are none to JSON
            if getattr(self, key) is not None:
                object.__setattr__(self, key, tuple(float(v) for v in getattr(self, key)))
        object.__setattr__(self, 'gsd', float(self.gsd))
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise InputError(
                f'Modality {self.name!r} has bands {self.bands}; give each band a name of its own.'
            )
        if not _SMALLEST_GSD <= self.gsd <= _LARGEST_GSD:
            raise InputError(
                f'Modality {self.name!r} has gsd {self.gsd}; give metres per pixel, from '
                f'{_SMALLEST_GSD:g} to {_LARGEST_GSD:g}.'
            )
        if len(self.mean) != len(self.std) or (self.mean and len(self.mean) != len(self.bands)):
            raise InputError(
                f'Modality {self.name!r} has {len(self.bands)} bands, {len(self.mean)} means and '
                f'{len(self.std)} standard deviations; give one of each per band.'
            )
        if self.common_names and len(self.common_names) != len(self.bands):
            raise InputError(
                f'Modality {self.name!r} has {len(self.bands)} bands and {len(self.common_names)} '
                f'common_names; give one per band, empty where there is none.'
            )
        if any(not s > 0 for s in self.std):
            raise InputError(
                f'Modality {self.name!r} has a standard deviation that is not above 0: {self.std}; '
                f'leave the constant band out.'
            )

    def require_statistics(self) -> 'Modality':
        """Return self, or raise InputError when mean and std are not known."""
        if not self.mean:
            raise InputError(
                f'Modality {self.name!r} has no mean and std, and none are invented: run '
                f'`gfm-jepa stats PATH --name {self.name}` and put its output into the config.'
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings, for YAML, JSON and checkpoints."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _are_numbers(value: Any, count: int | None) -> bool:
    """Whether it is a finite number (count 0), a tuple of so many, or of any number (None)."""
    if count == 0:
        return isinstance(value, Real) and math.isfinite(value)
    if value is None:
        return count is not None
    fits = isinstance(value, tuple) and count in (None, len(value))
    return fits and all(_are_numbers(v, 0) for v in value)


# SSL4EO-S12 v1.1: statistics printed in the README of DLR-MF-DAS/SSL4EO-S12-v1.1 (baseline 04.00
# offset already subtracted, as in our unit).
_SSL4EO = 'SSL4EO-S12 v1.1, README of DLR-MF-DAS/SSL4EO-S12-v1.1'
_COMPUTED = 'computed by gfm-jepa stats on '
_S2_UNIT = 'DN = reflectance x 10000, without the +1000 offset of baseline 04.00'

S2_L1C = Modality(
    name='s2_l1c',
    bands=('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B10', 'B11',
           'B12'),
    gsd=10.0,
    unit=_S2_UNIT,
    mean=(1607.3, 1393.1, 1320.2, 1374.0, 1562.5, 2110.1, 2392.8, 2321.2, 2583.8, 838.7, 21.8,
          2205.1, 1545.8),
    std=(786.5, 849.7, 875.3, 1143.6, 1126.2, 1162.0, 1273.5, 1246.8, 1342.8, 576.8, 45.6, 1340.3,
         1145.0),
    source=_SSL4EO,
    valid_range=(0.0, 30000.0),
    nodata=0.0,
    aliases=('S2L1C', 'S2_L1C', 'L1C', 'MSIL1C'),
    common_names=('coastal', 'blue', 'green', 'red', 'rededge071', 'rededge075', 'rededge078',
                  'nir', 'nir08', 'nir09', 'cirrus', 'swir16', 'swir22'),
    quantification=10000.0,
    added_offset=1000.0,
    dark_band='B10',  # cirrus: water vapour lets nothing through from the ground
)  # fmt: skip

S2_L2A = Modality(
    name='s2_l2a',
    bands=('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12'),
    gsd=10.0,
    unit=_S2_UNIT,
    mean=(793.2, 924.9, 1184.6, 1340.9, 1671.4, 2240.1, 2468.4, 2563.2, 2627.7, 2711.1, 2416.7,
          1849.6),
    std=(1160.1, 1201.1, 1219.9, 1397.2, 1400.0, 1373.1, 1429.2, 1485.0, 1447.8, 1652.7, 1471.0,
         1365.3),
    source=_SSL4EO,
    valid_range=(0.0, 30000.0),
    nodata=0.0,
    aliases=('S2L2A', 'S2_L2A', 'L2A', 'MSIL2A', 'sentinel2'),
    common_names=('coastal', 'blue', 'green', 'red', 'rededge071', 'rededge075', 'rededge078',
                  'nir', 'nir08', 'nir09', 'swir16', 'swir22'),
    quantification=10000.0,
    added_offset=1000.0,
)  # fmt: skip

S1 = Modality(
    name='s1',
    bands=('VV', 'VH'),
    gsd=10.0,
    unit='dB',
    mean=(-12.577, -20.265),
    std=(5.179, 5.872),
    source=_SSL4EO + ' (S1GRD)',
    valid_range=(-80.0, 40.0),
    aliases=('S1RTC', 'S1GRD', 'S1', 'sentinel1'),
)

RGB = Modality(
    name='rgb',
    bands=('red', 'green', 'blue'),
    gsd=10.0,
    unit='8-bit display value, 0..255',
    mean=(100.7, 87.5, 61.9),
    std=(68.6, 47.6, 40.6),
    source=_SSL4EO + ' (S2RGB)',
    valid_range=(0.0, 255.0),
    aliases=('S2RGB', 'RGB'),
)

LANDSAT8 = Modality(
    name='landsat8',
    bands=('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B09'),
    gsd=30.0,
    unit='DN = reflectance x 10000',
    mean=(1192.16, 1015.07, 989.581, 851.674, 2093.13, 1259.13, 655.568, 920.215, 7.42766),
    std=(175.448, 212.086, 272.056, 363.861, 1140.65, 805.447, 486.293, 288.845, 3.66805),
    source=_COMPUTED + 'one Landsat 8 scene of Madagascar at 58 m, 398525 pixels',
    valid_range=(0.0, 20000.0),
    nodata=0.0,
    aliases=('landsat8', 'L8', 'LC08'),
    common_names=('coastal', 'blue', 'green', 'red', 'nir08', 'swir16', 'swir22', 'pan', 'cirrus'),
    quantification=10000.0,
)

LANDSAT7 = Modality(
    name='landsat7',
    bands=('B1', 'B2', 'B3', 'B4', 'B5', 'B7'),
    gsd=30.0,
    unit='8-bit digital number, 0..255',
    mean=(85.4795, 67.7634, 65.2422, 58.8001, 66.6167, 49.6521),
    std=(14.0733, 12.9906, 15.7659, 15.8272, 26.0879, 22.1672),
    source=_COMPUTED + 'three Landsat 7 images of Olinda and Taizhou, 442848 pixels',
    valid_range=(0.0, 255.0),
    aliases=('landsat7', 'L7', 'LE07'),
    common_names=('blue', 'green', 'red', 'nir08', 'swir16', 'swir22'),
)

NAIP = Modality(
    name='naip',
    bands=('red', 'green', 'blue', 'nir'),
    gsd=1.0,
    unit='8-bit digital number, 0..255',
    mean=(99.7609, 115.856, 96.1593, 152.441),
    std=(36.4657, 29.3382, 29.3313, 67.5153),
    source=_COMPUTED + 'two NAIP images of North Dakota at 5 m, 1351498 pixels',
    valid_range=(0.0, 255.0),
    aliases=('naip',),
)

NDVI = Modality(
    name='ndvi',
    bands=('ndvi',),
    gsd=10.0,
    unit='index, -1..1',
    mean=(0.3372,),
    std=(0.340028,),
    source=_COMPUTED + 'TerraMesh and eo-learn test chips, 10 files, 301380 pixels',
    valid_range=(-1.01, 1.01),
    aliases=('NDVI',),
)

DEM = Modality(
    name='dem',
    bands=('elevation',),
    gsd=30.0,
    unit='metres above sea level',
    mean=(651.663,),
    std=(928.168,),
    source='TerraMesh (Blumenstiel et al., 2025), its DEM, as printed in code that reads it',
    valid_range=(-500.0, 9000.0),
    aliases=('DEM', 'DTM', 'DSM', 'elevation'),
)

LULC = Modality(
    name='lulc',
    bands=('lulc',),
    gsd=10.0,
    unit='class number',
    aliases=('LULC', 'landcover'),
    categorical=True,
)

# What feeds no model: only its share of a chip counts.
CLOUD_MASK = Modality(
    name='cloud_mask',
    bands=('cloud',),
    gsd=10.0,
    unit='0 clear, anything else cloud',
    aliases=('CLOUDMASK', 'cloud_mask', 'CLM'),
    categorical=True,
)

MODALITIES: Mapping[str, Modality] = {
    m.name: m for m in (S2_L2A, S2_L1C, LANDSAT8, LANDSAT7, NAIP, RGB, S1, NDVI, DEM)
}
# Rasters of labels: indexed and read like the others, but nothing embeds them.
LABELS: Mapping[str, Modality] = {LULC.name: LULC}


def resolve(spec: 'Modality | str | os.PathLike[str] | Mapping[str, Any]') -> Modality:
    """Turn what a config says into a Modality.

    Args:
        spec: A Modality; a known name (``s2_l2a``); the path of a YAML file that describes one; or
            a mapping of `Modality` fields, which, under a known name, replaces only those given
            (``{name: naip, gsd: 5}``); some of its bands keep their statistics.

    Raises:
        InputError: If the name or a field is unknown, or fields are missing.

    Examples:
        >>> resolve({'name': 'naip', 'gsd': 5.0}).gsd
        5.0
    """
    if isinstance(spec, Modality):
        return spec
    if isinstance(spec, os.PathLike):
        spec = str(spec)
    if isinstance(spec, str):
        if spec in MODALITIES or spec in LABELS:
            return MODALITIES.get(spec) or LABELS[spec]
        if Path(spec).suffix in ('.yaml', '.yml'):
            return _from_yaml(Path(spec))
        raise InputError(
            f'Unknown modality {spec!r}: expected one of {", ".join(MODALITIES)}, the path of a '
            f'YAML file that describes one, or a mapping with its fields.'
        )
    known = {f.name for f in fields(Modality)}
    if unknown := set(spec) - known:
        raise InputError(
            f'Modality field {sorted(unknown)[0]!r} is unknown; the fields are {", ".join(known)}.'
        )
    if 'name' not in spec:
        raise InputError(f'A modality needs a name; got the fields {", ".join(spec)}.')
    base = MODALITIES.get(spec['name']) if isinstance(spec['name'], str) else None
    if base is not None:
        named = spec.get('bands', base.bands)
        if not isinstance(named, list | tuple):
            raise InputError(f'bands of {base.name} is {named!r}; give a list of names.')
        if set(named) <= set(base.bands):
            base = pick_bands(base, named)
        else:  # other bands have other names and statistics
            base = replace(base, bands=('?',), mean=(), std=(), common_names=(), dark_band=None)
        return replace(base, **spec)
    if missing := {'bands', 'gsd', 'unit'} - set(spec):
        raise InputError(
            f'Modality {spec["name"]!r} is not a known one and lacks {", ".join(sorted(missing))}.'
        )
    return Modality(**spec)


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


def resolve_all(specs: 'Sequence[Modality | str | Mapping[str, Any]]') -> tuple[Modality, ...]:
    """Resolve each and refuse none at all, or the same name twice."""
    modalities = tuple(resolve(s) for s in specs)
    names = [m.name for m in modalities]
    if not names or len(set(names)) != len(names):
        raise InputError(f'Expected one or more modalities with different names, got {names}.')
    return modalities


def _from_yaml(path: Path) -> Modality:
    """Read one modality from a YAML file."""
    if not path.is_file():
        raise InputError(f'There is no modality file {path}.')
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f'{path} is not YAML: {str(error).splitlines()[0]}.') from error
    if not isinstance(content, dict):
        raise InputError(f'{path} should hold the fields of one modality, such as name and bands.')
    return resolve(content)
