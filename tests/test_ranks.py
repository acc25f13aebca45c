"""Two processes on halves of a batch give the loss and the gradients of one on the whole."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from gfm_jepa import tasks
from gfm_jepa.modalities import Modality
from gfm_jepa.models.projectors import span_ranks
from gfm_jepa.tasks import EncoderConfig
from gfm_jepa.views import Views

torch.set_num_threads(1)
rank, world = int(sys.argv[1]), int(sys.argv[2])
if world > 1:
    dist.init_process_group('gloo', rank=rank, world_size=world)
sensor = Modality('s', ('a', 'b'), 10.0, 'DN', (0.0, 0.0), (1.0, 1.0)).to_dict()
batch = torch.randn(16, 2, 32, 32, generator=torch.Generator().manual_seed(3))

def views(self, batch, *_):
    # No draw of its own: each sample's views depend on nothing but the sample.
    both = {'s': torch.cat([batch['s'], batch['s'].flip(3) * 1.1])}
    return [{**both, 'gsd': {'s': 10.0}}]

Views.make = views
context = torch.tensor([0, 1, 4, 5, 10])
target = torch.tensor([[2, 3, 6], [8, 9, 12]])
from gfm_jepa.masks import MultiBlock, RandomCells

def there(ids, ground):
    ids = ids.expand(len(ground.valid), *ids.shape)
    return ids.masked_fill(~ground.valid.any(dim=1).view(-1, *[1] * (ids.ndim - 1)), -1)

MultiBlock.sample = lambda self, ground, *_: (there(context, ground), there(target, ground))
RandomCells.sample = lambda self, ground, *_: (
    there(context, ground), there(target.reshape(1, 6), ground))
gaps = batch.clone()
gaps[10:14] = torch.nan  # of one rank's half
gone = batch.clone()
gone[8:] = torch.nan  # all of it
found = {}
methods = 'IJEPA', 'LeJEPA', 'VICReg', 'SimSiam', 'LatentMIM'
cases = [(m, a, 'whole', batch) for m in methods for a in (1, 2)]
cases += [(m, 1, 'gaps', gaps) for m in methods]
cases += [(m, 1, 'gone', gone) for m in ('LeJEPA', 'VICReg', 'SimSiam')]
for name, accumulation, kind, samples in cases:
    torch.manual_seed(0)
    stem = 'linear' if name in ('IJEPA', 'LatentMIM') else 'conv'
    task = getattr(tasks, name)([sensor], EncoderConfig('nano', patch_size=8, stem=stem))
    task._seed, task.log_dict = 0, lambda values: None
    # In float32 a ReLU at its kink turns the order of a sum into another gradient (seen: 0.7 %).
    task.double()
    if world > 1:
        span_ranks(task)
    total = 0.0
    for part in samples.chunk(accumulation):
        mine = part.chunk(world)[rank]
        loss = task.compute_loss({'s': mine.double()}, 0) / accumulation
        loss.backward()
        total += loss.detach()
    grads = [p.grad for p in task.parameters() if p.grad is not None]
    if world > 1:  # what DDP does
        for grad in [*grads, total]:
            dist.all_reduce(grad)
            grad /= world
    found[f'{name}, {kind}, accumulation {accumulation}'] = [
        total.item(), [g.norm().item() for g in grads],
        torch.cat([g.flatten()[:: max(g.numel() // 50, 1)] for g in grads]).tolist()]
if rank == 0:
    print(json.dumps(found))
"""


def run(world):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    env = {**os.environ, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    processes = [
        subprocess.Popen([sys.executable, '-c', SCRIPT, str(rank), str(world)],
                         env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=200) for p in processes]
    assert all(p.returncode == 0 for p in processes), outputs
    return json.loads(outputs[0][0].splitlines()[-1])


def test_two_ranks_equal_one_on_the_joined_batch():
    one, two = run(1), run(2)
    assert len(one) == 18
    for name, (loss, norms, values) in one.items():
        assert two[name][0] == pytest.approx(loss, abs=1e-9), name
        scale = max(norms)
        assert two[name][1] == pytest.approx(norms, abs=1e-9 * scale, rel=1e-7), name
        assert torch.allclose(
            torch.tensor(two[name][2]), torch.tensor(values), atol=1e-9 * scale, rtol=1e-7
        ), name
