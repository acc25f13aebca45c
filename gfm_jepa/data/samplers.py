"""In which order chips are seen: by rank, in batches of one shape, and resumable mid-epoch."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

HUGE = 1e18  # its square is infinite in float32
_GRACE = 20  # seconds that a worker lives on after SIGTERM


class GroupBatchSampler(Sampler[list[int]]):
    """Batches whose samples all belong to one group, in a new order each epoch.

    Every rank draws the same global batches and takes its own part of each, so that two ranks with
    a batch size of n see what one rank with 2 n sees. A group's last, short batch is left out,
    unless the group has no other.

    Args:
        groups: Indices of the samples of each group; a batch never mixes two.
        batch_size: Samples of a batch on one rank.
        seed: Of the order.
        samples_per_epoch: How many samples to draw without replacement each epoch; all by default.
        rank: Of this process.
        world_size: Number of processes.
        run: Samples that are stored together and stay near each other; see `shuffled`.
        pool: Samples among which order is random; all if there are fewer.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        batch_size: int,
        seed: int = 0,
        samples_per_epoch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        run: int = 32,
        pool: int = 1024,
    ) -> None:
        self.groups = [g for g in groups if len(g)]
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.run, self.pool = run, pool
        whole = batch_size * world_size
        self.batches = sum(max(len(g) // whole, 1) for g in self.groups)
        if samples_per_epoch:
            self.batches = min(self.batches, max(samples_per_epoch // whole, 1))
        self.epoch = 0
        self.start = 0  # batches of the current epoch that are already done

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        whole = self.batch_size * self.world_size
        batches, keys = [], []
        for group in self.groups:
            order = shuffled(len(group), self.run, self.pool, generator)
            count = max(len(group) // whole, 1)
            batches += [(group, order[i * whole : (i + 1) * whole]) for i in range(count)]
            # Groups alternate at random; within each, what lies together stays together.
            keys.append(torch.rand(count, generator=generator).sort().values)
        for i in torch.cat(keys).argsort(stable=True)[: self.batches][self.start :].tolist():
            group, part = batches[i]
            if len(part) < self.world_size:  # every rank needs a sample
                part = part.repeat(self.world_size)
            part = part[: len(part) // self.world_size * self.world_size]  # and all as many
            yield [int(group[j]) for j in part[self.rank :: self.world_size].tolist()]

    def indices(self, batch_idx: int) -> list[int]:
        """Samples of one batch of the current epoch, drawn again."""
        start, self.start = self.start, batch_idx
        drawn = next(iter(self), [])
        self.start = start
        return drawn


def shuffled(count: int, run: int, pool: int, generator: torch.Generator) -> Tensor:
    """A random order in which neighbours in storage stay near each other.

    Runs of neighbours are shuffled, and then all samples of a pool of runs among each other: a pool
    touches few files, so that they stay open and each block is decoded once.

    Args:
        count: Samples N.
        run: Length of a run.
        pool: Samples of a pool; with N up to that, the order is fully random.
        generator: Source of randomness.

    Returns:
        (N,) a permutation.
    """
    if count <= pool:
        return torch.randperm(count, generator=generator)
    starts = torch.randperm(-(-count // run), generator=generator) * run
    order = (starts[:, None] + torch.arange(run)).flatten()
    order = order[order < count]
    key = torch.arange(count) // pool + torch.rand(count, generator=generator, dtype=torch.float64)
    return order[key.argsort()]


class OrderedBatchSampler(Sampler[list[int]]):
    """All samples once and in order, in batches of one group each.

    Args:
        groups: Indices of the samples of each group.
        batch_size: Samples of a batch; the last of a group may have fewer.
    """

    def __init__(self, groups: Sequence[Sequence[int]], batch_size: int) -> None:
        self.groups = groups
        self.batch_size = batch_size

    def __len__(self) -> int:
        return sum(-(-len(group) // self.batch_size) for group in self.groups)

    def __iter__(self) -> Iterator[list[int]]:
        for group in self.groups:
            for i in range(0, len(group), self.batch_size):
                yield list(group[i : i + self.batch_size])


def files_of(dataset: Any, index: int, modality: str | None = None) -> list[str]:
    """What a sample was read from: a dataset's `files` are a method, a list, or not known.

    Those of one modality alone, if one is named and the dataset knows (`locate`, of rasters).
    """
    if modality is not None and hasattr(dataset, 'locate'):
        layers = dataset.locate(index)[0].layers
        return [f.path for layer in layers if layer.name == modality for f in layer.files]
    files = getattr(dataset, 'files', None)
    if files is None:
        return [f'sample {index}']
    return list(map(str, files(index) if callable(files) else [files[index]]))


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that goes on where it was left, mid-epoch too; Lightning keeps its state.

    Args:
        dataset: Map-style dataset.
        batch_sampler: Decides the order.
        num_workers: Processes that read.
        collate_fn: Makes a batch of samples; torch's by default.
        limit: Batches of an epoch, or the share of them (a float), of which more is not asked for:
            Lightning's ``limit_train_batches``.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_sampler: GroupBatchSampler,
        num_workers: int = 0,
        collate_fn: Any = None,
        limit: float = 1.0,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=num_workers,
            collate_fn=collate_fn,
            persistent_workers=False,
            worker_init_fn=_leave_signals,
        )
        self.order = batch_sampler
        whole = len(batch_sampler)
        self.last = min(limit, whole) if isinstance(limit, int) else int(limit * whole)
        self.done = 0
        self.resumed = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Lightning does not ask again after the last batch of an epoch: what was begun and not just
        # resumed is over when it asks anew.
        if self.done >= self.last or (self.done and not self.resumed):
            self.done = 0
            self.order.epoch += 1
        self.resumed = False
        self.order.start = self.done
        for batch in super().__iter__():
            self.done += 1
            yield batch

    def sources(self, batch_idx: int) -> tuple[list[str], list[str]]:
        """What a batch of this epoch was read from: the files of each sample, else its index.

        Returns:
            Of all samples, and of those whose values, read again, are too large to square, with
            the modality that they are in.
        """
        names, huge = [], []
        for i in self.order.indices(batch_idx):
            names.append(', '.join(files_of(self.dataset, i)))
            for name, value in self.dataset[i].items():
                if isinstance(value, Tensor) and (value.abs() > HUGE).any():
                    huge.append(f'{name} of {", ".join(files_of(self.dataset, i, name))}')
        return names, huge

    def state_dict(self) -> dict[str, int]:
        """Epoch, batches of it that were handed out, and the seed of the order."""
        return {'epoch': self.order.epoch, 'done': self.done, 'seed': self.order.seed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on behind the last batch that was handed out."""
        self.order.epoch, self.done = state_dict['epoch'], state_dict['done']
        self.order.seed = state_dict.get('seed', self.order.seed)
        self.resumed = True


def _leave_signals(worker: int) -> None:
    """Leave it to the main process to end the run: it saves, and its workers end with it.

    A signal to the whole process group, as schedulers send it, would end them at once, and torch
    would stop the run in the middle of a step. SIGTERM is also how torch and Python end a worker
    that hangs: it takes effect later.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
