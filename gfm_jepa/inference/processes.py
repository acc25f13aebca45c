"""Processes and threads that compute together; bytes do not depend on how many there are."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed


def ranks() -> tuple[int, int, Callable[[], object]]:
    """Rank, number of processes, and what makes each wait for all, as torchrun says.

    The group of processes stays until they end: torchrun's store does not stand a second one.
    """
    if not distributed.is_initialized():
        if int(os.environ.get('WORLD_SIZE', '1')) == 1:
            return 0, 1, lambda: None
        # A rank may have to wait for the slowest one's whole share.
        distributed.init_process_group('gloo', timeout=timedelta(days=7))
    return distributed.get_rank(), distributed.get_world_size(), distributed.barrier


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Let each matrix product be computed by the thread that asks for it; how many there were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
