"""Where a run lives on disk: its loggers, its checkpoints, and how it is broken off and resumed."""

import csv
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning_utilities.core.rank_zero import rank_zero_info

from ..evaluation.dashboard import write_dashboard

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a local checkpoint beside its place, and move it there when it is whole and on disk.

    Lightning writes to the folder for temporary files and moves from there, which copies where that
    is another file system: a kill in between leaves half a checkpoint under the good one's name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write all of it, or nothing."""
        if '://' in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        whole = Path(path)
        whole.parent.mkdir(parents=True, exist_ok=True)
        part = whole.with_name(whole.name + '.part')
        with part.open('wb') as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(whole)


class _ContinuedWriter(ExperimentWriter):
    """Writes behind the rows that are there."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir=log_dir)
        path = Path(self.metrics_file_path)
        found = path.read_bytes() if path.is_file() else b''
        # A kill may have torn the last row, which the next one would be glued to.
        whole = found[: found.rfind(b'\n') + 1]
        if whole != found:
            part = path.with_name(path.name + '.part')
            part.write_bytes(whole)
            part.replace(path)
        self.metrics_keys = next(csv.reader(whole.decode().splitlines()), [])

    def drop_from(self, step: int) -> None:
        """Drop the rows of a step and of all behind it, which are about to be written again."""
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline='') as file:
            rows = list(csv.DictReader(file))
        kept = [row for row in rows if float(row['step'] or 'inf') < step]
        if len(kept) == len(rows):
            return
        part = path.with_name(path.name + '.part')
        with part.open('w', newline='') as file:
            writer = csv.DictWriter(file, self.metrics_keys, extrasaction='ignore')
            writer.writeheader()
            writer.writerows(kept)
        part.replace(path)

    def _check_log_dir_exists(self) -> None:
        """Delete nothing; Lightning's own deletes the rows."""


class ContinuedCSVLogger(CSVLogger):
    """A CSVLogger that goes on with the ``metrics.csv`` that is there; Lightning's deletes it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer, behind the rows of the run that was broken off."""
        if self._experiment is None:
            self._experiment = _ContinuedWriter(self.log_dir)
        assert isinstance(self._experiment, ExperimentWriter)
        return self._experiment

    def drop_from(self, step: int) -> None:
        """Drop the rows of a step and of all behind it, if the run goes on from there."""
        if isinstance(writer := self.experiment, _ContinuedWriter):
            writer.drop_from(step)


def default_loggers(root: Path, name: str, resumed: Path | None) -> list[Logger]:
    """CSV and TensorBoard in one folder, ``root/name/version_N``.

    Args:
        root: Folder of all runs.
        name: Of the run.
        resumed: Checkpoint that the run goes on from; if it lies in such a folder, so do the logs.
    """
    numbers = [int(n) for p in (root / name).glob('version_*') if (n := p.name[8:]).isdigit()]
    version = max(numbers, default=-1) + 1
    for folder in resumed.absolute().parents if resumed else ():
        if folder.parent == (root / name).absolute() and folder.name[8:].isdigit():
            version = int(folder.name[8:])
    return [
        ContinuedCSVLogger(root, name, version),
        TensorBoardLogger(root, name, version, default_hp_metric=False),
    ]


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint below a folder that was written last, if there is one."""
    return max(folder.rglob('*.ckpt'), key=lambda p: p.stat().st_mtime_ns, default=None)


class Preemption(Callback):
    """On SIGTERM or SIGUSR1, save after the step that is under way, and end with 128 + the signal.

    143 or 138, as shells count: neither 0, which says that the run is finished, nor 2, which says
    that the input is bad. ``--ckpt_path auto`` goes on from there. One rank's signal ends all. The
    checkpoint is ``last.ckpt`` in the folder of the run's ModelCheckpoint.

    Under SLURM with Lightning's requeueing, SIGUSR1 is left to Lightning, which saves at once and
    requeues the job; the SIGTERM that SLURM sends next is handled here, between two steps.
    """

    def __init__(self) -> None:
        self.received = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals; Lightning puts the former handlers back at the end."""
        self.received = 0
        environment = getattr(trainer.strategy, 'cluster_environment', None)
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        theirs = getattr(environment, 'requeue_signal', None) if requeues else None
        for number in SIGNALS:
            if number != theirs:
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        self.received = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and end, if asked to."""
        if not trainer.strategy.reduce_boolean_decision(self.received > 0, all=False):
            return
        if trainer.fit_loop._should_accumulate():  # half a step cannot be saved
            return
        path = Path(trainer.log_dir or trainer.default_root_dir) / 'checkpoints' / 'last.ckpt'
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath:
                path = Path(callback.dirpath) / 'last.ckpt'
                callback.last_model_path = str(path)  # else it would count on to last-v1.ckpt
                break
        trainer.save_checkpoint(path)
        number = self.received or signal.SIGTERM
        rank_zero_info(
            f'Ended by {signal.Signals(number).name} after step {trainer.global_step}; saved '
            f'{path}: go on with the same command and --ckpt_path auto.'
        )
        # Lightning's launcher kills all processes when one that it started fails: let rank 0 tell.
        raise SystemExit(128 + number if trainer.is_global_zero else 0)


class SaveTheEnd(Callback):
    """Let ``last.ckpt`` be the end of a run: Lightning leaves it at the last multiple of steps."""

    def __init__(self) -> None:
        self.step = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the last step while its epoch goes on, so that a longer run can go on in it."""
        if trainer.global_step == trainer.max_steps:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what ended with an epoch, or early."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Save, unless that was saved."""
        step, self.step = self.step, trainer.global_step
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or callback.save_last is not True:
                continue
            if trainer.global_step in (step, callback._last_global_step_saved):
                continue
            metrics = callback._monitor_candidates(trainer)
            own = callback.last_model_path
            path = own or callback.format_checkpoint_name(metrics, callback.CHECKPOINT_NAME_LAST)
            if own or not callback.file_exists(path, trainer):  # else Lightning finds another name
                trainer.save_checkpoint(path, callback.save_weights_only)
                callback.last_model_path = callback._last_checkpoint_saved = path


class DrawDashboard(Callback):
    """Draw ``dashboard.png`` beside the ``metrics.csv`` of a run when it ends, well or not.

    Of a run that goes on, steps behind the checkpoint are taken again: their rows are dropped.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rows that will be written again."""
        for logger in trainer.loggers if trainer.is_global_zero and trainer.global_step else ():
            if isinstance(logger, ContinuedCSVLogger):
                logger.drop_from(trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        self._draw(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Draw."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        """Draw, if something was logged."""
        for logger in trainer.loggers if trainer.is_global_zero and trainer.global_step else ():
            if isinstance(logger, CSVLogger):
                logger.save()
                folder = Path(logger.log_dir)
                if (folder / 'metrics.csv').is_file():
                    path = write_dashboard(folder / 'metrics.csv', folder / 'dashboard.png')
                    rank_zero_info(f'dashboard: {path}')
