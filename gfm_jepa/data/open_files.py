"""Files that stay open while windows of them are read, and are opened again when a read fails."""

import os
import time
from collections import OrderedDict
from typing import Any

from rasterio.windows import Window

from ..errors import InputError
from .grids import Grid
from .raster_files import Float, RasterFile, Source

# Files that a process keeps open: each holds megabytes, and opening one again costs less than
# decoding one block.
MAX_OPEN = 32
RETRY_AFTER = (0.5, 2.0, 5.0)  # seconds before a remote file is read again


class OpenFiles:
    """Read windows of many files; the last ones used stay open, and GDAL caches their blocks.

    It crosses to other processes, by pickle or fork, without its open files. One thread at a time.
    """

    def __init__(self) -> None:
        self._handles: OrderedDict[tuple[str, Grid | None], Source] = OrderedDict()
        self._owner = os.getpid()

    def read(self, file: RasterFile, grid: Grid | None, window: Window) -> Float:
        """Read a window of a file; a remote one that fails is opened and read again.

        Args:
            file: What to read.
            grid: Grid to warp it to; its own if None.
            window: Columns and rows of that grid, which may reach beyond the raster.

        Returns:
            (C, H, W) in the modality's bands and unit, NaN where there is no data.

        Raises:
            InputError: If the file cannot be read.
        """
        for wait in (*RETRY_AFTER, None) if file.is_remote else (None,):
            try:
                return file.read(self._handle(file, grid), window)
            except InputError:
                self._drop(file, grid)
                if wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError('the last try returns or raises')

    def close(self) -> None:
        """Close all files."""
        while self._handles:
            self._handles.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to other processes."""
        return {'_handles': OrderedDict(), '_owner': -1}

    def _handle(self, file: RasterFile, grid: Grid | None) -> Source:
        """Open file, kept open in this process."""
        if self._owner != os.getpid():  # a handle must not cross a fork
            self._handles, self._owner = OrderedDict(), os.getpid()
        key = (file.uri, grid)
        if key not in self._handles:
            self._handles[key] = file.open(grid)
            if len(self._handles) > MAX_OPEN:
                self._handles.popitem(last=False)[1].close()
        self._handles.move_to_end(key)
        return self._handles[key]

    def _drop(self, file: RasterFile, grid: Grid | None) -> None:
        """Close a file that failed."""
        if handle := self._handles.pop((file.uri, grid), None):
            handle.close()
