"""Where the encoder of a verb computes."""

import os

import torch

from ..errors import InputError
from ..models import BaseEncoder


def place(encoder: BaseEncoder, device: str) -> BaseEncoder:
    """Bring an encoder to a device; ``cuda`` is each process's own under torchrun.

    Raises:
        InputError: If there is no such device.
    """
    if device == 'cuda' and 'LOCAL_RANK' in os.environ:
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
    try:
        return encoder.to(torch.device(device)).eval()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f'There is no device {device!r} here ({reason}); take cpu.') from error
