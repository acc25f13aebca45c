"""Tables that fill row by row: each row from a process of its own, kept as soon as it is there."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from gfm_jepa import InputError

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """Rows that are there."""
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows anew and move them into place: the file is whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    partial = path.with_name(f'{path.name}.tmp')
    with partial.open('w', newline='') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def require_columns(path: Path, columns: Sequence[str]) -> None:
    """Refuse a file that has rows of another kind.

    Raises:
        InputError: If its columns are others.
    """
    if (rows := read(path)) and set(rows[0]) != set(columns):
        raise InputError(
            f'{path} has the columns {", ".join(map(str, rows[0]))}, where '
            f'{", ".join(columns)} are written; name another file with --output.'
        )


def fill(
    path: Path, script: str, jobs: Sequence[Sequence[str]], parallel: int, say: Callable[[Row], str]
) -> None:
    """Make rows, several at a time, each in a process with one thread.

    A job that fails, as a method that collapses does, costs the others nothing: their rows are
    kept, and the end is a `SystemExit` that names it.

    Args:
        path: CSV file that the rows are appended to.
        script: Called with the words of a job; prints its rows as one JSON list on its last line.
        jobs: Words by job.
        parallel: Processes at once.
        say: What to print of a row when it is there.
    """
    failed: list[str] = []

    def work(words: Sequence[str]) -> list[Row]:
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        done = subprocess.run(
            [sys.executable, script, *words], env=environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            failed.append(' '.join(words))
            return []
        rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
        return rows

    with ThreadPoolExecutor(parallel) as pool:
        for job in as_completed([pool.submit(work, words) for words in jobs]):
            if rows := job.result():
                write(path, [*read(path), *rows])
                print(*map(say, rows), sep='\n', flush=True)
    if failed:
        raise SystemExit(f'{"; ".join(failed)} failed; what was said stands above.')
