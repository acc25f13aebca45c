"""What a raster of classes says of them: names in its tags, and colours."""

import re
from collections.abc import Mapping, Sequence

# Paul Tol's colours, which colour-blind readers tell apart; more classes than that repeat them.
COLOURS = ('#332288', '#88CCEE', '#44AA99', '#117733', '#999933', '#DDCC77', '#CC6677', '#882255',
           '#AA4499', '#BBBBBB', '#000000', '#EE8866')  # fmt: skip


def colour_of(number: int) -> tuple[int, int, int, int]:
    """Red, green, blue and opacity of a class, 0 to 255 each."""
    red, green, blue = bytes.fromhex(COLOURS[number % len(COLOURS)][1:])
    return red, green, blue, 255


def class_tags(names: Sequence[str]) -> dict[str, str]:
    """Tags that name classes by their number; none for a class without a name."""
    return {f'class_{i}': name for i, name in enumerate(names) if name}


def class_names(tags: Mapping[str, str]) -> dict[int, str]:
    """Names by number, out of the tags of a raster."""
    found = ((re.fullmatch(r'class_(\d+)', key), name) for key, name in tags.items())
    return {int(match[1]): name for match, name in found if match}
