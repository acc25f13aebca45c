"""What any rasters hold, seen from a bounded number of random chips: the numbers of `explore`."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.chips import ChipFilter, FileChips, LeftOut
from ..data.rasters import Rasters
from ..errors import InputError
from ..modalities import Modality
from .explore_looks import Float, Look

MOST_EXAMPLES = 10


@dataclass(frozen=True)
class SurveySettings:
    """How rasters are looked at.

    Args:
        chip_size: Side of a chip, pixels of the anchor; an index has its own.
        stride: Pixels from one chip to the next; chip_size by default.
        patch_size: As in `Rasters`.
        keep: Which chips count.
        chips: Chips per modality that are read.
        seed: Of the draw.

    Raises:
        InputError: If no chip is to be read, or the seed is negative.
    """

    chip_size: int = 96
    stride: int | None = None
    patch_size: int = 8
    keep: ChipFilter = field(default_factory=ChipFilter)
    chips: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be right."""
        if self.chips < 1 or self.seed < 0:
            raise InputError(f'chips is {self.chips} and seed {self.seed}; give at least 1 and 0.')


@dataclass(frozen=True)
class Example:
    """A chip to look at: (C, H, W) by modality, and where and when it lies."""

    values: dict[str, Float]
    title: str


@dataclass(frozen=True)
class Survey:
    """What explore shows.

    Attributes:
        rasters: As pretraining would read them.
        looks: By modality, those that have a chip.
        shown: Chips of all files by modality, before the filter.
        examples: A few places.
        left_out: Path, and why.
        settings: How it was made.
    """

    rasters: Rasters
    looks: dict[str, Look]
    shown: dict[str, list[FileChips]]
    examples: list[Example]
    left_out: list[LeftOut]
    settings: SurveySettings


def survey(
    paths: Sequence[str | Path], modalities: Sequence[Modality], settings: SurveySettings
) -> Survey:
    """Look at rasters; at most `settings.chips` chips per modality count.

    Args:
        paths: As `Rasters` takes them.
        modalities: Candidates, the anchor's first.
        settings: How.

    Raises:
        InputError: If there is no raster or no usable chip, or a file cannot be read.
    """
    rasters = Rasters(
        paths, modalities, settings.chip_size, settings.stride, settings.patch_size,
        keep=settings.keep,
    )  # fmt: skip
    masked = [(c, settings.keep.mask(c, as_partner=True)) for c in rasters.file_chips]
    kept = [c.take(keep) for c, keep in masked if keep.any()]
    drawn = draw(rasters, settings.chips, settings.seed)
    looks = {
        m.name: Look(m, chips, len(drawn.get(m.name, ())), settings.seed)
        for m in modalities
        if (chips := _of(kept, m.name))
    }
    examples = _read(rasters, drawn, looks)
    passed = {c.file.path for c in kept}
    gone = sorted({c.file.path for c in rasters.file_chips} - passed)
    left_out = [
        *_left_out(paths, rasters),
        *((p, 'has no chip that passes the filters') for p in gone),
    ]
    shown = {m.name: chips for m in modalities if (chips := _of(rasters.file_chips, m.name))}
    return Survey(rasters, looks, shown, examples, left_out, settings)


def draw(rasters: Rasters, chips: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Draw chips of each modality, evenly; modalities share chips where they share ground.

    Args:
        rasters: Whose.
        chips: How many of each at most.
        seed: Of the one random order that all modalities take theirs from.

    Returns:
        Indices by modality.
    """
    order = np.random.default_rng(seed).permutation(len(rasters))
    place = np.searchsorted(rasters.ends, order, side='right')
    drawn = {}
    for modality in rasters.modalities:
        has = np.array([any(x.name == modality.name for x in p.layers) for p in rasters.places])
        if has.any():
            drawn[modality.name] = order[has[place]][:chips]
    return drawn


def _of(chips: Sequence[FileChips], name: str) -> list[FileChips]:
    return [c for c in chips if c.file.modality.name == name]


def _read(
    rasters: Rasters, drawn: dict[str, NDArray[np.int64]], looks: dict[str, Look]
) -> list[Example]:
    """Read every drawn chip once, in the order of the files."""
    wanted = {name: set(chosen.tolist()) for name, chosen in drawn.items()}
    shown = _choose_examples(drawn, wanted)
    examples = []
    for index in tqdm(sorted(set().union(*wanted.values())), 'Reading chips', delay=2):
        sample = rasters[index]
        values = {name: sample[name].numpy() for name in looks if name in sample}
        for name, chip in values.items():
            if index in wanted[name]:
                looks[name].update(chip)
        if index in shown:
            examples.append(Example(values, _where(rasters, index)))
    return examples


def _choose_examples(
    drawn: dict[str, NDArray[np.int64]], wanted: dict[str, set[int]]
) -> set[int]:  # fmt: skip
    """Choose a few drawn chips: two of every modality, then those that show the most of them."""
    chosen: set[int] = set()
    for times in (1, 2):
        for name, indices in drawn.items():
            free = [i for i in indices.tolist() if i not in chosen]
            if len(chosen & wanted[name]) < times and free and len(chosen) < MOST_EXAMPLES:
                chosen.add(free[0])
    counts = Counter(i for indices in drawn.values() for i in indices.tolist())
    full = [i for i, n in counts.most_common() if n > 1 or len(drawn) == 1]
    rest = [i for i in full if i not in chosen]
    return chosen | set(rest[: MOST_EXAMPLES - len(chosen)])


def _where(rasters: Rasters, index: int) -> str:
    """Middle of a chip, its folder, and its date where one is known."""
    place = rasters.places[int(np.searchsorted(rasters.ends, index, side='right'))]
    west, south, east, north = rasters.box(index)
    file = place.layers[0].files[0]
    where = f'{(west + east) / 2:.3f}, {(south + north) / 2:.3f}'
    return '\n'.join(filter(None, (Path(file.path).parent.name, where, file.time[:10])))


def _left_out(paths: Sequence[str | Path], rasters: Rasters) -> list[LeftOut]:
    """What is not read, and why; an index remembers it from when it was written."""
    if Path(paths[0]).suffix != '.parquet':
        return rasters.left_out
    import pyarrow.parquet

    meta = json.loads(pyarrow.parquet.read_schema(paths[0]).metadata[b'gfm_jepa'])
    return [(path, why) for path, why in meta['left_out']]
