"""What is finished of an output, kept beside it until all is: a killed call goes on from there."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..data.index import make_folder, write_whole
from ..data.raster_files import Float
from ..errors import InputError


class Workspace:
    """The folder ``<output>.work``: parts as they are finished, and the settings that made them.

    A part is there as a whole or not at all, so that the files are the journal. Several processes
    may write parts at once, also from several machines that share the folder.

    Args:
        output: File or folder that all is for.
        settings: Plain values that parts depend on.
        form: Plain values that only the output depends on.
    """

    def __init__(
        self, output: Path, settings: Mapping[str, Any], form: Mapping[str, Any] | None = None
    ) -> None:
        output = output if output.name.strip('.') else output.resolve()  # "." has no name
        self.output = output
        self.folder = output.with_name(output.name + '.work')
        self.settings = json.loads(json.dumps(settings))
        self.all_settings = {**self.settings, 'form': json.loads(json.dumps(form))}
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """The folder is made by `prepare`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let other calls write there."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def prepare(self, overwrite: bool) -> bool:
        """Make the folder, or find what an earlier call left there; of one process alone.

        Args:
            overwrite: Whether an output may be replaced, or maps in a folder, and parts of other
                settings thrown away.

        Returns:
            Whether an earlier call had finished all and was killed while it cleaned up; then the
            output is in its place.

        Raises:
            InputError: If the output is there, parts are of other settings, another call writes
                the same output, or nothing can be written there.
        """
        finished = self.folder / 'finished.json'
        if finished.is_file() and _read(finished) == self.all_settings:
            if self._result.exists():
                _move(self._result, self.output)
            self.remove()
            return True
        if _occupied(self.output) and not overwrite:
            raise InputError(
                f'{self.output} is there already; name another output, or add --overwrite.'
            )
        made_by = self.folder / 'settings.json'
        if self.folder.exists():
            found = _read(made_by)
            ours = {'lock', f'{made_by.name}.tmp'}
            if found is None and {path.name for path in self.folder.iterdir()} - ours:
                raise InputError(
                    f'{self.folder} is in the way, and not of an earlier call; move it.'
                )
            if found is not None and found != self.settings and not overwrite:
                differs = _difference(found, self.settings)
                raise InputError(
                    f'{self.folder} holds parts of another call ({differs}); repeat that call to '
                    f'finish it, or add --overwrite to begin anew.'
                )
            self._hold()
            if found != self.settings:
                shutil.rmtree(self.folder)
        make_folder(self.folder)
        self._hold()
        with disk(self.folder):
            write_whole(made_by, json.dumps(self.settings).encode())
        return False

    def has(self, part: str) -> bool:
        """Whether a part is finished."""
        return (self.folder / part).is_file()

    def save(self, part: str, values: Float) -> None:
        """Keep a part.

        Raises:
            InputError: If the disk is full.
        """
        path = self.folder / part
        partial = path.with_name(f'{part}.{os.getpid()}.tmp')
        with disk(self.folder):
            try:
                with partial.open('wb') as file:
                    np.save(file, values)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def load(self, part: str) -> Float:
        """A part, mapped, so that only what is looked at is read."""
        values: Float = np.load(self.folder / part, mmap_mode='r')
        return values

    @contextmanager
    def result(self) -> Iterator[Path]:
        """A path to write the whole to; afterwards it is moved into place and the parts go.

        Raises:
            InputError: If the disk is full; the parts stay.
        """
        with disk(self.folder):
            _delete(self._result)
            try:
                yield self._result
                finished = json.dumps(self.all_settings).encode()
                write_whole(self.folder / 'finished.json', finished)
            except BaseException:
                _delete(self._result)
                raise
            _move(self._result, self.output)
        self.remove()

    def remove(self) -> None:
        """Remove the folder; last what says that all is finished."""
        for path in self.folder.glob('*'):
            if path.name != 'finished.json':
                _delete(path)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _result(self) -> Path:
        return self.folder / f'result{self.output.suffix}'

    def _hold(self) -> None:
        """Keep other calls away, until this one ends, however it does."""
        self.__exit__()
        self._lock = os.open(self.folder / 'lock', os.O_CREAT | os.O_WRONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f'Another call is writing {self.output}; wait for it, or name another output.'
            ) from error
        except OSError:  # a file system without locks
            return


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Say in one sentence what the operating system says when it cannot write.

    Raises:
        InputError: Instead of OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).strip().splitlines()[-1]
        raise InputError(
            f'{folder} cannot be written ({reason}); what is finished stays there: make space and '
            f'give the same command again, or delete it.'
        ) from error


def _move(result: Path, output: Path) -> None:
    """Put a finished file or folder in its place.

    Maps go into a folder that is there, of which all else stays. A store that is there is moved
    aside first.
    """
    if output.is_dir() and not result.suffix:
        for path in sorted(result.iterdir()):
            _replace(path, output / path.name)
        result.rmdir()
        return
    if output.is_dir():
        aside = result.with_name('replaced')
        _delete(aside)
        output.rename(aside)
    os.replace(result, output)


def _replace(path: Path, target: Path) -> None:
    """Move a file in one step, also into a folder where another disk is mounted."""
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = target.with_name(f'{target.name}.tmp')
        try:
            shutil.copyfile(path, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        path.unlink()


def _occupied(output: Path) -> bool:
    """Whether something is there that would be replaced; an empty folder is nothing."""
    return any(output.iterdir()) if output.is_dir() else output.exists()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(path: Path) -> Any:
    """JSON of a file; None if there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _difference(found: Any, settings: Mapping[str, Any]) -> str:
    """The first setting that differs, for people."""
    if not isinstance(found, dict):
        return 'it does not say of which'
    keys = [k for k in settings if found.get(k) != settings[k]]
    if not keys:
        return 'of other settings'
    old, new = (str(x)[:60] for x in (found.get(keys[0]), settings[keys[0]]))
    return f'{keys[0]} was {old}, is {new}' if old != new else f'{keys[0]} differs'
