"""What may be written where: an output takes the place of no input, and its ending is right."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import InputError

MAPS = ('.tif', '.tiff')
EMBEDDINGS = (*MAPS, '.parquet')
PICTURES = ('.png', '.jpg', '.jpeg', '.pdf', '.svg', '.webp')  # of those that matplotlib writes


def require_ending(output: Path, endings: Sequence[str]) -> None:
    """Refuse an output that does not end as what it will hold, or that is a folder.

    Raises:
        InputError: Naming the endings.
    """
    if output.suffix.lower() not in endings or output.is_dir():
        raise InputError(
            f'{output} should be a file that ends in {" or ".join(endings)}; name another output.'
        )


def require_folder(output: Path) -> None:
    """Refuse a file where a folder is written to.

    Raises:
        InputError: Naming it.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f'{output} is a file, and a folder is written; name another output.')


def require_apart(outputs: Iterable[Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Refuse an output that is an input, by whatever name, or that is another output.

    Args:
        outputs: Files and folders that are written; those that are None are not.
        inputs: What is read, as the command line says it: also ``NAME=PATH``, URLs and None.

    Raises:
        InputError: Naming the output.
    """
    read = _local(inputs)
    written: list[Path] = []
    for output in outputs:
        if output is None:
            continue
        if any(_same(output, path) for path in read):
            raise InputError(f'{output} is an input, which it would replace; name another output.')
        if any(_same(output, path) for path in written):
            raise InputError(f'{output} would be written twice; name another output.')
        written.append(output)


def require_clear(output: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse an output that is an input, is there within one, or has an input within it.

    Args:
        output: File or folder that is written.
        inputs: Files and folders that are read, as for `require_apart`.

    Raises:
        InputError: Naming both.
    """
    read = _local(inputs)
    require_apart([output], read)
    above = output.resolve().parents
    for path in read:
        if output.exists() and any(_same(folder, path) for folder in above):
            raise InputError(f'{output} lies within the input {path}; name another output.')
        if any(_same(folder, output) for folder in path.resolve().parents):
            raise InputError(f'The input {path} lies within {output}; name another output.')


def picture_beside(
    output: Path, picture: Path | None, inputs: Iterable[str | Path | None],
    mask: Path | None = None,
) -> Path:  # fmt: skip
    """Where the picture of a map or table goes; refuses outputs before there is any work.

    Args:
        output: Map or table that is written.
        picture: What the command line says; a PNG beside the output by default.
        inputs: As for `require_apart`.
        mask: Another map that is written.

    Raises:
        InputError: If an ending is wrong, or an output is an input or another output.
    """
    require_ending(output, EMBEDDINGS)
    picture = output.with_suffix('.png') if picture is None else picture
    require_ending(picture, PICTURES)
    if mask is not None:
        require_ending(mask, MAPS)
    require_apart((output, picture, mask), inputs)
    return picture


def _local(inputs: Iterable[str | Path | None]) -> list[Path]:
    """The paths of this machine among inputs, without what they are said to be."""
    paths = []
    for text in (str(i) for i in inputs if i is not None):
        name, sign, rest = text.partition('=')
        stated = sign and '/' not in name and not Path(text).exists()
        if '://' not in text:
            paths.append(Path(rest if stated else text).expanduser())
    return paths


def _same(one: Path, other: Path) -> bool:
    """Whether two names are of one place, through links of both kinds."""
    if one.resolve() == other.resolve():
        return True
    return one.exists() and other.exists() and one.samefile(other)
