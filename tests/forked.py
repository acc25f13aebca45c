"""A process that starts at once: a fork of the test's, which has imported everything.

Not for what writes rasters: threads that GDAL has started in the test are not there in the fork,
and it would wait for them.
"""

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable


class Forked:
    """Run a function in a process and a session of its own, with pipes to its standard streams.

    Args:
        call: What to run; the process ends with the status that it returns.
    """

    def __init__(self, call: Callable[[], int]) -> None:
        (here_in, stdin), (stdout, here_out) = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            # Of threads of the test's, which the new process does without.
            warnings.simplefilter('ignore', DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _run(call, here_in, here_out)
        os.close(here_in)
        os.close(here_out)
        self.stdin, self.stdout = os.fdopen(stdin, 'w'), os.fdopen(stdout)

    def communicate(self, line: str = '') -> tuple[str, int]:
        """Write a line, and wait: what it printed since, and its status, negative of a signal."""
        self.stdin.write(line)
        self.stdin.close()
        with self.stdout:
            printed = self.stdout.read()
        return printed, os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _run(call: Callable[[], int], stdin: int, out: int) -> None:
    status = 1
    try:
        os.setsid()
        signal.alarm(900)  # nobody waits for longer
        for stream, end in enumerate((stdin, out, out)):
            os.dup2(end, stream)
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, 'w')
        sys.stderr = sys.stdout
        logging.getLogger('lightning.pytorch').addHandler(logging.StreamHandler(sys.stdout))
        status = call()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        print('' if isinstance(end.code, int) else end.code)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)
