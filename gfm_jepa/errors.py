"""The one error that means: the input is at fault, and here is what to do about it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input from the user.

    The message is one sentence: what came, what was expected, what to do. The command line prints
    it without a traceback and exits with status 2.
    """

    @property
    def sentence(self) -> str:
        """The message alone, which ends the traceback that a reading process sends along."""
        return str(self).rpartition('InputError: ')[2].strip()


def require_seed(seed: int) -> None:
    """Refuse a seed that not every generator takes.

    Raises:
        InputError: If it is below 0 or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f'The seed is {seed}; give a whole number from 0 to {2**32 - 1}.')


@contextmanager
def told_in_one_sentence(program: str) -> Iterator[None]:
    """Let an `InputError` end a program: its sentence on stderr, no traceback, status 2."""
    try:
        yield
    except InputError as error:
        print(f'{program}: error: {error.sentence}', file=sys.stderr)
        raise SystemExit(2) from error
